-- Since when a delivery is dead: from then on it is kept for DEAD_RETENTION_DAYS, however long it was tried before. Of those
-- that are dead already nobody knows it.
ALTER TABLE webhook_queue ADD COLUMN dead_at TEXT;
DROP INDEX IF EXISTS webhook_queue_dead_age;
CREATE INDEX webhook_queue_dead_age ON webhook_queue (coalesce(dead_at, received_at)) WHERE state = 'dead';
