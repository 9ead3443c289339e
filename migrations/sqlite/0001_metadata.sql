-- Times are Unix milliseconds. Checks repeat the limits of the data model, as the last line of defence.

-- One row. `revision` numbers the changes of everything that coordinators follow; `fence` numbers the leases that were granted;
-- `needs_schema` is the newest migration that a program must know to work on this store: one that only adds leaves it as it is.
CREATE TABLE cluster_state (
    only_row INTEGER NOT NULL PRIMARY KEY DEFAULT 1 CHECK (only_row = 1),
    revision INTEGER NOT NULL DEFAULT 0,
    fence INTEGER NOT NULL DEFAULT 0,
    needs_schema INTEGER NOT NULL DEFAULT 1
) STRICT, WITHOUT ROWID;

INSERT INTO cluster_state DEFAULT VALUES;

-- What changed, the newest 10,000.
CREATE TABLE changes (
    revision INTEGER NOT NULL PRIMARY KEY,
    topic TEXT NOT NULL,
    subject TEXT NOT NULL DEFAULT ''
) STRICT;

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
    -- A deleted tenant's row stays: its id is never given to another.
    deleted_at INTEGER,
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
    deterministic INTEGER NOT NULL CHECK (deterministic IN (0, 1)),
    -- The file in a watched folder that it came from; none for an upload.
    source TEXT CHECK (source IS NULL OR length(CAST(source AS BLOB)) BETWEEN 1 AND 255),
    bytes BLOB NOT NULL CHECK (length(bytes) BETWEEN 1 AND 33554432),
    created_at INTEGER NOT NULL
) STRICT;

CREATE INDEX idx_plugin_artifacts_name ON plugin_artifacts (name, version);

-- What the plugin platform stores of a slot's binding: a text of its own, versioned in itself. The default for all tenants has
-- the tenant id ''. `version` is the revision of its last change.
CREATE TABLE plugin_binding_records (
    tenant_id TEXT NOT NULL CHECK (length(CAST(tenant_id AS BLOB)) <= 256),
    hook TEXT NOT NULL,
    version INTEGER NOT NULL CHECK (version >= 1),
    record TEXT NOT NULL CHECK (length(CAST(record AS BLOB)) <= 2097152),
    PRIMARY KEY (tenant_id, hook)
) STRICT, WITHOUT ROWID;

-- Who coordinates under which node id, and until when nobody else may.
CREATE TABLE coordinators (
    node_id TEXT NOT NULL PRIMARY KEY CHECK (length(node_id) BETWEEN 1 AND 128),
    instance BLOB NOT NULL CHECK (length(instance) = 16),
    address TEXT NOT NULL CHECK (length(address) BETWEEN 1 AND 300),
    version TEXT NOT NULL CHECK (length(version) BETWEEN 1 AND 64),
    fence INTEGER NOT NULL CHECK (fence >= 1),
    granted_at INTEGER NOT NULL,
    lease_until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE api_tokens (
    token_id TEXT NOT NULL PRIMARY KEY CHECK (length(token_id) BETWEEN 1 AND 64),
    hash BLOB NOT NULL CHECK (length(hash) = 32),
    -- None: good for every tenant.
    tenant_id TEXT CHECK (tenant_id IS NULL OR length(CAST(tenant_id AS BLOB)) BETWEEN 1 AND 256),
    scopes INTEGER NOT NULL CHECK (scopes BETWEEN 0 AND 4294967295),
    label TEXT NOT NULL CHECK (length(CAST(label AS BLOB)) <= 128),
    created_at INTEGER NOT NULL,
    expires_at INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE cluster_secrets (
    secret_id INTEGER NOT NULL PRIMARY KEY CHECK (secret_id >= 1),
    secret BLOB NOT NULL CHECK (length(secret) = 32),
    created_at INTEGER NOT NULL
) STRICT;
