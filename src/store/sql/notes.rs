//! [`Notes`] in SQL.

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::{Database, Purpose, Row, batch, only, seals, statements, values};
use crate::{
    model::{LineHash, Seal},
    store::{
        Activity, History, Notes, Origin, Outlook, Result, Run, RunKind, StoreError, ToSeal, Trouble,
        Unsealed, WITHIN,
    },
};

statements! {
    HOLD_LEASE = "INSERT INTO leases AS l (name, holder, expires_at)
        VALUES ($1, $2,
                {postgres {now} + make_interval(secs => $3 / 1000.0)}{sqlite strftime('%Y-%m-%dT%H:%M:%fZ', 'now', ($3 / 1000.0) || ' seconds')})
        ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at
        WHERE l.holder = excluded.holder OR l.expires_at < {now}";

    RELEASE_LEASE = "DELETE FROM leases WHERE name = $1 AND holder = $2";

    UNFINISHED_RUN = "SELECT id, owner, progress, started_at, updated_at, everybody, parameters, finished_at
        FROM sync_runs
        WHERE kind = $1 AND parameters = $2 AND finished_at IS NULL
        ORDER BY started_at DESC
        LIMIT 1";

    LAST_FINISHED = "SELECT id, owner, progress, started_at, updated_at, everybody, parameters, finished_at
        FROM sync_runs
        WHERE kind = $1 AND everybody AND finished_at IS NOT NULL
        ORDER BY finished_at DESC
        LIMIT 1";

    BEGIN_RUN = "INSERT INTO sync_runs
            (id, kind, owner, parameters, progress, started_at, updated_at, finished_at, everybody)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
        ON CONFLICT (id) DO UPDATE SET owner = excluded.owner, updated_at = excluded.updated_at";

    SAVE_RUN = "UPDATE sync_runs SET progress = $3, updated_at = $4, finished_at = $5 WHERE id = $1 AND owner = $2";

    PRUNE_RUNS = "DELETE FROM sync_runs WHERE updated_at < $1";

    HISTORY = "SELECT EXISTS (SELECT 1 FROM users) OR EXISTS (SELECT 1 FROM processed_webhooks WHERE processed_at < $2),
               EXISTS (SELECT 1 FROM processed_webhooks WHERE processed_at >= $1 AND processed_at < $2)
               OR EXISTS (SELECT 1 FROM sync_runs WHERE everybody AND finished_at >= $1)";

    ORIGIN = "SELECT instance_id, previous, refused, refused_at, confirmed FROM clerk_instance WHERE one";

    // Waits for another one who claims at the same time, and then yields to them.
    CLAIM_INSTANCE = "INSERT INTO clerk_instance (one, instance_id, confirmed) VALUES (true, $1, false)
        ON CONFLICT (one) DO NOTHING";

    CHANGE_INSTANCE = "INSERT INTO clerk_instance AS i (one, instance_id) VALUES (true, $1)
        ON CONFLICT (one) DO UPDATE
        SET instance_id = excluded.instance_id, confirmed = true,
            previous = coalesce(nullif(i.instance_id, excluded.instance_id), i.previous),
            refused = CASE i.instance_id WHEN excluded.instance_id THEN i.refused END,
            refused_at = CASE i.instance_id WHEN excluded.instance_id THEN i.refused_at END";

    SETTLE_INSTANCE = "UPDATE clerk_instance SET previous = NULL WHERE one";

    NOTE_REFUSED = "UPDATE clerk_instance SET refused = $1, refused_at = $2 WHERE one AND instance_id <> $1";

    ADD_ACTIVITY = "INSERT INTO activity AS a
            (at, event, outcome, reason, latest, count, within_5ms, within_25ms, within_100ms, within_500ms, within_2s,
             within_10s)
        SELECT n.at, n.event, n.outcome, n.reason, n.latest, n.count, n.within_5ms, n.within_25ms, n.within_100ms,
               n.within_500ms, n.within_2s, n.within_10s
        FROM {batch $1 AS n: at time, event text, outcome text, reason text, latest time, count bigint, within_5ms bigint, within_25ms bigint, within_100ms bigint, within_500ms bigint, within_2s bigint, within_10s bigint}
        WHERE true
        -- Every replica takes the rows in one order.
        ORDER BY 1, 2, 3, 4
        ON CONFLICT (at, event, outcome, reason) DO UPDATE SET
            latest = {postgres greatest}{sqlite max}(a.latest, excluded.latest),
            count = a.count + excluded.count,
            within_5ms = a.within_5ms + excluded.within_5ms,
            within_25ms = a.within_25ms + excluded.within_25ms,
            within_100ms = a.within_100ms + excluded.within_100ms,
            within_500ms = a.within_500ms + excluded.within_500ms,
            within_2s = a.within_2s + excluded.within_2s,
            within_10s = a.within_10s + excluded.within_10s";

    ACTIVITY = "SELECT {postgres (floor(extract(epoch FROM at) / $2) * $2)::bigint}{sqlite CAST(strftime('%s', at) AS INTEGER) / $2 * $2},
               event, outcome, reason, max(latest), CAST(sum(count) AS bigint), CAST(sum(within_5ms) AS bigint),
               CAST(sum(within_25ms) AS bigint), CAST(sum(within_100ms) AS bigint), CAST(sum(within_500ms) AS bigint),
               CAST(sum(within_2s) AS bigint), CAST(sum(within_10s) AS bigint)
        FROM activity WHERE at >= $1
        GROUP BY 1, 2, 3, 4
        ORDER BY 1, 2, 3, 4";

    OUTLOOK = "SELECT
            (SELECT next_attempt_at FROM webhook_queue WHERE state = 'pending' ORDER BY next_attempt_at LIMIT 1),
            (SELECT min((
                 SELECT next_attempt_at FROM outbox
                 WHERE sink = n.sink AND state = 'pending' AND next_attempt_at IS NOT NULL
                 ORDER BY next_attempt_at
                 LIMIT 1
             ))
             FROM {batch $1 AS n: sink text}
             WHERE NOT EXISTS (SELECT 1 FROM outbox_paused AS p WHERE p.sink = n.sink)),
            (SELECT held_until FROM entity_versions WHERE held_until IS NOT NULL ORDER BY held_until LIMIT 1),
            u.lines, u.since
        FROM (
            SELECT count(*) AS lines, min(at){postgres  FILTER (WHERE isfinite(at))} AS since FROM (
                SELECT at FROM audit_log
                WHERE id > coalesce((SELECT last_id FROM audit_seals ORDER BY number DESC LIMIT 1), 0)
                ORDER BY id
                LIMIT $2
            ) AS unsealed
        ) AS u";
}

#[async_trait]
impl<D: Database> Notes for D {
    async fn hold_lease(&self, name: &str, holder: &str, lasting: Duration) -> Result<bool> {
        let milliseconds = i64::try_from(lasting.as_millis()).unwrap_or(i64::MAX);
        let held = self.run(Purpose::WRITE, &HOLD_LEASE, values![name, holder, milliseconds]).await?;
        Ok(held == 1)
    }

    async fn release_lease(&self, name: &str, holder: &str) -> Result<()> {
        self.run(Purpose::WRITE, &RELEASE_LEASE, values![name, holder]).await?;
        Ok(())
    }

    async fn unfinished_run(&self, kind: RunKind, parameters: &str) -> Result<Option<Run>> {
        let rows = self.fetch(Purpose::Read, &UNFINISHED_RUN, values![kind.name(), parameters]).await?;
        rows.first().map(|row| run(row, kind)).transpose()
    }

    async fn last_finished(&self, kind: RunKind) -> Result<Option<Run>> {
        let rows = self.fetch(Purpose::Read, &LAST_FINISHED, values![kind.name()]).await?;
        rows.first().map(|row| run(row, kind)).transpose()
    }

    async fn begin_run(&self, run: &Run) -> Result<()> {
        let values = values![
            &run.id,
            run.kind.name(),
            &run.owner,
            &run.parameters,
            &run.progress,
            run.started_at,
            run.updated_at,
            run.finished_at,
            run.everybody,
        ];
        self.run(Purpose::WRITE, &BEGIN_RUN, values).await?;
        Ok(())
    }

    async fn save_run(&self, run: &Run) -> Result<bool> {
        let values = values![&run.id, &run.owner, &run.progress, run.updated_at, run.finished_at];
        let saved = self.run(Purpose::WRITE, &SAVE_RUN, values).await?;
        Ok(saved == 1)
    }

    async fn prune_runs(&self, before: DateTime<Utc>) -> Result<()> {
        self.run(Purpose::WRITE, &PRUNE_RUNS, values![before]).await?;
        Ok(())
    }

    async fn history(&self, since: DateTime<Utc>, until: DateTime<Utc>) -> Result<History> {
        let rows = self.fetch(Purpose::Read, &HISTORY, values![since, until]).await?;
        let row = only(&rows)?;
        Ok(match (row.get(0)?, row.get(1)?) {
            (false, _) => History::Empty,
            (true, true) => History::Recent,
            (true, false) => History::Silent,
        })
    }

    async fn origin(&self) -> Result<Option<Origin>> {
        let rows = self.fetch(Purpose::Read, &ORIGIN, values![]).await?;
        rows.first().map(origin).transpose()
    }

    async fn claim_instance(&self, id: &str) -> Result<String> {
        // Read first: nearly always there is nothing to write.
        if let Some(origin) = self.origin().await? {
            return Ok(origin.instance);
        }
        let mut session = self.session(Purpose::WRITE).await?;
        session.execute(&CLAIM_INSTANCE, values![id]).await?;
        let rows = session.rows(&ORIGIN, values![]).await?;
        session.commit().await?;
        Ok(origin(rows.first().ok_or_else(|| StoreError::new(Trouble::Raced))?)?.instance)
    }

    async fn change_instance(&self, id: &str) -> Result<()> {
        self.run(Purpose::WRITE, &CHANGE_INSTANCE, values![id]).await?;
        Ok(())
    }

    async fn settle_instance(&self) -> Result<()> {
        self.run(Purpose::WRITE, &SETTLE_INSTANCE, values![]).await?;
        Ok(())
    }

    async fn note_refused(&self, id: &str, now: DateTime<Utc>) -> Result<()> {
        self.run(Purpose::WRITE, &NOTE_REFUSED, values![id, now]).await?;
        Ok(())
    }

    async fn add_activity(&self, counted: &[Activity]) -> Result<()> {
        let mut rows = batch(counted)
            .time(|counted| counted.at)
            .text(|counted| counted.event.as_str())
            .text(|counted| counted.outcome.as_str())
            .text(|counted| counted.reason.as_str())
            .time(|counted| counted.latest)
            .int(|counted| counted.count.cast_signed());
        for within in 0..WITHIN.len() {
            rows = rows.int(move |counted| counted.within[within].cast_signed());
        }
        self.run(Purpose::WriteUnhurried, &ADD_ACTIVITY, values![rows]).await?;
        Ok(())
    }

    async fn activity(&self, since: DateTime<Utc>, seconds: u32) -> Result<Vec<Activity>> {
        let rows = self.fetch(Purpose::Count, &ACTIVITY, values![since, seconds]).await?;
        rows.iter().map(activity).collect()
    }

    async fn outlook(&self, sinks: &[String]) -> Result<Outlook> {
        let at_most = i64::try_from(Seal::LINES).unwrap_or(i64::MAX);
        let rows =
            self.fetch(Purpose::Page, &OUTLOOK, values![batch(sinks).text(String::as_str), at_most]).await?;
        let row = only(&rows)?;
        Ok(Outlook {
            delivery: row.maybe(0)?,
            message: row.maybe(1)?,
            erasure: row.maybe(2)?,
            unsealed: Unsealed { lines: row.get(3)?, since: row.maybe(4)? },
        })
    }

    async fn to_seal(&self, limit: u32) -> Result<ToSeal> {
        seals::to_seal(self, limit).await
    }

    async fn add_seals(&self, seals: &[Seal]) -> Result<bool> {
        seals::add(self, seals).await
    }

    async fn seals(&self, after: i64, limit: u32) -> Result<Vec<Seal>> {
        seals::page(self, after, limit).await
    }

    async fn audit_lines(&self, after: i64, until: i64, limit: u32) -> Result<Vec<LineHash>> {
        seals::lines(self, after, until, limit).await
    }

    async fn unsealed(&self, at_most: u32) -> Result<Unsealed> {
        seals::unsealed(self, at_most).await
    }
}

/// Of the columns in the order of `UNFINISHED_RUN`.
fn run(row: &Row, kind: RunKind) -> Result<Run> {
    Ok(Run {
        id: row.get(0)?,
        kind,
        owner: row.get(1)?,
        progress: row.get(2)?,
        started_at: row.get(3)?,
        updated_at: row.get(4)?,
        everybody: row.get(5)?,
        parameters: row.get(6)?,
        finished_at: row.maybe(7)?,
    })
}

fn origin(row: &Row) -> Result<Origin> {
    Ok(Origin {
        instance: row.get(0)?,
        previous: row.maybe(1)?,
        refused: row.maybe(2)?.zip(row.maybe(3)?),
        confirmed: row.get(4)?,
    })
}

fn activity(row: &Row) -> Result<Activity> {
    let mut within = [0; 6];
    for (index, within) in within.iter_mut().enumerate() {
        *within = row.get(index + 6)?;
    }
    let second = row.get(0)?;
    Ok(Activity {
        at: DateTime::from_timestamp(second, 0).ok_or_else(|| StoreError::new(Trouble::Broken))?,
        event: row.get(1)?,
        outcome: row.get(2)?,
        reason: row.get(3)?,
        latest: row.get(4)?,
        count: row.get(5)?,
        within,
    })
}
