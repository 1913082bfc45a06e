-- Where each sink is, so that it is noticed when one is pointed elsewhere under its name. Addresses are kept as hashes.
CREATE TABLE IF NOT EXISTS outbox_sinks (
    sink    text PRIMARY KEY,
    address text NOT NULL, -- the first 16 hexadecimal digits of a SHA-256
    since   timestamptz NOT NULL
);

-- Where the sink was when it was told of a user, as hashes with spaces between them; behind a '-' where the user was erased
-- since. '' before it was told anything; NULL if it was told before this was kept, and is where it was then.
ALTER TABLE outbox_recipients ADD COLUMN addresses text;
