//! How many users signed up.

use chrono::{DateTime, NaiveDate, Utc};
use sqlx::{SqliteConnection, sqlite::SqliteRow};

use super::{error::explain, text};
use crate::store::{Bucket, Result};

/// Sign-ups by the first day of their bucket.
pub(super) async fn signups(
    connection: &mut SqliteConnection,
    bucket: Bucket,
    from: Option<DateTime<Utc>>,
    to: Option<DateTime<Utc>>,
) -> Result<Vec<(NaiveDate, u64)>> {
    // How a time becomes the first day of its bucket, and that the first day of the next.
    let [to_first, and_back, to_next] = match bucket {
        Bucket::Day => ["+0 days", "+0 days", "+1 day"],
        Bucket::Week => ["weekday 0", "-6 days", "+7 days"],
        Bucket::Month => ["start of month", "+0 days", "+1 month"],
    };
    // Every bucket is counted by its bounds, which is a walk along the index, rather than that of every row computed. Days are
    // compared with times as the texts that they are. Times that are not
    // in our form are the application's: one that cannot be read belongs to no day, and one of another zone may, with what
    // follows it, be counted in the bucket beside.
    let rows = sqlx::query(
        "WITH RECURSIVE firsts (first) AS (
             SELECT (SELECT min(created_at) FROM users
                     WHERE created_at >= coalesce(?1, '') AND created_at < coalesce(?2, '~'))
             UNION ALL
             SELECT (SELECT min(created_at) FROM users
                     WHERE created_at >= max(coalesce(date(f.first, ?3, ?4, ?5), ''), f.first || ' ')
                       AND created_at < coalesce(?2, '~'))
             FROM firsts AS f WHERE f.first IS NOT NULL
         )
         SELECT date(f.first, ?3, ?4) AS start,
                sum((SELECT count(*) FROM users
                     WHERE created_at >= f.first
                       -- One bound: a second one would be looked at row by row.
                       AND created_at < min(max(coalesce(date(f.first, ?3, ?4, ?5), ''), f.first || ' '), coalesce(?2, '~'))
                )) AS signups
         FROM firsts AS f
         GROUP BY 1
         ORDER BY 1",
    )
    .bind(from.map(text::time))
    .bind(to.map(text::time))
    .bind(to_first)
    .bind(and_back)
    .bind(to_next)
    .fetch_all(connection)
    .await
    .map_err(explain)?;
    // Times that cannot be read belong to no day.
    rows.iter().filter_map(|row| count(row).transpose()).collect()
}

fn count(row: &SqliteRow) -> Result<Option<(NaiveDate, u64)>> {
    let start = text::read(row, "start")?.and_then(|start| start.parse().ok());
    let signups = text::read_integer(row, "signups")?.unwrap_or_default();
    Ok(start.map(|start| (start, signups.unsigned_abs())))
}
