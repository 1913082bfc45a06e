//! Columns that are no longer kept, and the file itself.

use crate::entity::USER;
use chrono::{DateTime, Utc};
use serde_json::{Map, Value as Json};
use sqlx::SqliteConnection;

use super::{error::explain, text};
use crate::{
    model::FieldSet,
    store::{Minimized, Result},
};

/// The columns to clear, as the parameter of statements.
pub(super) fn gone(keep: FieldSet) -> String {
    let gone = USER.fields().filter(|field| !keep.contains(*field));
    let gone: Map<String, Json> = gone.map(|field| (field.name().to_owned(), Json::Bool(true))).collect();
    Json::Object(gone).to_string()
}

/// What there is to clear in the next rows.
pub(super) async fn count_columns(
    connection: &mut SqliteConnection,
    gone: &str,
    after: i64,
    limit: u32,
) -> Result<Option<Minimized>> {
    let row = sqlx::query(
        "SELECT max(id) AS last, count(*) FILTER (WHERE left_over) AS users,
                count(*) FILTER (WHERE left_over AND ?3 ->> 'email' AND email IS NOT NULL) AS email,
                count(*) FILTER (WHERE left_over AND ?3 ->> 'email_verified' AND email_verified IS NOT NULL) AS email_verified,
                count(*) FILTER (WHERE left_over AND ?3 ->> 'first_name' AND first_name IS NOT NULL) AS first_name,
                count(*) FILTER (WHERE left_over AND ?3 ->> 'last_name' AND last_name IS NOT NULL) AS last_name,
                count(*) FILTER (WHERE left_over AND ?3 ->> 'image_url' AND image_url IS NOT NULL) AS image_url,
                count(*) FILTER (WHERE left_over AND ?3 ->> 'username' AND username IS NOT NULL) AS username,
                count(*) FILTER (WHERE left_over AND ?3 ->> 'phone_number' AND phone_number IS NOT NULL) AS phone_number,
                count(*) FILTER (WHERE left_over AND ?3 ->> 'external_id' AND external_id IS NOT NULL) AS external_id,
                count(*) FILTER (WHERE left_over AND ?3 ->> 'public_metadata' AND public_metadata IS NOT NULL) AS public_metadata,
                count(*) FILTER (WHERE left_over AND ?3 ->> 'unsafe_metadata' AND unsafe_metadata IS NOT NULL) AS unsafe_metadata,
                count(*) FILTER (WHERE left_over AND ?3 ->> 'private_metadata' AND private_metadata IS NOT NULL) AS private_metadata,
                count(*) FILTER (WHERE left_over AND ?3 ->> 'banned' AND banned IS NOT NULL) AS banned,
                count(*) FILTER (WHERE left_over AND ?3 ->> 'locked' AND locked IS NOT NULL) AS locked,
                count(*) FILTER (WHERE left_over AND ?3 ->> 'last_sign_in_at' AND last_sign_in_at IS NOT NULL) AS last_sign_in_at,
                count(*) FILTER (WHERE left_over AND ?3 ->> 'last_active_at' AND last_active_at IS NOT NULL) AS last_active_at
         FROM (
             SELECT *,
                 -- Of an anonymised row everything is cleared that tells who it was.
                 NOT (deleted_at IS NOT NULL AND coalesce(email, '') = 'deleted-' || id || '@anonymized.local') AND (
                     (?3 ->> 'email' AND email IS NOT NULL)
                     OR (?3 ->> 'email_verified' AND email_verified IS NOT NULL)
                     OR (?3 ->> 'first_name' AND first_name IS NOT NULL)
                     OR (?3 ->> 'last_name' AND last_name IS NOT NULL)
                     OR (?3 ->> 'image_url' AND image_url IS NOT NULL)
                     OR (?3 ->> 'username' AND username IS NOT NULL)
                     OR (?3 ->> 'phone_number' AND phone_number IS NOT NULL)
                     OR (?3 ->> 'external_id' AND external_id IS NOT NULL)
                     OR (?3 ->> 'public_metadata' AND public_metadata IS NOT NULL)
                     OR (?3 ->> 'unsafe_metadata' AND unsafe_metadata IS NOT NULL)
                     OR (?3 ->> 'private_metadata' AND private_metadata IS NOT NULL)
                     OR (?3 ->> 'banned' AND banned IS NOT NULL)
                     OR (?3 ->> 'locked' AND locked IS NOT NULL)
                     OR (?3 ->> 'last_sign_in_at' AND last_sign_in_at IS NOT NULL)
                     OR (?3 ->> 'last_active_at' AND last_active_at IS NOT NULL)
                 ) AS left_over
             FROM users
             WHERE id > ?1
             ORDER BY id
             LIMIT ?2
         )",
    )
    .bind(after)
    .bind(limit)
    .bind(gone)
    .fetch_one(connection)
    .await
    .map_err(explain)?;
    let Some(last) = text::read_integer(&row, "last")? else { return Ok(None) };
    let count = |column| Ok(text::read_integer(&row, column)?.unwrap_or_default().unsigned_abs());
    let mut columns = vec![0; USER.columns.len()];
    for field in USER.fields() {
        columns[field.place()] = count(field.name())?;
    }
    Ok(Some(Minimized { last, users: count("users")?, columns }))
}

/// Clear the columns of these rows.
pub(super) async fn clear_columns(
    connection: &mut SqliteConnection,
    gone: &str,
    after: i64,
    last: i64,
) -> Result<()> {
    sqlx::query(
        "UPDATE users
         SET email = CASE WHEN ?3 ->> 'email' THEN NULL ELSE email END,
             email_verified = CASE WHEN ?3 ->> 'email_verified' THEN NULL ELSE email_verified END,
             first_name = CASE WHEN ?3 ->> 'first_name' THEN NULL ELSE first_name END,
             last_name = CASE WHEN ?3 ->> 'last_name' THEN NULL ELSE last_name END,
             image_url = CASE WHEN ?3 ->> 'image_url' THEN NULL ELSE image_url END,
             username = CASE WHEN ?3 ->> 'username' THEN NULL ELSE username END,
             phone_number = CASE WHEN ?3 ->> 'phone_number' THEN NULL ELSE phone_number END,
             external_id = CASE WHEN ?3 ->> 'external_id' THEN NULL ELSE external_id END,
             public_metadata = CASE WHEN ?3 ->> 'public_metadata' THEN NULL ELSE public_metadata END,
             unsafe_metadata = CASE WHEN ?3 ->> 'unsafe_metadata' THEN NULL ELSE unsafe_metadata END,
             private_metadata = CASE WHEN ?3 ->> 'private_metadata' THEN NULL ELSE private_metadata END,
             banned = CASE WHEN ?3 ->> 'banned' THEN NULL ELSE banned END,
             locked = CASE WHEN ?3 ->> 'locked' THEN NULL ELSE locked END,
             last_sign_in_at = CASE WHEN ?3 ->> 'last_sign_in_at' THEN NULL ELSE last_sign_in_at END,
             last_active_at = CASE WHEN ?3 ->> 'last_active_at' THEN NULL ELSE last_active_at END
         WHERE id > ?1 AND id <= ?2
           AND NOT (deleted_at IS NOT NULL AND coalesce(email, '') = 'deleted-' || id || '@anonymized.local')
           AND (
               (?3 ->> 'email' AND email IS NOT NULL)
               OR (?3 ->> 'email_verified' AND email_verified IS NOT NULL)
               OR (?3 ->> 'first_name' AND first_name IS NOT NULL)
               OR (?3 ->> 'last_name' AND last_name IS NOT NULL)
               OR (?3 ->> 'image_url' AND image_url IS NOT NULL)
               OR (?3 ->> 'username' AND username IS NOT NULL)
               OR (?3 ->> 'phone_number' AND phone_number IS NOT NULL)
               OR (?3 ->> 'external_id' AND external_id IS NOT NULL)
               OR (?3 ->> 'public_metadata' AND public_metadata IS NOT NULL)
               OR (?3 ->> 'unsafe_metadata' AND unsafe_metadata IS NOT NULL)
               OR (?3 ->> 'private_metadata' AND private_metadata IS NOT NULL)
               OR (?3 ->> 'banned' AND banned IS NOT NULL)
               OR (?3 ->> 'locked' AND locked IS NOT NULL)
               OR (?3 ->> 'last_sign_in_at' AND last_sign_in_at IS NOT NULL)
               OR (?3 ->> 'last_active_at' AND last_active_at IS NOT NULL)
           )",
    )
    .bind(after)
    .bind(last)
    .bind(gone)
    .execute(connection)
    .await
    .map_err(explain)?;
    Ok(())
}

/// Whether anybody was erased here at this time or later.
pub(super) async fn any_erased_since(connection: &mut SqliteConnection, at: DateTime<Utc>) -> Result<bool> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM erasure_receipts WHERE destination = 'database' AND completed_at >= ?1)",
    )
    .bind(text::time(at))
    .fetch_one(connection)
    .await
    .map_err(explain)
}

/// How large the database is, in bytes.
pub(super) async fn size(connection: &mut SqliteConnection) -> Result<u64> {
    let size: i64 =
        sqlx::query_scalar("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
            .fetch_one(connection)
            .await
            .map_err(explain)?;
    Ok(size.unsigned_abs())
}

/// Write the whole database anew. Outside a transaction, waiting for other writers as usual.
pub(super) async fn vacuum(connection: &mut SqliteConnection) -> Result<()> {
    sqlx::raw_sql("PRAGMA busy_timeout = 3000; VACUUM").execute(connection).await.map_err(explain)?;
    Ok(())
}
