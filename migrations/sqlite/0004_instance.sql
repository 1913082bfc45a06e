-- Which instance of Clerk the users came from through the Backend API: of another one nobody comes in. One row at most.
CREATE TABLE IF NOT EXISTS clerk_instance (
    one         INTEGER PRIMARY KEY NOT NULL CHECK (one = 1),
    instance_id TEXT NOT NULL -- ins_…
);
