-- The era: drawn anew when an operator declares that an earlier copy of the whole cluster was restored; none before the first such
-- declaration. Contexts and idempotency keys of another era are not used.
-- Adds only, so that programs of the version before go on.
ALTER TABLE cluster_state ADD COLUMN era BYTEA;
