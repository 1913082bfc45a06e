-- What waits to be worked on: the queue of deliveries, the outbox to other systems, and erasures that reach them.

-- The dead are few among many: by their ids for whoever looks at them, by their age for who forgets them.
CREATE INDEX IF NOT EXISTS webhook_queue_dead ON webhook_queue (svix_id) WHERE state = 'dead';
CREATE INDEX IF NOT EXISTS webhook_queue_dead_age ON webhook_queue (received_at) WHERE state = 'dead';

-- Messages for other systems, written in the transaction that changed the user.
CREATE TABLE IF NOT EXISTS outbox (
    id              INTEGER PRIMARY KEY AUTOINCREMENT, -- of one user and sink, in the order of the changes
    message_id      TEXT NOT NULL, -- what the receiver sees, the same at every attempt
    sink            TEXT NOT NULL,
    clerk_id        TEXT NOT NULL,
    type            TEXT NOT NULL CHECK (type IN ('user.created', 'user.updated', 'user.deleted')),
    payload         TEXT, -- JSON; NULL once it is delivered, discarded, or its user is erased
    state           TEXT NOT NULL CHECK (state IN ('pending', 'dead', 'delivered', 'discarded')),
    attempts        INTEGER NOT NULL DEFAULT 0,
    next_attempt_at TEXT, -- only of the oldest pending one of its user and sink; while somebody delivers it, when their lease ends
    lease           TEXT, -- the fencing token of whoever delivers it now
    created_at      TEXT NOT NULL,
    finished_at     TEXT, -- since when it is not pending
    last_error      TEXT
);
-- One entry a user and sink, so that what is due is found at once, however much waits behind it.
CREATE INDEX IF NOT EXISTS outbox_due ON outbox (sink, next_attempt_at, id)
    WHERE state = 'pending' AND next_attempt_at IS NOT NULL;
-- With all that counting needs.
CREATE INDEX IF NOT EXISTS outbox_order ON outbox (sink, clerk_id, id, created_at) WHERE state = 'pending';
CREATE INDEX IF NOT EXISTS outbox_dead ON outbox (id, sink) WHERE state = 'dead';
CREATE INDEX IF NOT EXISTS outbox_clerk_id ON outbox (clerk_id, sink, id);
CREATE INDEX IF NOT EXISTS outbox_finished ON outbox (finished_at) WHERE state <> 'pending';

-- Which sinks ever got news of a user, and so must be told when the user is erased.
CREATE TABLE IF NOT EXISTS outbox_recipients (
    clerk_id  TEXT NOT NULL,
    sink      TEXT NOT NULL,
    reference TEXT, -- how the sink finds the user again in its own system, where it needs that
    PRIMARY KEY (clerk_id, sink)
);

-- Sinks that an operator has stopped.
CREATE TABLE IF NOT EXISTS outbox_paused (
    sink      TEXT PRIMARY KEY NOT NULL,
    paused_at TEXT NOT NULL
);

-- What an erasure has to reach, and whether it did. The destination `database` is this one, any other is a sink.
CREATE TABLE IF NOT EXISTS erasure_receipts (
    clerk_id     TEXT NOT NULL,
    destination  TEXT NOT NULL,
    requested_at TEXT NOT NULL,
    completed_at TEXT,
    attempts     INTEGER NOT NULL DEFAULT 0,
    last_error   TEXT,
    PRIMARY KEY (clerk_id, destination)
);
CREATE INDEX IF NOT EXISTS erasure_receipts_open ON erasure_receipts (requested_at, clerk_id, destination)
    WHERE completed_at IS NULL;

-- A run through only some users does not mean that the others are right.
ALTER TABLE sync_runs ADD COLUMN everybody INTEGER NOT NULL DEFAULT 1;

-- When a user whom Clerk deleted is to be erased, if that is held back.
ALTER TABLE entity_versions ADD COLUMN held_until TEXT;
CREATE INDEX IF NOT EXISTS entity_versions_held ON entity_versions (held_until) WHERE held_until IS NOT NULL;
