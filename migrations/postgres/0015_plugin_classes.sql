-- Classes of limits of plugins: see host/kernel/class.rs and host/kernel/port/classes.rs. A class that has no row here is not granted. Of a
-- plugin: the class that it needs, and what of it is beyond the next stricter one. Adds only, so that programs of the version before go on.
-- They would refuse to load a plugin of another class than standard: before there is one, `needs_schema` is raised to 15.
CREATE TABLE plugin_class_grants (
    tenant_id TEXT COLLATE "C" NOT NULL CHECK (octet_length(tenant_id) BETWEEN 1 AND 256),
    class TEXT COLLATE "C" NOT NULL CHECK (octet_length(class) BETWEEN 1 AND 64),
    granted_at BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, class)
);

-- The last compilations for a tenant that count. There are as many places as compilations may begin within an hour.
CREATE TABLE plugin_compilations (
    tenant_id TEXT COLLATE "C" NOT NULL CHECK (octet_length(tenant_id) BETWEEN 1 AND 256),
    place BIGINT NOT NULL,
    began_at BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, place)
);

ALTER TABLE plugin_artifacts ADD COLUMN class TEXT NOT NULL DEFAULT 'standard' CHECK (octet_length(class) BETWEEN 1 AND 64);
ALTER TABLE plugin_artifacts ADD COLUMN class_reason TEXT NOT NULL DEFAULT '' CHECK (octet_length(class_reason) <= 256);
