//! `users`: the rows themselves.

use std::{collections::HashMap, sync::Arc};

use chrono::{DateTime, Utc};
use serde_json::{Map, Value as Json, json};
use sqlx::{AssertSqlSafe, SqliteConnection, sqlite::SqliteRow};

use super::{error::explain, text};
use crate::{
    model::{ClerkId, Field, FieldSet, Profile, User, Value},
    store::{Address, Result, StoreError, schema::quoted},
};

/// The rows of these users; metadata only as far as it is asked for.
pub(super) async fn load(
    connection: &mut SqliteConnection,
    ids: &[ClerkId],
    fields: FieldSet,
) -> Result<HashMap<ClerkId, User>> {
    let rows = sqlx::query(
        "SELECT u.clerk_id, u.email, u.email_verified, u.first_name, u.last_name, u.image_url, u.username,
                u.phone_number, u.external_id, u.public_metadata, u.unsafe_metadata, u.private_metadata,
                u.banned, u.locked, u.last_sign_in_at, u.last_active_at,
                u.created_at, u.updated_at, u.synced_at, u.deleted_at
         FROM json_each(?1) AS n
         -- CROSS, not INNER: the ids come first and each is looked up, however the table grows.
         CROSS JOIN users AS u ON u.clerk_id = n.value",
    )
    .bind(text::clerk_ids(ids)?)
    .fetch_all(connection)
    .await
    .map_err(explain)?;
    rows.iter().map(|row| user(row, fields).map(|user| (user.clerk_id.clone(), user))).collect()
}

/// Ids of users whose erasure nobody has asked for, and whom we last wrote before this time or never, in the order of the ids.
pub(super) async fn standing(
    connection: &mut SqliteConnection,
    untouched_since: DateTime<Utc>,
    after: Option<&ClerkId>,
    limit: u32,
) -> Result<Vec<ClerkId>> {
    let rows = sqlx::query(
        "SELECT u.clerk_id FROM users AS u
         -- Rows that somebody else has inserted have no time of ours.
         WHERE u.clerk_id > ?1 AND coalesce(u.synced_at < ?2, 1)
           AND NOT EXISTS (
               SELECT 1 FROM entity_versions AS r
               WHERE r.kind = 'user' AND r.clerk_id = u.clerk_id AND (r.deleted OR r.held_until IS NOT NULL)
           )
         ORDER BY u.clerk_id
         LIMIT ?3",
    )
    .bind(after.map_or("", ClerkId::as_str))
    .bind(text::time(untouched_since))
    .bind(limit)
    .fetch_all(connection)
    .await
    .map_err(explain)?;
    rows.iter().map(text::read_clerk_id).collect()
}

/// How many users there are whose erasure nobody has asked for.
pub(super) async fn count_unasked(connection: &mut SqliteConnection) -> Result<u64> {
    let row = sqlx::query(
        "SELECT count(*) AS unasked FROM users AS u
         WHERE NOT EXISTS (
             SELECT 1 FROM entity_versions AS r
             WHERE r.kind = 'user' AND r.clerk_id = u.clerk_id AND (r.deleted OR r.held_until IS NOT NULL)
         )",
    )
    .fetch_one(connection)
    .await
    .map_err(explain)?;
    Ok(text::read_integer(&row, "unasked")?.unwrap_or_default().unsigned_abs())
}

/// How many users are not deleted.
pub(super) async fn count_standing(connection: &mut SqliteConnection) -> Result<u64> {
    let row = sqlx::query("SELECT count(*) AS standing FROM users WHERE deleted_at IS NULL")
        .fetch_one(connection)
        .await
        .map_err(explain)?;
    Ok(text::read_integer(&row, "standing")?.unwrap_or_default().unsigned_abs())
}

/// Insert rows; returns how many were not there yet.
pub(super) async fn insert(connection: &mut SqliteConnection, users: &[User]) -> Result<u64> {
    let done = sqlx::query(
        "INSERT INTO users
             (clerk_id, email, email_verified, first_name, last_name, image_url, username, phone_number,
              external_id, public_metadata, unsafe_metadata, private_metadata, banned, locked,
              last_sign_in_at, last_active_at, created_at, updated_at, synced_at, deleted_at)
         SELECT
             n.value ->> 'clerk_id', n.value ->> 'email', n.value ->> 'email_verified',
             n.value ->> 'first_name', n.value ->> 'last_name', n.value ->> 'image_url',
             n.value ->> 'username', n.value ->> 'phone_number', n.value ->> 'external_id',
             n.value ->> 'public_metadata', n.value ->> 'unsafe_metadata', n.value ->> 'private_metadata',
             n.value ->> 'banned', n.value ->> 'locked', n.value ->> 'last_sign_in_at',
             n.value ->> 'last_active_at', n.value ->> 'created_at', n.value ->> 'updated_at',
             n.value ->> 'synced_at', n.value ->> 'deleted_at'
         FROM json_each(?1) AS n
         -- Without a WHERE, the parser takes ON for a join's.
         WHERE true
         ON CONFLICT (clerk_id) DO NOTHING",
    )
    .bind(text::rows(users.iter().map(row))?)
    .execute(connection)
    .await
    .map_err(explain)?;
    Ok(done.rows_affected())
}

/// See [`update`].
pub(super) const UPDATE: &str = "
    UPDATE users
    SET email = CASE WHEN ?2 ->> 'email' THEN n.value ->> 'email' ELSE users.email END,
        email_verified =
            CASE WHEN ?2 ->> 'email_verified' THEN n.value ->> 'email_verified' ELSE users.email_verified END,
        first_name = CASE WHEN ?2 ->> 'first_name' THEN n.value ->> 'first_name' ELSE users.first_name END,
        last_name = CASE WHEN ?2 ->> 'last_name' THEN n.value ->> 'last_name' ELSE users.last_name END,
        image_url = CASE WHEN ?2 ->> 'image_url' THEN n.value ->> 'image_url' ELSE users.image_url END,
        username = CASE WHEN ?2 ->> 'username' THEN n.value ->> 'username' ELSE users.username END,
        phone_number =
            CASE WHEN ?2 ->> 'phone_number' THEN n.value ->> 'phone_number' ELSE users.phone_number END,
        external_id = CASE WHEN ?2 ->> 'external_id' THEN n.value ->> 'external_id' ELSE users.external_id END,
        public_metadata =
            CASE WHEN ?2 ->> 'public_metadata' THEN n.value ->> 'public_metadata' ELSE users.public_metadata END,
        unsafe_metadata =
            CASE WHEN ?2 ->> 'unsafe_metadata' THEN n.value ->> 'unsafe_metadata' ELSE users.unsafe_metadata END,
        private_metadata =
            CASE WHEN ?2 ->> 'private_metadata' THEN n.value ->> 'private_metadata'
            ELSE users.private_metadata END,
        banned = CASE WHEN ?2 ->> 'banned' THEN n.value ->> 'banned' ELSE users.banned END,
        locked = CASE WHEN ?2 ->> 'locked' THEN n.value ->> 'locked' ELSE users.locked END,
        last_sign_in_at =
            CASE WHEN ?2 ->> 'last_sign_in_at' THEN n.value ->> 'last_sign_in_at' ELSE users.last_sign_in_at END,
        last_active_at =
            CASE WHEN ?2 ->> 'last_active_at' THEN n.value ->> 'last_active_at' ELSE users.last_active_at END,
        -- Not every event tells when the user signed up.
        created_at = coalesce(n.value ->> 'created_at', users.created_at),
        updated_at = n.value ->> 'updated_at',
        synced_at = n.value ->> 'synced_at'
    FROM json_each(?1) AS n
    -- The ids come first and each is looked up; a test asks the planner.
    WHERE users.clerk_id = n.value ->> 'clerk_id'";

/// Update the columns of `fields`; returns how many rows were there.
pub(super) async fn update(
    connection: &mut SqliteConnection,
    users: &[User],
    fields: FieldSet,
) -> Result<u64> {
    let allowed: Map<String, Json> =
        fields.iter().map(|field| (field.name().to_owned(), Json::Bool(true))).collect();
    let done = sqlx::query(UPDATE)
        .bind(text::rows(users.iter().map(row))?)
        .bind(Json::Object(allowed).to_string())
        .execute(connection)
        .await
        .map_err(explain)?;
    Ok(done.rows_affected())
}

/// Who has these addresses.
pub(super) async fn addresses(
    connection: &mut SqliteConnection,
    addresses: &[String],
) -> Result<Vec<Address>> {
    let rows = sqlx::query(
        "SELECT n.value AS given, lower(n.value) AS folded, u.clerk_id AS owner
         FROM json_each(?1) AS n
         LEFT JOIN users AS u ON lower(u.email) = lower(n.value) AND u.deleted_at IS NULL",
    )
    .bind(json!(addresses).to_string())
    .fetch_all(connection)
    .await
    .map_err(explain)?;
    let address = |row| {
        let text = |name| text::read(row, name);
        let owner = text("owner")?.and_then(ClerkId::new);
        Ok(Address {
            given: text("given")?.unwrap_or_default(),
            folded: text("folded")?.unwrap_or_default(),
            owner,
        })
    };
    rows.iter().map(address).collect()
}

/// Take their addresses from these users.
pub(super) async fn release_addresses(connection: &mut SqliteConnection, ids: &[ClerkId]) -> Result<()> {
    sqlx::query("UPDATE users SET email = NULL WHERE clerk_id IN (SELECT value FROM json_each(?1))")
        .bind(text::clerk_ids(ids)?)
        .execute(connection)
        .await
        .map_err(explain)?;
    Ok(())
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
    let gone = sqlx::query(
        "DELETE FROM users
         WHERE clerk_id IN (SELECT value FROM json_each(?1))
         RETURNING clerk_id",
    )
    .bind(text::clerk_ids(ids)?)
    .fetch_all(connection)
    .await
    .map_err(explain)?;
    gone.iter().map(text::read_clerk_id).collect()
}

/// The statement of [`anonymize`]. It alone is assembled, once, because only the operator knows the names of the
/// application's columns, and a name cannot be a parameter; it is quoted.
pub(super) fn anonymizing(columns: &[String]) -> Arc<str> {
    let theirs: Vec<String> = columns.iter().map(|column| format!(", {} = NULL", quoted(column))).collect();
    let theirs = theirs.concat();
    format!(
        "UPDATE users
         SET email = 'deleted-' || id || '@anonymized.local',
             first_name = 'Deleted',
             last_name = 'User',
             email_verified = NULL, image_url = NULL, username = NULL, phone_number = NULL, external_id = NULL,
             public_metadata = NULL, unsafe_metadata = NULL, private_metadata = NULL,
             banned = NULL, locked = NULL, last_sign_in_at = NULL, last_active_at = NULL,
             preferences = '{{}}',
             deleted_at = coalesce(deleted_at, ?2)
             {theirs}
         WHERE clerk_id IN (SELECT value FROM json_each(?1))
         RETURNING clerk_id, id"
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
    let kept = sqlx::query(
        "SELECT 1 FROM json_each(?1) AS n
         CROSS JOIN users AS u ON u.id = n.value
         WHERE u.email IS NOT 'deleted-' || u.id || '@anonymized.local'
            OR u.first_name IS NOT 'Deleted' OR u.last_name IS NOT 'User' OR u.deleted_at IS NULL
            OR coalesce(u.image_url, u.username, u.phone_number, u.external_id) IS NOT NULL",
    )
    .bind(Json::Array(numbers).to_string())
    .fetch_optional(connection)
    .await
    .map_err(explain)?;
    if kept.is_some() {
        return Err(StoreError::unmoved());
    }
    gone.iter().map(text::read_clerk_id).collect()
}

fn row(user: &User) -> Json {
    let mut row = Map::new();
    for field in Field::ALL {
        row.insert(field.name().to_owned(), value(&user.profile[field]));
    }
    row.insert("clerk_id".to_owned(), json!(user.clerk_id.as_str()));
    row.insert("created_at".to_owned(), json!(user.created_at.map(text::time)));
    row.insert("updated_at".to_owned(), json!(user.known_updated_at().map(text::time)));
    row.insert("synced_at".to_owned(), json!(text::time(user.synced_at)));
    row.insert("deleted_at".to_owned(), json!(user.deleted_at.map(text::time)));
    Json::Object(row)
}

fn value(value: &Value) -> Json {
    match value {
        Value::Null => Json::Null,
        // Metadata travels as a string, so that its depth is nobody's concern.
        Value::Text(text) | Value::Json(text) => json!(text),
        Value::Bool(truth) => json!(truth),
        Value::Time(time) => json!(text::time(*time)),
    }
}

pub(super) fn user(row: &SqliteRow, fields: FieldSet) -> Result<User> {
    let mut profile = Profile::default();
    for field in Field::ALL {
        let is_large =
            matches!(field, Field::PublicMetadata | Field::UnsafeMetadata | Field::PrivateMetadata);
        // The others tell whether the row is anonymised.
        if !is_large || fields.contains(field) {
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
    let value = match field {
        Field::Email
        | Field::FirstName
        | Field::LastName
        | Field::ImageUrl
        | Field::Username
        | Field::PhoneNumber
        | Field::ExternalId => text::read(row, name)?.map(Value::Text),
        Field::PublicMetadata | Field::UnsafeMetadata | Field::PrivateMetadata => {
            text::read(row, name)?.map(Value::Json)
        }
        Field::EmailVerified | Field::Banned | Field::Locked => {
            text::read_integer(row, name)?.map(|truth| Value::Bool(truth != 0))
        }
        Field::LastSignInAt | Field::LastActiveAt => text::read_time(row, name)?.map(Value::Time),
    };
    Ok(value.unwrap_or_default())
}
