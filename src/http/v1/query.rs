//! Query strings: every parameter must be known, occur once, and have an allowed value.
//!
//! An error names the parameter and the allowed values, never the value that was sent.

use utoipa::IntoParams;

use crate::http::error::Problem;

/// The allowed values of the parameters of every list.
pub(super) const AFTER: &str = "after: must be the `next` of the previous page";
const LIMIT: &str = "limit: must be a whole number from 1 to 500";

const DEFAULT_LIMIT: u32 = 100;
const MAX_LIMIT: u32 = 500;

/// The parameters of every list.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it only describes what `Query` reads")]
pub(super) struct Paging {
    /// The `next` of the previous page
    after: Option<String>,
    /// The maximum number of entries per page; 100 by default
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
}

/// The parameters of a query string, decoded.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// Parse a query string. `complaint` lists the allowed parameters, and is the error for any other.
    pub(super) fn read(
        query: Option<&str>,
        known: &[&str],
        complaint: &'static str,
    ) -> Result<Self, Problem> {
        let mut parameters: Vec<(String, String)> = Vec::new();
        for (name, value) in url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            if !known.contains(&&*name) || parameters.iter().any(|(other, _)| *other == name) {
                return Err(Problem::InvalidParameter(complaint));
            }
            parameters.push((name.into_owned(), value.into_owned()));
        }
        Ok(Self(parameters))
    }

    /// The value of a parameter, if present.
    pub(super) fn value<T>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Option<T>,
        complaint: &'static str,
    ) -> Result<Option<T>, Problem> {
        let Some((_, value)) = self.0.iter().find(|(other, _)| other == name) else { return Ok(None) };
        parse(value).map(Some).ok_or(Problem::InvalidParameter(complaint))
    }

    /// The maximum number of entries per page.
    pub(super) fn limit(&self) -> Result<u32, Problem> {
        let read = |text: &str| text.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
        Ok(self.value("limit", read, LIMIT)?.unwrap_or(DEFAULT_LIMIT))
    }
}

/// One page of the results, and the start of the next page if there is one. The query asked for one entry more than a page.
pub(in crate::http) fn page<T, Next>(
    mut found: Vec<T>,
    limit: u32,
    next: impl FnOnce(&T) -> Next,
) -> (Vec<T>, Option<Next>) {
    let has_more = found.len() > limit as usize;
    found.truncate(limit as usize);
    let next = found.last().filter(|_| has_more).map(next);
    (found, next)
}
