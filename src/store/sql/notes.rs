//! The service's own state in addition to the synced data: leases, runs, the Clerk instance, activity and seals. Also the
//! removal of old data.

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use tokio::time::{Instant, sleep};

use super::{Purpose, Row, RowCells, SqlDatabase, SqlSession, batch, only, retention, statements, values};
use crate::{
    model::{Entity, Field, FieldSet, LineHash, Seal},
    store::{
        Activity, ErrorKind, History, Minimized, Notes, Old, Origin, Outlook, Result, Run, RunKind,
        StoreError, ToSeal, Unsealed, WITHIN, mysql, postgres, sqlite,
    },
};

/// How long sealing waits for transactions that are writing lines, and how often it checks.
const PATIENCE: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(20);

/// The last id that a seal covers. `newest_seal!` must precede the statement.
macro_rules! sealed {
    () => {
        "{postgres|sqlite coalesce((SELECT last_id FROM audit_seals ORDER BY number DESC LIMIT 1), 0)}{mysql @sealed}"
    };
}

/// On MySQL and MariaDB: stores that id in a variable. With more than 100 seals, MariaDB would read the whole trail if the id
/// came from a subquery.
macro_rules! newest_seal {
    () => {
        "{mysql SELECT coalesce(max(last_id), 0) INTO @sealed FROM (
            SELECT last_id FROM audit_seals ORDER BY number DESC LIMIT 1
        ) AS newest;
        }"
    };
}

statements! {
    // A lease cannot end later than after $4 milliseconds, unless a clock was ahead when it was taken.
    HOLD_LEASE = "INSERT INTO leases{postgres|sqlite  AS l} (name, holder, expires_at)
        VALUES ($1, $2,
                {postgres {now} + make_interval(secs => $3 / 1000.0)}{sqlite strftime('%Y-%m-%dT%H:%M:%fZ', 'now', ($3 / 1000.0) || ' seconds')}{mysql {now} + INTERVAL $3 * 1000 microsecond})
        {postgres|sqlite ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at
        WHERE l.holder = excluded.holder OR l.expires_at < {now}
            OR l.expires_at > {postgres {now} + make_interval(secs => $4 / 1000.0)}{sqlite strftime('%Y-%m-%dT%H:%M:%fZ', 'now', ($4 / 1000.0) || ' seconds')}}{mysql ON DUPLICATE KEY UPDATE
            holder = CASE WHEN expires_at < {now} OR expires_at > {now} + INTERVAL $4 * 1000 microsecond THEN excluded.holder ELSE holder END,
            expires_at = CASE WHEN holder = excluded.holder THEN excluded.expires_at ELSE expires_at END;
        SELECT count(*) FROM leases WHERE name = $1 AND holder = $2}";

    RELEASE_LEASE = "DELETE FROM leases WHERE name = $1 AND holder = $2";

    UNFINISHED_RUN = "SELECT id, owner, progress, started_at, updated_at, everybody, parameters, finished_at
        FROM sync_runs AS run
        WHERE kind = $1 AND parameters = $2 AND finished_at IS NULL
            -- A later run that finished has done everything that this one left undone.
            AND NOT EXISTS (SELECT 1 FROM sync_runs AS later
                WHERE later.kind = $1 AND later.parameters = $2 AND later.started_at > run.started_at
                    AND later.finished_at IS NOT NULL)
        ORDER BY started_at DESC
        LIMIT 1";

    LAST_FINISHED = "SELECT id, owner, progress, started_at, updated_at, everybody, parameters, finished_at
        FROM sync_runs
        WHERE kind = $1 AND (CASE WHEN $2 IS NULL THEN everybody ELSE parameters = $2 END) AND finished_at IS NOT NULL
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

    // Waits for a concurrent claim, and then does nothing.
    CLAIM_INSTANCE = "INSERT INTO clerk_instance (one, instance_id, confirmed) VALUES (true, $1, false)
        ON CONFLICT (one) DO NOTHING";

    // `instance_id` is assigned last, because MySQL's assignments see the results of earlier ones.
    CHANGE_INSTANCE = "INSERT INTO clerk_instance (one, instance_id) VALUES (true, $1)
        ON CONFLICT (one) DO UPDATE
        SET confirmed = true,
            previous = coalesce(nullif(clerk_instance.instance_id, excluded.instance_id), clerk_instance.previous),
            refused = CASE clerk_instance.instance_id WHEN excluded.instance_id THEN clerk_instance.refused END,
            refused_at = CASE clerk_instance.instance_id WHEN excluded.instance_id THEN clerk_instance.refused_at END,
            instance_id = excluded.instance_id";

    SETTLE_INSTANCE = "UPDATE clerk_instance SET previous = NULL WHERE one";

    NOTE_REFUSED = "UPDATE clerk_instance SET refused = $1, refused_at = $2 WHERE one AND instance_id <> $1";

    ADD_ACTIVITY = "INSERT INTO activity
            (at, event, outcome, reason, latest, count, within_5ms, within_25ms, within_100ms, within_500ms, within_2s,
             within_10s)
        SELECT n.at, n.event, n.outcome, n.reason, n.latest, n.count, n.within_5ms, n.within_25ms, n.within_100ms,
               n.within_500ms, n.within_2s, n.within_10s
        FROM {batch $1 AS n: at time, event text, outcome text, reason text, latest time, count bigint, within_5ms bigint, within_25ms bigint, within_100ms bigint, within_500ms bigint, within_2s bigint, within_10s bigint}
        WHERE true
        -- All replicas lock the rows in the same order.
        ORDER BY 1, 2, 3, 4
        ON CONFLICT (at, event, outcome, reason) DO UPDATE SET
            latest = {sqlite max}{postgres|mysql greatest}(activity.latest, excluded.latest),
            count = activity.count + excluded.count,
            within_5ms = activity.within_5ms + excluded.within_5ms,
            within_25ms = activity.within_25ms + excluded.within_25ms,
            within_100ms = activity.within_100ms + excluded.within_100ms,
            within_500ms = activity.within_500ms + excluded.within_500ms,
            within_2s = activity.within_2s + excluded.within_2s,
            within_10s = activity.within_10s + excluded.within_10s";

    ACTIVITY = "SELECT {postgres (floor(extract(epoch FROM at) / $2) * $2)::bigint}{sqlite CAST(strftime('%s', at) AS INTEGER) / $2 * $2}{mysql CAST(timestampdiff(second, '1970-01-01', at) DIV $2 * $2 AS signed)},
               event, outcome, reason, max(latest), CAST(sum(count) AS bigint), CAST(sum(within_5ms) AS bigint),
               CAST(sum(within_25ms) AS bigint), CAST(sum(within_100ms) AS bigint), CAST(sum(within_500ms) AS bigint),
               CAST(sum(within_2s) AS bigint), CAST(sum(within_10s) AS bigint)
        FROM activity WHERE at >= $1
        GROUP BY 1, 2, 3, 4
        ORDER BY 1, 2, 3, 4";

    OUTLOOK = concat!(newest_seal!(), "SELECT
            (SELECT next_attempt_at FROM webhook_queue WHERE state = 'pending' AND next_attempt_at >= $3
             ORDER BY next_attempt_at LIMIT 1),
            (SELECT min((
                 SELECT next_attempt_at FROM outbox
                 WHERE sink = n.sink AND state = 'pending' AND next_attempt_at >= $3
                 ORDER BY next_attempt_at
                 LIMIT 1
             ))
             FROM {batch $1 AS n: sink text}
             WHERE NOT EXISTS (SELECT 1 FROM outbox_paused AS p WHERE p.sink = n.sink)),
            (SELECT held_until FROM entity_versions WHERE held_until IS NOT NULL ORDER BY held_until LIMIT 1),
            u.found, u.since
        FROM (
            SELECT count(*) AS found, min(at){postgres  FILTER (WHERE isfinite(at))} AS since FROM (
                SELECT at FROM audit_log
                WHERE id > ", sealed!(), "
                ORDER BY id
                LIMIT $2
            ) AS unsealed
        ) AS u");

    TOP = "SELECT id FROM audit_log WHERE id > $1 ORDER BY id DESC LIMIT 1";

    // The transactions that have written lines or may be about to.
    WRITERS = "{postgres SELECT virtualtransaction FROM pg_locks
        WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND relation = 'audit_log'::regclass
          AND database = (SELECT oid FROM pg_database WHERE datname = current_database())}{sqlite SELECT '' WHERE false}{mysql
        -- Transactions that write lines share the lock of this row until they end. The sealer does not wait for it: writers that
        -- come later would wait behind the sealer.
        SET @free = false;
        SELECT one INTO @free FROM audit_barrier FOR UPDATE SKIP LOCKED;
        SELECT 'somebody' FROM DUAL WHERE NOT @free}";

    LINES = "SELECT id, at, action, clerk_id, svix_id, source, changed_fields, event_at, kind FROM audit_log
        WHERE id > $1 AND id <= $2 ORDER BY id LIMIT $3";

    NEWEST = "SELECT number, sealed_at, first_id, last_id, \"lines\", gaps, content, previous, hash FROM audit_seals
        ORDER BY number DESC LIMIT 1";

    SEALS = "SELECT number, sealed_at, first_id, last_id, \"lines\", gaps, content, previous, hash FROM audit_seals
        WHERE number > $1 ORDER BY number LIMIT $2";

    ADD_SEALS = "INSERT {mysql IGNORE }INTO audit_seals (number, sealed_at, first_id, last_id, \"lines\", gaps, content, previous, hash)
        SELECT n.number, n.sealed_at, n.first_id, n.last_id, n.covered, n.gaps, n.content, n.previous, n.hash
        FROM {batch $1 AS n: number bigint, sealed_at time, first_id bigint, last_id bigint, covered bigint, gaps text, content text, previous text, hash text}
        WHERE true {postgres|sqlite ON CONFLICT (number) DO NOTHING}{mysql ;
        SELECT count(*) FROM {batch $1 AS n: number bigint, sealed_at time, first_id bigint, last_id bigint, covered bigint, gaps text, content text, previous text, hash text}
        {lookup audit_seals AS s WHERE s.number = n.number AND s.hash = n.hash}}";

    UNSEALED = concat!(newest_seal!(), "SELECT count(*), min(at){postgres  FILTER (WHERE isfinite(at))} FROM (
            SELECT at FROM audit_log
            WHERE id > ", sealed!(), "
            ORDER BY id
            LIMIT $1
        ) AS unsealed");
}

#[async_trait]
impl<D: SqlDatabase + ?Sized> Notes for D {
    async fn hold_lease(
        &self,
        name: &str,
        holder: &str,
        lasting: Duration,
        longest: Duration,
    ) -> Result<bool> {
        let milliseconds = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let values = values![name, holder, milliseconds(lasting), milliseconds(longest)];
        let held = self.run(Purpose::WRITE, &HOLD_LEASE, values).await?;
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

    async fn last_finished(&self, kind: RunKind, parameters: Option<&str>) -> Result<Option<Run>> {
        let rows = self.fetch(Purpose::Read, &LAST_FINISHED, values![kind.name(), parameters]).await?;
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
        // Read first: usually there is nothing to write.
        if let Some(origin) = self.origin().await? {
            return Ok(origin.instance);
        }
        let mut session = self.session(Purpose::WRITE).await?;
        session.execute(&CLAIM_INSTANCE, values![id]).await?;
        let rows = session.rows(&ORIGIN, values![]).await?;
        session.commit().await?;
        Ok(origin(rows.first().ok_or_else(|| StoreError::new(ErrorKind::Raced))?)?.instance)
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

    async fn outlook(&self, sinks: &[String], since: DateTime<Utc>) -> Result<Outlook> {
        let at_most = i64::try_from(Seal::LINES).unwrap_or(i64::MAX);
        // A statement with an empty batch is not sent, so use a name that no sink has.
        let nobody = [String::new()];
        let sinks = if sinks.is_empty() { &nobody } else { sinks };
        let values = values![batch(sinks).text(String::as_str), at_most, since];
        let rows = self.fetch(Purpose::Page, &OUTLOOK, values).await?;
        let row = only(&rows)?;
        Ok(Outlook {
            delivery: row.maybe(0)?,
            message: row.maybe(1)?,
            erasure: row.maybe(2)?,
            unsealed: Unsealed { lines: row.get(3)?, since: row.maybe(4)? },
        })
    }

    async fn to_seal(&self, limit: u32) -> Result<ToSeal> {
        let mut session = self.session(Purpose::Page).await?;
        let newest = session.rows(&NEWEST, values![]).await?.first().map(seal).transpose()?;
        let after = newest.as_ref().map_or(0, |seal| seal.last_id);
        let top: Option<i64> =
            session.rows(&TOP, values![after]).await?.first().map(|row| row.get(0)).transpose()?;
        let Some(top) = top else {
            session.commit().await?;
            return Ok(ToSeal { newest, lines: Vec::new() });
        };
        let complete = wait_for_writers(&mut *session).await?;
        let mut lines = hashed(&session.rows(&LINES, values![after, top, limit]).await?)?;
        session.commit().await?;
        if !complete {
            // Ids without a gap are complete, even if other transactions are still writing.
            let whole = (after + 1..).zip(&lines).take_while(|(id, line)| *id == line.id).count();
            lines.truncate(whole);
        }
        Ok(ToSeal { newest, lines })
    }

    async fn add_seals(&self, seals: &[Seal]) -> Result<bool> {
        let rows = batch(seals)
            .int(|seal| seal.number)
            .time(|seal| seal.sealed_at)
            .int(|seal| seal.first_id)
            .int(|seal| seal.last_id)
            .int(|seal| seal.lines)
            .text(|seal| seal.gaps.as_str())
            .text(|seal| seal.content.as_str())
            .text(|seal| seal.previous.as_str())
            .text(|seal| seal.hash.as_str());
        let mut session = self.session(Purpose::WRITE).await?;
        let all = session.execute(&ADD_SEALS, values![rows]).await? == seals.len() as u64;
        if all {
            session.commit().await?;
        } else {
            session.rollback().await;
        }
        Ok(all)
    }

    async fn seals(&self, after: i64, limit: u32) -> Result<Vec<Seal>> {
        let rows = self.fetch(Purpose::Page, &SEALS, values![after, limit]).await?;
        rows.iter().map(seal).collect()
    }

    async fn audit_lines(&self, after: i64, until: i64, limit: u32) -> Result<Vec<LineHash>> {
        let rows = self.fetch(Purpose::Page, &LINES, values![after, until, limit]).await?;
        hashed(&rows)
    }

    async fn unsealed(&self, at_most: u32) -> Result<Unsealed> {
        let rows = self.fetch(Purpose::Page, &UNSEALED, values![at_most]).await?;
        let row = only(&rows)?;
        Ok(Unsealed { lines: row.get(0)?, since: row.maybe(1)? })
    }

    async fn count_old(&self, kind: Old, before: DateTime<Utc>) -> Result<u64> {
        let (statement, ..) = retention::statements(kind);
        // Counting may take longer than a webhook is allowed to.
        only(&self.fetch(Purpose::Scan, statement, values![before]).await?)?.get(0)
    }

    async fn prune(&self, kind: Old, before: DateTime<Utc>, limit: u32) -> Result<u64> {
        let (_, statement, is_personal) = retention::statements(kind);
        let mut session = self.session(Purpose::WRITE).await?;
        let pruned = session.execute(statement, values![before, limit]).await?;
        if pruned > 0 && is_personal {
            session.removed_personal_data();
        }
        session.commit().await?;
        Ok(pruned)
    }

    async fn minimize(
        &self,
        entity: &'static Entity,
        keep: FieldSet,
        after: i64,
        limit: u32,
        dry_run: bool,
    ) -> Result<Option<Minimized>> {
        let gone: Vec<&str> =
            entity.fields().filter(|field| !keep.contains(*field)).map(Field::name).collect();
        let [count, clear] = retention::minimizing(entity, &gone);
        let mut session = self.session(if dry_run { Purpose::Page } else { Purpose::WRITE }).await?;
        let rows = session.rows(&count, values![after, limit]).await?;
        let row = only(&rows)?;
        let Some(last) = row.maybe(0)? else {
            session.commit().await?;
            return Ok(None);
        };
        let columns = (0..gone.len()).map(|column| row.get(column + 2)).collect::<Result<_>>()?;
        let page = Minimized { last, rows: row.get(1)?, columns };
        if page.rows > 0 && !dry_run {
            session.write_objects(entity.table, &clear, values![after, last]).await?;
            session.removed_personal_data();
        }
        session.commit().await?;
        Ok(Some(page))
    }
}

/// A run, from the columns in the order of `UNFINISHED_RUN`.
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
        at: DateTime::from_timestamp(second, 0).ok_or_else(|| StoreError::new(ErrorKind::Broken))?,
        event: row.get(1)?,
        outcome: row.get(2)?,
        reason: row.get(3)?,
        latest: row.get(4)?,
        count: row.get(5)?,
        within,
    })
}

/// Wait until the transactions that are writing lines now have ended; false if that takes too long.
///
/// PostgreSQL assigns ids before the commit, so a line can appear with a smaller id than lines that are already visible. A
/// transaction that writes a line holds a ROW EXCLUSIVE lock on the table from before it gets the id until it ends, and
/// `pg_locks` shows these locks. So after a line was seen, once the holders at that time have ended, no line with a smaller id
/// can appear. Writers never wait for the sealer. This requires a sequence that assigns its ids one by one, which is the
/// default. On SQLite only one transaction writes at a time.
async fn wait_for_writers(session: &mut (impl SqlSession + ?Sized)) -> Result<bool> {
    let mut writing = writers(session).await?;
    let deadline = Instant::now() + PATIENCE;
    while !writing.is_empty() {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        sleep(POLL).await;
        let now = writers(session).await?;
        writing.retain(|writer| now.contains(writer));
    }
    Ok(true)
}

async fn writers(session: &mut (impl SqlSession + ?Sized)) -> Result<Vec<String>> {
    session.rows(&WRITERS, values![]).await?.iter().map(|row| row.get(0)).collect()
}

/// A value that cannot be read, because another program wrote it, becomes the default, so that the hash does not match.
fn seal(row: &Row) -> Result<Seal> {
    Ok(Seal {
        number: row.maybe(0)?.unwrap_or_default(),
        sealed_at: row.maybe(1)?.unwrap_or_default(),
        first_id: row.maybe(2)?.unwrap_or_default(),
        last_id: row.maybe(3)?.unwrap_or_default(),
        lines: row.maybe(4)?.unwrap_or_default(),
        gaps: row.maybe(5)?.unwrap_or_default(),
        content: row.maybe(6)?.unwrap_or_default(),
        previous: row.maybe(7)?.unwrap_or_default(),
        hash: row.maybe(8)?.unwrap_or_default(),
    })
}

/// Hashes the bytes as each database stores them, so that every value that a column accepts is covered.
fn hashed(rows: &[Row]) -> Result<Vec<LineHash>> {
    let line = |row: &Row| match &row.cells {
        RowCells::Postgres(row) => postgres::seals::line(row),
        RowCells::Sqlite(row) => sqlite::seals::line(row),
        RowCells::Mysql(row) => mysql::seals::line(row),
    };
    rows.iter().map(line).collect()
}
