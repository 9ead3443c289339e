-- The placement's epoch: the revision of the last change to which nodes there are, where, and with how many virtual nodes.
-- Adds only, so that programs of the version before go on.
ALTER TABLE cluster_state ADD COLUMN placement_epoch BIGINT NOT NULL DEFAULT 1;
UPDATE cluster_state SET placement_epoch = revision WHERE revision > 1;
