-- A digest of a user's parts as the newest event showed them. An event that shows the same parts does not read them.

ALTER TABLE entity_versions ADD COLUMN parts_digest varchar(64);
