-- What catching up through the Backend API has to remember.

-- Runs of backfill and reconcile. One that was interrupted goes on from its progress.
CREATE TABLE IF NOT EXISTS sync_runs (
    id          text PRIMARY KEY,
    kind        text NOT NULL CHECK (kind IN ('backfill', 'reconcile')),
    owner       text NOT NULL, -- the process that works on it; another one that takes it over writes its own name
    parameters  text NOT NULL, -- a digest of what was asked for: only a run for the same goes on
    progress    text NOT NULL, -- JSON of clerk-sync's own
    started_at  timestamptz NOT NULL,
    updated_at  timestamptz NOT NULL,
    finished_at timestamptz
);
CREATE INDEX IF NOT EXISTS sync_runs_unfinished ON sync_runs (kind, started_at) WHERE finished_at IS NULL;

-- Who among several replicas does what only one may do at a time.
CREATE TABLE IF NOT EXISTS leases (
    name       text PRIMARY KEY,
    holder     text NOT NULL,
    expires_at timestamptz NOT NULL -- by the database's clock
);
