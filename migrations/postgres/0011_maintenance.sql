-- Maintenance of storage nodes: which are drained, and which stores are replaced because an operator has asked for it.
-- Adds only, so that programs of the version before go on: before a node is drained, or there is a migration of the kind replace_store,
-- `needs_schema` is raised to 11, and they refuse to start.
ALTER TABLE storage_nodes ADD COLUMN drained BOOLEAN NOT NULL DEFAULT FALSE;

-- Of the kind replace_store: the store on record, and the one that is filled in its place. There, `lost` says that loss is accepted.
ALTER TABLE migrations ADD COLUMN store_before BYTEA CHECK (store_before IS NULL OR octet_length(store_before) = 16);
ALTER TABLE migrations ADD COLUMN store_after BYTEA CHECK (store_after IS NULL OR octet_length(store_after) = 16);
