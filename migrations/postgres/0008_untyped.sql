-- A body without a usable type was kept under its data.id, though nobody knows what that names. An erasure looks into the
-- bodies that are kept under nobody.
UPDATE webhook_queue SET clerk_id = NULL WHERE event_type IS NULL;
