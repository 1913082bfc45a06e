//! SQLite's codes in our words.

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

const CONSTRAINT_NOTNULL: i32 = 1299;
const CONSTRAINT_PRIMARYKEY: i32 = 1555;
const CONSTRAINT_UNIQUE: i32 = 2067;

/// What kind of trouble it is, without anybody's data.
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

/// Whether an address was given to somebody else before.
fn is_of_our_index(error: &Error) -> bool {
    let message = prefix::out_of_text(error.as_database_error().map_or("", |error| error.message()));
    message.strip_prefix("UNIQUE constraint failed: index '").and_then(|rest| rest.strip_suffix('\''))
        == Some(UNIQUE_EMAIL_INDEX)
}

/// Whether somebody else is in the way for now.
pub(super) fn is_busy(error: &Error) -> bool {
    matches!(code(error).map(primary), Some(BUSY | LOCKED | PROTOCOL))
}

/// Whether the statement cannot run: something that it names is not there, or a function in it fails.
pub(super) fn is_of_the_statement(error: &StoreError) -> bool {
    error.kind == ErrorKind::Broken && error.code.as_deref() == Some(ERROR)
}

fn code(error: &Error) -> Option<i32> {
    error.as_database_error()?.code()?.parse().ok()
}

fn primary(code: i32) -> i32 {
    code & 0xff
}

/// What a code means that people meet, in words; else the names in a message, of which only three kinds hold nothing else:
/// `UNIQUE constraint failed: users.clerk_id`. What a trigger raises can be any text, also somebody's address.
fn place(error: &Error, code: Option<i32>) -> Option<String> {
    let meaning = match code.map(primary) {
        Some(BUSY) => Some("somebody else holds it locked"),
        Some(READONLY) => Some("this user may not write to it, or not in its directory"),
        Some(CANTOPEN) => Some("this user may not open it, or may not write to its directory"),
        Some(FULL) => Some("its disk is full"),
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
