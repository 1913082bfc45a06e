//! The service's own state in addition to the synced data: leases, runs, the Clerk instance, activity and seals. Also the
//! removal of old data.

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::{
    Activity, Database, History, Minimized, Old, Origin, Outlook, Result, Run, RunKind, ToSeal, Unsealed,
};
use crate::model::{Entity, FieldSet, LineHash, Seal};

/// The service's own state, and the removal of old data.
#[async_trait]
pub trait Notes: Database {
    /// Acquire or extend a lease; false if another holder has it. It expires after `lasting` by the database's clock. If
    /// another holder's lease would expire only after `longest`, it was taken while that clock was ahead, and counts as
    /// expired.
    async fn hold_lease(
        &self,
        name: &str,
        holder: &str,
        lasting: Duration,
        longest: Duration,
    ) -> Result<bool>;

    /// Release a lease, if this holder has it.
    async fn release_lease(&self, name: &str, holder: &str) -> Result<()>;

    /// The newest unfinished run of this kind with these parameters.
    async fn unfinished_run(&self, kind: RunKind, parameters: &str) -> Result<Option<Run>>;

    /// The run of this kind with these parameters that finished last; with `None`, among the runs over all users.
    async fn last_finished(&self, kind: RunKind, parameters: Option<&str>) -> Result<Option<Run>>;

    /// Write a run, and take it over from any previous owner.
    async fn begin_run(&self, run: &Run) -> Result<()>;

    /// Store the progress of a run; false if another process has taken it over.
    async fn save_run(&self, run: &Run) -> Result<bool>;

    /// Delete runs that were last updated before this time.
    async fn prune_runs(&self, before: DateTime<Utc>) -> Result<()>;

    /// What the tables show about the time from `since` to `until`, the start of the service.
    async fn history(&self, since: DateTime<Utc>, until: DateTime<Utc>) -> Result<History>;

    /// The Clerk instance that the users belong to, if known.
    async fn origin(&self) -> Result<Option<Origin>>;

    /// Store the Clerk instance that the users belong to, unless one is stored. Returns the stored one. If several processes
    /// claim at once, one wins and all of them get its value.
    async fn claim_instance(&self, id: &str) -> Result<String>;

    /// Change the Clerk instance that the users belong to. A different one that was stored before becomes the [previous
    /// one](Origin::previous).
    async fn change_instance(&self, id: &str) -> Result<()>;

    /// Forget the previous instance, after it was decided what happens to its users.
    async fn settle_instance(&self) -> Result<()>;

    /// Record that an event of this other instance was refused at `now`.
    async fn note_refused(&self, id: &str, now: DateTime<Utc>) -> Result<()>;

    /// Add to the counts of a minute.
    async fn add_activity(&self, counted: &[Activity]) -> Result<()>;

    /// The counts since this time, summed over intervals of this many seconds from the epoch, ordered by time.
    async fn activity(&self, since: DateTime<Utc>, seconds: u32) -> Result<Vec<Activity>>;

    /// When pending work becomes due, in one short query. It covers the messages of these sinks, and only messages and
    /// deliveries that are due at `since` or later.
    async fn outlook(&self, sinks: &[String], since: DateTime<Utc>) -> Result<Outlook>;

    /// The newest seal, and up to `limit` later audit lines ordered by id. All of them are final: no line can still appear
    /// before any of them. Waits briefly for lines that are being written, without blocking any writer.
    async fn to_seal(&self, limit: u32) -> Result<ToSeal>;

    /// Append seals, all or none; false if a seal with one of these numbers exists, because another process was faster.
    async fn add_seals(&self, seals: &[Seal]) -> Result<bool>;

    /// Up to `limit` seals after this number, ordered by number.
    async fn seals(&self, after: i64, limit: u32) -> Result<Vec<Seal>>;

    /// Up to `limit` audit lines with ids greater than `after` and up to `until`, ordered by id.
    async fn audit_lines(&self, after: i64, until: i64, limit: u32) -> Result<Vec<LineHash>>;

    /// Number of lines that no seal covers yet, counted up to `at_most`.
    async fn unsealed(&self, at_most: u32) -> Result<Unsealed>;

    /// Number of rows of a kind that are older than this time.
    async fn count_old(&self, kind: Old, before: DateTime<Utc>) -> Result<u64>;

    /// Delete up to `limit` rows of a kind that are older than this time; returns how many.
    async fn prune(&self, kind: Old, before: DateTime<Utc>, limit: u32) -> Result<u64>;

    /// In the next `limit` rows after this `id` that are not anonymised, set all columns of a kind that can be synced to NULL,
    /// except those in `keep`. A dry run only counts. Returns `None` if there are no further rows. Refusals by the application
    /// are handled as in [`Session::erase`](super::Session::erase).
    async fn minimize(
        &self,
        entity: &'static Entity,
        keep: FieldSet,
        after: i64,
        limit: u32,
        dry_run: bool,
    ) -> Result<Option<Minimized>>;
}
