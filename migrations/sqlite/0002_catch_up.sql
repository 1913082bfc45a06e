-- What catching up through the Backend API has to remember.

-- Runs of backfill and reconcile. One that was interrupted goes on from its progress.
CREATE TABLE IF NOT EXISTS sync_runs (
    id          TEXT PRIMARY KEY NOT NULL,
    kind        TEXT NOT NULL CHECK (kind IN ('backfill', 'reconcile')),
    owner       TEXT NOT NULL, -- the process that works on it; another one that takes it over writes its own name
    parameters  TEXT NOT NULL, -- a digest of what was asked for: only a run for the same goes on
    progress    TEXT NOT NULL, -- JSON of clerk-sync's own
    started_at  TEXT NOT NULL,
    updated_at  TEXT NOT NULL,
    finished_at TEXT
);
CREATE INDEX IF NOT EXISTS sync_runs_unfinished ON sync_runs (kind, started_at) WHERE finished_at IS NULL;

-- Who among several processes does what only one may do at a time.
CREATE TABLE IF NOT EXISTS leases (
    name       TEXT PRIMARY KEY NOT NULL,
    holder     TEXT NOT NULL,
    expires_at TEXT NOT NULL -- by the clock of the machine
);
