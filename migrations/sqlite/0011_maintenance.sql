-- Maintenance of storage nodes: which are drained, and which stores are replaced because an operator has asked for it.
-- Adds only, so that programs of the version before go on: before a node is drained, or there is a migration of the kind replace_store,
-- `needs_schema` is raised to 11, and they refuse to start.
ALTER TABLE storage_nodes ADD COLUMN drained INTEGER NOT NULL DEFAULT 0 CHECK (drained IN (0, 1));

-- Of the kind replace_store: the store on record, and the one that is filled in its place. There, `lost` says that loss is accepted.
ALTER TABLE migrations ADD COLUMN store_before BLOB CHECK (store_before IS NULL OR length(store_before) = 16);
ALTER TABLE migrations ADD COLUMN store_after BLOB CHECK (store_after IS NULL OR length(store_after) = 16);
