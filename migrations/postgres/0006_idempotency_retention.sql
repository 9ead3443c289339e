-- For how long an idempotency key of a tenant has one effect, in milliseconds. Tenants that exist keep what they had, a day.
-- Adds only, so that programs of the version before go on.
ALTER TABLE tenants ADD COLUMN idempotency_retention_ms BIGINT NOT NULL DEFAULT 86400000;
