//! The rules: how a delivery is applied. This module contains no SQL and no HTTP.
//!
//! - [`plan`] decides, in pure code. [`mod@apply`] carries a plan out in one transaction, and finds a delivery that makes
//!   a batch fail. Except for [`minimize`], only `apply` writes the rows of objects.
//! - [`committer`] gathers the waiting deliveries, and `hold` keeps those that the database cannot accept for now.
//! - [`mod@enqueue`] stores deliveries for later, and [`mod@drain`] applies them, starting at the [`frontier`].
//!   [`operator`] retries or discards waiting deliveries and dead letters.
//! - [`backfill`] imports the objects that Clerk's Backend API shows, [`ensure`] imports one of its users, and
//!   [`reconcile`] fixes differences. [`erasure`] requests erasures without a webhook.
//! - [`instance`] refuses events of another Clerk instance, and [`minimize`] clears fields that are no longer synced.
//! - `news` writes the messages to sinks. [`chain`] seals the audit trail and proves that it was not changed.

pub mod adopt;
pub mod apply;
pub mod attempt;
pub mod backfill;
pub mod catch_up;
pub mod chain;
pub mod committer;
pub mod drain;
pub mod enqueue;
pub mod ensure;
pub mod erasure;
pub mod frontier;
mod hold;
pub mod instance;
pub mod minimize;
mod news;
pub mod operator;
pub mod pace;
pub mod plan;
pub mod reconcile;
pub mod retry;
pub mod reveal;
mod scan;
pub mod stream;
mod walk;

use std::sync::Arc;

use tokio::sync::Notify;

pub use apply::apply;
pub use attempt::{Limits, Refusal};
pub use committer::{Committer, Lanes};
pub use drain::{Drained, drain};
pub use enqueue::enqueue;
pub use frontier::Frontier;
pub use pace::Pace;

use chrono::TimeDelta;

use self::retry::Retry;
pub use crate::clerk::Clock;
use crate::{
    entity::USER,
    model::{DeletionPolicy, Entity, FieldSet, Processing, Selection, Source, Subscription},
};

/// The operator's decisions.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The kinds and fields that are synced.
    pub selection: Selection,
    pub deletion: DeletionPolicy,
    /// Whether webhooks are applied at once, or stored first.
    pub processing: Processing,
    /// When a kept delivery is tried again.
    pub retry: Retry,
    /// How long the erasure of a user is delayed after Clerk deleted them; zero: not at all.
    pub grace: TimeDelta,
    /// Whether an address belongs to only one live user: the one whose row has the newest version from Clerk.
    pub unique_email: bool,
    /// Which messages each sink gets.
    pub subscriptions: Arc<[Subscription]>,
    /// Whether sinks also get changes that were found by comparing instead of by a webhook. Deletions are always sent.
    pub emit: bool,
    /// Notified after a commit that may have written messages.
    pub bell: Arc<Notify>,
}

impl Rules {
    /// Sync users with these fields; everything else has its default, and no sinks get messages.
    pub fn new(fields: FieldSet, deletion: DeletionPolicy) -> Self {
        Self {
            selection: Selection::of(&USER, fields),
            deletion,
            processing: Processing::default(),
            retry: Retry::default(),
            grace: TimeDelta::zero(),
            unique_email: false,
            subscriptions: Arc::default(),
            emit: false,
            bell: Arc::default(),
        }
    }

    /// The allow-list of a kind.
    pub fn fields(&self, entity: &Entity) -> FieldSet {
        self.selection.fields(entity)
    }

    /// Whether sinks get changes from this source.
    fn tells_of(&self, source: Source) -> bool {
        self.emit || matches!(source, Source::Webhook | Source::Api)
    }
}
