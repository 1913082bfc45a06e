-- What waits to be worked on: the queue of deliveries, the outbox to other systems, and erasures that reach them.

-- With PROCESSING=queue every delivery passes through here, so its rows come and go by the million. Bodies up to a few
-- kilobytes stay in the row, and are not worth compressing for the moment that they stay.
ALTER TABLE webhook_queue ALTER COLUMN payload SET STORAGE EXTERNAL;
ALTER TABLE webhook_queue SET (
    toast_tuple_target = 8160,
    -- By default a fifth of a table that was once large must be dead before anybody cleans it.
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 50000
);

-- Read from its old end by whoever prunes it, for which a block range index has to be summed up anew time and again.
DROP INDEX IF EXISTS processed_webhooks_processed_at;
CREATE INDEX processed_webhooks_processed_at ON processed_webhooks (processed_at);
ALTER TABLE processed_webhooks SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 50000,
    autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 500000
);

-- The dead are few among many: by their ids for whoever looks at them, by their age for who forgets them.
CREATE INDEX IF NOT EXISTS webhook_queue_dead ON webhook_queue (svix_id) WHERE state = 'dead';
CREATE INDEX IF NOT EXISTS webhook_queue_dead_age ON webhook_queue (received_at) WHERE state = 'dead';

-- Messages for other systems, written in the transaction that changed the user.
CREATE TABLE IF NOT EXISTS outbox (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, -- of one user and sink, in the order of the changes
    message_id      text NOT NULL, -- what the receiver sees, the same at every attempt
    sink            text NOT NULL,
    clerk_id        text NOT NULL,
    type            text NOT NULL CHECK (type IN ('user.created', 'user.updated', 'user.deleted')),
    payload         text, -- JSON; NULL once it is delivered, discarded, or its user is erased
    state           text NOT NULL CHECK (state IN ('pending', 'dead', 'delivered', 'discarded')),
    attempts        integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz, -- only of the oldest pending one of its user and sink; while somebody delivers it, when their lease ends
    lease           text, -- the fencing token of whoever delivers it now
    created_at      timestamptz NOT NULL,
    finished_at     timestamptz, -- since when it is not pending
    last_error      text
) WITH (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 50000
);
-- One entry a user and sink, so that what is due is found at once, however much waits behind it.
CREATE INDEX IF NOT EXISTS outbox_due ON outbox (sink, next_attempt_at, id)
    WHERE state = 'pending' AND next_attempt_at IS NOT NULL;
-- With all that counting needs.
CREATE INDEX IF NOT EXISTS outbox_order ON outbox (sink, clerk_id, id) INCLUDE (created_at) WHERE state = 'pending';
CREATE INDEX IF NOT EXISTS outbox_dead ON outbox (id, sink) WHERE state = 'dead';
CREATE INDEX IF NOT EXISTS outbox_clerk_id ON outbox (clerk_id, sink, id);
CREATE INDEX IF NOT EXISTS outbox_finished ON outbox (finished_at) WHERE state <> 'pending';

-- Which sinks ever got news of a user, and so must be told when the user is erased.
CREATE TABLE IF NOT EXISTS outbox_recipients (
    clerk_id  text NOT NULL,
    sink      text NOT NULL,
    reference text, -- how the sink finds the user again in its own system, where it needs that
    PRIMARY KEY (clerk_id, sink)
);

-- Sinks that an operator has stopped.
CREATE TABLE IF NOT EXISTS outbox_paused (
    sink      text PRIMARY KEY,
    paused_at timestamptz NOT NULL
);

-- What an erasure has to reach, and whether it did. The destination `database` is this one, any other is a sink.
CREATE TABLE IF NOT EXISTS erasure_receipts (
    clerk_id     text NOT NULL,
    destination  text NOT NULL,
    requested_at timestamptz NOT NULL,
    completed_at timestamptz,
    attempts     integer NOT NULL DEFAULT 0,
    last_error   text,
    PRIMARY KEY (clerk_id, destination)
);
CREATE INDEX IF NOT EXISTS erasure_receipts_open ON erasure_receipts (requested_at, clerk_id, destination)
    WHERE completed_at IS NULL;

-- A run through only some users does not mean that the others are right.
ALTER TABLE sync_runs ADD COLUMN everybody boolean NOT NULL DEFAULT true;

-- When a user whom Clerk deleted is to be erased, if that is held back.
ALTER TABLE entity_versions ADD COLUMN held_until timestamptz;
CREATE INDEX IF NOT EXISTS entity_versions_held ON entity_versions (held_until) WHERE held_until IS NOT NULL;
