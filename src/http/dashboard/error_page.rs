//! What cannot be shown or done, told to people: a page that says what is wrong, and what to do about it.

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

/// A problem on its way to somebody who is signed in. Until it is made a page of it is told as to a program.
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

/// The part of a path that stands for an id or a name, as [`whereabouts`] writes it; what is no text names nothing.
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

/// The answer as it is, or a page of the trouble that it tells. `path` is where in the menu it happened.
pub(super) fn explained(app: &App, session: &Session, path: &str, answer: Response) -> Response {
    let Some(ErrorPage(problem)) = answer.extensions().get().copied() else { return answer };
    let (title, content) = match problem {
        Problem::NotFound => (
            "There is no such page",
            html! { p { "It may have been here once. " a href="/" { "To the overview" } } },
        ),
        Problem::SinkNotFound => (
            "There is no such sink",
            html! { p { "None of this name is configured, nothing waits for one, and none is paused. " a href="/sinks" { "To the sinks" } } },
        ),
        Problem::ForeignForm => (
            "Nothing was done",
            html! { p { "The form was not made for this session: you may have signed in again since it was loaded. Go back, "
            "load the page again and repeat it." } },
        ),
        Problem::DatabaseUnavailable | Problem::NotMigrated | Problem::Overloaded => {
            (cause(problem), html! { div data-refresh="5" { (remedy(problem)) } })
        }
        other => ("That did not work", html! { p { "The reason: " (other) "." } }),
    };
    let (mut head, _) = answer.into_parts();
    let (dress, body) = page(app, session, path, title, &content).into_parts();
    head.headers.extend(dress.headers);
    Response::from_parts(head, body)
}

/// Why nothing can be read.
pub(super) fn cause(problem: Problem) -> &'static str {
    match problem {
        Problem::Overloaded => "Too many are looking at this at once",
        Problem::Internal => "Something failed unexpectedly",
        Problem::NotMigrated => "The tables are of another version, so nothing can be applied",
        _ => "The database cannot be reached, so nothing can be applied",
    }
}

/// What to do where nothing can be read.
pub(super) fn remedy(problem: Problem) -> Markup {
    html! {
        @match problem {
            Problem::Overloaded => p { "Two questions are put to the database at a time, so that webhooks have room. Wait a moment." },
            Problem::Internal => p { "The log has the place at which it failed, and this is worth a report." },
            Problem::NotMigrated => p {
                "Run " code { "clerk-sync migrate" } " with the settings of this service, or start it without "
                code { "--no-migrate" } "; " code { "clerk-sync migrate status" } " lists what is pending. Nothing is lost "
                "meanwhile: Svix is told 503 and sends again for 28 hours."
            },
            _ => p {
                "Nothing is lost: Svix is told 503 and sends again for 28 hours. Is the server that " code { "DATABASE_URL" }
                " names running, and not full? " code { "clerk-sync doctor" } " says what it answers."
            },
        }
        p.note { "This page tries again by itself; without JavaScript, load it again." }
    }
}
