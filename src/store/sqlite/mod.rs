//! SQLite, the embedded keeper.
