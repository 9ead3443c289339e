-- Work that a cluster does by itself, and which coordinator does which part of it until when: see host/kernel/port/upkeep.rs. Times are
-- Unix milliseconds by this server's clock. `coordinator` is empty while nobody holds a claim; `begun_at` is 0 while no pass is under way
-- or interrupted, `resume_at` is where such a pass goes on; `covered_at` is when the last complete pass began.
-- Adds only, so that programs of the version before go on.
CREATE TABLE upkeep_claims (
    kind TEXT COLLATE "C" NOT NULL,
    claimed_range TEXT COLLATE "C" NOT NULL CHECK (octet_length(claimed_range) BETWEEN 1 AND 128),
    coordinator TEXT COLLATE "C" NOT NULL,
    instance BYTEA NOT NULL,
    fence BIGINT NOT NULL CHECK (fence >= 0),
    claimed_until BIGINT NOT NULL,
    begun_at BIGINT NOT NULL,
    resume_at BYTEA NOT NULL CHECK (octet_length(resume_at) <= 2048),
    covered_at BIGINT NOT NULL,
    ended_at BIGINT NOT NULL,
    wanted_at BIGINT NOT NULL,
    PRIMARY KEY (kind, claimed_range)
);
