-- What coordinators and clusters are capable of, as words separated by spaces: a format that the version before cannot read is written
-- only once every live coordinator names its capability. A program that names none leaves `capabilities` as it was, but its lease has
-- another fence than `capabilities_fence`. `founded_with` lists the capabilities of the program that created this
-- store, in which nothing has happened yet; none if an earlier version has created it.
-- Adds only, so that programs of the version before go on.
ALTER TABLE coordinators ADD COLUMN capabilities TEXT NOT NULL DEFAULT '';
ALTER TABLE coordinators ADD COLUMN capabilities_fence INTEGER NOT NULL DEFAULT 0;
ALTER TABLE cluster_state ADD COLUMN founded_with TEXT NOT NULL DEFAULT '';
UPDATE cluster_state SET founded_with = 'names' WHERE revision = 0;
