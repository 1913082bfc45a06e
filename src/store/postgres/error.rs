//! From SQLSTATE to trouble. Messages and details are left behind: they carry row values.

use sqlx::postgres::PgDatabaseError;

use crate::store::{StoreError, Trouble};

/// Understand an error of the driver or the server.
pub(super) fn store_error(error: sqlx::Error) -> StoreError {
    match error {
        sqlx::Error::Database(error) => match error.try_downcast_ref::<PgDatabaseError>() {
            Some(error) => server_error(error),
            None => StoreError::new(Trouble::Broken),
        },
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => StoreError::new(Trouble::Unavailable),
        _ => StoreError::new(Trouble::Broken),
    }
}

fn server_error(error: &PgDatabaseError) -> StoreError {
    let names = [("table", error.table()), ("column", error.column()), ("constraint", error.constraint())];
    let place = names
        .into_iter()
        .filter_map(|(what, name)| Some(format!("{what} {}", name?)))
        .collect::<Vec<_>>()
        .join(", ");
    let hint = match error.code() {
        "3D000" => "the database that DATABASE_URL names does not exist".to_owned(),
        code if code.starts_with("28") => {
            "the server refuses the user or the password of DATABASE_URL".to_owned()
        }
        _ => place,
    };
    StoreError {
        trouble: trouble(error.code()),
        code: Some(error.code().to_owned()),
        place: (!hint.is_empty()).then_some(hint),
    }
}

/// Source: <https://www.postgresql.org/docs/current/errcodes-appendix.html>
fn trouble(code: &str) -> Trouble {
    match code {
        "40001" | "40P01" => Trouble::Conflict,
        // Lock not available; cancelled, by `statement_timeout` or by an administrator.
        "55P03" | "57014" => Trouble::Locked,
        // Read-only transaction; idle for too long; the database is not there. A start gives up on that at once.
        "25006" | "25P03" | "3D000" => Trouble::Unavailable,
        _ => match code.get(..2) {
            // Connection; authorisation; resources; operator intervention.
            Some("08" | "28" | "53" | "57") => Trouble::Unavailable,
            // Data; program limits, such as nesting or the size of an index entry.
            Some("22" | "54") => Trouble::BadData,
            // Constraints; what triggers raise.
            Some("23" | "P0") => Trouble::Refused,
            _ => Trouble::Broken,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_that_we_meet_has_its_trouble() {
        for (code, expected) in [
            ("40P01", Trouble::Conflict),
            ("55P03", Trouble::Locked),
            ("57014", Trouble::Locked),
            ("57P01", Trouble::Unavailable),
            ("53300", Trouble::Unavailable),
            ("25006", Trouble::Unavailable),
            ("22P05", Trouble::BadData),
            ("54001", Trouble::BadData),
            ("54000", Trouble::BadData),
            ("23503", Trouble::Refused),
            ("P0001", Trouble::Refused),
            ("42P01", Trouble::Broken),
            ("XX000", Trouble::Broken),
            ("", Trouble::Broken),
        ] {
            assert_eq!(trouble(code), expected, "{code}");
        }
    }
}
