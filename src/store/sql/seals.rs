//! Seals over `audit_log`, and the lines as seals see them.
//!
//! On PostgreSQL ids are handed out before the commit, so that a line can appear below others that are there already. A
//! transaction that is about to write one holds the lock of an insertion on the table from before it gets its id until it
//! ends, and everybody can see who does: when those have ended who held it after a line was seen, nothing can appear below
//! that line any more. Nobody waits for us. It takes a sequence that hands its ids out one by one, as it does unless
//! somebody has changed it. On SQLite one transaction writes at a time.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Database, Purpose, Row, RowCells as Cells, Session, batch, only, statements, values};
use crate::{
    model::{LineHash, Seal},
    store::{Result, ToSeal, Unsealed, postgres, sqlite},
};

/// How long we wait for those who are writing lines, and how often we look.
const PATIENCE: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(20);

statements! {
    TOP = "SELECT id FROM audit_log WHERE id > $1 ORDER BY id DESC LIMIT 1";

    // The transactions that have written lines, or may be about to.
    WRITERS = "{postgres SELECT virtualtransaction FROM pg_locks
        WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND relation = 'audit_log'::regclass
          AND database = (SELECT oid FROM pg_database WHERE datname = current_database())}{sqlite SELECT '' WHERE false}";

    LINES = "SELECT id, at, action, clerk_id, svix_id, source, changed_fields, event_at, kind FROM audit_log
        WHERE id > $1 AND id <= $2 ORDER BY id LIMIT $3";

    NEWEST = "SELECT number, sealed_at, first_id, last_id, lines, gaps, content, previous, hash FROM audit_seals
        ORDER BY number DESC LIMIT 1";

    SEALS = "SELECT number, sealed_at, first_id, last_id, lines, gaps, content, previous, hash FROM audit_seals
        WHERE number > $1 ORDER BY number LIMIT $2";

    ADD = "INSERT INTO audit_seals (number, sealed_at, first_id, last_id, lines, gaps, content, previous, hash)
        SELECT n.number, n.sealed_at, n.first_id, n.last_id, n.lines, n.gaps, n.content, n.previous, n.hash
        FROM {batch $1 AS n: number bigint, sealed_at time, first_id bigint, last_id bigint, lines bigint, gaps text, content text, previous text, hash text}
        WHERE true
        ON CONFLICT (number) DO NOTHING";

    UNSEALED = "SELECT count(*), min(at){postgres  FILTER (WHERE isfinite(at))} FROM (
            SELECT at FROM audit_log
            WHERE id > coalesce((SELECT last_id FROM audit_seals ORDER BY number DESC LIMIT 1), 0)
            ORDER BY id
            LIMIT $1
        ) AS unsealed";
}

pub(super) async fn to_seal(store: &dyn Database, limit: u32) -> Result<ToSeal> {
    let mut session = store.session(Purpose::Page).await?;
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
        // Ids without a hole are all there, whoever may still be writing.
        let whole = (after + 1..).zip(&lines).take_while(|(id, line)| *id == line.id).count();
        lines.truncate(whole);
    }
    Ok(ToSeal { newest, lines })
}

/// Wait until all have ended who are writing lines now; false if that takes too long.
async fn wait_for_writers(session: &mut dyn Session) -> Result<bool> {
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

async fn writers(session: &mut dyn Session) -> Result<Vec<String>> {
    session.rows(&WRITERS, values![]).await?.iter().map(|row| row.get(0)).collect()
}

pub(super) async fn add(store: &dyn Database, seals: &[Seal]) -> Result<bool> {
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
    let mut session = store.session(Purpose::WRITE).await?;
    let all = session.execute(&ADD, values![rows]).await? == seals.len() as u64;
    if all {
        session.commit().await?;
    } else {
        session.rollback().await;
    }
    Ok(all)
}

pub(super) async fn page(store: &dyn Database, after: i64, limit: u32) -> Result<Vec<Seal>> {
    let rows = store.fetch(Purpose::Page, &SEALS, values![after, limit]).await?;
    rows.iter().map(seal).collect()
}

/// What somebody else has written into a column counts as nothing, which fits no hash.
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

pub(super) async fn lines(store: &dyn Database, after: i64, until: i64, limit: u32) -> Result<Vec<LineHash>> {
    let rows = store.fetch(Purpose::Page, &LINES, values![after, until, limit]).await?;
    hashed(&rows)
}

/// Each database's own bytes are hashed, so that nothing is overlooked that it would let somebody write into a column.
fn hashed(rows: &[Row]) -> Result<Vec<LineHash>> {
    let line = |row: &Row| match &row.cells {
        Cells::Postgres(row) => postgres::seals::line(row),
        Cells::Sqlite(row) => sqlite::seals::line(row),
    };
    rows.iter().map(line).collect()
}

pub(super) async fn unsealed(store: &dyn Database, at_most: u32) -> Result<Unsealed> {
    let rows = store.fetch(Purpose::Page, &UNSEALED, values![at_most]).await?;
    let row = only(&rows)?;
    Ok(Unsealed { lines: row.get(0)?, since: row.maybe(1)? })
}
