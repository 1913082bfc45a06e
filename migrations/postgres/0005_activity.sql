-- For the dashboard: what was answered in the last week, minute by minute, by all replicas together. No ids.
CREATE TABLE IF NOT EXISTS activity (
    at            timestamptz NOT NULL, -- the beginning of the minute
    event         text NOT NULL,        -- the type of event, as in the metrics
    outcome       text NOT NULL,        -- as in the metrics
    reason        text NOT NULL,        -- why it was rejected or failed; else empty
    latest        timestamptz NOT NULL, -- when the last one was answered
    count         bigint NOT NULL,
    within_5ms    bigint NOT NULL,      -- of those, answered within so long
    within_25ms   bigint NOT NULL,
    within_100ms  bigint NOT NULL,
    within_500ms  bigint NOT NULL,
    within_2s     bigint NOT NULL,
    within_10s    bigint NOT NULL,
    PRIMARY KEY (at, event, outcome, reason)
);

-- Sign-ups are counted without reading whole rows.
CREATE INDEX IF NOT EXISTS users_created_at ON users (created_at);
