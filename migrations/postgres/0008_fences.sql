-- Fences that storage nodes have not confirmed yet: a node that owes one may still serve coordinators which go by what the tenant's settings
-- were before revision `epoch`. `level`: the least that operations could have then: 1 one, 2 quorum, 3 all.
-- Adds only, so that programs of the version before go on.
CREATE TABLE owed_fences (
    tenant_id TEXT COLLATE "C" NOT NULL,
    node_id TEXT COLLATE "C" NOT NULL,
    epoch BIGINT NOT NULL CHECK (epoch > 0),
    level BIGINT NOT NULL CHECK (level BETWEEN 1 AND 3),
    PRIMARY KEY (tenant_id, node_id)
);

-- Nodes from which the records of a deleted tenant have not been removed yet.
CREATE TABLE owed_removals (
    tenant_id TEXT COLLATE "C" NOT NULL,
    node_id TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant_id, node_id)
);
