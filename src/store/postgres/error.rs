//! From SQLSTATE to [`ErrorKind`]. Messages and details are dropped, because they contain row values.
//!
//! The code alone does not say whose fault an error is: a missing table may be clerk-sync's, or one that a trigger of the
//! application uses. The place of the error decides. In a function, or in a statement that the server runs by itself, it is the
//! application's fault: clerk-sync has no such code that could fail.

use sqlx::postgres::{PgDatabaseError, PgErrorPosition, PgSeverity};

use crate::store::{ErrorKind, StoreError, UNIQUE_EMAIL_INDEX, sql::of_driver};

/// How many functions an error names, from the one that failed outwards.
const NAMED_FUNCTIONS: usize = 3;

/// Convert an error of the driver or the server.
pub(in crate::store) fn store_error(error: sqlx::Error) -> StoreError {
    understand(error, Statement::Any)
}

/// Convert an error of opening a connection. Poolers report these with any code.
pub(super) fn connect_error(error: sqlx::Error) -> StoreError {
    understand(error, Statement::Connects)
}

/// Convert an error of a statement that writes rows of this table of synced objects. All other code that runs there belongs to
/// the application: triggers, constraints, defaults, generated columns and policies.
pub(super) fn objects_error(error: sqlx::Error, table: &'static str) -> StoreError {
    understand(error, Statement::Writes(table))
}

/// Whether a privilege is missing, and the server does not say whose fault that is.
pub(super) fn may_be_our_rights(error: &StoreError, table: &str) -> bool {
    error.kind == ErrorKind::Refused
        && error.code.as_deref() == Some(INSUFFICIENT_PRIVILEGE)
        && error.place.as_deref().and_then(|place| place.strip_prefix("table ")) == Some(table)
}

pub(super) const INSUFFICIENT_PRIVILEGE: &str = "42501";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Statement {
    Any,
    /// It writes rows of this table, where the application's code may run.
    Writes(&'static str),
    Connects,
}

fn understand(error: sqlx::Error, statement: Statement) -> StoreError {
    match error {
        sqlx::Error::Database(error) => match error.try_downcast_ref::<PgDatabaseError>() {
            Some(error) => {
                let report = Told::of(error);
                let fatal = report.fatal || statement == Statement::Connects;
                Told { fatal, ..report }.judged(statement)
            }
            None => StoreError::new(ErrorKind::Broken),
        },
        error => of_driver(&error, "sslmode, sslrootcert, sslcert, sslkey"),
    }
}

/// What the server reports about an error, without values.
struct Told<'a> {
    code: &'a str,
    /// The error ends the connection.
    fatal: bool,
    position: Position,
    /// The call trace, innermost first. It is only searched, never stored, because it can quote anything.
    trace: &'a str,
    names: Vec<(&'static str, &'a str)>,
}

/// The text that the server's position refers to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Position {
    None,
    /// The statement that clerk-sync sent.
    Ours,
    /// A statement or expression of a function.
    Inner,
}

impl<'a> Told<'a> {
    fn of(error: &'a PgDatabaseError) -> Self {
        let names =
            [("table", error.table()), ("column", error.column()), ("constraint", error.constraint())];
        Self {
            code: error.code(),
            fatal: matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic),
            position: match error.position() {
                None => Position::None,
                Some(PgErrorPosition::Original(_)) => Position::Ours,
                Some(PgErrorPosition::Internal { .. }) => Position::Inner,
            },
            trace: error.r#where().unwrap_or_default(),
            names: names.into_iter().filter_map(|(what, name)| Some((what, name?))).collect(),
        }
    }

    fn judged(&self, statement: Statement) -> StoreError {
        let trouble = self.trouble(statement);
        StoreError { kind: trouble, code: Some(self.code.to_owned()), place: self.place(trouble, statement) }
    }

    fn trouble(&self, statement: Statement) -> ErrorKind {
        let trouble = trouble(self.code);
        // Whatever the code says, there is no connection.
        if self.fatal && matches!(trouble, ErrorKind::Broken | ErrorKind::BadData | ErrorKind::Refused) {
            return ErrorKind::Unavailable;
        }
        if self.is_of_our_index() {
            // Another transaction assigned the address or key first.
            return ErrorKind::Raced;
        }
        if !self.fatal && self.is_raised() {
            return ErrorKind::Refused;
        }
        if self.is_inside() {
            return match trouble {
                ErrorKind::BadData | ErrorKind::Broken => ErrorKind::Refused,
                // The function connects to another server, for example for a foreign table.
                ErrorKind::Unavailable if !matches!(self.code.get(..2), Some("53" | "57")) => {
                    ErrorKind::Refused
                }
                trouble => trouble,
            };
        }
        let silent = self.position == Position::None && !self.fatal;
        match trouble {
            // Among errors here without a position, only a missing privilege can be clerk-sync's fault.
            ErrorKind::Broken
                if matches!(statement, Statement::Writes(_)) && silent && !is_of_the_session(self.code) =>
            {
                ErrorKind::Refused
            }
            // clerk-sync's statements divide nothing, so the data did not cause this division by zero.
            ErrorKind::BadData if matches!(statement, Statement::Writes(_)) && self.code == "22012" => {
                ErrorKind::Refused
            }
            trouble => trouble,
        }
    }

    /// Whether one of clerk-sync's unique indexes reports that another row has the address or key.
    fn is_of_our_index(&self) -> bool {
        let named = |what| self.names.iter().find(|(other, _)| *other == what).map(|(_, name)| *name);
        let is_live =
            |index: &str| index.strip_suffix("_live").is_some_and(|table| named("table") == Some(table));
        named("constraint").is_some_and(|index| index == UNIQUE_EMAIL_INDEX || is_live(index))
    }

    /// Whether a function of the application raises the error. It then chose the code, whatever the code means elsewhere.
    fn is_raised(&self) -> bool {
        self.trace.lines().next().is_some_and(|line| line.contains("PL/pgSQL") && line.ends_with("RAISE"))
    }

    /// Whether the error happened in code that clerk-sync's statement only triggered.
    fn is_inside(&self) -> bool {
        // clerk-sync's own block catches errors of the application's code. What it passes on is about its own statement.
        let block = self.trace.lines().last().is_some_and(|line| line.contains("inline_code_block"));
        if block && functions(self.trace).is_empty() {
            return false;
        }
        self.position == Position::Inner || self.trace.lines().any(is_call)
    }

    fn place(&self, trouble: ErrorKind, statement: Statement) -> Option<String> {
        let theirs = trouble == ErrorKind::Refused;
        let meaning = match self.code {
            _ if theirs => None,
            "3D000" => Some("the database that DATABASE_URL names does not exist"),
            "25006" => Some("it is read-only: it is a standby, or default_transaction_read_only is on"),
            code if code.starts_with("28") => {
                Some("the server refuses the user or the password of DATABASE_URL")
            }
            _ if !self.fatal => None,
            // Supavisor, Neon and others report an unknown tenant, or too many clients, with this code.
            "XX000" => Some(
                "the pooler in front of the database refuses the connection: it does not know this tenant or user, or \
                 accepts no more clients",
            ),
            INSUFFICIENT_PRIVILEGE => Some("the user of DATABASE_URL may not connect to this database"),
            "22023" | "42704" => {
                Some("the server does not know a parameter in DATABASE_URL, or does not accept its value")
            }
            "55000" => Some("the server accepts no connections to this database"),
            _ => None,
        };
        if let Some(meaning) = meaning {
            return Some(meaning.to_owned());
        }
        let functions = functions(self.trace).into_iter().map(|name| ("function", name));
        let names: Vec<String> = self
            .names
            .iter()
            .copied()
            .chain(functions)
            .map(|(what, name)| format!("{what} {name}"))
            .collect();
        match (names.is_empty(), statement) {
            (false, _) => Some(names.join(", ")),
            (true, Statement::Writes(table)) if theirs => Some(format!("table {table}")),
            _ => None,
        }
    }
}

/// Whether the code is about the session, its prepared statements, or a broken disk. Such an error is not a refusal.
fn is_of_the_session(code: &str) -> bool {
    matches!(code, "42P05" | "42P14" | "XX001" | "XX002")
        || matches!(code.get(..2), Some("0B" | "24" | "25" | "26" | "34" | "58" | "F0"))
}

/// Whether a line of a trace is about a function or one of its statements. The words that it looks for stay the same in every
/// language of the server. Text after the first quotation mark can be anyone's data.
fn is_call(line: &str) -> bool {
    let words = line.split(['"', '“', '„', '«', '»', '{', '$', ':', '=']).next().unwrap_or_default();
    words.contains("SQL") || words.contains("PL/")
}

/// The beginnings of trace lines that quote a function's statement.
const QUOTING: [&str; 3] = ["SQL statement \"", "SQL expression \"", "PL/pgSQL assignment \""];

/// Names of the functions in a trace, except clerk-sync's own block: `PL/pgSQL function app.remember(text) line 3 at SQL
/// statement`.
pub(super) fn functions(trace: &str) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    let mut quoting = false;
    for line in trace.lines() {
        // A statement is quoted verbatim over several lines, and can contain anything.
        let quoted = QUOTING.iter().find_map(|words| line.strip_prefix(words)).or(quoting.then_some(line));
        if let Some(quoted) = quoted {
            quoting = !quoted.ends_with('"');
            continue;
        }
        let Some((language, rest)) = line.split_once(" function ") else { continue };
        if !(language == "SQL" || (language.starts_with("PL/") && !language.contains(' '))) {
            continue;
        }
        let rest = rest.trim_start_matches('"');
        let end = rest.find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '.' | '$')));
        let name = &rest[..end.unwrap_or(rest.len())];
        if !name.is_empty()
            && name != "inline_code_block"
            && !names.contains(&name)
            && names.len() < NAMED_FUNCTIONS
        {
            names.push(name);
        }
    }
    names
}

/// Source: <https://www.postgresql.org/docs/current/errcodes-appendix.html>
fn trouble(code: &str) -> ErrorKind {
    match code {
        "40001" | "40P01" => ErrorKind::Conflict,
        // Lock not available; cancelled, by `statement_timeout` or by an administrator.
        "55P03" | "57014" => ErrorKind::Locked,
        // Read-only transaction; idle for too long; missing database. A start gives up at once on the latter.
        "25006" | "25P03" | "3D000" => ErrorKind::Unavailable,
        _ => match code.get(..2) {
            // Connection; authorisation; resources; operator intervention.
            Some("08" | "28" | "53" | "57") => ErrorKind::Unavailable,
            // Data; program limits, such as nesting or the size of an index entry.
            Some("22" | "54") => ErrorKind::BadData,
            // Constraints; errors that triggers raise.
            Some("23" | "P0") => ErrorKind::Refused,
            _ => ErrorKind::Broken,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_that_we_meet_has_its_trouble() {
        for (code, expected) in [
            ("40P01", ErrorKind::Conflict),
            ("55P03", ErrorKind::Locked),
            ("57014", ErrorKind::Locked),
            ("57P01", ErrorKind::Unavailable),
            ("53300", ErrorKind::Unavailable),
            ("25006", ErrorKind::Unavailable),
            ("22P05", ErrorKind::BadData),
            ("54001", ErrorKind::BadData),
            ("54000", ErrorKind::BadData),
            ("23503", ErrorKind::Refused),
            ("P0001", ErrorKind::Refused),
            ("42P01", ErrorKind::Broken),
            ("XX000", ErrorKind::Broken),
            ("", ErrorKind::Broken),
        ] {
            assert_eq!(trouble(code), expected, "{code}");
        }
    }

    fn judged(code: &str, position: Position, trace: &str, statement: Statement) -> StoreError {
        Told { code, fatal: false, position, trace, names: Vec::new() }.judged(statement)
    }

    const FUNCTION: &str = "SQL statement \"insert into app.gone\nvalues ('PL/pgSQL function ada')\"\n\
                            PL/pgSQL function app.remember() line 1 at SQL statement";

    #[test]
    fn what_fails_inside_a_function_is_the_applications_refusal_whatever_its_code() {
        for code in [
            "42501", "42P01", "42703", "42883", "22012", "22P02", "P0001", "XX000", "08001", "25006", "28P01",
        ] {
            let error = judged(code, Position::None, FUNCTION, Statement::Any);
            assert_eq!(error.kind, ErrorKind::Refused, "{code}");
            assert_eq!(error.place.as_deref(), Some("function app.remember"), "{code}");
        }
        // Errors that pass by themselves, and errors of the whole server, keep their kind.
        for (code, expected) in [
            ("40P01", ErrorKind::Conflict),
            ("55P03", ErrorKind::Locked),
            ("57014", ErrorKind::Locked),
            ("53100", ErrorKind::Unavailable),
            ("57P01", ErrorKind::Unavailable),
        ] {
            assert_eq!(judged(code, Position::None, FUNCTION, Statement::Any).kind, expected, "{code}");
        }
    }

    #[test]
    fn what_ends_the_connection_is_no_answer_of_the_database() {
        for (code, word) in
            [("XX000", "pooler"), ("42501", "may not connect"), ("42704", "parameter"), ("25P04", "")]
        {
            let report = Told { code, fatal: true, position: Position::None, trace: "", names: Vec::new() };
            let error = report.judged(Statement::Writes("users"));
            assert_eq!(error.kind, ErrorKind::Unavailable, "{code}");
            assert!(error.place.unwrap_or_default().contains(word), "{code}");
            assert_eq!(
                StoreError { place: None, ..error }.is_closed_door(),
                code.starts_with("42"),
                "{code}"
            );
        }
    }

    #[test]
    fn what_a_function_raises_is_the_applications_refusal_also_with_a_code_of_the_server() {
        for trace in
            ["PL/pgSQL function app.f() line 1 at RAISE", "PL/pgSQL-Funktion app.f() Zeile 1 bei RAISE"]
        {
            for code in ["53300", "57P03", "40001", "40P01", "55P03", "57014"] {
                assert_eq!(
                    judged(code, Position::None, trace, Statement::Any).kind,
                    ErrorKind::Refused,
                    "{code}"
                );
            }
        }
    }

    #[test]
    fn a_server_that_speaks_another_language_is_understood() {
        for trace in [
            "PL/pgSQL-Funktion app.f() Zeile 1 bei SQL-Anweisung",
            "SQL-Funktion „f“ Anweisung 1",
            "SQL-Anweisung „insert into x“",
            "instruction SQL « insert into x »",
            "函数 PL/pgSQL app.f()",
            "SQL関数\"f\"の行 1",
        ] {
            assert_eq!(
                judged("42P01", Position::None, trace, Statement::Any).kind,
                ErrorKind::Refused,
                "{trace}"
            );
        }
        assert_eq!(judged("42703", Position::Inner, "", Statement::Any).kind, ErrorKind::Refused);
    }

    #[test]
    fn a_statement_of_ours_that_the_server_does_not_understand_is_our_fault() {
        for statement in [Statement::Any, Statement::Writes("users")] {
            for code in ["42P01", "42703", "42883", "42501"] {
                assert_eq!(judged(code, Position::Ours, "", statement).kind, ErrorKind::Broken, "{code}");
            }
            assert_eq!(judged("26000", Position::None, "", statement).kind, ErrorKind::Broken);
        }
        assert_eq!(judged("42501", Position::None, "", Statement::Any).kind, ErrorKind::Broken);
    }

    #[test]
    fn what_fails_on_users_without_a_trace_is_the_applications() {
        for code in ["42501", "42703", "0A000", "22012", "38000", "XX000"] {
            let error = judged(code, Position::None, "", Statement::Writes("users"));
            assert_eq!(
                (error.kind, error.place.as_deref()),
                (ErrorKind::Refused, Some("table users")),
                "{code}"
            );
        }
    }

    #[test]
    fn data_that_mentions_a_function_is_still_data_and_names_nobody() {
        for trace in [
            "JSON data, line 1: {\"PL/pgSQL function ada@example.com() SQL\": ",
            "unnamed portal with parameters: $1 = 'PL/pgSQL function ada() SQL'",
        ] {
            let error = judged("22P02", Position::None, trace, Statement::Writes("users"));
            assert_eq!((error.kind, error.place), (ErrorKind::BadData, None), "{trace}");
        }
    }

    #[test]
    fn functions_are_named_from_the_one_that_failed_outwards() {
        let trace = "PL/pgSQL function app.inner(text,integer) line 4 at RAISE\n\
                     SQL statement \"insert into app.profiles\n values ('x', '\nPL/pgSQL function ada() line 1')\"\n\
                     PL/Python function \"remember\"\n\
                     SQL function \"outer\" statement 1";
        assert_eq!(functions(trace), ["app.inner", "remember", "outer"]);
    }
}
