-- Work that a cluster does by itself, and which coordinator does which part of it until when: see host/kernel/port/upkeep.rs. Times are
-- Unix milliseconds by this machine's clock. `coordinator` is empty while nobody holds a claim; `begun_at` is 0 while no pass is under way
-- or interrupted, `resume_at` is where such a pass goes on; `covered_at` is when the last complete pass began.
-- Adds only, so that programs of the version before go on.
CREATE TABLE upkeep_claims (
    kind TEXT NOT NULL,
    claimed_range TEXT NOT NULL CHECK (length(CAST(claimed_range AS BLOB)) BETWEEN 1 AND 128),
    coordinator TEXT NOT NULL,
    instance BLOB NOT NULL,
    fence INTEGER NOT NULL CHECK (fence >= 0),
    claimed_until INTEGER NOT NULL,
    begun_at INTEGER NOT NULL,
    resume_at BLOB NOT NULL CHECK (length(resume_at) <= 2048),
    covered_at INTEGER NOT NULL,
    ended_at INTEGER NOT NULL,
    wanted_at INTEGER NOT NULL,
    PRIMARY KEY (kind, claimed_range)
) STRICT, WITHOUT ROWID;
