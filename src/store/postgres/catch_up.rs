//! What catching up through the Backend API reads and remembers.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;

use super::{
    Postgres, get, inspect, sql,
    transaction::{clerk_id, load_users, register, texts},
};
use crate::{
    model::{ClerkId, FieldSet},
    store::{History, Known, Origin, Result, Run, RunKind, StoreError, Trouble},
};

pub(super) async fn known(store: &Postgres, ids: &[ClerkId], fields: FieldSet) -> Result<Known> {
    let mut session = store.session(&store.begin_normal).await?;
    let registers = session
        .rows(
            sql("SELECT e.clerk_id, e.version, e.event_at, e.tie, e.deleted, e.held_until, e.held_since
                 FROM unnest($1::text[]) AS n (clerk_id)
                 CROSS JOIN LATERAL (
                     SELECT * FROM entity_versions WHERE kind = 'user' AND clerk_id = n.clerk_id
                 ) AS e")
            .bind(texts(ids)),
        )
        .await?;
    let users = load_users(&mut session, ids, fields).await?;
    session.commit().await?;
    Ok(Known {
        registers: registers
            .iter()
            .map(|row| Ok((clerk_id(row, 0)?, register(row)?)))
            .collect::<Result<_>>()?,
        users,
    })
}

pub(super) async fn standing(
    store: &Postgres,
    untouched_since: DateTime<Utc>,
    after: Option<&ClerkId>,
    limit: u32,
) -> Result<Vec<ClerkId>> {
    // Where nearly everybody was touched it looks through the whole table.
    let mut session = store.session(&store.begin_migration).await?;
    let rows = session
        .rows(
            sql("SELECT u.clerk_id FROM users AS u
                 -- Rows that somebody else has inserted have no time of ours.
                 WHERE u.clerk_id > $1 AND coalesce(u.synced_at < $2, true)
                   AND NOT EXISTS (
                       SELECT FROM entity_versions AS e
                       WHERE e.kind = 'user' AND e.clerk_id = u.clerk_id AND (e.deleted OR e.held_until IS NOT NULL)
                   )
                 ORDER BY u.clerk_id
                 LIMIT $3")
            .bind(after.map_or("", ClerkId::as_str))
            .bind(untouched_since)
            .bind(i64::from(limit)),
        )
        .await?;
    session.commit().await?;
    rows.iter().map(|row| clerk_id(row, 0)).collect()
}

pub(super) async fn count_standing(store: &Postgres) -> Result<u64> {
    // Of a large table this takes longer than a webhook may.
    let mut session = store.session(&store.begin_migration).await?;
    let rows = session
        .rows(sql("SELECT count(*) FROM users AS u
             WHERE NOT EXISTS (
                 SELECT FROM entity_versions AS e
                 WHERE e.kind = 'user' AND e.clerk_id = u.clerk_id AND (e.deleted OR e.held_until IS NOT NULL)
             )"))
        .await?;
    let standing = inspect::only(&rows)?;
    session.commit().await?;
    Ok(standing)
}

pub(super) async fn history(store: &Postgres, since: DateTime<Utc>, until: DateTime<Utc>) -> Result<History> {
    let mut session = store.session(&store.begin_normal).await?;
    let rows = session
        .rows(
            sql("SELECT EXISTS (SELECT FROM users) OR EXISTS (SELECT FROM processed_webhooks WHERE processed_at < $2),
                        EXISTS (SELECT FROM processed_webhooks WHERE processed_at >= $1 AND processed_at < $2)
                        OR EXISTS (SELECT FROM sync_runs WHERE everybody AND finished_at >= $1)")
            .bind(since)
            .bind(until),
        )
        .await?;
    session.commit().await?;
    let row = rows.first().ok_or_else(|| StoreError::new(Trouble::Broken))?;
    Ok(match (get(row, 0)?, get(row, 1)?) {
        (false, _) => History::Empty,
        (true, true) => History::Recent,
        (true, false) => History::Silent,
    })
}

pub(super) async fn unfinished_run(store: &Postgres, kind: RunKind, parameters: &str) -> Result<Option<Run>> {
    let mut session = store.session(&store.begin_normal).await?;
    let rows = session
        .rows(
            sql("SELECT id, owner, progress, started_at, updated_at, everybody, parameters, finished_at FROM sync_runs
                 WHERE kind = $1 AND parameters = $2 AND finished_at IS NULL
                 ORDER BY started_at DESC
                 LIMIT 1")
            .bind(kind.name())
            .bind(parameters),
        )
        .await?;
    session.commit().await?;
    rows.first().map(|row| run(row, kind)).transpose()
}

/// Of the columns in the order of [`unfinished_run`].
fn run(row: &PgRow, kind: RunKind) -> Result<Run> {
    Ok(Run {
        id: get(row, 0)?,
        kind,
        owner: get(row, 1)?,
        progress: get(row, 2)?,
        started_at: get(row, 3)?,
        updated_at: get(row, 4)?,
        everybody: get(row, 5)?,
        parameters: get(row, 6)?,
        finished_at: get(row, 7)?,
    })
}

pub(super) async fn origin(store: &Postgres) -> Result<Option<Origin>> {
    let mut session = store.session(&store.begin_normal).await?;
    let rows = session
        .rows(sql(
            "SELECT instance_id, previous, refused, refused_at, confirmed FROM clerk_instance WHERE one",
        ))
        .await?;
    session.commit().await?;
    let origin = |row| {
        let refused: Option<String> = get(row, 2)?;
        Ok(Origin {
            instance: get(row, 0)?,
            previous: get(row, 1)?,
            refused: refused.zip(get(row, 3)?),
            confirmed: get(row, 4)?,
        })
    };
    rows.first().map(origin).transpose()
}

pub(super) async fn claim_instance(store: &Postgres, id: &str) -> Result<String> {
    // Read first: nearly always there is nothing to write.
    if let Some(origin) = origin(store).await? {
        return Ok(origin.instance);
    }
    let mut session = store.session(&store.begin_normal).await?;
    session
        .execute(
            // Waits for whoever claims at the same time, and then yields to them.
            sql("INSERT INTO clerk_instance (one, instance_id, confirmed) VALUES (true, $1, false)
                 ON CONFLICT (one) DO NOTHING")
            .bind(id),
        )
        .await?;
    let rows = session.rows(sql("SELECT instance_id FROM clerk_instance WHERE one")).await?;
    session.commit().await?;
    rows.first().ok_or_else(|| StoreError::new(Trouble::Raced)).and_then(|row| get(row, 0))
}

pub(super) async fn change_instance(store: &Postgres, id: &str) -> Result<()> {
    let mut session = store.session(&store.begin_normal).await?;
    session
        .execute(
            sql("INSERT INTO clerk_instance AS i (one, instance_id)
                 VALUES (true, $1)
                 ON CONFLICT (one) DO UPDATE
                 SET instance_id = excluded.instance_id, confirmed = true,
                     previous = coalesce(nullif(i.instance_id, excluded.instance_id), i.previous),
                     refused = CASE i.instance_id WHEN excluded.instance_id THEN i.refused END,
                     refused_at = CASE i.instance_id WHEN excluded.instance_id THEN i.refused_at END")
            .bind(id),
        )
        .await?;
    session.commit().await
}

pub(super) async fn settle_instance(store: &Postgres) -> Result<()> {
    let mut session = store.session(&store.begin_normal).await?;
    session.execute(sql("UPDATE clerk_instance SET previous = NULL WHERE one")).await?;
    session.commit().await
}

pub(super) async fn note_refused(store: &Postgres, id: &str, now: DateTime<Utc>) -> Result<()> {
    let mut session = store.session(&store.begin_normal).await?;
    session
        .execute(
            sql("UPDATE clerk_instance SET refused = $1, refused_at = $2 WHERE one AND instance_id <> $1")
                .bind(id)
                .bind(now),
        )
        .await?;
    session.commit().await
}

pub(super) async fn last_finished(store: &Postgres, kind: RunKind) -> Result<Option<Run>> {
    let mut session = store.session(&store.begin_normal).await?;
    let rows = session
        .rows(
            sql("SELECT id, owner, progress, started_at, updated_at, everybody, parameters, finished_at FROM sync_runs
                 WHERE kind = $1 AND everybody AND finished_at IS NOT NULL
                 ORDER BY finished_at DESC
                 LIMIT 1")
            .bind(kind.name()),
        )
        .await?;
    session.commit().await?;
    rows.first().map(|row| run(row, kind)).transpose()
}

pub(super) async fn prune_runs(store: &Postgres, before: DateTime<Utc>) -> Result<()> {
    let mut session = store.session(&store.begin_normal).await?;
    session.execute(sql("DELETE FROM sync_runs WHERE updated_at < $1").bind(before)).await?;
    session.commit().await
}

pub(super) async fn begin_run(store: &Postgres, run: &Run) -> Result<()> {
    let mut session = store.session(&store.begin_normal).await?;
    session
        .execute(
            sql("INSERT INTO sync_runs (id, kind, owner, parameters, progress, started_at, updated_at, finished_at,
                                        everybody)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
                 ON CONFLICT (id) DO UPDATE SET owner = excluded.owner, updated_at = excluded.updated_at")
            .bind(run.id.as_str())
            .bind(run.kind.name())
            .bind(run.owner.as_str())
            .bind(run.parameters.as_str())
            .bind(run.progress.as_str())
            .bind(run.started_at)
            .bind(run.updated_at)
            .bind(run.finished_at)
            .bind(run.everybody),
        )
        .await?;
    session.commit().await
}

pub(super) async fn save_run(store: &Postgres, run: &Run) -> Result<bool> {
    let mut session = store.session(&store.begin_normal).await?;
    let saved = session
        .execute(
            sql("UPDATE sync_runs SET progress = $3, updated_at = $4, finished_at = $5 WHERE id = $1 AND owner = $2")
                .bind(run.id.as_str())
                .bind(run.owner.as_str())
                .bind(run.progress.as_str())
                .bind(run.updated_at)
                .bind(run.finished_at),
        )
        .await?;
    session.commit().await?;
    Ok(saved == 1)
}

pub(super) async fn hold_lease(
    store: &Postgres,
    name: &str,
    holder: &str,
    lasting: Duration,
) -> Result<bool> {
    let mut session = store.session(&store.begin_normal).await?;
    let held = session
        .execute(
            sql("INSERT INTO leases AS l (name, holder, expires_at)
                 VALUES ($1, $2, clock_timestamp() + make_interval(secs => $3))
                 ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at
                 WHERE l.holder = excluded.holder OR l.expires_at < clock_timestamp()")
            .bind(name)
            .bind(holder)
            .bind(lasting.as_secs_f64()),
        )
        .await?;
    session.commit().await?;
    Ok(held == 1)
}

pub(super) async fn release_lease(store: &Postgres, name: &str, holder: &str) -> Result<()> {
    let mut session = store.session(&store.begin_normal).await?;
    session
        .execute(sql("DELETE FROM leases WHERE name = $1 AND holder = $2").bind(name).bind(holder))
        .await?;
    session.commit().await
}
