-- What `pg_dump --data-only` wrote can be restored into tables that were just made: of one migration there are two rows then.
ALTER TABLE _clerk_sync_migrations DROP CONSTRAINT IF EXISTS _clerk_sync_migrations_pkey;
ALTER TABLE _clerk_sync_migrations ADD PRIMARY KEY (version, applied_at);
