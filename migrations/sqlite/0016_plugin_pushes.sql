-- Components that were pushed and that nobody waits for: see host/kernel/port/pushes.rs. '' in tenant_id: the operator's. At most 32 for
-- each owner; what has not changed for a day is forgotten. Adds only, so that programs of the version before go on.
CREATE TABLE plugin_pushes (
    tenant_id TEXT NOT NULL CHECK (length(CAST(tenant_id AS BLOB)) <= 256),
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    bytes INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('staged', 'compiling', 'ready', 'refused')),
    reason TEXT NOT NULL CHECK (length(CAST(reason AS BLOB)) <= 1024),
    -- The coordinator that works on it.
    worker TEXT NOT NULL CHECK (length(CAST(worker AS BLOB)) BETWEEN 1 AND 256),
    -- When it came into this state: Unix time in milliseconds.
    since INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, digest)
) STRICT, WITHOUT ROWID;
