//! Sample events, as Clerk would send them, for trying things out.
