-- Which kind of Clerk object a row is about. Until now all were users.
ALTER TABLE processed_webhooks ADD COLUMN kind TEXT DEFAULT 'user';
ALTER TABLE audit_log ADD COLUMN kind TEXT NOT NULL DEFAULT 'user';
ALTER TABLE webhook_queue ADD COLUMN kind TEXT DEFAULT 'user';

ALTER TABLE outbox ADD COLUMN kind TEXT NOT NULL DEFAULT 'user';

-- A constraint on the types of messages cannot be dropped here, so the table is made anew.
CREATE TABLE outbox_of_kinds (
    id              INTEGER PRIMARY KEY AUTOINCREMENT, -- of one object and sink, in the order of the changes
    message_id      TEXT NOT NULL, -- what the receiver sees, the same at every attempt
    sink            TEXT NOT NULL,
    clerk_id        TEXT NOT NULL,
    type            TEXT NOT NULL,
    payload         TEXT, -- JSON; NULL once it is delivered, discarded, or its object is erased
    state           TEXT NOT NULL CHECK (state IN ('pending', 'dead', 'delivered', 'discarded')),
    attempts        INTEGER NOT NULL DEFAULT 0,
    next_attempt_at TEXT, -- only of the oldest pending one of its object and sink; while somebody delivers it, when their lease ends
    lease           TEXT, -- the fencing token of whoever delivers it now
    created_at      TEXT NOT NULL,
    finished_at     TEXT, -- since when it is not pending
    last_error      TEXT,
    trace_context   TEXT,
    kind            TEXT NOT NULL DEFAULT 'user'
);
INSERT INTO outbox_of_kinds (id, message_id, sink, clerk_id, type, payload, state, attempts, next_attempt_at, lease, created_at,
                             finished_at, last_error, trace_context, kind)
SELECT id, message_id, sink, clerk_id, type, payload, state, attempts, next_attempt_at, lease, created_at, finished_at, last_error,
       trace_context, kind
FROM outbox;
-- No id is handed out twice, also of messages that are gone.
DELETE FROM sqlite_sequence WHERE name = 'outbox_of_kinds';
INSERT INTO sqlite_sequence (name, seq) SELECT 'outbox_of_kinds', seq FROM sqlite_sequence WHERE name = 'outbox';
DROP TABLE outbox;
ALTER TABLE outbox_of_kinds RENAME TO outbox;
CREATE INDEX outbox_due ON outbox (sink, next_attempt_at, id) WHERE state = 'pending' AND next_attempt_at IS NOT NULL;
CREATE INDEX outbox_order ON outbox (sink, clerk_id, id, created_at) WHERE state = 'pending';
CREATE INDEX outbox_dead ON outbox (id, sink) WHERE state = 'dead';
CREATE INDEX outbox_clerk_id ON outbox (clerk_id, sink, id);
CREATE INDEX outbox_finished ON outbox (finished_at) WHERE state <> 'pending';
