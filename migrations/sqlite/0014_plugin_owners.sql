-- Whose plugins are: see host/kernel/port/owners.rs. A component that no row here names is the operator's, as all were before; one that
-- rows name belongs to these tenants. `created_at`: when the tenant staged it first. `signed_by`: the id of the key that has signed it.
-- Adds only, so that programs of the version before go on. They would show a tenant's plugins to everybody: before there is a row here,
-- `needs_schema` is raised to 14, and they refuse to start.
CREATE TABLE plugin_owners (
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    tenant_id TEXT NOT NULL CHECK (length(CAST(tenant_id AS BLOB)) BETWEEN 1 AND 256),
    signed_by TEXT CHECK (signed_by IS NULL OR length(signed_by) BETWEEN 1 AND 64),
    created_at INTEGER NOT NULL,
    PRIMARY KEY (digest, tenant_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX idx_plugin_owners_tenant ON plugin_owners (tenant_id);

-- For the operator.
ALTER TABLE plugin_artifacts ADD COLUMN signed_by TEXT CHECK (signed_by IS NULL OR length(signed_by) BETWEEN 1 AND 64);

-- Public keys of Ed25519 with which plugins may be signed. The operator has the tenant id ''.
CREATE TABLE plugin_signing_keys (
    tenant_id TEXT NOT NULL CHECK (length(CAST(tenant_id AS BLOB)) <= 256),
    key_id TEXT NOT NULL CHECK (length(key_id) BETWEEN 1 AND 64),
    public_key BLOB NOT NULL CHECK (length(public_key) = 32),
    created_at INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, key_id)
) STRICT, WITHOUT ROWID;
