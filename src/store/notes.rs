//! What the service has to remember beside the data: leases, runs, the instance of Clerk, activity, seals; and what it no longer
//! keeps.

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::{
    Activity, Database, History, Minimized, Old, Origin, Outlook, Result, Run, RunKind, ToSeal, Unsealed,
};
use crate::model::{Entity, FieldSet, LineHash, Seal};

/// See the head of this file.
#[async_trait]
pub trait Notes: Database {
    /// Get a lease, or keep it for longer; false if somebody else has it. It is given up by itself after `lasting`, by
    /// the database's clock.
    async fn hold_lease(&self, name: &str, holder: &str, lasting: Duration) -> Result<bool>;

    /// Give a lease back, if it is this holder's.
    async fn release_lease(&self, name: &str, holder: &str) -> Result<()>;

    /// The newest run of this kind and these parameters that did not finish.
    async fn unfinished_run(&self, kind: RunKind, parameters: &str) -> Result<Option<Run>>;

    /// The run of this kind and these parameters that last came to its end; without parameters, of those through all users.
    async fn last_finished(&self, kind: RunKind, parameters: Option<&str>) -> Result<Option<Run>>;

    /// Write a run, taking it over from its owner so far.
    async fn begin_run(&self, run: &Run) -> Result<()>;

    /// Write how far a run has come; false if somebody else has taken it over.
    async fn save_run(&self, run: &Run) -> Result<bool>;

    /// Forget runs that were last worked on before this.
    async fn prune_runs(&self, before: DateTime<Utc>) -> Result<()>;

    /// What the tables say of the time from `since` until `until`, when the service started.
    async fn history(&self, since: DateTime<Utc>, until: DateTime<Utc>) -> Result<History>;

    /// Which instance of Clerk the users are of, if that is known.
    async fn origin(&self) -> Result<Option<Origin>>;

    /// Remember that the users are of this instance of Clerk, unless one is remembered; returns the one that is. Of several
    /// who claim at the same time one is first, and all hear of it.
    async fn claim_instance(&self, id: &str) -> Result<String>;

    /// Let the users be of this instance of Clerk from now on. Another one that was remembered is then
    /// [the one before](Origin::previous).
    async fn change_instance(&self, id: &str) -> Result<()>;

    /// Forget the instance before: it is settled what becomes of its users.
    async fn settle_instance(&self) -> Result<()>;

    /// Note that an event of this other instance was refused now.
    async fn note_refused(&self, id: &str, now: DateTime<Utc>) -> Result<()>;

    /// Add to what is counted of a minute.
    async fn add_activity(&self, counted: &[Activity]) -> Result<()>;

    /// What was counted since then, put together by so many seconds from the epoch on, in the order of time.
    async fn activity(&self, since: DateTime<Utc>, seconds: u32) -> Result<Vec<Activity>>;

    /// What waits for its time, of messages those for these sinks, of messages and deliveries those that are due at this time or
    /// later, in one short look.
    async fn outlook(&self, sinks: &[String], since: DateTime<Utc>) -> Result<Outlook>;

    /// The newest seal, and up to `limit` lines of the audit trail behind it in the order of their ids, each of which is
    /// there for good: no line can appear before one of them any more. Waits a moment, and holds up nobody, for lines that
    /// are being written.
    async fn to_seal(&self, limit: u32) -> Result<ToSeal>;

    /// Append seals, all or none; false if there is one of such a number already: somebody else was faster.
    async fn add_seals(&self, seals: &[Seal]) -> Result<bool>;

    /// Up to `limit` seals in the order of their numbers, behind this one.
    async fn seals(&self, after: i64, limit: u32) -> Result<Vec<Seal>>;

    /// Up to `limit` lines of the audit trail in the order of their ids, behind the one and up to the other.
    async fn audit_lines(&self, after: i64, until: i64, limit: u32) -> Result<Vec<LineHash>>;

    /// How many lines no seal covers yet; counted up to `at_most`.
    async fn unsealed(&self, at_most: u32) -> Result<Unsealed>;

    /// How many rows of a kind are older than this.
    async fn count_old(&self, kind: Old, before: DateTime<Utc>) -> Result<u64>;

    /// Forget up to `limit` rows of a kind that are older than this; returns how many.
    async fn prune(&self, kind: Old, before: DateTime<Utc>, limit: u32) -> Result<u64>;

    /// Set all columns of a kind that can be synced but those of `keep` to NULL, in the next `limit` rows behind this `id`
    /// that are not anonymised; on a dry run only count. `None` if there is no further row. Refusals of the application are as in
    /// [`Session::erase`](super::Session::erase).
    async fn minimize(
        &self,
        entity: &'static Entity,
        keep: FieldSet,
        after: i64,
        limit: u32,
        dry_run: bool,
    ) -> Result<Option<Minimized>>;
}
