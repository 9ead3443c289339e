-- Components that were pushed and that nobody waits for: see host/kernel/port/pushes.rs. '' in tenant_id: the operator's. At most 32 for
-- each owner; what has not changed for a day is forgotten. Adds only, so that programs of the version before go on.
CREATE TABLE plugin_pushes (
    tenant_id TEXT COLLATE "C" NOT NULL CHECK (octet_length(tenant_id) <= 256),
    digest BYTEA NOT NULL CHECK (octet_length(digest) = 32),
    bytes BIGINT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('staged', 'compiling', 'ready', 'refused')),
    reason TEXT NOT NULL CHECK (octet_length(reason) <= 1024),
    -- The coordinator that works on it.
    worker TEXT COLLATE "C" NOT NULL CHECK (octet_length(worker) BETWEEN 1 AND 256),
    -- When it came into this state: Unix time in milliseconds.
    since BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, digest)
);
