-- What comes of other instances of Clerk than the one that the users are of.
ALTER TABLE clerk_instance
    -- The instance before a change, until a comparison has settled what becomes of its users.
    ADD COLUMN previous   text,
    -- Whose events were refused last, and when.
    ADD COLUMN refused    text,
    ADD COLUMN refused_at timestamptz;
