//! Error pages: what is wrong, and what to do about it.

use axum::{
    extract::{FromRequestParts, Path},
    http::request::Parts,
    response::{IntoResponse, Response},
};
use maud::{Markup, html};

use super::{
    page::{ESCAPE, page},
    session::Session,
};
use crate::http::{App, error::Problem};

/// A problem in a request of a signed-in operator. [`explained`] turns it into a page; until then it has the format for programs.
#[derive(Clone, Copy, Debug)]
pub(super) struct ErrorPage(pub(super) Problem);

impl From<Problem> for ErrorPage {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for ErrorPage {
    fn into_response(self) -> Response {
        let mut response = self.0.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// The part of a path that holds an id or a name, as [`whereabouts`] writes it. Text that cannot be decoded matches nothing.
///
/// [`whereabouts`]: super::page::whereabouts
pub(super) struct Segment(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = ErrorPage;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ErrorPage> {
        let segment = Path::<String>::from_request_parts(parts, state).await;
        let Path(segment) = segment.map_err(|_| ErrorPage(Problem::NotFound))?;
        Ok(Self(segment.strip_prefix(ESCAPE).map(ToOwned::to_owned).unwrap_or(segment)))
    }
}

/// The answer, or a page that explains its error. `path` is the menu entry.
pub(super) fn explained(app: &App, session: &Session, path: &str, answer: Response) -> Response {
    let Some(ErrorPage(problem)) = answer.extensions().get().copied() else { return answer };
    let (title, content) = match problem {
        Problem::NotFound => (
            "This page does not exist",
            html! { p { "It may have been removed. " a href="/" { "Go to the overview" } } },
        ),
        Problem::SinkNotFound => (
            "This sink does not exist",
            html! { p { "No sink of this name is configured, has messages, or is paused. "
            a href="/sinks" { "Go to the sinks" } } },
        ),
        Problem::ForeignForm => (
            "Nothing was done",
            html! { p { "The form does not belong to this session: you may have signed in again since it was loaded. Go back, "
            "reload the page and try again." } },
        ),
        Problem::DatabaseUnavailable | Problem::NotMigrated | Problem::Overloaded => {
            (cause(problem), html! { div data-refresh="5" { (remedy(problem)) } })
        }
        other => ("The request failed", html! { p { "The reason: " (other) "." } }),
    };
    let (mut head, _) = answer.into_parts();
    let (dress, body) = page(app, session, path, title, &content).into_parts();
    head.headers.extend(dress.headers);
    Response::from_parts(head, body)
}

/// Why nothing can be read.
pub(super) fn cause(problem: Problem) -> &'static str {
    match problem {
        Problem::Overloaded => "Too many requests at once",
        Problem::Internal => "An unexpected error occurred",
        Problem::NotMigrated => "The tables belong to another version, so nothing can be applied",
        _ => "The database cannot be reached, so nothing can be applied",
    }
}

/// What to do if nothing can be read.
pub(super) fn remedy(problem: Problem) -> Markup {
    html! {
        @match problem {
            Problem::Overloaded => p {
                "The dashboard sends only two queries to the database at a time, to leave capacity for webhooks. "
                "Try again shortly." },
            Problem::Internal => p { "The log shows where it failed. Please report this." },
            Problem::NotMigrated => p {
                "Run " code { "clerk-sync migrate" } " with the settings of this service, or start the service without "
                code { "--no-migrate" } "; " code { "clerk-sync migrate status" } " lists pending migrations. Nothing is lost "
                "meanwhile: Svix receives 503 and retries for 28 hours."
            },
            _ => p {
                "Nothing is lost: Svix receives 503 and retries for 28 hours. Is the server that " code { "DATABASE_URL" }
                " names running, and does it have free disk space? " code { "clerk-sync doctor" } " shows its answer."
            },
        }
        p.note { "This page reloads automatically; without JavaScript, reload it yourself." }
    }
}
