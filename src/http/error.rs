//! The only mapping from problems to answers.
//!
//! Every error that a handler answers has the body `{"error":{"code":…,"message":…}}`. Codes are public. Messages are for
//! people, and contain neither values of the request nor the text of an inner error.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{clerk::signature::Rejection, model::Entity, sync::Refusal};

/// Why a request was not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error(transparent)]
    Rejected(#[from] Rejection),
    #[error("the body ended too early or violates HTTP framing")]
    IncompleteBody,
    /// An invalid query parameter; the sentence names the parameter and the allowed values.
    #[error("{0}")]
    InvalidParameter(&'static str),
    /// The sentence says what is allowed.
    #[error("{0}")]
    InvalidBody(&'static str),
    #[error("this request needs the header `Authorization: Bearer …` with the token in ADMIN_TOKEN")]
    Unauthorized,
    #[error("this request needs the header `Authorization: Bearer …` with the token in METRICS_TOKEN")]
    MetricsUnauthorized,
    #[error("access is disabled until a token is set: set ADMIN_TOKEN and restart the service")]
    TokenNotSet,
    #[error("this form does not belong to this session; go back, reload the page and try again")]
    ForeignForm,
    #[error("this address is not on the allow-list")]
    AddressNotAllowed,
    #[error(
        "the event belongs to another Clerk instance than the users here: `clerk-sync doctor` names both"
    )]
    WrongInstance,
    #[error("this path does not exist")]
    NotFound,
    #[error("this {} does not exist, or it was deleted", .0.kind.replace('_', " "))]
    ObjectNotFound(&'static Entity),
    #[error("this delivery is not in the queue: it was processed, or never arrived")]
    DeliveryNotFound,
    #[error("there is no sink of this name: none is configured, has messages, or is paused")]
    SinkNotFound,
    #[error("this path does not support this method: see the Allow header")]
    MethodNotAllowed,
    #[error("the body did not arrive in time")]
    BodyTimeout,
    #[error("the body is larger than this server accepts")]
    BodyTooLarge,
    #[error("the head of the request is larger than this server accepts")]
    HeadTooLarge,
    #[error("an unexpected error occurred")]
    Internal,
    #[error("Clerk refused the request: the log has the reason")]
    ClerkRefused,
    #[error("Clerk cannot be reached; try again later")]
    ClerkUnavailable,
    #[error(
        "the object is not in the database, and clerk-sync can ask Clerk only if CLERK_SECRET_KEY is set"
    )]
    ClerkNotConfigured,
    #[error("the database is not available; try again later")]
    DatabaseUnavailable,
    #[error("the queue is not available; try again later")]
    QueueUnavailable,
    #[error("the database can only be read: it is a standby, or is set to read-only")]
    DatabaseReadOnly,
    #[error(
        "row level security may hide rows of clerk-sync's tables from this service, so no erasure is known to be complete; \
         `clerk-sync doctor` names the remedy"
    )]
    RowsHidden,
    #[error("the tables do not belong to this version; migrations are pending")]
    SchemaNotCurrent,
    /// The same for API callers, with the code of an unavailable database, which their programs already handle.
    #[error("the tables do not belong to this version: run `clerk-sync migrate`")]
    NotMigrated,
    #[error("too many requests are in flight; try again later")]
    Overloaded,
    /// The same, before the body was read.
    #[error("other requests use the whole budget for bodies; try again later")]
    NoRoom,
    #[error("the service is shutting down; try again later")]
    ShuttingDown,
}

impl Problem {
    /// The status of the answer.
    pub fn status(self) -> StatusCode {
        self.public().0
    }

    /// The public code; for a missing object it is prefixed with the kind.
    pub fn code(self) -> &'static str {
        self.public().1
    }

    fn public(self) -> (StatusCode, &'static str) {
        match self {
            Self::Rejected(rejection) => (StatusCode::BAD_REQUEST, rejection.code()),
            Self::IncompleteBody => (StatusCode::BAD_REQUEST, "incomplete_body"),
            Self::InvalidParameter(_) => (StatusCode::BAD_REQUEST, "invalid_parameter"),
            Self::InvalidBody(_) => (StatusCode::BAD_REQUEST, "invalid_body"),
            Self::Unauthorized | Self::MetricsUnauthorized | Self::TokenNotSet => {
                (StatusCode::UNAUTHORIZED, "unauthorized")
            }
            Self::ForeignForm => (StatusCode::FORBIDDEN, "foreign_form"),
            Self::AddressNotAllowed => (StatusCode::FORBIDDEN, "address_not_allowed"),
            Self::WrongInstance => (StatusCode::FORBIDDEN, "wrong_instance"),
            Self::NotFound | Self::ObjectNotFound(_) => (StatusCode::NOT_FOUND, "not_found"),
            Self::DeliveryNotFound => (StatusCode::NOT_FOUND, "delivery_not_found"),
            Self::SinkNotFound => (StatusCode::NOT_FOUND, "sink_not_found"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::BodyTimeout => (StatusCode::REQUEST_TIMEOUT, "body_timeout"),
            Self::BodyTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
            Self::HeadTooLarge => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "head_too_large"),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal_error"),
            Self::ClerkRefused => (StatusCode::BAD_GATEWAY, "clerk_refused"),
            Self::ClerkUnavailable => (StatusCode::SERVICE_UNAVAILABLE, "clerk_unavailable"),
            Self::ClerkNotConfigured => (StatusCode::SERVICE_UNAVAILABLE, "clerk_not_configured"),
            Self::DatabaseUnavailable | Self::DatabaseReadOnly | Self::NotMigrated => {
                (StatusCode::SERVICE_UNAVAILABLE, "database_unavailable")
            }
            Self::QueueUnavailable => (StatusCode::SERVICE_UNAVAILABLE, "queue_unavailable"),
            Self::SchemaNotCurrent => (StatusCode::SERVICE_UNAVAILABLE, "schema_not_current"),
            Self::RowsHidden => (StatusCode::SERVICE_UNAVAILABLE, "row_level_security"),
            Self::Overloaded | Self::NoRoom => (StatusCode::SERVICE_UNAVAILABLE, "overloaded"),
            Self::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
        }
    }

    /// `Retry-After` in seconds, where a retry can help.
    fn retry_after(self) -> Option<u16> {
        match self {
            Self::ClerkNotConfigured => None,
            Self::Overloaded | Self::NoRoom => Some(1),
            _ => (self.status() == StatusCode::SERVICE_UNAVAILABLE).then_some(5),
        }
    }

    /// Whether the answer is sent before the body was read, which makes the connection unusable for another request.
    fn leaves_body_unread(self) -> bool {
        matches!(
            self,
            Self::Rejected(
                Rejection::MissingHeaders | Rejection::InvalidTimestamp | Rejection::TimestampOutOfTolerance
            ) | Self::AddressNotAllowed
                | Self::BodyTimeout
                | Self::BodyTooLarge
                | Self::HeadTooLarge
                | Self::IncompleteBody
                | Self::NoRoom
        )
    }
}

/// The body of every error.
#[derive(Serialize, ToSchema)]
pub(super) struct ErrorBody {
    error: ErrorDetail,
}

#[derive(Serialize, ToSchema)]
struct ErrorDetail {
    /// For programs; it never changes.
    #[schema(example = "unauthorized")]
    code: String,
    /// For people.
    message: String,
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Unavailable => Self::DatabaseUnavailable,
            Refusal::QueueUnavailable => Self::QueueUnavailable,
            Refusal::Overloaded => Self::Overloaded,
            Refusal::ShuttingDown => Self::ShuttingDown,
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let code = match self {
            Self::ObjectNotFound(entity) => format!("{}_not_found", entity.kind),
            other => other.code().to_owned(),
        };
        let error = ErrorDetail { code, message: self.to_string() };
        let mut response = (self.status(), Json(ErrorBody { error })).into_response();
        if self.status() == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after() {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        if self.leaves_body_unread() {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
