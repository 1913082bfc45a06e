//! Errors of the driver itself, which mean the same for every server.

use std::io;

use sqlx::Error;

use crate::store::{ErrorKind, StoreError};

/// Convert an error that did not come from the server. `parameters` are those of `DATABASE_URL` that configure TLS.
pub(in crate::store) fn of_driver(error: &Error, parameters: &str) -> StoreError {
    let kind = match error {
        // After an error of the driver itself, the connection cannot be used again.
        Error::Tls(_)
        | Error::Configuration(_)
        | Error::Io(_)
        | Error::Protocol(_)
        | Error::PoolTimedOut
        | Error::PoolClosed
        | Error::WorkerCrashed
        | Error::BeginFailed => ErrorKind::Unavailable,
        // A time in a year that the driver cannot encode.
        Error::Encode(_) => ErrorKind::BadData,
        _ => ErrorKind::Broken,
    };
    let is_about_tls = match error {
        Error::Tls(_) | Error::Configuration(_) => true,
        // The peer's certificate is verified while reading.
        Error::Io(error) => error.kind() == io::ErrorKind::InvalidData,
        _ => false,
    };
    // Only clerk-sync's own text, because the driver's may quote a file's content.
    let place = is_about_tls.then(|| {
        format!(
            "the encrypted connection failed: the server has no TLS, its certificate is not trusted or is for another name, or a \
             file that DATABASE_URL names cannot be used ({parameters})"
        )
    });
    StoreError { place, ..StoreError::new(kind) }
}
