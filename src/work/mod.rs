//! Rows that wait in the database to be worked on.
