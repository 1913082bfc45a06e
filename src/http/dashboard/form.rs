//! The fields of a form, and whether the form belongs to the session.

use axum::extract::Request;
use axum::http::{HeaderMap, header};
use tokio::time::Instant;

use super::session::Session;
use crate::http::{App, address, error::Problem};

/// The fields of a form. They may be personal data.
pub(super) struct Form {
    fields: Vec<(String, String)>,
    /// Whether the browser reports that another site sent it.
    foreign: bool,
}

impl Form {
    pub(super) async fn read(app: &App, request: Request) -> Result<Self, Problem> {
        let (head, body) = request.into_parts();
        let peer = address::peer(&head.extensions);
        let body = app.dashboard.forms.read(body, peer, Instant::now()).await?;
        let fields = url::form_urlencoded::parse(&body);
        let fields = fields.map(|(name, value)| (name.into_owned(), value.into_owned())).collect();
        Ok(Self { fields, foreign: is_foreign(&head.headers) })
    }

    /// The form, if it was made for this session; any other is refused.
    pub(super) async fn read_own(app: &App, session: &Session, request: Request) -> Result<Self, Problem> {
        let form = Self::read(app, request).await?;
        if form.is_of(session) { Ok(form) } else { Err(Problem::ForeignForm) }
    }

    /// Whether another site sent it.
    pub(super) fn is_foreign(&self) -> bool {
        self.foreign
    }

    /// Whether it was made for this session.
    pub(super) fn is_of(&self, session: &Session) -> bool {
        !self.foreign && self.value("csrf").is_some_and(|csrf| session.made(csrf))
    }

    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }
}

fn is_foreign(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(site) = text("sec-fetch-site") {
        return !matches!(site, "same-origin" | "none");
    }
    let Some(origin) = text(header::ORIGIN.as_str()) else { return false };
    let host = origin.split_once("://").map(|(_, host)| host);
    host.is_none() || host != text(header::HOST.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value")))
            .collect()
    }

    #[test]
    fn a_form_of_another_site_is_foreign() {
        for own in [
            &[][..],
            &[("sec-fetch-site", "same-origin"), ("origin", "null")],
            &[("origin", "http://127.0.0.1:8081"), ("host", "127.0.0.1:8081")],
        ] {
            assert!(!is_foreign(&headers(own)), "{own:?}");
        }
        for foreign in [
            &[("sec-fetch-site", "cross-site")][..],
            &[("sec-fetch-site", "same-site")],
            &[("origin", "https://evil.example"), ("host", "127.0.0.1:8081")],
            &[("origin", "null"), ("host", "127.0.0.1:8081")],
        ] {
            assert!(is_foreign(&headers(foreign)), "{foreign:?}");
        }
    }
}
