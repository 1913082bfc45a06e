-- The tables that applications read, and those that keep count of what was applied, for MariaDB and MySQL: what the
-- migrations of migrations/postgres come to up to this number.
--
-- Both servers commit each statement here by itself. A run that breaks off is begun again from its start, so every statement
-- can be repeated. Keys are varchar, for nothing longer can be indexed whole. All other text is longtext, and so is JSON: of
-- their own types one server refuses what Clerk may send, and the other changes it. Times are UTC. The word in braces is the
-- server's collation that compares texts byte by byte. A foreign key to a table here has to name the same one.

CREATE TABLE IF NOT EXISTS users (
    id               bigint NOT NULL AUTO_INCREMENT PRIMARY KEY,
    clerk_id         varchar(255) NOT NULL UNIQUE,
    email            varchar(255),
    email_verified   boolean,
    first_name       longtext,
    last_name        longtext,
    image_url        longtext,
    username         longtext,
    phone_number     longtext,
    external_id      longtext,
    public_metadata  longtext,
    unsafe_metadata  longtext,
    private_metadata longtext,
    banned           boolean,
    locked           boolean,
    last_sign_in_at  datetime(3),
    last_active_at   datetime(3),
    preferences      longtext NOT NULL DEFAULT ('{}') COMMENT 'The application''s own: never written by clerk-sync, but emptied when the user is anonymised.',
    created_at       datetime(3) COMMENT 'Clerk''s own time of the sign-up.',
    updated_at       datetime(3) COMMENT 'Clerk''s own time of the newest change.',
    synced_at        datetime(3),
    deleted_at       datetime(3),
    -- What an index over a part of the rows would hold. Stored, for MariaDB has broken indexes on virtual columns of tables with
    -- long texts (MDEV-38140).
    live_email       varchar(255) GENERATED ALWAYS AS (CASE WHEN deleted_at IS NULL THEN lower(email) END) STORED,
    -- Not unique: Clerk can hold two users with one address.
    INDEX users_email (live_email),
    -- Sign-ups are counted without reading whole rows.
    INDEX users_created_at (created_at)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {bin};

-- Organizations: the companies, teams or workspaces that users belong to.
CREATE TABLE IF NOT EXISTS organizations (
    id                      bigint NOT NULL AUTO_INCREMENT PRIMARY KEY,
    clerk_id                varchar(255) NOT NULL UNIQUE,
    name                    longtext,
    slug                    longtext,
    image_url               longtext,
    created_by              longtext,
    max_allowed_memberships bigint,
    admin_delete_enabled    boolean,
    public_metadata         longtext,
    private_metadata        longtext,
    created_at              datetime(3),
    updated_at              datetime(3),
    synced_at               datetime(3),
    deleted_at              datetime(3)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {bin};

-- Memberships: which user belongs to which organization, and in which role.
CREATE TABLE IF NOT EXISTS organization_memberships (
    id               bigint NOT NULL AUTO_INCREMENT PRIMARY KEY,
    clerk_id         varchar(255) NOT NULL UNIQUE,
    organization_id  varchar(255),
    user_id          varchar(255),
    role             longtext,
    role_name        longtext, -- as people read it: "Admin" where the key is "org:admin"
    permissions      longtext,
    public_metadata  longtext,
    private_metadata longtext,
    created_at       datetime(3),
    updated_at       datetime(3),
    synced_at        datetime(3),
    deleted_at       datetime(3),
    -- A unique index lets any number of rows pass that have a NULL in it.
    live             boolean GENERATED ALWAYS AS (CASE WHEN deleted_at IS NULL THEN 1 END) STORED,
    INDEX organization_memberships_organization_id (organization_id, id),
    INDEX organization_memberships_user_id (user_id, id),
    UNIQUE INDEX organization_memberships_live (organization_id, user_id, live)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {bin};

CREATE TABLE IF NOT EXISTS processed_webhooks (
    svix_id      varchar(255) NOT NULL PRIMARY KEY,
    event_type   longtext,
    outcome      varchar(255) NOT NULL,
    clerk_id     varchar(255),
    event_at     datetime(3) NOT NULL,
    processed_at datetime(3) NOT NULL,
    kind         varchar(255) DEFAULT 'user',
    -- Our own, here and below: neither the number of rows that were written nor any answer of MySQL tells which of them are new.
    -- Each statement writes a token that no other one has, and finds its rows by it.
    token        varchar(40),
    INDEX processed_webhooks_processed_at (processed_at, svix_id)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {bin};

-- The newest version of every entity, and the tombstones.
CREATE TABLE IF NOT EXISTS entity_versions (
    kind       varchar(255) NOT NULL,
    clerk_id   varchar(255) NOT NULL,
    version    bigint NOT NULL,
    event_at   bigint NOT NULL,
    tie        varchar(255) NOT NULL,
    deleted    boolean NOT NULL,
    held_until datetime(3), -- when a user whom Clerk deleted is to be erased, if that is held back
    held_since datetime(3), -- the mark on the row does not say it: the application may have set one before
    token      varchar(40),
    PRIMARY KEY (kind, clerk_id),
    INDEX entity_versions_held (held_until)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {bin};

CREATE TABLE IF NOT EXISTS audit_log (
    id             bigint NOT NULL AUTO_INCREMENT PRIMARY KEY,
    at             datetime(3) NOT NULL,
    action         varchar(255) NOT NULL,
    clerk_id       varchar(255) NOT NULL,
    svix_id        varchar(255),
    source         varchar(255) NOT NULL,
    changed_fields longtext NOT NULL DEFAULT ('[]'), -- JSON
    event_at       datetime(3) NOT NULL,
    kind           varchar(255) NOT NULL DEFAULT 'user',
    INDEX audit_log_clerk_id (clerk_id, id)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {bin};

-- Personal data beside the trail, so that an erasure can empty it and leave the trail whole.
CREATE TABLE IF NOT EXISTS audit_actors (
    audit_id   bigint NOT NULL PRIMARY KEY, -- of audit_log; written in one transaction with it, and that never loses a line
    ip         longtext,
    user_agent longtext
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {bin};

-- What proves that no line of audit_log was changed, removed or slipped in. A seal covers the next lines and the seal
-- before it, so that the newest one stands for everything before.
CREATE TABLE IF NOT EXISTS audit_seals (
    number    bigint NOT NULL PRIMARY KEY, -- 1, 2, 3, … without a hole
    sealed_at datetime(3) NOT NULL,
    first_id  bigint NOT NULL, -- of audit_log
    last_id   bigint NOT NULL,
    `lines`   bigint NOT NULL, -- how many it covers; a word of both servers' own
    gaps      longtext NOT NULL, -- ids between the first and the last that no line has: '' or such as '18 22-25'
    content   longtext NOT NULL, -- SHA-256 over the lines, in hexadecimal as the other two
    previous  longtext NOT NULL, -- the hash of the seal before; zeros of the first
    hash      longtext NOT NULL -- SHA-256 over all of the above
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {bin};

-- The server hands out the id of a line before its transaction commits, and does not show which transactions are writing lines.
-- So each of those holds a shared lock on this row until it ends. The process that seals takes the row only while it is free:
-- then no line can appear any more below those that it sees.
CREATE TABLE IF NOT EXISTS audit_barrier (
    one boolean NOT NULL PRIMARY KEY CHECK (one = 1)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {bin};
INSERT INTO audit_barrier (one) SELECT true FROM (SELECT count(*) AS found FROM audit_barrier) AS b WHERE b.found = 0;

-- No trigger sees TRUNCATE: only an account without the privilege to drop tables is kept from it.
DROP TRIGGER IF EXISTS audit_log_no_update;
CREATE TRIGGER audit_log_no_update BEFORE UPDATE ON audit_log
    FOR EACH ROW SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'audit_log is append-only: UPDATE refused';
DROP TRIGGER IF EXISTS audit_log_no_delete;
CREATE TRIGGER audit_log_no_delete BEFORE DELETE ON audit_log
    FOR EACH ROW SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'audit_log is append-only: DELETE refused';
DROP TRIGGER IF EXISTS audit_seals_no_update;
CREATE TRIGGER audit_seals_no_update BEFORE UPDATE ON audit_seals
    FOR EACH ROW SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'audit_seals is append-only: UPDATE refused';
DROP TRIGGER IF EXISTS audit_seals_no_delete;
CREATE TRIGGER audit_seals_no_delete BEFORE DELETE ON audit_seals
    FOR EACH ROW SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'audit_seals is append-only: DELETE refused';

-- Genuine deliveries that could not be applied, or are yet to be.
CREATE TABLE IF NOT EXISTS webhook_queue (
    svix_id         varchar(255) NOT NULL PRIMARY KEY,
    event_type      longtext,
    clerk_id        varchar(255),
    payload         longblob NOT NULL,
    state           varchar(255) NOT NULL CHECK (state IN ('pending', 'dead')),
    attempts        int NOT NULL,
    next_attempt_at datetime(3),
    received_at     datetime(3) NOT NULL,
    last_error      longtext,
    trace_context   longtext, -- the W3C traceparent of the request that put it here, if that was traced; no personal data
    dead_at         datetime(3), -- from then on it is kept for DEAD_RETENTION_DAYS, however long it was tried before
    kind            varchar(255) DEFAULT 'user',
    -- Of the dead only, so that what forgets them reads nothing but its index: on MariaDB a row that was looked at stays locked.
    dead_since      datetime(3) GENERATED ALWAYS AS (CASE WHEN state = 'dead' THEN coalesce(dead_at, received_at) END) STORED,
    token           varchar(40),
    INDEX webhook_queue_clerk_id (clerk_id, kind, state),
    INDEX webhook_queue_due (state, next_attempt_at),
    -- The dead are few among many. Lists read them in the order of their ids, retention in that of their age.
    INDEX webhook_queue_dead (state, svix_id),
    INDEX webhook_queue_dead_age (dead_since)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {bin};

-- Messages for other systems, written in the transaction that changed the object.
CREATE TABLE IF NOT EXISTS outbox (
    id              bigint NOT NULL AUTO_INCREMENT PRIMARY KEY, -- of one object and sink, in the order of the changes
    message_id      varchar(255) NOT NULL, -- what the receiver sees, the same at every attempt
    sink            varchar(255) NOT NULL,
    clerk_id        varchar(255) NOT NULL,
    type            varchar(255) NOT NULL,
    payload         longtext, -- JSON; NULL once it is delivered, discarded, or its object is erased
    state           varchar(255) NOT NULL CHECK (state IN ('pending', 'dead', 'delivered', 'discarded')),
    attempts        int NOT NULL DEFAULT 0,
    next_attempt_at datetime(3), -- only of the oldest pending one of its object and sink; while somebody delivers it, when their lease ends
    lease           varchar(255), -- the fencing token of the worker that delivers it now
    created_at      datetime(3) NOT NULL,
    finished_at     datetime(3), -- since when it is not pending
    last_error      longtext,
    trace_context   longtext,
    kind            varchar(255) NOT NULL DEFAULT 'user',
    -- All that a claim asks for and sorts by, so that it locks nothing but what it takes.
    INDEX outbox_due (sink, state, next_attempt_at, id),
    INDEX outbox_order (sink, clerk_id, state, id),
    -- With all that counting needs.
    INDEX outbox_state (state, id, sink, created_at),
    INDEX outbox_clerk_id (clerk_id, sink, id),
    INDEX outbox_finished (state, finished_at)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {bin};

-- Which sinks ever got news of a user, and so must be told when the user is erased.
CREATE TABLE IF NOT EXISTS outbox_recipients (
    clerk_id  varchar(255) NOT NULL,
    sink      varchar(255) NOT NULL,
    reference longtext, -- how the sink finds the user again in its own system, where it needs that
    -- Where the sink was when it was told of a user, as hashes with spaces between them; behind a '-' where the user was erased
    -- since. '' before it was told anything.
    addresses longtext,
    PRIMARY KEY (clerk_id, sink)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {bin};

-- Where each sink is, so that it is noticed when one is pointed elsewhere under its name. Addresses are kept as hashes.
CREATE TABLE IF NOT EXISTS outbox_sinks (
    sink    varchar(255) NOT NULL PRIMARY KEY,
    address longtext NOT NULL, -- the first 16 hexadecimal digits of a SHA-256
    since   datetime(3) NOT NULL
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {bin};

-- Sinks that an operator has stopped.
CREATE TABLE IF NOT EXISTS outbox_paused (
    sink      varchar(255) NOT NULL PRIMARY KEY,
    paused_at datetime(3) NOT NULL
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {bin};

-- What an erasure has to reach, and whether it did. The destination `database` is this one, any other is a sink.
CREATE TABLE IF NOT EXISTS erasure_receipts (
    clerk_id     varchar(255) NOT NULL,
    destination  varchar(255) NOT NULL,
    requested_at datetime(3) NOT NULL,
    completed_at datetime(3),
    attempts     int NOT NULL DEFAULT 0,
    last_error   longtext,
    PRIMARY KEY (clerk_id, destination),
    INDEX erasure_receipts_open (completed_at, requested_at, clerk_id, destination)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {bin};

-- Runs of backfill and reconcile. One that was interrupted goes on from its progress.
CREATE TABLE IF NOT EXISTS sync_runs (
    id          varchar(255) NOT NULL PRIMARY KEY,
    kind        varchar(255) NOT NULL CHECK (kind IN ('backfill', 'reconcile')),
    owner       varchar(255) NOT NULL, -- the process that works on it; another one that takes it over writes its own name
    parameters  longtext NOT NULL, -- a digest of what was asked for: only a run for the same goes on
    progress    longtext NOT NULL, -- JSON of clerk-sync's own
    started_at  datetime(3) NOT NULL,
    updated_at  datetime(3) NOT NULL,
    finished_at datetime(3),
    everybody   boolean NOT NULL DEFAULT true, -- a run through only some users does not mean that the others are right
    INDEX sync_runs_unfinished (kind, started_at)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {bin};

-- For the dashboard: what was answered in the last week, minute by minute, by all replicas together. No ids.
CREATE TABLE IF NOT EXISTS activity (
    at            datetime(3) NOT NULL,  -- the beginning of the minute
    event         varchar(255) NOT NULL, -- the type of event, as in the metrics
    outcome       varchar(255) NOT NULL, -- as in the metrics
    reason        varchar(255) NOT NULL, -- why it was rejected or failed; else empty
    latest        datetime(3) NOT NULL,  -- when the last one was answered
    count         bigint NOT NULL,
    within_5ms    bigint NOT NULL,       -- of those, answered within so long
    within_25ms   bigint NOT NULL,
    within_100ms  bigint NOT NULL,
    within_500ms  bigint NOT NULL,
    within_2s     bigint NOT NULL,
    within_10s    bigint NOT NULL,
    PRIMARY KEY (at, event, outcome, reason)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {bin};

-- Which instance of Clerk the users came from through the Backend API. Users of another one are refused. One row at most.
CREATE TABLE IF NOT EXISTS clerk_instance (
    one         boolean NOT NULL PRIMARY KEY CHECK (one = 1),
    instance_id longtext NOT NULL, -- ins_…
    previous    longtext, -- the instance before a change, until a comparison has settled what becomes of its users
    refused     longtext, -- whose events were refused last
    refused_at  datetime(3),
    confirmed   boolean NOT NULL DEFAULT true -- whether a key of Clerk's Backend API said so, and not only the first event
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {bin};

-- Who among several replicas does what only one may do at a time.
CREATE TABLE IF NOT EXISTS leases (
    name       varchar(255) NOT NULL PRIMARY KEY,
    holder     varchar(255) NOT NULL,
    expires_at datetime(3) NOT NULL -- by the database's clock
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {bin};

-- Weeks start on Monday, in UTC.
CREATE OR REPLACE VIEW signups_by_week (week, signups) AS
    SELECT date(created_at) - INTERVAL weekday(created_at) DAY, count(*)
    FROM users
    WHERE created_at IS NOT NULL
    GROUP BY 1
    ORDER BY 1;
