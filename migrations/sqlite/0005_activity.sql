-- For the dashboard: what was answered in the last week, minute by minute. No ids.
CREATE TABLE IF NOT EXISTS activity (
    at            TEXT NOT NULL,    -- the beginning of the minute
    event         TEXT NOT NULL,    -- the type of event, as in the metrics
    outcome       TEXT NOT NULL,    -- as in the metrics
    reason        TEXT NOT NULL,    -- why it was rejected or failed; else empty
    latest        TEXT NOT NULL,    -- when the last one was answered
    count         INTEGER NOT NULL,
    within_5ms    INTEGER NOT NULL, -- of those, answered within so long
    within_25ms   INTEGER NOT NULL,
    within_100ms  INTEGER NOT NULL,
    within_500ms  INTEGER NOT NULL,
    within_2s     INTEGER NOT NULL,
    within_10s    INTEGER NOT NULL,
    PRIMARY KEY (at, event, outcome, reason)
);

-- Sign-ups are counted without reading whole rows.
CREATE INDEX IF NOT EXISTS users_created_at ON users (created_at);
