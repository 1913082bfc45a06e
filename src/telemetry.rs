//! Logs and metrics: their form and their names.

pub const ERASURE_FAILURES_TOTAL: &str = "clerk_sync_erasure_failures_total";
pub const COMMIT_BATCH_SIZE: &str = "clerk_sync_commit_batch_size";
pub const COMMIT_DURATION_SECONDS: &str = "clerk_sync_commit_duration_seconds";
pub const QUEUE_DEPTH: &str = "clerk_sync_queue_depth";
