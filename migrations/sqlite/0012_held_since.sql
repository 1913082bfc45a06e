-- Since when an erasure is held back. The mark on the row does not say it: the application may have set one before.
ALTER TABLE entity_versions ADD COLUMN held_since TEXT;
UPDATE entity_versions
SET held_since = (
    SELECT max(l.at) FROM audit_log AS l WHERE l.clerk_id = entity_versions.clerk_id AND l.action = 'USER_DELETION_HELD'
)
WHERE kind = 'user' AND held_until IS NOT NULL;
