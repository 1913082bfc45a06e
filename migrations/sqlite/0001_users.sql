-- The same tables and columns as in migrations/postgres, in SQLite's types:
-- times are RFC 3339 UTC text with milliseconds, booleans 0/1, JSON and string arrays are JSON text.

CREATE TABLE IF NOT EXISTS users (
    id               INTEGER PRIMARY KEY AUTOINCREMENT,
    clerk_id         TEXT NOT NULL UNIQUE,
    email            TEXT,
    email_verified   INTEGER,
    first_name       TEXT,
    last_name        TEXT,
    image_url        TEXT,
    username         TEXT,
    phone_number     TEXT,
    external_id      TEXT,
    public_metadata  TEXT,
    unsafe_metadata  TEXT,
    private_metadata TEXT,
    banned           INTEGER,
    locked           INTEGER,
    last_sign_in_at  TEXT,
    last_active_at   TEXT,
    preferences      TEXT NOT NULL DEFAULT '{}',
    created_at       TEXT,
    updated_at       TEXT,
    synced_at        TEXT,
    deleted_at       TEXT
);
-- Not unique: Clerk can hold two users with one address.
CREATE INDEX IF NOT EXISTS users_email ON users (lower(email)) WHERE deleted_at IS NULL;

CREATE TABLE IF NOT EXISTS processed_webhooks (
    svix_id      TEXT PRIMARY KEY NOT NULL,
    event_type   TEXT,
    outcome      TEXT NOT NULL,
    clerk_id     TEXT,
    event_at     TEXT NOT NULL,
    processed_at TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS processed_webhooks_processed_at ON processed_webhooks (processed_at);

-- The newest version of every entity, and the tombstones.
CREATE TABLE IF NOT EXISTS entity_versions (
    kind     TEXT NOT NULL,
    clerk_id TEXT NOT NULL,
    version  INTEGER NOT NULL,
    event_at INTEGER NOT NULL,
    tie      TEXT NOT NULL,
    deleted  INTEGER NOT NULL,
    PRIMARY KEY (kind, clerk_id)
);

CREATE TABLE IF NOT EXISTS audit_log (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    at             TEXT NOT NULL,
    action         TEXT NOT NULL,
    clerk_id       TEXT NOT NULL,
    svix_id        TEXT,
    source         TEXT NOT NULL,
    changed_fields TEXT NOT NULL DEFAULT '[]',
    event_at       TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS audit_log_clerk_id ON audit_log (clerk_id);

-- Personal data beside the trail, so that an erasure can empty it and leave the trail whole.
CREATE TABLE IF NOT EXISTS audit_actors (
    audit_id   INTEGER PRIMARY KEY REFERENCES audit_log (id),
    ip         TEXT,
    user_agent TEXT
);

CREATE TRIGGER IF NOT EXISTS audit_log_no_update BEFORE UPDATE ON audit_log
BEGIN
    SELECT RAISE(ABORT, 'audit_log is append-only: UPDATE refused');
END;
CREATE TRIGGER IF NOT EXISTS audit_log_no_delete BEFORE DELETE ON audit_log
BEGIN
    SELECT RAISE(ABORT, 'audit_log is append-only: DELETE refused');
END;

-- Genuine deliveries that could not be applied.
CREATE TABLE IF NOT EXISTS webhook_queue (
    svix_id         TEXT PRIMARY KEY NOT NULL,
    event_type      TEXT,
    clerk_id        TEXT,
    payload         BLOB NOT NULL,
    state           TEXT NOT NULL CHECK (state IN ('pending', 'dead')),
    attempts        INTEGER NOT NULL,
    next_attempt_at TEXT,
    received_at     TEXT NOT NULL,
    last_error      TEXT
);
CREATE INDEX IF NOT EXISTS webhook_queue_clerk_id ON webhook_queue (clerk_id);
CREATE INDEX IF NOT EXISTS webhook_queue_due ON webhook_queue (next_attempt_at) WHERE state = 'pending';

-- Weeks start on Monday, in UTC.
CREATE VIEW IF NOT EXISTS signups_by_week AS
    SELECT date(created_at, 'weekday 0', '-6 days') AS week, count(*) AS signups
    FROM users
    WHERE created_at IS NOT NULL
    GROUP BY 1
    ORDER BY 1;
