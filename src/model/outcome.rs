//! The outcome of a delivery.

/// The `status` in the answer; also stored in `processed_webhooks.outcome` and used as a metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, strum::IntoStaticStr, strum::Display)]
#[strum(serialize_all = "snake_case")]
pub enum Outcome {
    /// The database changed.
    Applied,
    /// Newer, but no field in the allow-list differs: only `updated_at` and `synced_at` moved.
    Unchanged,
    /// Not newer than what is stored, or the user is deleted.
    Stale,
    /// This `svix-id` was processed before.
    Duplicate,
    /// A type that is not synced, or a deletion without an id; recorded anyway.
    Ignored,
    /// Genuine but currently unusable: stored in `webhook_queue`.
    Parked,
    /// Stored in `webhook_queue` or in the stream for later. Only used in answers: the final outcome is recorded later.
    Queued,
    /// An operator removed it from `webhook_queue`. Only recorded, never used in answers.
    Discarded,
}

impl Outcome {
    /// The public name.
    pub fn name(self) -> &'static str {
        self.into()
    }
}
