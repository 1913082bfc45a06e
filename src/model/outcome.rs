//! What became of a delivery.

/// The answer's `status`, also kept in `processed_webhooks.outcome` and used as a metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, strum::IntoStaticStr, strum::Display)]
#[strum(serialize_all = "snake_case")]
pub enum Outcome {
    /// The database changed.
    Applied,
    /// Newer, but no allow-listed field differs: only `updated_at` and `synced_at` moved.
    Unchanged,
    /// Not newer than what is stored, or the user is deleted.
    Stale,
    /// This `svix-id` was processed before.
    Duplicate,
    /// A type we do not sync, or a deletion without an id; recorded all the same.
    Ignored,
    /// Genuine but unusable for now: kept in `webhook_queue`.
    Parked,
    /// Kept in `webhook_queue`, to be processed later. Only an answer: what becomes of it is recorded then.
    Queued,
    /// An operator took it out of `webhook_queue`. Only a record: nobody is answered so.
    Discarded,
}

impl Outcome {
    /// The public name.
    pub fn name(self) -> &'static str {
        self.into()
    }
}
