-- Times are Unix milliseconds. Checks repeat the limits of the data model, as the last line of defence.

CREATE TABLE tenants (
    tenant_id TEXT NOT NULL PRIMARY KEY CHECK (length(CAST(tenant_id AS BLOB)) BETWEEN 1 AND 256),
    replication_factor INTEGER NOT NULL DEFAULT 3 CHECK (replication_factor BETWEEN 1 AND 5),
    conflict_mode TEXT NOT NULL DEFAULT 'register',
    ordering TEXT NOT NULL DEFAULT 'quorum',
    read_repair TEXT NOT NULL DEFAULT 'async',
    default_level TEXT NOT NULL DEFAULT 'quorum',
    minimum_level TEXT NOT NULL DEFAULT 'one',
    idempotency_outage TEXT NOT NULL DEFAULT 'reject',
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    version INTEGER NOT NULL DEFAULT 1 CHECK (version >= 1)
) STRICT, WITHOUT ROWID;

CREATE INDEX idx_tenants_updated_at ON tenants (updated_at);

CREATE TABLE storage_nodes (
    node_id TEXT NOT NULL PRIMARY KEY CHECK (length(node_id) BETWEEN 1 AND 128),
    host TEXT NOT NULL CHECK (length(host) BETWEEN 1 AND 255),
    port INTEGER NOT NULL CHECK (port BETWEEN 0 AND 65535),
    status TEXT NOT NULL DEFAULT 'active',
    virtual_nodes INTEGER NOT NULL DEFAULT 150 CHECK (virtual_nodes BETWEEN 1 AND 4096),
    -- What the node told in its first handshake; another one later means another, or a wiped, disk.
    store_id BLOB CHECK (store_id IS NULL OR length(store_id) = 16),
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX idx_storage_nodes_status ON storage_nodes (status);

CREATE TABLE plugin_artifacts (
    digest BLOB NOT NULL PRIMARY KEY CHECK (length(digest) = 32),
    name TEXT NOT NULL CHECK (length(name) BETWEEN 1 AND 128),
    version TEXT NOT NULL CHECK (length(version) BETWEEN 1 AND 64),
    hook TEXT NOT NULL,
    bytes BLOB NOT NULL CHECK (length(bytes) BETWEEN 1 AND 33554432),
    created_at INTEGER NOT NULL
) STRICT;

CREATE INDEX idx_plugin_artifacts_name ON plugin_artifacts (name, version);

-- Every binding there was, numbered from 1 for each (tenant, hook). The default for all tenants has the tenant id ''.
CREATE TABLE plugin_bindings (
    tenant_id TEXT NOT NULL CHECK (length(CAST(tenant_id AS BLOB)) <= 256),
    hook TEXT NOT NULL,
    number INTEGER NOT NULL CHECK (number >= 1),
    -- What was in force before: 0 for nothing. Rolling back leads there; a shadow or canary runs beside it.
    previous INTEGER NOT NULL CHECK (previous BETWEEN 0 AND number - 1),
    digest BLOB NOT NULL REFERENCES plugin_artifacts (digest),
    configuration BLOB NOT NULL CHECK (length(configuration) <= 65536),
    on_fault TEXT NOT NULL,
    mode TEXT NOT NULL,
    percent INTEGER NOT NULL DEFAULT 0 CHECK (percent BETWEEN 0 AND 100),
    by_name TEXT CHECK (by_name IS NULL OR length(by_name) BETWEEN 1 AND 128),
    created_at INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, hook, number)
) STRICT, WITHOUT ROWID;

CREATE INDEX idx_plugin_bindings_digest ON plugin_bindings (digest);

-- Which one is in force: 0 for none. `last` is the greatest number ever given, so that none is given twice.
CREATE TABLE plugin_bindings_in_force (
    tenant_id TEXT NOT NULL,
    hook TEXT NOT NULL,
    number INTEGER NOT NULL,
    last INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, hook)
) STRICT, WITHOUT ROWID;

-- What the plugin platform stores of a slot's binding: a text of its own, versioned in itself.
CREATE TABLE plugin_binding_records (
    tenant_id TEXT NOT NULL CHECK (length(CAST(tenant_id AS BLOB)) <= 256),
    hook TEXT NOT NULL,
    record TEXT NOT NULL,
    PRIMARY KEY (tenant_id, hook)
) STRICT, WITHOUT ROWID;

CREATE TABLE cluster_secrets (
    secret_id INTEGER NOT NULL PRIMARY KEY CHECK (secret_id >= 1),
    secret BLOB NOT NULL CHECK (length(secret) = 32),
    created_at INTEGER NOT NULL
) STRICT;
