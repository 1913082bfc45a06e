//! `users`: the rows themselves.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde_json::{Value as Json, json};
use sqlx::{AssertSqlSafe, SqliteConnection, sqlite::SqliteRow};

use super::{error::explain, text};
use crate::{
    entity::USER,
    model::{ClerkId, Field, FieldSet, Holds, Profile, User, Value},
    store::{Result, StoreError, schema::quoted, sql::objects},
};

/// How many users are not deleted.
pub(super) async fn count_standing(connection: &mut SqliteConnection) -> Result<u64> {
    let row = sqlx::query("SELECT count(*) AS standing FROM users WHERE deleted_at IS NULL")
        .fetch_one(connection)
        .await
        .map_err(explain)?;
    Ok(text::read_integer(&row, "standing")?.unwrap_or_default().unsigned_abs())
}

/// Whether a trigger of the application has changed whose rows these are, which were just written.
pub(super) async fn are_others(connection: &mut SqliteConnection, users: &[User]) -> Result<bool> {
    let found = sqlx::query(
        "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'trigger' AND lower(tbl_name) = 'users')
             AND EXISTS (
                 SELECT 1 FROM json_each(?1) AS n
                 WHERE NOT EXISTS (SELECT 1 FROM users WHERE clerk_id = n.value)
             ) AS others",
    )
    .bind(text::rows(users.iter().map(|user| user.clerk_id.as_str()))?)
    .fetch_one(connection)
    .await
    .map_err(explain)?;
    Ok(text::read_integer(&found, "others")? == Some(1))
}

/// Delete rows; returns those that were there.
pub(super) async fn delete(connection: &mut SqliteConnection, ids: &[ClerkId]) -> Result<Vec<ClerkId>> {
    const DELETE: &str =
        "DELETE FROM users WHERE clerk_id IN (SELECT value FROM json_each(?1)) RETURNING clerk_id";
    written(connection, DELETE, ids, None).await
}

/// The statement of [`anonymize`]. It alone is assembled, once, because only the operator knows the names of the
/// application's columns, and a name cannot be a parameter; it is quoted.
pub(super) fn anonymizing(columns: &[String]) -> Arc<str> {
    let theirs: Vec<String> = columns.iter().map(|column| format!(", {} = NULL", quoted(column))).collect();
    let theirs = theirs.concat();
    format!(
        "UPDATE users AS u
         SET {fields}, preferences = '{{}}', deleted_at = coalesce(deleted_at, ?2){theirs}
         WHERE clerk_id IN (SELECT value FROM json_each(?1))
         RETURNING clerk_id, id",
        fields = objects::anonymizing(&USER),
    )
    .into()
}

/// Anonymise rows; returns those that were there. [`StoreError::unmoved`] if a trigger brings back what was in one.
pub(super) async fn anonymize(
    connection: &mut SqliteConnection,
    anonymizing: Arc<str>,
    ids: &[ClerkId],
    at: DateTime<Utc>,
) -> Result<Vec<ClerkId>> {
    let gone = sqlx::query(AssertSqlSafe(anonymizing))
        .bind(text::clerk_ids(ids)?)
        .bind(text::time(at))
        .fetch_all(&mut *connection)
        .await
        .map_err(explain)?;
    // By their numbers: a trigger can change the id as well. What RETURNING gives is from before it.
    let numbers: Vec<Json> =
        gone.iter().map(|row| Ok(json!(text::read_integer(row, "id")?))).collect::<Result<_>>()?;
    let identifying = USER.fields().filter(|field| field.identifies);
    let kept: Vec<String> =
        identifying.map(|field| format!("u.{} IS NOT {}", field.name(), objects::anonymous(field))).collect();
    let kept = sqlx::query(AssertSqlSafe(format!(
        "SELECT 1 FROM json_each(?1) AS n
         CROSS JOIN users AS u ON u.id = n.value
         WHERE u.deleted_at IS NULL OR {}",
        kept.join(" OR ")
    )))
    .bind(Json::Array(numbers).to_string())
    .fetch_optional(connection)
    .await
    .map_err(explain)?;
    if kept.is_some() {
        return Err(StoreError::unmoved());
    }
    gone.iter().map(text::read_clerk_id).collect()
}

/// Mark rows as deleted, unless they are.
pub(super) async fn mark(
    connection: &mut SqliteConnection,
    ids: &[ClerkId],
    at: DateTime<Utc>,
) -> Result<Vec<ClerkId>> {
    const MARK: &str = "UPDATE users SET deleted_at = ?2
         WHERE clerk_id IN (SELECT value FROM json_each(?1)) AND deleted_at IS NULL
         RETURNING clerk_id";
    written(connection, MARK, ids, Some(at)).await
}

/// Take just this mark from rows.
pub(super) async fn unmark(
    connection: &mut SqliteConnection,
    ids: &[ClerkId],
    at: DateTime<Utc>,
) -> Result<Vec<ClerkId>> {
    const UNMARK: &str = "UPDATE users SET deleted_at = NULL
         WHERE clerk_id IN (SELECT value FROM json_each(?1)) AND deleted_at = ?2
         RETURNING clerk_id";
    written(connection, UNMARK, ids, Some(at)).await
}

/// Whose rows a statement wrote, of these users.
async fn written(
    connection: &mut SqliteConnection,
    statement: &'static str,
    ids: &[ClerkId],
    at: Option<DateTime<Utc>>,
) -> Result<Vec<ClerkId>> {
    let query = sqlx::query(statement).bind(text::clerk_ids(ids)?);
    let query = at.into_iter().fold(query, |query, at| query.bind(text::time(at)));
    let rows = query.fetch_all(connection).await.map_err(explain)?;
    rows.iter().map(text::read_clerk_id).collect()
}

pub(super) fn user(row: &SqliteRow, fields: FieldSet) -> Result<User> {
    let mut profile = Profile::default();
    for field in USER.fields() {
        // The others tell whether the row is anonymised.
        if field.holds != Holds::Json || fields.contains(field) {
            profile.set(field, read(row, field)?);
        }
    }
    Ok(User {
        clerk_id: text::read_clerk_id(row)?,
        profile,
        created_at: text::read_time(row, "created_at")?,
        updated_at: text::read_time(row, "updated_at")?.unwrap_or_default(),
        synced_at: text::read_time(row, "synced_at")?.unwrap_or_default(),
        // Any mark of deletion counts, readable or not.
        deleted_at: match text::read(row, "deleted_at")? {
            None => None,
            Some(_) => Some(text::read_time(row, "deleted_at")?.unwrap_or_default()),
        },
    })
}

fn read(row: &SqliteRow, field: Field) -> Result<Value> {
    let name = field.name();
    let value = match field.holds {
        Holds::Text => text::read(row, name)?.map(Value::Text),
        Holds::Json => text::read(row, name)?.map(Value::Json),
        Holds::Bool => text::read_integer(row, name)?.map(|truth| Value::Bool(truth != 0)),
        Holds::Time => text::read_time(row, name)?.map(Value::Time),
    };
    Ok(value.unwrap_or_default())
}
