//! What was answered: counts by the minute.

use chrono::{DateTime, Utc};
use serde_json::json;
use sqlx::{SqliteConnection, sqlite::SqliteRow};

use super::{error::explain, text};
use crate::store::{Activity, Result, WITHIN};

/// The columns of [`Activity::within`].
const COLUMNS: [&str; WITHIN.len()] =
    ["within_5ms", "within_25ms", "within_100ms", "within_500ms", "within_2s", "within_10s"];

/// Add to what is counted of a minute.
pub(super) async fn add(connection: &mut SqliteConnection, counted: &[Activity]) -> Result<()> {
    let rows = text::rows(counted.iter().map(|activity| {
        json!({
            "at": text::time(activity.at),
            "event": activity.event,
            "outcome": activity.outcome,
            "reason": activity.reason,
            "latest": text::time(activity.latest),
            "count": activity.count,
            "within": activity.within,
        })
    }))?;
    sqlx::query(
        "INSERT INTO activity
         SELECT n.value ->> 'at', n.value ->> 'event', n.value ->> 'outcome', n.value ->> 'reason', n.value ->> 'latest',
                n.value ->> 'count',
                n.value ->> '$.within[0]', n.value ->> '$.within[1]', n.value ->> '$.within[2]',
                n.value ->> '$.within[3]', n.value ->> '$.within[4]', n.value ->> '$.within[5]'
         FROM json_each(?1) AS n
         WHERE true
         ON CONFLICT (at, event, outcome, reason) DO UPDATE SET
             latest = max(latest, excluded.latest),
             count = count + excluded.count,
             within_5ms = within_5ms + excluded.within_5ms,
             within_25ms = within_25ms + excluded.within_25ms,
             within_100ms = within_100ms + excluded.within_100ms,
             within_500ms = within_500ms + excluded.within_500ms,
             within_2s = within_2s + excluded.within_2s,
             within_10s = within_10s + excluded.within_10s",
    )
    .bind(rows)
    .execute(connection)
    .await
    .map_err(explain)?;
    Ok(())
}

/// What was counted since then, put together by so many seconds.
pub(super) async fn since(
    connection: &mut SqliteConnection,
    since: DateTime<Utc>,
    seconds: u32,
) -> Result<Vec<Activity>> {
    let rows = sqlx::query(
        "SELECT CAST(strftime('%s', at) AS INTEGER) / ?2 * ?2 AS second, event, outcome, reason, max(latest) AS latest,
                sum(count) AS count, sum(within_5ms) AS within_5ms, sum(within_25ms) AS within_25ms,
                sum(within_100ms) AS within_100ms, sum(within_500ms) AS within_500ms,
                sum(within_2s) AS within_2s, sum(within_10s) AS within_10s
         FROM activity WHERE at >= ?1
         GROUP BY 1, 2, 3, 4
         ORDER BY 1, 2, 3, 4",
    )
    .bind(text::time(since))
    .bind(seconds)
    .fetch_all(connection)
    .await
    .map_err(explain)?;
    rows.iter().map(counted).collect()
}

fn counted(row: &SqliteRow) -> Result<Activity> {
    let text_of = |column| text::read(row, column)?.ok_or_else(|| text::unreadable(column));
    let count = |column| Ok(text::read_integer(row, column)?.unwrap_or_default().unsigned_abs());
    let second = text::read_integer(row, "second")?.unwrap_or_default();
    let mut within = [0; WITHIN.len()];
    for (within, column) in within.iter_mut().zip(COLUMNS) {
        *within = count(column)?;
    }
    Ok(Activity {
        at: DateTime::from_timestamp(second, 0).ok_or_else(|| text::unreadable("at"))?,
        event: text_of("event")?,
        outcome: text_of("outcome")?,
        reason: text_of("reason")?,
        latest: text::read_time(row, "latest")?.ok_or_else(|| text::unreadable("latest"))?,
        count: count("count")?,
        within,
    })
}
