//! Store errors, in terms that are the same for every database.
//!
//! Databases put row values into their error messages and details. A [`StoreError`] therefore carries only the code and the
//! names of table, column and constraint, never the original message.

use std::fmt;

/// The kind of error. It decides what happens to the delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum ErrorKind {
    /// The database is unavailable, full, read-only or shutting down. Try later.
    Unavailable,
    /// Serialisation failure or deadlock: an immediate retry is likely to succeed.
    Conflict,
    /// Another session holds a lock for too long.
    Locked,
    /// clerk-sync's own timeout expired. The operation may have succeeded anyway.
    Late,
    /// Another writer created or removed an entity meanwhile. Begin the transaction again.
    Raced,
    /// The data can never be stored.
    BadData,
    /// A constraint or trigger of the application refused the change.
    Refused,
    /// The tables do not match the expected schema; the message explains the difference.
    Schema,
    /// Anything else: a bug in clerk-sync.
    Broken,
}

/// A store's error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreError {
    pub kind: ErrorKind,
    /// The SQLSTATE or the database's own code. For MySQL and MariaDB it is the error number.
    pub code: Option<String>,
    /// Names only, for example `table orders, constraint orders_user_id_fkey`. For [`ErrorKind::Schema`] it is a sentence.
    pub place: Option<String>,
}

impl StoreError {
    /// An error without a code.
    pub fn new(trouble: ErrorKind) -> Self {
        Self { kind: trouble, code: None, place: None }
    }

    /// Whether this data cannot be stored, while other data may be.
    pub fn is_about_the_data(&self) -> bool {
        matches!(self.kind, ErrorKind::BadData | ErrorKind::Refused)
    }

    /// Whether a unique index or constraint refused a value that another row already has.
    pub fn is_taken(&self) -> bool {
        // SQLSTATE, SQLite's code, and the numbers of MySQL and MongoDB.
        self.kind == ErrorKind::Refused
            && matches!(self.code.as_deref(), Some("23505" | "2067" | "1062" | "11000"))
    }

    /// Whether the operation was cancelled because it took too long or waited too long.
    pub fn took_too_long(&self) -> bool {
        // The last three are MariaDB's limit, MySQL's limit, and KILL QUERY on both.
        let ended = ["57014", "1969", "3024", "1317"];
        self.kind == ErrorKind::Late
            || (self.kind == ErrorKind::Locked
                && self.code.as_deref().is_some_and(|code| ended.contains(&code)))
    }

    /// Whether a reachable server refuses access, so that waiting does not help: the database, user, password or parameter does
    /// not exist or is wrong.
    pub fn is_closed_door(&self) -> bool {
        let code = self.code.as_deref().unwrap_or_default();
        self.kind == ErrorKind::Unavailable
            && (matches!(code, "3D000" | "42501" | "42704" | "22023")
                // MongoDB: the user or password, and missing privileges.
                || matches!(code, "13" | "18")
                // MySQL: the database, user, password, expired password, account, client host, and authentication plugin.
                || matches!(
                    code,
                    "1044" | "1045" | "1049" | "1130" | "1251" | "1524" | "1698" | "1820" | "1862" | "3118" | "3159"
                        | "4151" | "2059" | "2061"
                )
                || (code.len() == "28P01".len() && code.starts_with("28")))
    }

    /// The code, or the name of the kind if there is no code.
    pub fn code_or_kind(&self) -> &str {
        self.code.as_deref().unwrap_or(self.kind.into())
    }

    /// The error for a row that did not change although the database accepted the statement: a trigger of the application skips
    /// it or restores the old values.
    pub fn unmoved() -> Self {
        Self { place: Some("the row did not change".to_owned()), ..Self::new(ErrorKind::Refused) }
    }

    /// The error to report when races do not end. It keeps the index or constraint, or says that the row did not change.
    #[must_use]
    pub fn after_races(self) -> Self {
        if self.place.is_some() { Self { kind: ErrorKind::Refused, ..self } } else { Self::unmoved() }
    }

    /// The error to report when conflicts do not end: other sessions hold locks for too long.
    #[must_use]
    pub fn after_conflicts(self) -> Self {
        if self.kind == ErrorKind::Conflict { Self { kind: ErrorKind::Locked, ..self } } else { self }
    }

    /// The error for a trigger of the application that changes `clerk_id`, so that the written row belongs to another user.
    pub fn changed_id() -> Self {
        let place = "a trigger of the application changes column clerk_id of table users".to_owned();
        Self { place: Some(place), ..Self::new(ErrorKind::Refused) }
    }

    /// The error for a value in clerk-sync's tables that another program must have written.
    pub(super) fn unreadable(column: &str) -> Self {
        Self { place: Some(format!("column {column} cannot be read")), ..Self::new(ErrorKind::Broken) }
    }

    /// The tables do not match the expected schema.
    pub fn schema(explanation: String) -> Self {
        Self { kind: ErrorKind::Schema, code: None, place: Some(explanation) }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind == ErrorKind::Schema {
            return f
                .write_str(self.place.as_deref().unwrap_or("the tables do not match the expected schema"));
        }
        f.write_str(match self.kind {
            ErrorKind::Unavailable => "the database is not available",
            ErrorKind::Conflict => "the database reported a conflict",
            ErrorKind::Locked | ErrorKind::Late if self.took_too_long() => "the operation took too long",
            ErrorKind::Locked | ErrorKind::Late => "another session holds a lock for too long",
            ErrorKind::Raced => "another writer changed the same entity",
            ErrorKind::BadData => "the database cannot store the data",
            ErrorKind::Refused => "a constraint or trigger refused the change",
            ErrorKind::Schema | ErrorKind::Broken => "the database refused a statement",
        })?;
        if let Some(code) = &self.code {
            write!(f, " ({code})")?;
        }
        if let Some(place) = &self.place {
            write!(f, ": {place}")?;
        }
        Ok(())
    }
}

impl std::error::Error for StoreError {}
