-- What goes with a slot's binding. Adds only, so that programs of the version before go on: before a binding has a candidate,
-- `needs_schema` is raised to 13, and they refuse to start.

-- What has become of each slot, the newest entries: `number` is the revision of the change, `entry` a text of the plugin platform's own,
-- without secrets.
CREATE TABLE binding_history (
    tenant_id TEXT NOT NULL CHECK (length(CAST(tenant_id AS BLOB)) <= 256),
    hook TEXT NOT NULL,
    number INTEGER NOT NULL CHECK (number >= 1),
    entry TEXT NOT NULL CHECK (length(CAST(entry AS BLOB)) <= 4096),
    PRIMARY KEY (tenant_id, hook, number)
) STRICT, WITHOUT ROWID;

-- What each coordinator has seen of a candidate, or of a version that a slot is to have next, second by second. Kept for a day.
CREATE TABLE candidate_reports (
    tenant_id TEXT NOT NULL CHECK (length(CAST(tenant_id AS BLOB)) <= 256),
    hook TEXT NOT NULL,
    number INTEGER NOT NULL CHECK (number >= 1),
    coordinator TEXT NOT NULL CHECK (length(CAST(coordinator AS BLOB)) BETWEEN 1 AND 128),
    at_ms INTEGER NOT NULL,
    report TEXT NOT NULL CHECK (length(CAST(report AS BLOB)) <= 4096),
    PRIMARY KEY (tenant_id, hook, number, coordinator, at_ms)
) STRICT, WITHOUT ROWID;

-- The version that a slot is to have next, which every coordinator loads before it is put in force.
CREATE TABLE binding_preparations (
    tenant_id TEXT NOT NULL CHECK (length(CAST(tenant_id AS BLOB)) <= 256),
    hook TEXT NOT NULL,
    record TEXT NOT NULL CHECK (length(CAST(record AS BLOB)) <= 2097152),
    PRIMARY KEY (tenant_id, hook)
) STRICT, WITHOUT ROWID;
