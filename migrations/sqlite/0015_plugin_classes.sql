-- Classes of limits of plugins: see host/kernel/class.rs and host/kernel/port/classes.rs. A class that has no row here is not granted. Of a
-- plugin: the class that it needs, and what of it is beyond the next stricter one. Adds only, so that programs of the version before go on.
-- They would refuse to load a plugin of another class than standard: before there is one, `needs_schema` is raised to 15.
CREATE TABLE plugin_class_grants (
    tenant_id TEXT NOT NULL CHECK (length(CAST(tenant_id AS BLOB)) BETWEEN 1 AND 256),
    class TEXT NOT NULL CHECK (length(class) BETWEEN 1 AND 64),
    granted_at INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, class)
) STRICT, WITHOUT ROWID;

-- The last compilations for a tenant that count. There are as many places as compilations may begin within an hour.
CREATE TABLE plugin_compilations (
    tenant_id TEXT NOT NULL CHECK (length(CAST(tenant_id AS BLOB)) BETWEEN 1 AND 256),
    place INTEGER NOT NULL,
    began_at INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, place)
) STRICT, WITHOUT ROWID;

ALTER TABLE plugin_artifacts ADD COLUMN class TEXT NOT NULL DEFAULT 'standard' CHECK (length(class) BETWEEN 1 AND 64);
ALTER TABLE plugin_artifacts ADD COLUMN class_reason TEXT NOT NULL DEFAULT '' CHECK (length(class_reason) <= 256);
