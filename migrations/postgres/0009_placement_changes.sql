-- Placement changes while data is stored: see host/kernel/port/migrations.rs. A tenant's records are on a version of the ring; while they
-- move, `move_ring` and `move_factor` say where, `move_step` how far that is, `move_prepared` and `move_since` the revisions that published
-- its first and its present step; all five are NULL otherwise. `wanted_factor` is the factor that it is to have.
-- Adds only, so that programs of the version before go on. They see no other version of the ring than 0 and no tenant that moves: before
-- there is one, `needs_schema` is raised to 9, and they refuse to start.
ALTER TABLE tenants ADD COLUMN ring BIGINT NOT NULL DEFAULT 0 CHECK (ring >= 0);
ALTER TABLE tenants ADD COLUMN wanted_factor BIGINT CHECK (wanted_factor IS NULL OR wanted_factor BETWEEN 1 AND 5);
ALTER TABLE tenants ADD COLUMN move_ring BIGINT;
ALTER TABLE tenants ADD COLUMN move_factor BIGINT CHECK (move_factor IS NULL OR move_factor BETWEEN 1 AND 5);
ALTER TABLE tenants ADD COLUMN move_step TEXT;
ALTER TABLE tenants ADD COLUMN move_prepared BIGINT;
ALTER TABLE tenants ADD COLUMN move_since BIGINT;

-- The versions of the ring and their members. Empty until a node joins or leaves while data is stored: until then, every node is a member
-- of version 0. Each version has a row with the node id '', which is no member, so that there are versions without members.
CREATE TABLE rings (
    version BIGINT NOT NULL CHECK (version >= 0),
    node_id TEXT COLLATE "C" NOT NULL CHECK (octet_length(node_id) <= 128),
    virtual_nodes BIGINT NOT NULL CHECK (virtual_nodes BETWEEN 0 AND 4096),
    PRIMARY KEY (version, node_id)
);

-- Placement changes that were asked for, the newest 1,000. `kind` is add_node, remove_node or replication_factor; what the others have of
-- `node_id` to `factor` is NULL. `ring` is the version that it makes, or that there was; `factor_before` is 0 for a change of nodes.
CREATE TABLE migrations (
    number BIGINT NOT NULL PRIMARY KEY CHECK (number > 0),
    kind TEXT NOT NULL,
    node_id TEXT COLLATE "C",
    host TEXT,
    port BIGINT,
    virtual_nodes BIGINT,
    lost BOOLEAN NOT NULL,
    tenant_id TEXT COLLATE "C",
    factor BIGINT,
    ring BIGINT NOT NULL,
    factor_before BIGINT NOT NULL,
    status TEXT NOT NULL,
    cancel_requested BOOLEAN NOT NULL,
    tenants_done BIGINT NOT NULL,
    tenants_total BIGINT NOT NULL,
    keys_done BIGINT NOT NULL,
    keys_total BIGINT NOT NULL,
    bytes_done BIGINT NOT NULL,
    message TEXT NOT NULL CHECK (octet_length(message) <= 500),
    created_at BIGINT NOT NULL,
    started_at BIGINT,
    finished_at BIGINT
);

-- Rows of a tenant on a node that held them under one placement and holds no replica of them under another.
CREATE TABLE placement_leftovers (
    tenant_id TEXT COLLATE "C" NOT NULL,
    node_id TEXT COLLATE "C" NOT NULL,
    epoch BIGINT NOT NULL CHECK (epoch > 0),
    from_ring BIGINT NOT NULL,
    from_factor BIGINT NOT NULL,
    to_ring BIGINT NOT NULL,
    to_factor BIGINT NOT NULL,
    hand_over BOOLEAN NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, node_id, epoch)
);

-- The revision before which no operation of a coordinator has begun that is still under way.
ALTER TABLE coordinators ADD COLUMN drained BIGINT NOT NULL DEFAULT 0;
