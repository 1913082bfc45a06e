//! From errors of the server and the driver to [`ErrorKind`]. Their messages contain values and are never kept.
//!
//! Source of the numbers: <https://www.mongodb.com/docs/manual/reference/error-codes/>

use mongodb::{
    bson::Document,
    error::{Error, ErrorKind as Trouble, WriteFailure},
};

use super::cells::Cells as _;
use crate::store::{ErrorKind, StoreError};

/// A unique index already has this value.
const DUPLICATE: i64 = 11000;
/// A validator refused the document.
const INVALID: i64 = 121;

/// Convert an error of the driver or the server.
pub(super) fn explain(error: &Error) -> StoreError {
    match *error.kind {
        Trouble::Command(ref command) => of_code(command.code.into()),
        Trouble::Write(WriteFailure::WriteError(ref write)) => of_code(write.code.into()),
        Trouble::BsonSerialization(_) | Trouble::Bson(_) => StoreError::new(ErrorKind::BadData),
        Trouble::Authentication { .. } => of_code(18),
        Trouble::InvalidArgument { .. } | Trouble::InvalidResponse { .. } | Trouble::Transaction { .. } => {
            StoreError::new(ErrorKind::Broken)
        }
        _ => StoreError::new(ErrorKind::Unavailable),
    }
}

/// The failed write that an answer reports.
pub(super) fn refusal_in(answer: &Document) -> Option<StoreError> {
    let first =
        answer.get_array("writeErrors").ok().and_then(|errors| errors.first()?.as_document().cloned());
    if let Some(refusal) = first {
        let code = refusal.maybe::<i64>("code").unwrap_or_default();
        let index =
            refusal.get_document("keyPattern").map(|fields| fields.keys().cloned().collect::<Vec<_>>());
        let place = index.ok().map(|fields| format!("index on {}", fields.join(", ")));
        return Some(StoreError { place, ..of_code(code) });
    }
    // A write without a majority may be lost.
    answer.get_document("writeConcernError").is_ok().then(|| StoreError::new(ErrorKind::Unavailable))
}

/// The error for a server that is not a member of a replica set.
pub(super) fn standalone() -> StoreError {
    StoreError::schema(
        "DATABASE_URL: this server has no transactions, which need a replica set: start it with --replSet rs0 and run rs.initiate() \
         once, even if it stays the only member"
            .to_owned(),
    )
}

fn of_code(code: i64) -> StoreError {
    let kind = match code {
        DUPLICATE | INVALID | 28 => ErrorKind::Refused,
        // A conflict; an unknown transaction; a snapshot that is gone; stale metadata.
        112 | 24 | 225 | 239 | 246 | 251 | 254 | 256 => ErrorKind::Conflict,
        50 | 262 => ErrorKind::Late,
        // Values that BSON or the server cannot store: too large, too deep, or with names that are not allowed.
        2 | 15 | 52 | 57 | 10334 | 17280 | 17419 | 17420 | 10331 => ErrorKind::BadData,
        // Not the primary, stepping down, shutting down, no disk space, no majority, no privilege, no such user.
        6 | 7 | 13 | 18 | 64 | 79 | 89 | 91 | 100 | 189 | 9001 | 10058 | 10107 | 11600 | 11602 | 13435
        | 13436 | 14031 => ErrorKind::Unavailable,
        20 => return standalone(),
        _ => ErrorKind::Broken,
    };
    StoreError { code: Some(code.to_string()), ..StoreError::new(kind) }
}

impl StoreError {
    /// The error for documents of clerk-sync's own collections: another process was faster.
    pub(super) fn into_race(self) -> Self {
        if self.is_taken() { Self::new(ErrorKind::Conflict) } else { self }
    }

    /// The error for documents of synced objects: the row already exists, or the application refuses the change.
    pub(super) fn of_objects(self, collection: &str) -> Self {
        match (self.kind, &self.place) {
            (ErrorKind::Refused, Some(place)) if place == "index on clerkId" => Self::new(ErrorKind::Raced),
            (ErrorKind::Refused, Some(place)) => {
                Self { place: Some(format!("collection {collection}, {place}")), ..self }
            }
            (ErrorKind::Refused, None) => Self { place: Some(format!("collection {collection}")), ..self },
            _ => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use mongodb::bson::doc;

    use super::*;

    #[test]
    fn a_refusal_names_fields_and_no_values() {
        let answer = doc! { "ok": 1, "writeErrors": [{
            "index": 0, "code": 11000, "errmsg": "dup key: { email: \"ada@example.com\" }",
            "keyPattern": { "email": 1 }, "keyValue": { "email": "ada@example.com" },
        }] };
        let error = refusal_in(&answer).expect("a refusal").of_objects("users");
        assert_eq!(
            error.to_string(),
            "a constraint or trigger refused the change (11000): collection users, index on email"
        );
        assert!(error.is_taken());
    }

    #[test]
    fn a_server_without_transactions_is_told_with_its_remedy() {
        assert!(of_code(20).to_string().contains("rs.initiate()"));
    }
}
