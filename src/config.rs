//! Configuration: read only by `cli`.
