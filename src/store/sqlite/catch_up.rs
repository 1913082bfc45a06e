//! `sync_runs`, `clerk_instance` and `leases`: what catching up through the Backend API has to remember.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

use super::{error::explain, text};
use crate::store::{History, Origin, Result, Run, RunKind, StoreError, Trouble};

/// What the tables say of the time before this start.
pub(super) async fn history(
    connection: &mut SqliteConnection,
    since: DateTime<Utc>,
    until: DateTime<Utc>,
) -> Result<History> {
    let row = sqlx::query(
        "SELECT EXISTS (SELECT 1 FROM users) OR EXISTS (SELECT 1 FROM processed_webhooks WHERE processed_at < ?2),
                EXISTS (SELECT 1 FROM processed_webhooks WHERE processed_at >= ?1 AND processed_at < ?2)
                OR EXISTS (SELECT 1 FROM sync_runs WHERE everybody AND finished_at >= ?1)",
    )
    .bind(text::time(since))
    .bind(text::time(until))
    .fetch_one(connection)
    .await
    .map_err(explain)?;
    Ok(match (row.try_get(0).map_err(explain)?, row.try_get(1).map_err(explain)?) {
        (false, _) => History::Empty,
        (true, true) => History::Recent,
        (true, false) => History::Silent,
    })
}

/// The newest run of this kind and these parameters that did not finish.
pub(super) async fn unfinished_run(
    connection: &mut SqliteConnection,
    kind: RunKind,
    parameters: &str,
) -> Result<Option<Run>> {
    let row = sqlx::query(
        "SELECT * FROM sync_runs
         WHERE kind = ?1 AND parameters = ?2 AND finished_at IS NULL
         ORDER BY started_at DESC
         LIMIT 1",
    )
    .bind(kind.name())
    .bind(parameters)
    .fetch_optional(connection)
    .await
    .map_err(explain)?;
    row.map(|row| run(&row, kind)).transpose()
}

fn run(row: &SqliteRow, kind: RunKind) -> Result<Run> {
    let text_of = |column| text::read(row, column).map(Option::unwrap_or_default);
    let time_of = |column| text::read_time(row, column)?.ok_or_else(|| text::unreadable(column));
    Ok(Run {
        id: text_of("id")?,
        kind,
        owner: text_of("owner")?,
        parameters: text_of("parameters")?,
        progress: text_of("progress")?,
        started_at: time_of("started_at")?,
        updated_at: time_of("updated_at")?,
        everybody: row.try_get("everybody").map_err(explain)?,
        finished_at: text::read_time(row, "finished_at")?,
    })
}

/// Which instance of Clerk the users are of, if that is known.
pub(super) async fn origin(connection: &mut SqliteConnection) -> Result<Option<Origin>> {
    let row = sqlx::query("SELECT instance_id, previous, refused, refused_at, confirmed FROM clerk_instance")
        .fetch_optional(connection)
        .await
        .map_err(explain)?;
    let Some(row) = row else { return Ok(None) };
    let refused = text::read(&row, "refused")?;
    Ok(Some(Origin {
        instance: text::read(&row, "instance_id")?.unwrap_or_default(),
        previous: text::read(&row, "previous")?,
        refused: refused.zip(text::read_time(&row, "refused_at")?),
        confirmed: text::read_integer(&row, "confirmed")? == Some(1),
    }))
}

/// Remember it unless one is remembered; returns the one that is.
pub(super) async fn claim_instance(connection: &mut SqliteConnection, id: &str) -> Result<String> {
    sqlx::query(
        "INSERT INTO clerk_instance (one, instance_id, confirmed) VALUES (1, ?1, 0) ON CONFLICT (one) DO NOTHING",
    )
    .bind(id)
    .execute(&mut *connection)
    .await
    .map_err(explain)?;
    let origin = origin(connection).await?;
    origin.map(|origin| origin.instance).ok_or_else(|| StoreError::new(Trouble::Raced))
}

/// Put it in the place of any other.
pub(super) async fn change_instance(connection: &mut SqliteConnection, id: &str) -> Result<()> {
    sqlx::query(
        "INSERT INTO clerk_instance (one, instance_id)
         VALUES (1, ?1)
         ON CONFLICT (one) DO UPDATE
         SET instance_id = excluded.instance_id, confirmed = 1,
             previous = coalesce(nullif(clerk_instance.instance_id, excluded.instance_id), clerk_instance.previous),
             refused = CASE clerk_instance.instance_id
                 WHEN excluded.instance_id THEN clerk_instance.refused END,
             refused_at = CASE clerk_instance.instance_id
                 WHEN excluded.instance_id THEN clerk_instance.refused_at END",
    )
    .bind(id)
    .execute(connection)
    .await
    .map_err(explain)?;
    Ok(())
}

/// Forget the one before.
pub(super) async fn settle_instance(connection: &mut SqliteConnection) -> Result<()> {
    sqlx::query("UPDATE clerk_instance SET previous = NULL").execute(connection).await.map_err(explain)?;
    Ok(())
}

/// Note whose events are refused.
pub(super) async fn note_refused(
    connection: &mut SqliteConnection,
    id: &str,
    now: DateTime<Utc>,
) -> Result<()> {
    sqlx::query("UPDATE clerk_instance SET refused = ?1, refused_at = ?2 WHERE instance_id <> ?1")
        .bind(id)
        .bind(text::time(now))
        .execute(connection)
        .await
        .map_err(explain)?;
    Ok(())
}

/// The run of this kind through all users that last came to its end.
pub(super) async fn last_finished(connection: &mut SqliteConnection, kind: RunKind) -> Result<Option<Run>> {
    let row = sqlx::query(
        "SELECT * FROM sync_runs
         WHERE kind = ?1 AND everybody AND finished_at IS NOT NULL
         ORDER BY finished_at DESC
         LIMIT 1",
    )
    .bind(kind.name())
    .fetch_optional(connection)
    .await
    .map_err(explain)?;
    row.map(|row| run(&row, kind)).transpose()
}

/// Forget runs that were last worked on before this.
pub(super) async fn prune_runs(connection: &mut SqliteConnection, before: DateTime<Utc>) -> Result<()> {
    sqlx::query("DELETE FROM sync_runs WHERE updated_at < ?1")
        .bind(text::time(before))
        .execute(connection)
        .await
        .map_err(explain)?;
    Ok(())
}

/// Write a run, taking it over from whoever worked on it.
pub(super) async fn begin_run(connection: &mut SqliteConnection, run: &Run) -> Result<()> {
    sqlx::query(
        "INSERT INTO sync_runs (id, kind, owner, parameters, progress, started_at, updated_at, finished_at, everybody)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
         ON CONFLICT (id) DO UPDATE SET owner = excluded.owner, updated_at = excluded.updated_at",
    )
    .bind(run.id.as_str())
    .bind(run.kind.name())
    .bind(run.owner.as_str())
    .bind(run.parameters.as_str())
    .bind(run.progress.as_str())
    .bind(text::time(run.started_at))
    .bind(text::time(run.updated_at))
    .bind(run.finished_at.map(text::time))
    .bind(run.everybody)
    .execute(connection)
    .await
    .map_err(explain)?;
    Ok(())
}

/// Write how far a run has come; false if somebody else has taken it over.
pub(super) async fn save_run(connection: &mut SqliteConnection, run: &Run) -> Result<bool> {
    let done = sqlx::query(
        "UPDATE sync_runs SET progress = ?3, updated_at = ?4, finished_at = ?5 WHERE id = ?1 AND owner = ?2",
    )
    .bind(run.id.as_str())
    .bind(run.owner.as_str())
    .bind(run.progress.as_str())
    .bind(text::time(run.updated_at))
    .bind(run.finished_at.map(text::time))
    .execute(connection)
    .await
    .map_err(explain)?;
    Ok(done.rows_affected() == 1)
}

/// Get a lease, or keep it for longer; false if somebody else has it.
pub(super) async fn hold_lease(
    connection: &mut SqliteConnection,
    name: &str,
    holder: &str,
    lasting: Duration,
) -> Result<bool> {
    let done = sqlx::query(
        "INSERT INTO leases (name, holder, expires_at)
         VALUES (?1, ?2, strftime('%Y-%m-%dT%H:%M:%fZ', 'now', ?3 || ' seconds'))
         ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at
         WHERE holder = excluded.holder OR expires_at < strftime('%Y-%m-%dT%H:%M:%fZ', 'now')",
    )
    .bind(name)
    .bind(holder)
    .bind(lasting.as_secs_f64())
    .execute(connection)
    .await
    .map_err(explain)?;
    Ok(done.rows_affected() == 1)
}

/// Give a lease back, if it is this holder's.
pub(super) async fn release_lease(connection: &mut SqliteConnection, name: &str, holder: &str) -> Result<()> {
    sqlx::query("DELETE FROM leases WHERE name = ?1 AND holder = ?2")
        .bind(name)
        .bind(holder)
        .execute(connection)
        .await
        .map_err(explain)?;
    Ok(())
}
