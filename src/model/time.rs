//! Formats times for output: in answers, in messages and on the terminal.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Serialize, Serializer};

/// RFC 3339 in UTC, with milliseconds.
pub fn rfc3339(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// The same for an optional time in a JSON field: for serde's `serialize_with`.
///
/// # Errors
/// The serializer fails.
pub fn as_rfc3339<S: Serializer>(
    at: &(impl Copy + Into<Option<DateTime<Utc>>>),
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let at: Option<DateTime<Utc>> = (*at).into();
    at.map(rfc3339).serialize(serializer)
}
