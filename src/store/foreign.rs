//! A row of a table that is not ours, as JSON, understood as a user.
//!
//! Column names count without their case and underscores: `clerkId` (Prisma) and `clerk_id` (Drizzle) are one. Values
//! are read with good will: what cannot be understood is left out, for Clerk knows it better anyway.

use chrono::{DateTime, NaiveDate, NaiveDateTime, Utc};
use serde_json::{Map, Value as Json};

use super::{ForeignUser, StoreError};
use crate::model::{Field, Profile, Value};

/// Which of these columns holds Clerk's id.
pub(super) fn id_column<'a>(table: &str, columns: &'a [String]) -> Result<&'a String, StoreError> {
    columns.iter().find(|column| plain(column) == "clerkid").ok_or_else(|| {
        StoreError::schema(format!("{table} has no column clerkId or clerk_id, only: {}", columns.join(", ")))
    })
}

/// Whether anything is read from this column.
pub(super) fn is_wanted(column: &str) -> bool {
    let times = ["clerk_id", "created_at", "updated_at", "deleted_at"];
    let fields = Field::ALL.into_iter().flat_map(|field| names(field).iter().copied());
    times.into_iter().chain(fields).any(|name| plain(name) == plain(column))
}

/// The users of these rows, each its id and the whole row as JSON text.
pub(super) fn users(rows: Vec<(String, String)>) -> Result<Vec<ForeignUser>, StoreError> {
    let read = |(id, json): (String, String)| match serde_json::from_str(&json) {
        Ok(row) => Ok(user(id, &row)),
        Err(_) => Err(StoreError::schema(format!("the row of {id} cannot be read"))),
    };
    rows.into_iter().map(read).collect()
}

fn user(clerk_id: String, row: &Map<String, Json>) -> ForeignUser {
    let find = |name: &str| {
        let named = |column: &str| plain(column) == plain(name);
        row.iter().find(|(column, json)| named(column) && !json.is_null())
    };
    let time_in = |name: &str| find(name).and_then(|(_, json)| time(json));
    let mut profile = Profile::default();
    let mut columns = Vec::new();
    for field in Field::ALL {
        let found = names(field).iter().find_map(|name| find(name));
        if let Some((column, _)) = found {
            columns.push((field.name(), column.clone()));
        }
        let found = found.map(|(_, json)| json);
        profile.set(field, found.and_then(|json| value(field, json)).unwrap_or_default());
    }
    for name in ["created_at", "updated_at"] {
        columns.extend(find(name).map(|(column, _)| (name, column.clone())));
    }
    ForeignUser {
        clerk_id,
        profile,
        columns,
        created_at: time_in("created_at"),
        updated_at: time_in("updated_at"),
        deleted: find("deleted_at").is_some(),
    }
}

/// What a column with this field may be called, in the order of preference.
fn names(field: Field) -> &'static [&'static str] {
    match field {
        Field::Email => &["email", "email_address"],
        Field::EmailVerified => &["email_verified"],
        Field::FirstName => &["first_name"],
        Field::LastName => &["last_name"],
        Field::ImageUrl => &["image_url", "profile_image_url", "avatar_url"],
        Field::Username => &["username"],
        Field::PhoneNumber => &["phone_number"],
        Field::ExternalId => &["external_id"],
        Field::PublicMetadata => &["public_metadata"],
        Field::UnsafeMetadata => &["unsafe_metadata"],
        Field::PrivateMetadata => &["private_metadata"],
        Field::Banned => &["banned"],
        Field::Locked => &["locked"],
        Field::LastSignInAt => &["last_sign_in_at"],
        Field::LastActiveAt => &["last_active_at"],
    }
}

fn plain(name: &str) -> String {
    name.replace('_', "").to_ascii_lowercase()
}

fn value(field: Field, json: &Json) -> Option<Value> {
    match field {
        Field::EmailVerified | Field::Banned | Field::Locked => match json {
            Json::Bool(truth) => Some(Value::Bool(*truth)),
            Json::Number(number) => Some(Value::Bool(number.as_i64()? != 0)),
            Json::String(text) => text.parse().ok().map(Value::Bool),
            _ => None,
        },
        Field::LastSignInAt | Field::LastActiveAt => time(json).map(Value::Time),
        Field::PublicMetadata | Field::UnsafeMetadata | Field::PrivateMetadata => match json {
            // SQLite has no JSON type: the text is the JSON.
            Json::String(text) => {
                serde_json::from_str::<serde::de::IgnoredAny>(text).ok().map(|_| Value::Json(text.clone()))
            }
            other => Some(Value::Json(other.to_string())),
        },
        _ => json.as_str().map(|text| Value::Text(text.to_owned())),
    }
}

/// RFC 3339, or what databases write without a zone (taken as UTC), or unix milliseconds, or unix seconds.
fn time(json: &Json) -> Option<DateTime<Utc>> {
    const FIRST_MILLISECONDS: i64 = 100_000_000_000;
    let text = match json {
        Json::Number(number) => number.to_string(),
        other => other.as_str()?.to_owned(),
    };
    if let Ok(number) = text.parse::<i64>() {
        return if number.abs() < FIRST_MILLISECONDS {
            DateTime::from_timestamp(number, 0)
        } else {
            DateTime::from_timestamp_millis(number)
        };
    }
    if let Ok(time) = DateTime::parse_from_rfc3339(&text) {
        return Some(time.to_utc());
    }
    let formats = ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M"];
    let naive = formats.iter().find_map(|format| NaiveDateTime::parse_from_str(&text, format).ok());
    let day = || NaiveDate::parse_from_str(&text, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0);
    naive.or_else(day).map(|time| time.and_utc())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(json: &str) -> ForeignUser {
        user("user_1".to_owned(), &serde_json::from_str(json).expect("an object"))
    }

    #[test]
    fn prisma_and_drizzle_columns_mean_the_same() {
        let prisma = row(
            r#"{"clerkId":"user_1","firstName":"Ada","imageUrl":"https://x","updatedAt":"2024-01-02T03:04:05.678","deletedAt":null}"#,
        );
        let drizzle = row(
            r#"{"clerk_id":"user_1","first_name":"Ada","image_url":"https://x","updated_at":"2024-01-02T03:04:05.678+00:00"}"#,
        );
        assert_eq!(prisma.profile, drizzle.profile);
        let taken = [("first_name", "firstName"), ("image_url", "imageUrl"), ("updated_at", "updatedAt")];
        assert_eq!(prisma.columns, taken.map(|(name, column)| (name, column.to_owned())));
        assert_eq!(prisma.profile[Field::FirstName].text(), Some("Ada"));
        assert_eq!(prisma.updated_at, drizzle.updated_at);
        assert_eq!(prisma.updated_at.map(|at| at.timestamp_millis()), Some(1_704_164_645_678));
        assert!(!prisma.deleted);
    }

    #[test]
    fn times_may_be_numbers_and_soft_deletions_are_seen() {
        let user = row(
            r#"{"clerk_id":"user_1","updated_at":1704164645,"created_at":1704164645678,"deleted_at":1704164645}"#,
        );
        assert_eq!(user.updated_at.map(|at| at.timestamp()), Some(1_704_164_645));
        assert_eq!(user.created_at.map(|at| at.timestamp_millis()), Some(1_704_164_645_678));
        assert!(user.deleted);
    }

    #[test]
    fn only_columns_of_users_are_wanted() {
        assert!(is_wanted("clerkId") && is_wanted("avatar_url") && is_wanted("UpdatedAt"));
        assert!(!is_wanted("bio") && !is_wanted("id"));
    }
}
