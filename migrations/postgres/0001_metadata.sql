-- Times are Unix milliseconds. Checks repeat the limits of the data model, as the last line of defence. Ids are ordered by
-- their bytes, whatever the database's locale.

-- One row, locked by every change. `revision` numbers the changes of everything that coordinators follow; `fence` numbers the
-- leases that were granted; `needs_schema` is the newest migration that a program must know to work on this store: one that
-- only adds leaves it as it is, so that programs of the version before go on.
CREATE TABLE cluster_state (
    only_row BIGINT NOT NULL PRIMARY KEY DEFAULT 1 CHECK (only_row = 1),
    revision BIGINT NOT NULL DEFAULT 0,
    fence BIGINT NOT NULL DEFAULT 0,
    needs_schema BIGINT NOT NULL DEFAULT 1
);

INSERT INTO cluster_state DEFAULT VALUES;

-- What changed, the newest 10,000.
CREATE TABLE changes (
    revision BIGINT NOT NULL PRIMARY KEY,
    topic TEXT NOT NULL,
    subject TEXT NOT NULL DEFAULT ''
);

CREATE TABLE tenants (
    tenant_id TEXT COLLATE "C" NOT NULL PRIMARY KEY CHECK (octet_length(tenant_id) BETWEEN 1 AND 256),
    replication_factor BIGINT NOT NULL DEFAULT 3 CHECK (replication_factor BETWEEN 1 AND 5),
    conflict_mode TEXT NOT NULL DEFAULT 'register',
    ordering TEXT NOT NULL DEFAULT 'quorum',
    read_repair TEXT NOT NULL DEFAULT 'async',
    default_level TEXT NOT NULL DEFAULT 'quorum',
    minimum_level TEXT NOT NULL DEFAULT 'one',
    idempotency_outage TEXT NOT NULL DEFAULT 'reject',
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    -- A deleted tenant's row stays: its id is never given to another.
    deleted_at BIGINT,
    version BIGINT NOT NULL DEFAULT 1 CHECK (version >= 1)
);

CREATE INDEX idx_tenants_updated_at ON tenants (updated_at);

CREATE TABLE storage_nodes (
    node_id TEXT COLLATE "C" NOT NULL PRIMARY KEY CHECK (octet_length(node_id) BETWEEN 1 AND 128),
    host TEXT NOT NULL CHECK (octet_length(host) BETWEEN 1 AND 255),
    port BIGINT NOT NULL CHECK (port BETWEEN 0 AND 65535),
    status TEXT NOT NULL DEFAULT 'active',
    virtual_nodes BIGINT NOT NULL DEFAULT 150 CHECK (virtual_nodes BETWEEN 1 AND 4096),
    -- What the node told in its first handshake; another one later means another, or a wiped, disk.
    store_id BYTEA CHECK (store_id IS NULL OR octet_length(store_id) = 16),
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);

CREATE INDEX idx_storage_nodes_status ON storage_nodes (status);

CREATE TABLE plugin_artifacts (
    digest BYTEA NOT NULL PRIMARY KEY CHECK (octet_length(digest) = 32),
    name TEXT NOT NULL CHECK (octet_length(name) BETWEEN 1 AND 128),
    version TEXT NOT NULL CHECK (octet_length(version) BETWEEN 1 AND 64),
    hook TEXT NOT NULL,
    deterministic BOOLEAN NOT NULL,
    -- The file in a watched folder that it came from; none for an upload.
    source TEXT CHECK (source IS NULL OR octet_length(source) BETWEEN 1 AND 255),
    bytes BYTEA NOT NULL CHECK (octet_length(bytes) BETWEEN 1 AND 33554432),
    created_at BIGINT NOT NULL
);

CREATE INDEX idx_plugin_artifacts_name ON plugin_artifacts (name, version);

-- What the plugin platform stores of a slot's binding: a text of its own, versioned in itself. The default for all tenants has
-- the tenant id ''. `version` is the revision of its last change.
CREATE TABLE plugin_binding_records (
    tenant_id TEXT COLLATE "C" NOT NULL CHECK (octet_length(tenant_id) <= 256),
    hook TEXT COLLATE "C" NOT NULL,
    version BIGINT NOT NULL CHECK (version >= 1),
    record TEXT NOT NULL CHECK (octet_length(record) <= 2097152),
    PRIMARY KEY (tenant_id, hook)
);

-- Who coordinates under which node id, and until when nobody else may.
CREATE TABLE coordinators (
    node_id TEXT COLLATE "C" NOT NULL PRIMARY KEY CHECK (octet_length(node_id) BETWEEN 1 AND 128),
    instance BYTEA NOT NULL CHECK (octet_length(instance) = 16),
    address TEXT NOT NULL CHECK (octet_length(address) BETWEEN 1 AND 300),
    version TEXT NOT NULL CHECK (octet_length(version) BETWEEN 1 AND 64),
    fence BIGINT NOT NULL CHECK (fence >= 1),
    granted_at BIGINT NOT NULL,
    lease_until BIGINT NOT NULL
);

CREATE TABLE api_tokens (
    token_id TEXT COLLATE "C" NOT NULL PRIMARY KEY CHECK (octet_length(token_id) BETWEEN 1 AND 64),
    hash BYTEA NOT NULL CHECK (octet_length(hash) = 32),
    -- None: good for every tenant.
    tenant_id TEXT CHECK (tenant_id IS NULL OR octet_length(tenant_id) BETWEEN 1 AND 256),
    scopes BIGINT NOT NULL CHECK (scopes BETWEEN 0 AND 4294967295),
    label TEXT NOT NULL CHECK (octet_length(label) <= 128),
    created_at BIGINT NOT NULL,
    expires_at BIGINT
);

CREATE TABLE cluster_secrets (
    secret_id BIGINT NOT NULL PRIMARY KEY CHECK (secret_id >= 1),
    secret BYTEA NOT NULL CHECK (octet_length(secret) = 32),
    created_at BIGINT NOT NULL
);
