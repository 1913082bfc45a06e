//! Times as they are written for others: in answers, messages and on the terminal.

use chrono::{DateTime, SecondsFormat, Utc};

/// RFC 3339 in UTC, to the millisecond.
pub fn rfc3339(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}
