-- What comes of other instances of Clerk than the one that the users are of.
-- previous: the instance before a change, until a comparison has settled what becomes of its users.
ALTER TABLE clerk_instance ADD COLUMN previous TEXT;
-- refused, refused_at: whose events were refused last, and when.
ALTER TABLE clerk_instance ADD COLUMN refused TEXT;
ALTER TABLE clerk_instance ADD COLUMN refused_at TEXT;
-- Whether a key of Clerk's Backend API said so, and not only the first event.
ALTER TABLE clerk_instance ADD COLUMN confirmed INTEGER NOT NULL DEFAULT 1;
