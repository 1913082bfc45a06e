//! Reading rows for others: one user, pages of users, and how many signed up.

use chrono::{DateTime, NaiveDate, Utc};
use sqlx::postgres::PgRow;

use super::{Session, count, get, sql, transaction::user};
use crate::{
    model::ClerkId,
    store::{Bucket, Result, Row},
};

/// In the order in which [`user`] reads them, and then what only others see.
macro_rules! columns {
    () => {
        "clerk_id, email, email_verified, first_name, last_name, image_url, username, phone_number, external_id,
         public_metadata::text, unsafe_metadata::text, private_metadata::text, banned, locked, last_sign_in_at,
         last_active_at, created_at, coalesce(updated_at, 'epoch'), coalesce(synced_at, 'epoch'), deleted_at,
         id, preferences::text"
    };
}

/// The row of one user.
pub(super) async fn one(session: &mut Session, id: &ClerkId) -> Result<Option<Row>> {
    let query = sql(concat!("SELECT ", columns!(), " FROM users WHERE clerk_id = $1")).bind(id.as_str());
    session.rows(query).await?.first().map(row).transpose()
}

/// A page of users. The session begins with `begin_page`, or a plan made while there were few would go on sorting all.
pub(super) async fn page(session: &mut Session, after: i64, limit: u32) -> Result<Vec<Row>> {
    let query = sql(concat!(
        "SELECT ",
        columns!(),
        " FROM users WHERE id > $1 AND deleted_at IS NULL ORDER BY id LIMIT $2"
    ))
    .bind(after)
    .bind(i64::from(limit));
    session.rows(query).await?.iter().map(row).collect()
}

/// A page of the users of one address.
pub(super) async fn page_of_email(
    session: &mut Session,
    email: &str,
    after: i64,
    limit: u32,
) -> Result<Vec<Row>> {
    let query = sql(concat!(
        "SELECT ",
        columns!(),
        " FROM users WHERE lower(email) = lower($1) AND id > $2 AND deleted_at IS NULL
         -- Not in the order of the primary key: its index would be walked through in search of the address.
         ORDER BY id + 0 LIMIT $3"
    ))
    .bind(email)
    .bind(after)
    .bind(i64::from(limit));
    session.rows(query).await?.iter().map(row).collect()
}

/// Sign-ups by the first day of their bucket.
pub(super) async fn signups(
    session: &mut Session,
    bucket: Bucket,
    from: Option<DateTime<Utc>>,
    to: Option<DateTime<Utc>>,
) -> Result<Vec<(NaiveDate, u64)>> {
    // Every bucket is counted by its bounds, which is a walk along the index: to compute the bucket of every row takes four
    // times as long. What nobody signed up in is leapt over.
    let query = sql("WITH RECURSIVE buckets (first, upto) AS (
             SELECT n.first, (date_trunc($1, n.first AT TIME ZONE 'UTC') + ('1 ' || $1)::interval) AT TIME ZONE 'UTC'
             FROM (SELECT min(created_at) AS first FROM users
                   WHERE created_at >= coalesce($2::timestamptz, '4713-01-02 BC')
                     AND created_at < coalesce($3::timestamptz, 'infinity')) AS n
             WHERE n.first IS NOT NULL
             UNION ALL
             SELECT n.first, (date_trunc($1, n.first AT TIME ZONE 'UTC') + ('1 ' || $1)::interval) AT TIME ZONE 'UTC'
             FROM buckets AS b
             CROSS JOIN LATERAL (SELECT min(created_at) AS first FROM users
                                 WHERE created_at >= b.upto AND created_at < coalesce($3::timestamptz, 'infinity')) AS n
             WHERE n.first IS NOT NULL
         )
         SELECT date_trunc($1, b.first AT TIME ZONE 'UTC')::date,
                (SELECT count(*) FROM users
                 WHERE created_at >= b.first AND created_at < least(b.upto, coalesce($3::timestamptz, 'infinity')))
         FROM buckets AS b
         ORDER BY 1")
    .bind(bucket.name())
    .bind(from)
    .bind(to);
    session.rows(query).await?.iter().map(|row| Ok((get(row, 0)?, count(row, 1)?))).collect()
}

fn row(row: &PgRow) -> Result<Row> {
    Ok(Row { user: user(row)?, id: get(row, 20)?, preferences: get(row, 21)? })
}
