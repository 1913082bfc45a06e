//! `GET /v1/users` and `GET /v1/users/{clerk_id}`: the rows of people who are there. Whoever was deleted is not.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, RawQuery, State, rejection::PathRejection},
};
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{
    INVALID_PARAMETER, UNAUTHORIZED, UNAVAILABLE,
    query::{AFTER, Query, page},
    read,
};
use crate::{
    entity::{USER, user},
    http::{
        App,
        error::{ErrorBody, Problem},
    },
    model::{ClerkId, Field, Value, rfc3339},
    store::{Row, RowFilter},
};

const PARAMETERS: [&str; 3] = ["email", "after", "limit"];
const KNOWN: &str = "the parameters are email, after and limit, each at most once";
const EMAIL: &str = "email: allowed is a whole address, in which + is written as %2B";

/// One page of users.
#[derive(Serialize, ToSchema)]
pub(super) struct Users {
    users: Vec<User>,
    /// What to give as `after` for the next page; null on the last one.
    #[schema(example = "42")]
    next: Option<String>,
}

/// A row of table `users`. Fields that are not synced are null.
#[derive(Serialize, ToSchema)]
pub(super) struct User {
    /// The database's own number of the row.
    #[schema(example = 42)]
    id: i64,
    #[schema(example = "user_29w83sxmDNGwOuEthce5gg56FcC")]
    clerk_id: String,
    #[schema(example = "ada@example.com")]
    email: Option<String>,
    email_verified: Option<bool>,
    #[schema(example = "Ada")]
    first_name: Option<String>,
    #[schema(example = "Example")]
    last_name: Option<String>,
    image_url: Option<String>,
    username: Option<String>,
    phone_number: Option<String>,
    external_id: Option<String>,
    #[schema(value_type = Option<serde_json::Value>)]
    public_metadata: Option<Box<RawValue>>,
    #[schema(value_type = Option<serde_json::Value>)]
    unsafe_metadata: Option<Box<RawValue>>,
    #[schema(value_type = Option<serde_json::Value>)]
    private_metadata: Option<Box<RawValue>>,
    banned: Option<bool>,
    locked: Option<bool>,
    #[schema(format = "date-time")]
    last_sign_in_at: Option<String>,
    #[schema(format = "date-time")]
    last_active_at: Option<String>,
    /// The application's own.
    #[schema(value_type = serde_json::Value)]
    preferences: Box<RawValue>,
    /// Clerk's own time of the sign-up.
    #[schema(format = "date-time", example = "2026-11-16T08:00:00.000Z")]
    created_at: Option<String>,
    /// Clerk's own time of the newest change.
    #[schema(format = "date-time", example = "2026-11-16T08:00:00.000Z")]
    updated_at: String,
    /// When the row was last written for news.
    #[schema(format = "date-time", example = "2026-11-16T08:00:00.250Z")]
    synced_at: String,
    #[schema(format = "date-time")]
    deleted_at: Option<String>,
}

/// Users, a page at a time
///
/// In the order of their `id`. Whoever was there when a walk through the pages began comes exactly once.
#[utoipa::path(
    get,
    path = "/v1/users",
    operation_id = "list_users",
    params(
        (
            "email" = Option<String>, Query, example = "ada@example.com",
            description = "Only users of this e-mail address, in any case; there can be several"
        ),
        ("after" = Option<String>, Query, description = "The `next` of the page before"),
        (
            "limit" = Option<u32>, Query, minimum = 1, maximum = 500,
            description = "How many users a page has at most; 100 if nothing is said"
        ),
    ),
    responses(
        (status = 200, description = "A page", body = Users),
        (status = 400, description = INVALID_PARAMETER, body = ErrorBody),
        (status = 401, description = UNAUTHORIZED, body = ErrorBody),
        (status = 503, description = UNAVAILABLE, body = ErrorBody),
    )
)]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    RawQuery(query): RawQuery,
) -> Result<Json<Users>, Problem> {
    let query = Query::read(query.as_deref(), &PARAMETERS, KNOWN)?;
    let email = query.value("email", email, EMAIL)?;
    let after = query.value("after", |text| text.parse().ok(), AFTER)?;
    let limit = query.limit()?;

    let filter = RowFilter { email, after };
    let rows = read(&app, async move |store| store.rows(&filter, limit + 1).await).await?;
    let (rows, more) = page(rows, limit);
    let next = rows.last().filter(|_| more).map(|row| row.id.to_string());
    Ok(Json(Users { users: rows.iter().map(User::from).collect(), next }))
}

/// One user
#[utoipa::path(
    get,
    path = "/v1/users/{clerk_id}",
    operation_id = "show_user",
    params(
        ("clerk_id" = String, Path, description = "Clerk's id", example = "user_29w83sxmDNGwOuEthce5gg56FcC")
    ),
    responses(
        (status = 200, description = "The user", body = User),
        (status = 401, description = UNAUTHORIZED, body = ErrorBody),
        (status = 404, description = "`user_not_found`: never heard of, or deleted", body = ErrorBody),
        (status = 503, description = UNAVAILABLE, body = ErrorBody),
    )
)]
pub(super) async fn show(
    State(app): State<Arc<App>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<User>, Problem> {
    let id = id(path).ok_or(Problem::UserNotFound)?;
    let row = read(&app, async move |store| store.row(&id).await).await?;
    let row = row.and_then(Row::standing).ok_or(Problem::UserNotFound)?;
    Ok(Json(User::from(&row)))
}

/// What is no id is nobody's.
pub(super) fn id(path: Result<Path<String>, PathRejection>) -> Option<ClerkId> {
    path.ok().filter(|Path(id)| is_text(id)).and_then(|Path(id)| ClerkId::new(&USER, id))
}

/// A row as the API shows it.
pub fn row_as_json(row: &Row) -> String {
    serde_json::to_string_pretty(&User::from(row)).unwrap_or_default()
}

fn email(text: &str) -> Option<String> {
    let plausible = !text.is_empty() && is_text(text) && !text.contains(char::is_whitespace);
    plausible.then(|| text.to_owned())
}

/// Whether every database can be asked for it.
fn is_text(text: &str) -> bool {
    !text.contains('\0')
}

impl From<&Row> for User {
    fn from(row: &Row) -> Self {
        let Row { id, user, preferences } = row;
        let text = |field: Field| user.profile[field].text().map(ToOwned::to_owned);
        let truth = |field: Field| user.profile[field].bool();
        let instant = |field: Field| user.profile[field].time().map(rfc3339);
        let metadata = |field: Field| match &user.profile[field] {
            Value::Json(text) => Some(json(text)),
            _ => None,
        };
        Self {
            id: *id,
            clerk_id: user.clerk_id.to_string(),
            email: text(user::EMAIL),
            email_verified: truth(USER.field("email_verified")),
            first_name: text(user::FIRST_NAME),
            last_name: text(user::LAST_NAME),
            image_url: text(user::IMAGE_URL),
            username: text(USER.field("username")),
            phone_number: text(USER.field("phone_number")),
            external_id: text(USER.field("external_id")),
            public_metadata: metadata(USER.field("public_metadata")),
            unsafe_metadata: metadata(USER.field("unsafe_metadata")),
            private_metadata: metadata(USER.field("private_metadata")),
            banned: truth(USER.field("banned")),
            locked: truth(USER.field("locked")),
            last_sign_in_at: instant(USER.field("last_sign_in_at")),
            last_active_at: instant(USER.field("last_active_at")),
            preferences: json(preferences),
            created_at: user.created_at.map(rfc3339),
            updated_at: rfc3339(user.updated_at),
            synced_at: rfc3339(user.synced_at),
            deleted_at: user.deleted_at.map(rfc3339),
        }
    }
}

/// JSON as it is stored. Where the application wrote something else into a column of JSON, a string of it.
fn json(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.to_owned())
        .or_else(|_| serde_json::value::to_raw_value(text))
        .unwrap_or_default()
}
