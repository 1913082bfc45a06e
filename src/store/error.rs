//! What can go wrong in a store, in neutral words.
//!
//! Databases put row values into their messages and details. An error of ours carries the code and the names of
//! table, column and constraint, and never the message itself.

use std::fmt;

/// What kind of trouble it is, which decides what happens to the delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum ErrorKind {
    /// The database is away, full, read-only or shutting down. Try later.
    Unavailable,
    /// Serialisation failure or deadlock: trying again at once is likely to work.
    Conflict,
    /// Somebody holds a lock for too long.
    Locked,
    /// Our own time for it is over. It may be done all the same.
    Late,
    /// An entity appeared or vanished while we worked. Begin again.
    Raced,
    /// The data can never be stored.
    BadData,
    /// A constraint or trigger of the application refuses.
    Refused,
    /// The tables are not what we need; the message explains.
    Schema,
    /// Anything else: our fault.
    Broken,
}

/// A store's error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreError {
    pub kind: ErrorKind,
    /// SQLSTATE or the store's own code, of MySQL and MariaDB the number.
    pub code: Option<String>,
    /// Names only, such as `table orders, constraint orders_user_id_fkey`; for [`ErrorKind::Schema`] a sentence.
    pub place: Option<String>,
}

impl StoreError {
    /// Trouble without a code.
    pub fn new(trouble: ErrorKind) -> Self {
        Self { kind: trouble, code: None, place: None }
    }

    /// Whether it is this data that cannot be stored, so that other data may.
    pub fn is_about_the_data(&self) -> bool {
        matches!(self.kind, ErrorKind::BadData | ErrorKind::Refused)
    }

    /// Whether a unique index or constraint refuses what another row has already.
    pub fn is_taken(&self) -> bool {
        // SQLSTATE, the code of SQLite, and the numbers of MySQL and MongoDB.
        self.kind == ErrorKind::Refused
            && matches!(self.code.as_deref(), Some("23505" | "2067" | "1062" | "11000"))
    }

    /// Whether something was ended because it took too long, by itself or waiting for others.
    pub fn took_too_long(&self) -> bool {
        // The last three are MariaDB's limit, MySQL's limit, and both after KILL QUERY.
        let ended = ["57014", "1969", "3024", "1317"];
        self.kind == ErrorKind::Late
            || (self.kind == ErrorKind::Locked
                && self.code.as_deref().is_some_and(|code| ended.contains(&code)))
    }

    /// Whether a server is there and will not let us in, however long we wait: there is no such database, user, password or
    /// parameter.
    pub fn is_closed_door(&self) -> bool {
        let code = self.code.as_deref().unwrap_or_default();
        self.kind == ErrorKind::Unavailable
            && (matches!(code, "3D000" | "42501" | "42704" | "22023")
                // Of MongoDB: the user or the password, and what they may do.
                || matches!(code, "13" | "18")
                // Of MySQL: the database, the user, the password, its age, the account, its machine, and what it is proved by.
                || matches!(
                    code,
                    "1044" | "1045" | "1049" | "1130" | "1251" | "1524" | "1698" | "1820" | "1862" | "3118" | "3159"
                        | "4151" | "2059" | "2061"
                )
                || (code.len() == "28P01".len() && code.starts_with("28")))
    }

    /// The code, or else a word for the trouble.
    pub fn code_or_kind(&self) -> &str {
        self.code.as_deref().unwrap_or(self.kind.into())
    }

    /// A row stays as it is though the database refuses nothing: a trigger of the application skips the statement, or
    /// brings back what was there.
    pub fn unmoved() -> Self {
        Self { place: Some("the row stays as it is".to_owned()), ..Self::new(ErrorKind::Refused) }
    }

    /// What remains of a race that does not end: the index or constraint that it is about, or that the row stays as it is.
    #[must_use]
    pub fn after_races(self) -> Self {
        if self.place.is_some() { Self { kind: ErrorKind::Refused, ..self } } else { Self::unmoved() }
    }

    /// What remains of conflicts that do not end: others hold what it is about for too long.
    #[must_use]
    pub fn after_conflicts(self) -> Self {
        if self.kind == ErrorKind::Conflict { Self { kind: ErrorKind::Locked, ..self } } else { self }
    }

    /// The row that was written is another user's: a trigger of the application changes `clerk_id`, by which we find it again.
    pub fn changed_id() -> Self {
        let place = "a trigger of the application changes column clerk_id of table users".to_owned();
        Self { place: Some(place), ..Self::new(ErrorKind::Refused) }
    }

    /// The tables are not what we need.
    pub fn schema(explanation: String) -> Self {
        Self { kind: ErrorKind::Schema, code: None, place: Some(explanation) }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind == ErrorKind::Schema {
            return f.write_str(self.place.as_deref().unwrap_or("the tables are not what is needed"));
        }
        f.write_str(match self.kind {
            ErrorKind::Unavailable => "the database is not available",
            ErrorKind::Conflict => "the database saw a conflict",
            ErrorKind::Locked | ErrorKind::Late if self.took_too_long() => "it takes too long",
            ErrorKind::Locked | ErrorKind::Late => "somebody holds a lock for too long",
            ErrorKind::Raced => "somebody else wrote the same entity",
            ErrorKind::BadData => "the database cannot store the data",
            ErrorKind::Refused => "a constraint or trigger refuses",
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
