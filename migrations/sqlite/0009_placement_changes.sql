-- Placement changes while data is stored: see host/kernel/port/migrations.rs. A tenant's records are on a version of the ring; while they
-- move, `move_ring` and `move_factor` say where, `move_step` how far that is, `move_prepared` and `move_since` the revisions that published
-- its first and its present step; all five are NULL otherwise. `wanted_factor` is the factor that it is to have.
-- Adds only, so that programs of the version before go on. They see no other version of the ring than 0 and no tenant that moves: before
-- there is one, `needs_schema` is raised to 9, and they refuse to start.
ALTER TABLE tenants ADD COLUMN ring INTEGER NOT NULL DEFAULT 0 CHECK (ring >= 0);
ALTER TABLE tenants ADD COLUMN wanted_factor INTEGER CHECK (wanted_factor IS NULL OR wanted_factor BETWEEN 1 AND 5);
ALTER TABLE tenants ADD COLUMN move_ring INTEGER;
ALTER TABLE tenants ADD COLUMN move_factor INTEGER CHECK (move_factor IS NULL OR move_factor BETWEEN 1 AND 5);
ALTER TABLE tenants ADD COLUMN move_step TEXT;
ALTER TABLE tenants ADD COLUMN move_prepared INTEGER;
ALTER TABLE tenants ADD COLUMN move_since INTEGER;

-- The versions of the ring and their members. Empty until a node joins or leaves while data is stored: until then, every node is a member
-- of version 0. Each version has a row with the node id '', which is no member, so that there are versions without members.
CREATE TABLE rings (
    version INTEGER NOT NULL CHECK (version >= 0),
    node_id TEXT NOT NULL CHECK (length(node_id) <= 128),
    virtual_nodes INTEGER NOT NULL CHECK (virtual_nodes BETWEEN 0 AND 4096),
    PRIMARY KEY (version, node_id)
) STRICT, WITHOUT ROWID;

-- Placement changes that were asked for, the newest 1,000. `kind` is add_node, remove_node or replication_factor; what the others have of
-- `node_id` to `factor` is NULL. `ring` is the version that it makes, or that there was; `factor_before` is 0 for a change of nodes.
CREATE TABLE migrations (
    number INTEGER NOT NULL PRIMARY KEY CHECK (number > 0),
    kind TEXT NOT NULL,
    node_id TEXT,
    host TEXT,
    port INTEGER,
    virtual_nodes INTEGER,
    lost INTEGER NOT NULL CHECK (lost IN (0, 1)),
    tenant_id TEXT,
    factor INTEGER,
    ring INTEGER NOT NULL,
    factor_before INTEGER NOT NULL,
    status TEXT NOT NULL,
    cancel_requested INTEGER NOT NULL CHECK (cancel_requested IN (0, 1)),
    tenants_done INTEGER NOT NULL,
    tenants_total INTEGER NOT NULL,
    keys_done INTEGER NOT NULL,
    keys_total INTEGER NOT NULL,
    bytes_done INTEGER NOT NULL,
    message TEXT NOT NULL CHECK (length(CAST(message AS BLOB)) <= 500),
    created_at INTEGER NOT NULL,
    started_at INTEGER,
    finished_at INTEGER
) STRICT;

-- Rows of a tenant on a node that held them under one placement and holds no replica of them under another.
CREATE TABLE placement_leftovers (
    tenant_id TEXT NOT NULL,
    node_id TEXT NOT NULL,
    epoch INTEGER NOT NULL CHECK (epoch > 0),
    from_ring INTEGER NOT NULL,
    from_factor INTEGER NOT NULL,
    to_ring INTEGER NOT NULL,
    to_factor INTEGER NOT NULL,
    hand_over INTEGER NOT NULL CHECK (hand_over IN (0, 1)),
    created_at INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, node_id, epoch)
) STRICT, WITHOUT ROWID;

-- The revision before which no operation of a coordinator has begun that is still under way.
ALTER TABLE coordinators ADD COLUMN drained INTEGER NOT NULL DEFAULT 0;
