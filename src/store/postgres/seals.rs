//! Seals over `audit_log`, and the lines as seals see them.
//!
//! Ids are handed out before the commit, so that a line can appear below others that are there already. Whoever is about
//! to write one holds the lock of an insertion on the table from before it gets its id until its transaction is over, and
//! everybody can see who does: when those have ended who held it after a line was seen, nothing can appear below that line
//! any more. Nobody waits for us. It takes a sequence that hands its ids out one by one, as it does unless somebody has
//! changed it.

use std::time::Duration;

use chrono::DateTime;
use sqlx::{Row as _, postgres::PgRow};
use tokio::time::{Instant, sleep};

use super::{Postgres, Session, count, get, sql, store_error, transaction::column};
use crate::{
    model::{LineHash, Seal, seal::Cell},
    store::{Outlook, Result, StoreError, ToSeal, Trouble, Unsealed},
};

/// How long we wait for those who are writing lines, and how often we look.
const PATIENCE: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(20);

pub(super) async fn to_seal(store: &Postgres, limit: u32) -> Result<ToSeal> {
    let mut session = store.session(&store.begin_page).await?;
    let newest = newest(&mut session).await?;
    let after = newest.as_ref().map_or(0, |seal| seal.last_id);
    let Some(top) = top(&mut session, after).await? else {
        session.commit().await?;
        return Ok(ToSeal { newest, lines: Vec::new() });
    };
    let complete = wait_for_writers(&mut session).await?;
    let mut lines = page(&mut session, after, top, limit).await?;
    session.commit().await?;
    if !complete {
        // Ids without a hole are all there, whoever may still be writing.
        let whole = (after + 1..).zip(&lines).take_while(|(id, line)| *id == line.id).count();
        lines.truncate(whole);
    }
    Ok(ToSeal { newest, lines })
}

/// The highest id that can be seen, if it is behind this one.
async fn top(session: &mut Session, after: i64) -> Result<Option<i64>> {
    let rows = session
        .rows(sql("SELECT id FROM audit_log WHERE id > $1 ORDER BY id DESC LIMIT 1").bind(after))
        .await?;
    rows.first().map(|row| get(row, 0)).transpose()
}

/// Wait until everybody has ended who is writing lines now; false if that takes too long.
async fn wait_for_writers(session: &mut Session) -> Result<bool> {
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

/// The transactions that have written lines, or may be about to.
async fn writers(session: &mut Session) -> Result<Vec<String>> {
    let rows = session
        .rows(sql("SELECT virtualtransaction FROM pg_locks
                   WHERE locktype = 'relation' AND mode = 'RowExclusiveLock'
                     AND relation = 'audit_log'::regclass
                     AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"))
        .await?;
    rows.iter().map(|row| get(row, 0)).collect()
}

pub(super) async fn add(store: &Postgres, seals: &[Seal]) -> Result<bool> {
    let mut session = store.session(&store.begin_normal).await?;
    let added = session
        .execute(
            sql("INSERT INTO audit_seals (number, sealed_at, first_id, last_id, lines, gaps, content, previous, hash)
                 SELECT * FROM unnest($1::bigint[], $2::timestamptz[], $3::bigint[], $4::bigint[], $5::bigint[],
                                      $6::text[], $7::text[], $8::text[], $9::text[])
                 ON CONFLICT (number) DO NOTHING")
            .bind(column(seals, |seal| seal.number))
            .bind(column(seals, |seal| seal.sealed_at))
            .bind(column(seals, |seal| seal.first_id))
            .bind(column(seals, |seal| seal.last_id))
            .bind(column(seals, |seal| seal.lines))
            .bind(column(seals, |seal| seal.gaps.as_str()))
            .bind(column(seals, |seal| seal.content.as_str()))
            .bind(column(seals, |seal| seal.previous.as_str()))
            .bind(column(seals, |seal| seal.hash.as_str())),
        )
        .await?;
    let all = added == seals.len() as u64;
    if all {
        session.commit().await?;
    } else {
        session.rollback().await;
    }
    Ok(all)
}

async fn newest(session: &mut Session) -> Result<Option<Seal>> {
    let rows = session
        .rows(sql(
            "SELECT number, sealed_at, first_id, last_id, lines, gaps, content, previous, hash FROM audit_seals
             ORDER BY number DESC LIMIT 1",
        ))
        .await?;
    rows.first().map(seal).transpose()
}

pub(super) async fn seals(store: &Postgres, after: i64, limit: u32) -> Result<Vec<Seal>> {
    let mut session = store.session(&store.begin_page).await?;
    let rows = session
        .rows(
            sql("SELECT number, sealed_at, first_id, last_id, lines, gaps, content, previous, hash FROM audit_seals
                 WHERE number > $1 ORDER BY number LIMIT $2")
            .bind(after)
            .bind(i64::from(limit)),
        )
        .await?;
    session.commit().await?;
    rows.iter().map(seal).collect()
}

fn seal(row: &PgRow) -> Result<Seal> {
    Ok(Seal {
        number: get(row, 0)?,
        sealed_at: micros(row, 1)?.and_then(DateTime::from_timestamp_micros).unwrap_or_default(),
        first_id: get(row, 2)?,
        last_id: get(row, 3)?,
        lines: get(row, 4)?,
        gaps: get(row, 5)?,
        content: get(row, 6)?,
        previous: get(row, 7)?,
        hash: get(row, 8)?,
    })
}

pub(super) async fn lines(store: &Postgres, after: i64, until: i64, limit: u32) -> Result<Vec<LineHash>> {
    let mut session = store.session(&store.begin_page).await?;
    let lines = page(&mut session, after, until, limit).await?;
    session.commit().await?;
    Ok(lines)
}

async fn page(session: &mut Session, after: i64, until: i64, limit: u32) -> Result<Vec<LineHash>> {
    let rows = session
        .rows(
            sql("SELECT id, at, action, clerk_id, svix_id, source, changed_fields, event_at FROM audit_log
                 WHERE id > $1 AND id <= $2 ORDER BY id LIMIT $3")
            .bind(after)
            .bind(until)
            .bind(i64::from(limit)),
        )
        .await?;
    rows.iter().map(line).collect()
}

fn line(row: &PgRow) -> Result<LineHash> {
    let cells = [
        time(row, 1)?,
        text(row, 2)?,
        text(row, 3)?,
        text(row, 4)?,
        text(row, 5)?,
        list(row, 6)?,
        time(row, 7)?,
    ];
    Ok(LineHash::of(get(row, 0)?, &cells))
}

fn text(row: &PgRow, index: usize) -> Result<Cell<'_>> {
    Ok(get::<Option<&str>>(row, index)?.map_or(Cell::Null, |text| Cell::Text(text.as_bytes())))
}

fn list(row: &PgRow, index: usize) -> Result<Cell<'_>> {
    if let Ok(list) = get::<Option<Vec<Option<String>>>>(row, index) {
        return Ok(list.map_or(Cell::Null, Cell::List));
    }
    // Such as an array of arrays.
    let value = row.try_get_raw(index).map_err(store_error)?;
    Ok(Cell::Odd(value.as_bytes().map_err(|_| StoreError::new(Trouble::Broken))?))
}

fn time(row: &PgRow, index: usize) -> Result<Cell<'_>> {
    Ok(micros(row, index)?.map_or(Cell::Null, Cell::Time))
}

/// Unix microseconds of a time, also of one that no calendar has: infinity is a time to this database.
fn micros(row: &PgRow, index: usize) -> Result<Option<i64>> {
    /// From 1970 to 2000, when the server's time begins.
    const EPOCH: i64 = 946_684_800_000_000;
    let micros: Option<i64> = row.try_get_unchecked(index).map_err(store_error)?;
    Ok(micros.map(|micros| micros.wrapping_add(EPOCH)))
}

/// What waits for its time, of messages those for these sinks.
pub(super) async fn outlook(store: &Postgres, sinks: &[String]) -> Result<Outlook> {
    let mut session = store.session(&store.begin_page).await?;
    let rows = session
        .rows(
            sql("SELECT
                     (SELECT next_attempt_at FROM webhook_queue WHERE state = 'pending' ORDER BY next_attempt_at LIMIT 1),
                     (SELECT min(o.next_attempt_at) FROM unnest($1::text[]) AS n (sink)
                      CROSS JOIN LATERAL (
                          SELECT next_attempt_at FROM outbox
                          WHERE sink = n.sink AND state = 'pending' AND next_attempt_at IS NOT NULL
                          ORDER BY next_attempt_at
                          LIMIT 1
                      ) AS o
                      WHERE NOT EXISTS (SELECT FROM outbox_paused AS p WHERE p.sink = n.sink)),
                     (SELECT held_until FROM entity_versions WHERE held_until IS NOT NULL ORDER BY held_until LIMIT 1),
                     u.lines, u.since
                 FROM (
                     SELECT count(*) AS lines, min(at) FILTER (WHERE isfinite(at)) AS since FROM (
                         SELECT at FROM audit_log
                         WHERE id > coalesce((SELECT last_id FROM audit_seals ORDER BY number DESC LIMIT 1), 0)
                         ORDER BY id
                         LIMIT $2
                     ) AS unsealed
                 ) AS u")
            .bind(sinks)
            .bind(i64::try_from(Seal::LINES).unwrap_or(i64::MAX)),
        )
        .await?;
    session.commit().await?;
    let row = rows.first().ok_or_else(|| StoreError::new(Trouble::Broken))?;
    Ok(Outlook {
        delivery: get(row, 0)?,
        message: get(row, 1)?,
        erasure: get(row, 2)?,
        unsealed: Unsealed { lines: count(row, 3)?, since: get(row, 4)? },
    })
}

pub(super) async fn unsealed(store: &Postgres, at_most: u32) -> Result<Unsealed> {
    let mut session = store.session(&store.begin_page).await?;
    let rows = session
        .rows(
            sql("SELECT count(*), min(at) FILTER (WHERE isfinite(at)) FROM (
                     SELECT at FROM audit_log
                     WHERE id > coalesce((SELECT last_id FROM audit_seals ORDER BY number DESC LIMIT 1), 0)
                     ORDER BY id
                     LIMIT $1
                 ) AS unsealed")
            .bind(i64::from(at_most)),
        )
        .await?;
    session.commit().await?;
    let row = rows.first().ok_or_else(|| StoreError::new(Trouble::Broken))?;
    Ok(Unsealed { lines: count(row, 0)?, since: get(row, 1)? })
}
