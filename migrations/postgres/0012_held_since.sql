-- Since when an erasure is held back. The mark on the row does not say it: the application may have set one before.
ALTER TABLE entity_versions ADD COLUMN held_since timestamptz;
UPDATE entity_versions AS e
SET held_since = (
    SELECT max(l.at) FROM audit_log AS l WHERE l.clerk_id = e.clerk_id AND l.action = 'USER_DELETION_HELD'
)
WHERE e.kind = 'user' AND e.held_until IS NOT NULL;
