//! From SQLite's codes to [`ErrorKind`].

use sqlx::Error;

use crate::store::{ErrorKind, StoreError, UNIQUE_EMAIL_INDEX, prefix};

// Primary result codes: https://www.sqlite.org/rescode.html. An extended code carries its primary in the low byte.
const ERROR: &str = "1";
const BUSY: i32 = 5;
const LOCKED: i32 = 6;
const NOMEM: i32 = 7;
const READONLY: i32 = 8;
const INTERRUPT: i32 = 9;
const IOERR: i32 = 10;
const FULL: i32 = 13;
const CANTOPEN: i32 = 14;
const PROTOCOL: i32 = 15;
const TOOBIG: i32 = 18;
const CONSTRAINT: i32 = 19;
const MISMATCH: i32 = 20;

const FULL_MEANS: &str = "the disk is full";

const CONSTRAINT_NOTNULL: i32 = 1299;
const CONSTRAINT_PRIMARYKEY: i32 = 1555;
const CONSTRAINT_UNIQUE: i32 = 2067;

/// Convert an error, without personal data.
#[expect(clippy::needless_pass_by_value, reason = "it is what map_err hands over")]
pub(in crate::store) fn explain(error: Error) -> StoreError {
    let code = code(&error);
    let trouble = match (&error, code.map(primary)) {
        (_, Some(BUSY | LOCKED | NOMEM | READONLY | INTERRUPT | IOERR | FULL | CANTOPEN | PROTOCOL))
        | (Error::PoolTimedOut | Error::PoolClosed | Error::Io(_) | Error::WorkerCrashed, _) => {
            ErrorKind::Unavailable
        }
        (_, Some(TOOBIG | MISMATCH)) => ErrorKind::BadData,
        (_, Some(CONSTRAINT)) if is_of_our_index(&error) => ErrorKind::Raced,
        (_, Some(CONSTRAINT)) => ErrorKind::Refused,
        _ => ErrorKind::Broken,
    };
    StoreError { kind: trouble, code: code.map(|code| code.to_string()), place: place(&error, code) }
}

/// Whether another user has the address.
fn is_of_our_index(error: &Error) -> bool {
    let message = prefix::out_of_text(error.as_database_error().map_or("", |error| error.message()));
    message.strip_prefix("UNIQUE constraint failed: index '").and_then(|rest| rest.strip_suffix('\''))
        == Some(UNIQUE_EMAIL_INDEX)
}

/// Whether another connection temporarily holds a lock.
pub(super) fn is_busy(error: &Error) -> bool {
    matches!(code(error).map(primary), Some(BUSY | LOCKED | PROTOCOL))
}

/// Whether the disk is full.
pub(super) fn is_full(error: &StoreError) -> bool {
    error.code.as_deref().and_then(|code| code.parse().ok()).map(primary) == Some(FULL)
}

/// The error for a disk that is still full.
pub(super) fn full() -> StoreError {
    let place = Some(FULL_MEANS.to_owned());
    StoreError { kind: ErrorKind::Unavailable, code: Some(FULL.to_string()), place }
}

/// Whether the statement cannot run because something that it names does not exist, or because a function in it fails.
pub(super) fn is_of_the_statement(error: &StoreError) -> bool {
    error.kind == ErrorKind::Broken && error.code.as_deref() == Some(ERROR)
}

fn code(error: &Error) -> Option<i32> {
    error.as_database_error()?.code()?.parse().ok()
}

fn primary(code: i32) -> i32 {
    code & 0xff
}

/// The meaning of a common code, or otherwise the names in a message. Only three kinds of messages consist of names
/// alone, for example `UNIQUE constraint failed: users.clerk_id`. The text that a trigger raises can be anything, even an
/// e-mail address.
fn place(error: &Error, code: Option<i32>) -> Option<String> {
    let meaning = match code.map(primary) {
        Some(BUSY) => Some("another process has locked it"),
        Some(READONLY) => Some("this user may not write to the file or in its directory"),
        Some(CANTOPEN) => Some("this user may not open the file or write to its directory"),
        Some(FULL) => Some(FULL_MEANS),
        _ => None,
    };
    if let Some(meaning) = meaning {
        return Some(meaning.to_owned());
    }
    if !matches!(code, Some(CONSTRAINT_NOTNULL | CONSTRAINT_PRIMARYKEY | CONSTRAINT_UNIQUE)) {
        return None;
    }
    let message = prefix::out_of_text(error.as_database_error()?.message());
    message.split_once(" constraint failed: ").map(|(_, names)| names.to_owned())
}
