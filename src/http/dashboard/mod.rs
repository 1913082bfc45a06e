//! The dashboard for the person on call. [`routes`] lists its pages.
//!
//! The server renders whole pages from the store's data. They load nothing from other origins, and work without JavaScript.
//! An operator signs in once with `ADMIN_TOKEN` and gets a session; every action is a form with a token that proves that
//! clerk-sync rendered it. Personal data is masked until the operator reveals it, which the audit trail records first.
//! Search terms are sent in a body, because addresses of people must not appear in a URL.

mod chart;
mod deliveries;
mod error_page;
mod form;
mod glance;
mod notice;
mod objects;
mod overview;
mod page;
mod queue;
mod session;
mod signups;
mod sinks;
mod verdict;

use std::{array, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::{Next, from_fn_with_state, map_response},
    response::{IntoResponse, Response},
    routing::get,
};
use chrono::{DateTime, Utc};
use maud::html;
use tokio::time::{Instant, timeout};

pub use self::page::grouped_by;
use self::{
    error_page::{ErrorPage, explained},
    form::Form,
    glance::Glance,
    page::{see, stranger},
    session::{Session, Sessions},
    signups::SignUps,
    verdict::Facts,
};
use super::{
    App, Bodies,
    address::peer,
    attempts::{Attempts, FORGOTTEN},
    error::Problem,
    token::Token,
};
use crate::store::Count;

/// A page, or an error that is shown as a page.
type Answer = Result<Response, ErrorPage>;

/// Only content from this service, and no inline scripts or styles.
const CONTENT_POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; \
                              connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// The headers of every answer of the dashboard.
const HEADERS: [(HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, CONTENT_POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
];

/// The maximum size of a form.
const FORM_BYTES: usize = 16 * 1024;

/// Wrong tokens in a row before the next attempt has to wait.
const FREE_ATTEMPTS: u32 = 10;

/// The minimum time that a reading for the overview is used, however many operators look at it.
const FRESH: Duration = Duration::from_secs(2);

/// The state of the dashboard.
pub struct Dashboard {
    /// `None`: sign-in is disabled.
    door: Option<Door>,
    facts: Glance<Arc<Facts>>,
    /// The number of users.
    users: Glance<Option<Count>>,
    /// The number of sign-ups, by bucket.
    signups: [Glance<Arc<SignUps>>; signups::BUCKETS.len()],
    /// Forms have a budget of their own: webhooks that fill theirs cannot prevent a sign-in, and vice versa.
    forms: Bodies,
}

struct Door {
    token: Token,
    sessions: Sessions,
    attempts: Attempts,
}

impl Dashboard {
    /// The dashboard for operators with this token; without one, sign-in is disabled.
    pub fn new(token: Option<&str>) -> Self {
        let door = token.map(|token| Door {
            token: Token::new(token),
            sessions: Sessions::new(token),
            attempts: Attempts::new(FREE_ATTEMPTS),
        });
        Self {
            door,
            facts: Glance::new(FRESH, 3),
            // Sign-ups are counted row by row, and so are users unless PostgreSQL has many; webhooks need the database meanwhile.
            users: Glance::new(FRESH, 50),
            signups: array::from_fn(|_| Glance::new(FRESH, 200)),
            forms: Bodies::new(FORM_BYTES),
        }
    }

    /// The session of a request.
    fn session(&self, headers: &HeaderMap, now: DateTime<Utc>) -> Option<Session> {
        self.door.as_ref()?.sessions.find(headers, now)
    }
}

/// All pages, and the answer for unknown paths.
pub(super) fn routes(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(overview::show))
        // The pages of every kind: `/users`, `/users/{clerk_id}`.
        .merge(objects::routes(app.api.kinds))
        .route("/sign-ups", get(signups::show))
        .route("/deliveries", get(deliveries::list))
        .route("/queue", get(queue::list).post(queue::retry_all))
        .route("/queue/{svix_id}", get(queue::show).post(queue::change))
        .route("/sinks", get(sinks::list))
        .route("/sinks/{sink}", get(sinks::show).post(sinks::change))
        .method_not_allowed_fallback(async || ErrorPage(Problem::MethodNotAllowed))
        .layer(from_fn_with_state(Arc::clone(&app), require))
        .fallback(nothing)
        .route("/sign-in", get(ask).post(sign_in))
        .route("/sign-out", get(async || see("/")).post(sign_out))
        .route("/assets/style.css", get(asset("text/css", include_str!("assets/style.css"))))
        .route("/assets/refresh.js", get(asset("text/javascript", include_str!("assets/refresh.js"))))
        .route("/assets/icon.svg", get(asset("image/svg+xml", include_str!("assets/icon.svg"))))
        .layer(map_response(async |mut response: Response| {
            for (name, value) in HEADERS {
                response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
            }
            response
        }))
        .with_state(app)
}

/// A public asset, the same in every copy of the program.
fn asset(kind: &'static str, content: &'static str) -> ([(HeaderName, &'static str); 2], &'static str) {
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "max-age=300")], content)
}

async fn nothing(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    let Some(session) = app.dashboard.session(&headers, (app.clock)()) else {
        return Problem::NotFound.into_response();
    };
    explained(&app, &session, "", ErrorPage(Problem::NotFound).into_response())
}

/// Require a session. A GET without one is redirected to the sign-in page; an action without one is refused. Errors are shown
/// as a page, within the deadline.
async fn require(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let now = (app.clock)();
    match app.dashboard.session(request.headers(), now) {
        Some(session) => {
            let place = format!("/{}", request.uri().path().split('/').nth(1).unwrap_or_default());
            request.extensions_mut().insert(session.clone());
            let answer = timeout(app.answer_within, next.run(request)).await;
            let answer = answer.unwrap_or_else(|_| ErrorPage(Problem::DatabaseUnavailable).into_response());
            explained(&app, &session, &place, answer)
        }
        None if request.method() == Method::GET || request.method() == Method::HEAD => see("/sign-in"),
        None => sign_in_page(
            &app,
            StatusCode::UNAUTHORIZED,
            Some("You are no longer signed in. Nothing was done."),
        ),
    }
}

/// `GET /sign-in`
async fn ask(State(app): State<Arc<App>>) -> Response {
    sign_in_page(&app, StatusCode::OK, None)
}

/// `POST /sign-in`
async fn sign_in(State(app): State<Arc<App>>, request: Request) -> Response {
    let Some(door) = &app.dashboard.door else { return sign_in_page(&app, StatusCode::UNAUTHORIZED, None) };
    let address = peer(request.extensions());
    if let Some(wait) = door.attempts.wait(address, Instant::now()) {
        return too_many(&app, wait);
    }
    let form = match Form::read(&app, request).await {
        Ok(form) => form,
        Err(problem) => return problem.into_response(),
    };
    // Another site that sends guesses from this browser must not lock out its user.
    if form.is_foreign() {
        return Problem::ForeignForm.into_response();
    }
    let token = form.value("token").unwrap_or_default().trim();
    // Counted before the comparison, so that many concurrent attempts are not all compared.
    if !token.is_empty() && !door.attempts.begin(address, Instant::now()) {
        return too_many(&app, FORGOTTEN);
    }
    if !door.token.is(token.as_bytes()) {
        tracing::warn!(peer = %address, "wrong token at the dashboard");
        return sign_in_page(&app, StatusCode::UNAUTHORIZED, Some("This token is wrong."));
    }
    door.attempts.succeeded(address);
    let mut response = see("/");
    if let Ok(cookie) = HeaderValue::from_str(&door.sessions.begin((app.clock)())) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}

fn too_many(app: &App, wait: Duration) -> Response {
    let complaint = "Too many attempts. Try again shortly.";
    let mut page = sign_in_page(app, StatusCode::TOO_MANY_REQUESTS, Some(complaint));
    page.headers_mut().insert(header::RETRY_AFTER, (wait.as_secs() + 1).into());
    page
}

fn sign_in_page(app: &App, status: StatusCode, complaint: Option<&str>) -> Response {
    let content = if app.dashboard.door.is_some() {
        html! {
            p.note { "Is the database in sync with Clerk?" }
            form.sign-in method="post" action="/sign-in" {
                label for="token" { "The token in " code { "ADMIN_TOKEN" } }
                input id="token" type="password" name="token" autocomplete="current-password" required autofocus
                    aria-describedby=[complaint.map(|_| "complaint")];
                @if let Some(complaint) = complaint { p #complaint .complaint role="alert" { (complaint) } }
                button { "Sign in" }
            }
        }
    } else {
        html! {
            p { "Sign-in is disabled until a token is set: set " code { "ADMIN_TOKEN" }
                " to a long random value, for example the output of " code { "openssl rand -hex 32" }
                ", and restart the service." }
        }
    };
    stranger(status, "Sign in", &content)
}

/// `POST /sign-out`
async fn sign_out(State(app): State<Arc<App>>, request: Request) -> Response {
    let now = (app.clock)();
    let mut response = see("/sign-in");
    let Some(door) = &app.dashboard.door else { return response };
    let Some(session) = door.sessions.find(request.headers(), now) else { return response };
    match Form::read(&app, request).await {
        Ok(form) if form.is_of(&session) => {}
        _ => return Problem::ForeignForm.into_response(),
    }
    if let Ok(cookie) = HeaderValue::from_str(&door.sessions.end(&session, now)) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}
