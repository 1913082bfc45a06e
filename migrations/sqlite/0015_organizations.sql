-- Organizations: the companies, teams or workspaces that users belong to.
CREATE TABLE IF NOT EXISTS organizations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    clerk_id TEXT NOT NULL UNIQUE,
    name TEXT,
    slug TEXT,
    image_url TEXT,
    created_by TEXT,
    max_allowed_memberships INTEGER,
    admin_delete_enabled INTEGER,
    public_metadata TEXT,
    private_metadata TEXT,
    created_at TEXT,
    updated_at TEXT,
    synced_at TEXT,
    deleted_at TEXT
);
