//! PostgreSQL, the first-class keeper.
