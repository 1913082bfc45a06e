-- What proves that nobody changed, took away or slipped in a line of audit_log. A seal covers the next lines and the seal
-- before it, so that the newest one stands for everything before.
CREATE TABLE IF NOT EXISTS audit_seals (
    number    bigint PRIMARY KEY, -- 1, 2, 3, … without a hole
    sealed_at timestamptz NOT NULL,
    first_id  bigint NOT NULL, -- of audit_log
    last_id   bigint NOT NULL,
    lines     bigint NOT NULL, -- how many it covers
    gaps      text NOT NULL, -- ids between the first and the last that no line has: '' or such as '18 22-25'
    content   text NOT NULL, -- SHA-256 over the lines, in hexadecimal as the other two
    previous  text NOT NULL, -- the hash of the seal before; zeros of the first
    hash      text NOT NULL -- SHA-256 over all of the above
);

CREATE OR REPLACE FUNCTION audit_seals_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit_seals is append-only: % refused', TG_OP;
END
$$;
CREATE OR REPLACE TRIGGER audit_seals_append_only BEFORE UPDATE OR DELETE ON audit_seals
    FOR EACH ROW EXECUTE FUNCTION audit_seals_is_append_only();
CREATE OR REPLACE TRIGGER audit_seals_no_truncate BEFORE TRUNCATE ON audit_seals
    FOR EACH STATEMENT EXECUTE FUNCTION audit_seals_is_append_only();
