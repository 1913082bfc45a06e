//! Reading rows for others: one user, pages of users, and how many signed up.

use chrono::{DateTime, NaiveDate, Utc};
use sqlx::{SqliteConnection, sqlite::SqliteRow};

use super::{error::explain, text, users::user};
use crate::{
    model::{ClerkId, FieldSet},
    store::{Bucket, Result, Row},
};

macro_rules! columns {
    () => {
        "id, clerk_id, email, email_verified, first_name, last_name, image_url, username, phone_number, external_id,
         public_metadata, unsafe_metadata, private_metadata, banned, locked, last_sign_in_at, last_active_at,
         preferences, created_at, updated_at, synced_at, deleted_at"
    };
}

/// The row of one user.
pub(super) async fn one(connection: &mut SqliteConnection, id: &ClerkId) -> Result<Option<Row>> {
    let found = sqlx::query(concat!("SELECT ", columns!(), " FROM users WHERE clerk_id = ?1"))
        .bind(id.as_str())
        .fetch_optional(connection)
        .await
        .map_err(explain)?;
    found.as_ref().map(row).transpose()
}

/// See [`page`].
pub(super) const PAGE: &str =
    concat!("SELECT ", columns!(), " FROM users WHERE id > ?1 AND deleted_at IS NULL ORDER BY id LIMIT ?2");

/// A page of users.
pub(super) async fn page(connection: &mut SqliteConnection, after: i64, limit: u32) -> Result<Vec<Row>> {
    let rows = sqlx::query(PAGE).bind(after).bind(limit).fetch_all(connection).await.map_err(explain)?;
    rows.iter().map(row).collect()
}

/// See [`page_of_email`].
pub(super) const PAGE_OF_EMAIL: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM users
     -- The plus keeps the primary key out: it would be walked through in search of the address.
     WHERE lower(email) = lower(?1) AND +id > ?2 AND deleted_at IS NULL
     ORDER BY +id LIMIT ?3"
);

/// A page of the users of one address.
pub(super) async fn page_of_email(
    connection: &mut SqliteConnection,
    email: &str,
    after: i64,
    limit: u32,
) -> Result<Vec<Row>> {
    let rows = sqlx::query(PAGE_OF_EMAIL)
        .bind(email)
        .bind(after)
        .bind(limit)
        .fetch_all(connection)
        .await
        .map_err(explain)?;
    rows.iter().map(row).collect()
}

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

fn row(row: &SqliteRow) -> Result<Row> {
    Ok(Row {
        id: text::read_integer(row, "id")?.unwrap_or_default(),
        user: user(row, FieldSet::ALL)?,
        preferences: text::read(row, "preferences")?.unwrap_or_default(),
    })
}
