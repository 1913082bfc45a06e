//! A row of a table that is not ours, as JSON, understood as a user.
//!
//! Column names may be in camel case (Prisma: `clerkId`, `firstName`) or snake case (Drizzle: `clerk_id`).

use chrono::{DateTime, NaiveDateTime, Utc};
use serde_json::{Map, Value as Json};

use super::ForeignUser;
use crate::model::{Field, Profile, Value};

/// Which of these columns holds Clerk's id.
pub(super) fn id_column(columns: &[String]) -> Option<&String> {
    columns.iter().find(|name| *name == "clerkId" || *name == "clerk_id")
}

/// The user of this row; `None` if the row has no id.
pub(super) fn user(row: &Map<String, Json>) -> Option<ForeignUser> {
    let mut profile = Profile::default();
    for field in Field::ALL {
        let found = match field {
            Field::ImageUrl => find(row, &["image_url", "profile_image_url", "avatar_url"]),
            _ => find(row, &[field.name()]),
        };
        profile.set(field, found.map_or(Value::Null, |json| value(field, json)));
    }
    Some(ForeignUser {
        clerk_id: find(row, &["clerk_id"])?.as_str()?.to_owned(),
        profile,
        created_at: find(row, &["created_at"]).and_then(time),
        updated_at: find(row, &["updated_at"]).and_then(time),
        deleted: find(row, &["deleted_at"]).is_some(),
    })
}

/// The first of these columns, in snake or camel case, that is there and not null.
fn find<'a>(row: &'a Map<String, Json>, names: &[&str]) -> Option<&'a Json> {
    names
        .iter()
        .flat_map(|name| [row.get(*name), row.get(&camel(name))])
        .flatten()
        .find(|json| !json.is_null())
}

fn camel(snake: &str) -> String {
    let mut parts = snake.split('_');
    let mut name = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (first, rest) = part.split_at(1);
        name.push_str(&first.to_uppercase());
        name.push_str(rest);
    }
    name
}

fn value(field: Field, json: &Json) -> Value {
    let value = match field {
        Field::EmailVerified | Field::Banned | Field::Locked => {
            json.as_bool().or_else(|| json.as_i64().map(|number| number != 0)).map(Value::Bool)
        }
        Field::LastSignInAt | Field::LastActiveAt => time(json).map(Value::Time),
        Field::PublicMetadata | Field::UnsafeMetadata | Field::PrivateMetadata => {
            Some(Value::Json(match json {
                // SQLite has no JSON type: the text is the JSON.
                Json::String(text) if serde_json::from_str::<Json>(text).is_ok() => text.clone(),
                other => other.to_string(),
            }))
        }
        _ => json.as_str().map(|text| Value::Text(text.to_owned())),
    };
    value.unwrap_or_default()
}

/// RFC 3339, or what databases write without a zone (taken as UTC), or unix milliseconds, or unix seconds.
fn time(json: &Json) -> Option<DateTime<Utc>> {
    const FIRST_MILLISECONDS: i64 = 100_000_000_000;
    if let Some(number) = json.as_i64() {
        return if number.abs() < FIRST_MILLISECONDS {
            DateTime::from_timestamp(number, 0)
        } else {
            DateTime::from_timestamp_millis(number)
        };
    }
    let text = json.as_str()?;
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Some(time.to_utc());
    }
    let naive = ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f"];
    naive
        .iter()
        .find_map(|format| NaiveDateTime::parse_from_str(text, format).ok())
        .map(|time| time.and_utc())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(json: &str) -> ForeignUser {
        user(&serde_json::from_str(json).expect("an object")).expect("a user")
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
}
