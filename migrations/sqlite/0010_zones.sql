-- Zones of nodes, and changes of what a node is in the ring: see host/kernel/ring.rs. '' is no zone.
-- Adds only, so that programs of the version before go on: before there is a zone, or a change of the kind update_node, `needs_schema` is
-- raised to 10, and they refuse to start.
ALTER TABLE storage_nodes ADD COLUMN zone TEXT NOT NULL DEFAULT '' CHECK (length(zone) <= 64);
ALTER TABLE rings ADD COLUMN zone TEXT NOT NULL DEFAULT '' CHECK (length(zone) <= 64);

-- Of a node that is added, or updated; and for an update, what it was in the ring before. Of an update, `virtual_nodes` or `zone` is NULL if
-- it stays as it is.
ALTER TABLE migrations ADD COLUMN zone TEXT;
ALTER TABLE migrations ADD COLUMN virtual_nodes_before INTEGER;
ALTER TABLE migrations ADD COLUMN zone_before TEXT;
