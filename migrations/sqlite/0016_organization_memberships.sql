-- Memberships: which user belongs to which organization, and in which role.
CREATE TABLE IF NOT EXISTS organization_memberships (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    clerk_id TEXT NOT NULL UNIQUE,
    organization_id TEXT,
    user_id TEXT,
    role TEXT,
    permissions TEXT,
    public_metadata TEXT,
    private_metadata TEXT,
    created_at TEXT,
    updated_at TEXT,
    synced_at TEXT,
    deleted_at TEXT
);
CREATE INDEX IF NOT EXISTS organization_memberships_organization_id ON organization_memberships (organization_id, id);
CREATE INDEX IF NOT EXISTS organization_memberships_user_id ON organization_memberships (user_id, id);
CREATE UNIQUE INDEX IF NOT EXISTS organization_memberships_live ON organization_memberships (organization_id, user_id) WHERE deleted_at IS NULL;
