//! The rules: what becomes of a delivery. Nothing here speaks SQL or HTTP.
//!
//! [`plan`] decides, in pure code; [`mod@apply`] carries a plan out in one transaction, and finds the one delivery that
//! spoils it for the others; [`committer`] gathers what is waiting, and `hold` keeps what the database cannot take for now. [`mod@enqueue`] keeps deliveries for later, and
//! [`mod@drain`] applies them then, from the [`frontier`] on; [`operator`] is what an operator can do with those that wait or are dead. [`backfill`] takes in what
//! Clerk's Backend API shows, [`ensure`] one user of it, and [`reconcile`] mends what differs from it. [`erasure`] asks
//! for erasures that no webhook asks for, [`instance`] keeps events of another instance of Clerk out, and [`minimize`] clears what is no longer synced. `news` says what other
//! systems are told. [`chain`] seals the audit trail and proves that nobody changed it.
//! Nothing but `apply` writes a user.

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

/// What the operator decided.
#[derive(Clone, Debug)]
pub struct Rules {
    /// What is synced.
    pub selection: Selection,
    pub deletion: DeletionPolicy,
    /// Whether webhooks are applied at once, or stored first.
    pub processing: Processing,
    /// When a delivery that is kept is tried again.
    pub retry: Retry,
    /// For how long the erasure of a user whom Clerk deleted is held back; zero: not at all.
    pub grace: TimeDelta,
    /// Whether an address has one owner among the living: the one whose row has the newest version of Clerk's.
    pub unique_email: bool,
    /// What other systems are told.
    pub subscriptions: Arc<[Subscription]>,
    /// Whether they also hear of what was found by looking, and not told by Clerk. Of deletions they always hear.
    pub emit: bool,
    /// Rung after a commit that may have written messages.
    pub bell: Arc<Notify>,
}

impl Rules {
    /// Users with these fields; everything else as it is if the operator says nothing, and nobody else told anything.
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

    /// Whether other systems hear of changes that came from there.
    fn tells_of(&self, source: Source) -> bool {
        self.emit || matches!(source, Source::Webhook | Source::Api)
    }
}
