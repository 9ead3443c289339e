-- Generations of a tenant's rows: see host/kernel/placement.rs. Each swap of its routing hook makes the next one; `generations` is the highest
-- that it was ever given, and none is used again. `move_generation` is that to which its records move, if they do.
-- Adds only, so that programs of the version before go on: before a tenant has another generation than 0, `needs_schema` is raised to 12,
-- and they refuse to start.
ALTER TABLE tenants ADD COLUMN generation BIGINT NOT NULL DEFAULT 0 CHECK (generation >= 0);
ALTER TABLE tenants ADD COLUMN generations BIGINT NOT NULL DEFAULT 0 CHECK (generations >= 0);
ALTER TABLE tenants ADD COLUMN wanted_generation BIGINT;
ALTER TABLE tenants ADD COLUMN move_generation BIGINT NOT NULL DEFAULT 0;

-- Of a change of the kind routing_hook.
ALTER TABLE migrations ADD COLUMN generation BIGINT;

ALTER TABLE placement_leftovers ADD COLUMN from_generation BIGINT NOT NULL DEFAULT 0;
ALTER TABLE placement_leftovers ADD COLUMN to_generation BIGINT NOT NULL DEFAULT 0;
