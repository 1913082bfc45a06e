//! Reading users from a table that is not ours, as Prisma or Drizzle made it.
//!
//! Columns are found by their names, and values are read with good will: what cannot be understood is left out,
//! for Clerk knows it better anyway.

use chrono::{DateTime, NaiveDate, NaiveDateTime, Utc};
use sqlx::{AssertSqlSafe, SqliteConnection, sqlite::SqliteRow};

use super::{error::explain, migrations, text, users::quoted};
use crate::{
    model::{Field, Profile, Value},
    store::{ForeignUser, Result, StoreError},
};

/// Which column of the table is what.
pub(super) struct Layout {
    table: String,
    clerk_id: String,
    fields: Vec<(Field, String)>,
    created_at: Option<String>,
    updated_at: Option<String>,
    deleted_at: Option<String>,
}

impl Layout {
    /// Look at a table.
    pub(super) async fn find(connection: &mut SqliteConnection, table: &str) -> Result<Self> {
        let columns: Vec<String> =
            migrations::columns(connection, table).await?.into_iter().map(|column| column.name).collect();
        if columns.is_empty() {
            return Err(StoreError::schema(format!("there is no table {table} in this database")));
        }
        // Under the snake_case name of ours, or the same in camelCase.
        let named = |name: &str| {
            let plain = name.replace('_', "");
            columns.iter().find(|column| column.replace('_', "").eq_ignore_ascii_case(&plain)).cloned()
        };
        let Some(clerk_id) = named("clerk_id") else {
            return Err(StoreError::schema(format!(
                "table {table} has no column clerkId or clerk_id, only {}",
                columns.join(", ")
            )));
        };
        let field = |field: Field| {
            let found = match field {
                Field::ImageUrl => {
                    ["image_url", "profile_image_url", "avatar_url"].into_iter().find_map(&named)
                }
                other => named(other.name()),
            };
            found.map(|column| (field, column))
        };
        Ok(Self {
            fields: Field::ALL.into_iter().filter_map(field).collect(),
            created_at: named("created_at"),
            updated_at: named("updated_at"),
            deleted_at: named("deleted_at"),
            table: table.to_owned(),
            clerk_id,
        })
    }

    /// The statement of [`users`]. It is assembled because the names are not ours; they are quoted, and each was
    /// found in the database. Everything is read as text.
    fn statement(&self, from_the_start: bool) -> String {
        let selected = |column: &Option<String>, name: &str| match column {
            Some(column) => format!(", CAST({} AS TEXT) AS {name}", quoted(column)),
            None => format!(", NULL AS {name}"),
        };
        let read = |(field, column): &(Field, String)| {
            format!(", CAST({} AS TEXT) AS {}", quoted(column), field.name())
        };
        let fields = self.fields.iter().map(read).collect::<Vec<_>>().concat();
        let created_at = selected(&self.created_at, "created_at");
        let updated_at = selected(&self.updated_at, "updated_at");
        let deleted_at = selected(&self.deleted_at, "deleted_at");
        let id = quoted(&self.clerk_id);
        let table = quoted(&self.table);
        let start = if from_the_start { "IS NOT NULL AND ?1 IS NULL" } else { "> ?1" };
        format!(
            "SELECT CAST({id} AS TEXT) AS clerk_id{fields}{created_at}{updated_at}{deleted_at}
             FROM {table}
             WHERE {id} COLLATE BINARY {start}
             -- Ids that differ only in case are two users, whatever the column says.
             ORDER BY {id} COLLATE BINARY
             LIMIT ?2"
        )
    }

    fn user(&self, row: &SqliteRow) -> Result<ForeignUser> {
        let mut profile = Profile::default();
        for (field, _) in &self.fields {
            let value = text::read(row, field.name())?.and_then(|text| value(*field, text));
            profile.set(*field, value.unwrap_or_default());
        }
        Ok(ForeignUser {
            clerk_id: text::read(row, "clerk_id")?.unwrap_or_default(),
            profile,
            created_at: text::read(row, "created_at")?.as_deref().and_then(time),
            updated_at: text::read(row, "updated_at")?.as_deref().and_then(time),
            deleted: text::read(row, "deleted_at")?.is_some(),
        })
    }
}

/// Up to `limit` users in the order of their ids, after this one.
pub(super) async fn users(
    connection: &mut SqliteConnection,
    layout: &Layout,
    after: Option<&str>,
    limit: u32,
) -> Result<Vec<ForeignUser>> {
    let rows = sqlx::query(AssertSqlSafe(layout.statement(after.is_none())))
        .persistent(false)
        .bind(after)
        .bind(limit)
        .fetch_all(connection)
        .await
        .map_err(explain)?;
    rows.iter().map(|row| layout.user(row)).collect()
}

fn value(field: Field, text: String) -> Option<Value> {
    match field {
        Field::Email
        | Field::FirstName
        | Field::LastName
        | Field::ImageUrl
        | Field::Username
        | Field::PhoneNumber
        | Field::ExternalId => Some(Value::Text(text)),
        Field::PublicMetadata | Field::UnsafeMetadata | Field::PrivateMetadata => {
            serde_json::from_str::<serde::de::IgnoredAny>(&text).ok().map(|_| Value::Json(text))
        }
        Field::EmailVerified | Field::Banned | Field::Locked => match text.as_str() {
            "1" | "true" => Some(Value::Bool(true)),
            "0" | "false" => Some(Value::Bool(false)),
            _ => None,
        },
        Field::LastSignInAt | Field::LastActiveAt => time(&text).map(Value::Time),
    }
}

/// A time as milliseconds (Prisma), seconds (Drizzle) or text.
fn time(text: &str) -> Option<DateTime<Utc>> {
    /// As seconds this is the year 5138, as milliseconds March 1973, before anybody was Clerk's user.
    const SMALLEST_MILLISECONDS: i64 = 100_000_000_000;

    if let Ok(number) = text.strip_suffix(".0").unwrap_or(text).parse::<i64>() {
        return match number {
            SMALLEST_MILLISECONDS.. => DateTime::from_timestamp_millis(number),
            _ => DateTime::from_timestamp(number, 0),
        };
    }
    let with_offset = DateTime::parse_from_rfc3339(text).map(|time| time.to_utc());
    let without = || NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f");
    let with_t = || NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.f");
    let day = || NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0);
    with_offset
        .ok()
        .or_else(|| without().ok().map(|time| time.and_utc()))
        .or_else(|| with_t().ok().map(|time| time.and_utc()))
        .or_else(|| day().map(|time| time.and_utc()))
}

#[cfg(test)]
mod tests {
    use super::time;

    #[test]
    fn times_are_understood_as_prisma_and_drizzle_write_them() {
        let written = [
            "1763758647123",
            "1763758647123.0",
            "2025-11-21T20:57:27.123Z",
            "2025-11-21T20:57:27.123+00:00",
            "2025-11-21T21:57:27.123+01:00",
            "2025-11-21 20:57:27.123",
            "2025-11-21T20:57:27.123",
        ];
        for text in written {
            assert_eq!(time(text).map(|time| time.timestamp_millis()), Some(1_763_758_647_123), "{text}");
        }
        assert_eq!(time("1763758647").map(|time| time.timestamp()), Some(1_763_758_647));
        assert_eq!(time("2025-11-21").map(|time| time.timestamp()), Some(1_763_683_200));
        assert_eq!(time("yesterday"), None);
    }
}
