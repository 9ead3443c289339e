-- Every store that a node has reported. The one that a node's data is in is storage_nodes.store_id; `state` says what became of the
-- others: reported, filling (admitted in its place by a repair), retired (replaced), set-back (it has lost what it had acknowledged).
-- `commit_number` is the highest that any coordinator has seen, `keys_count` the number of records that it reported last.
-- Adds only, so that programs of the version before go on.
CREATE TABLE stores (
    store_id BLOB NOT NULL PRIMARY KEY CHECK (length(store_id) = 16),
    node_id TEXT NOT NULL CHECK (length(node_id) BETWEEN 1 AND 128),
    state TEXT NOT NULL,
    commit_number INTEGER NOT NULL DEFAULT 0 CHECK (commit_number >= 0),
    keys_count INTEGER NOT NULL DEFAULT 0 CHECK (keys_count >= 0)
) STRICT, WITHOUT ROWID;

CREATE INDEX idx_stores_node_id ON stores (node_id);

INSERT INTO stores (store_id, node_id, state)
    SELECT store_id, node_id, 'reported' FROM storage_nodes WHERE store_id IS NOT NULL ON CONFLICT DO NOTHING;
