-- Which instance of Clerk the users came from through the Backend API: of another one nobody comes in. One row at most.
CREATE TABLE IF NOT EXISTS clerk_instance (
    one         boolean PRIMARY KEY CHECK (one),
    instance_id text NOT NULL -- ins_…
);
