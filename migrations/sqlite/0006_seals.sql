-- What proves that nobody changed, took away or slipped in a line of audit_log. A seal covers the next lines and the seal
-- before it, so that the newest one stands for everything before.
CREATE TABLE IF NOT EXISTS audit_seals (
    number    INTEGER PRIMARY KEY NOT NULL, -- 1, 2, 3, … without a hole
    sealed_at TEXT NOT NULL,
    first_id  INTEGER NOT NULL, -- of audit_log
    last_id   INTEGER NOT NULL,
    lines     INTEGER NOT NULL, -- how many it covers
    gaps      TEXT NOT NULL, -- ids between the first and the last that no line has: '' or such as '18 22-25'
    content   TEXT NOT NULL, -- SHA-256 over the lines, in hexadecimal as the other two
    previous  TEXT NOT NULL, -- the hash of the seal before; zeros of the first
    hash      TEXT NOT NULL -- SHA-256 over all of the above
);

CREATE TRIGGER IF NOT EXISTS audit_seals_no_update BEFORE UPDATE ON audit_seals
BEGIN
    SELECT RAISE(ABORT, 'audit_seals is append-only: UPDATE refused');
END;
CREATE TRIGGER IF NOT EXISTS audit_seals_no_delete BEFORE DELETE ON audit_seals
BEGIN
    SELECT RAISE(ABORT, 'audit_seals is append-only: DELETE refused');
END;
