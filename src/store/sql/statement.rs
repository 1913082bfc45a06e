//! One text for a statement, rendered in the SQL of every database.
//!
//! A text is SQL that all databases understand, with parts in braces where they differ:
//!
//! | part | result |
//! |---|---|
//! | `{batch $1 AS n: id text, at time}` | a table of the rows of a [`Batch`](super::Batch), with these columns and `n.place`, which counts from 1 |
//! | `{lookup t AS e WHERE …}` | one index search for each row so far, in their order |
//! | `{lock t AS e WHERE …}` | as `lookup`, and the rows found are locked |
//! | `{claim t AS e WHERE …}` | as `lock`, but rows that other transactions have locked are skipped |
//! | `id {in SELECT …}` | is one of these; each is searched by an index, even if the table was small when the plan was made |
//! | `{in_order}` | orders the rows of the batch `n`; empty on MySQL and MariaDB, because `JSON_TABLE` returns them in order |
//! | `{now}` | the time of the database's clock |
//! | `{from {batch …}}` | the rows that an update uses |
//! | `{token}` | a unique text by which the statement finds what it wrote |
//! | `{returning …}` | the columns of the written rows, where a writing statement can return rows |
//! | `{postgres …}`, `{sqlite …}`, `{mysql …}` | its content, for one database only; MariaDB uses MySQL's SQL |
//! | `{postgres\|sqlite …}` | its content, for two databases |
//!
//! Where one statement is not enough, a text is several statements separated by `;`. They run one after another, each with the
//! same values. A text is rendered once. `tests/snapshots` contains the results for review.

use std::{
    borrow::Cow,
    fmt::Write as _,
    sync::{Arc, OnceLock},
};

use super::Value;
use crate::store::{mysql, prefix};

/// A SQL dialect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    Postgres,
    Sqlite,
    Mariadb,
    Mysql,
}

impl Dialect {
    /// Every dialect.
    pub const ALL: [Self; 4] = [Self::Postgres, Self::Sqlite, Self::Mariadb, Self::Mysql];

    /// The name of the dialect.
    pub fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Sqlite => "sqlite",
            Self::Mariadb => "mariadb",
            Self::Mysql => "mysql",
        }
    }

    /// The name of the dialect's family, as in `migrations/` and in the parts of texts.
    pub fn family(self) -> &'static str {
        match self {
            Self::Mariadb => Self::Mysql.name(),
            _ => self.name(),
        }
    }

    fn type_name(self, neutral: &str) -> &str {
        match (self, neutral) {
            (Self::Postgres, "time") => "timestamptz",
            (Self::Postgres, "bytes") => "bytea",
            _ => neutral,
        }
    }
}

/// A statement for every dialect.
pub struct Statement {
    text: Cow<'static, str>,
    rendered: [OnceLock<Arc<[Step]>>; Dialect::ALL.len()],
}

/// One of the statements that a text becomes for a database.
pub(in crate::store) struct Step {
    pub(in crate::store) sql: Arc<str>,
    /// The values that its question marks stand for, counted from 0; empty where parameters are numbered.
    pub(in crate::store) parameters: Vec<usize>,
}

impl Statement {
    pub(in crate::store) const fn new(text: &'static str) -> Self {
        Self { text: Cow::Borrowed(text), rendered: [const { OnceLock::new() }; Dialect::ALL.len()] }
    }

    /// A statement from a text that is built from a declaration.
    pub(in crate::store) fn made(text: String) -> Self {
        Self { text: Cow::Owned(text), ..Self::new("") }
    }

    /// The text that it is rendered from.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Whether there is nothing to send: the statement is empty in this dialect, or its batches have no rows.
    pub(in crate::store) fn is_void(&self, dialect: Dialect, values: &[Value<'_>]) -> bool {
        let rows = values.iter().filter_map(|value| match value {
            Value::Batch(batch) => Some(batch.rows),
            _ => None,
        });
        rows.max() == Some(0) || self.sql(dialect).is_empty()
    }

    /// The SQL for this dialect; several statements are joined.
    pub fn sql(&self, dialect: Dialect) -> Arc<str> {
        match &*self.steps(dialect) {
            [step] => Arc::clone(&step.sql),
            steps => steps.iter().map(|step| &*step.sql).collect::<Vec<_>>().join(";\n").into(),
        }
    }

    /// The statements that this one becomes in this dialect.
    pub(in crate::store) fn steps(&self, dialect: Dialect) -> Arc<[Step]> {
        let rendered = || match dialect {
            Dialect::Postgres | Dialect::Sqlite => {
                let sql = rendered(&numbered(&self.text, dialect), dialect);
                let sql = prefix::in_text(&sql, dialect).into();
                Arc::new([Step { sql, parameters: Vec::new() }])
            }
            Dialect::Mariadb | Dialect::Mysql => mysql::render::steps(&self.text, dialect),
        };
        Arc::clone(self.rendered[dialect as usize].get_or_init(rendered))
    }
}

/// Declare statements, and list them by name in `STATEMENTS`.
macro_rules! statements {
    ($($name:ident = $text:expr;)+) => {
        $(pub(in crate::store) static $name: $crate::store::sql::Statement = $crate::store::sql::Statement::new($text);)+

        /// Every statement of this file, by name.
        #[cfg(test)]
        pub(in crate::store::sql) static STATEMENTS: &[(&str, &$crate::store::sql::Statement)] =
            &[$((stringify!($name), &$name)),+];
    };
}
pub(in crate::store) use statements;

/// Renumber parameters: where each column of a batch is a separate parameter, later parameters get higher numbers.
fn numbered(text: &str, dialect: Dialect) -> String {
    let mut widths = [1; 10];
    for part in text.split("{batch $").skip(1) {
        let number = part.bytes().next().map_or(0, |digit| usize::from(digit - b'0'));
        let columns = &part[..end_of_part(part)];
        let width = if dialect == Dialect::Postgres { columns.split(',').count() } else { 1 };
        // A part for another database may omit the last columns.
        widths[number] = widths[number].max(width);
    }
    let mut pieces = text.split('$');
    let mut numbered = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        match piece.bytes().next() {
            Some(digit @ b'1'..=b'9') => {
                let before: usize = widths[1..usize::from(digit - b'0')].iter().sum();
                let _ = write!(numbered, "${}{}", before + 1, &piece[1..]);
            }
            _ => numbered = numbered + "$" + piece,
        }
    }
    numbered
}

pub(in crate::store) fn rendered(text: &str, dialect: Dialect) -> String {
    let mut sql = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, from)) = rest.split_once('{') {
        sql.push_str(before);
        let end = end_of_part(from);
        let (word, argument) = from[..end].split_once(char::is_whitespace).unwrap_or((&from[..end], ""));
        match is_for(word, dialect) {
            Some(true) => sql.push_str(&rendered(argument, dialect)),
            Some(false) => {}
            None => sql.push_str(&part_of(word, &rendered(argument, dialect), dialect)),
        }
        rest = &from[end + 1..];
    }
    sql.push_str(rest);
    sql
}

/// The end of a part, which may contain other parts.
pub(in crate::store) fn end_of_part(text: &str) -> usize {
    let mut depth = 0;
    text.find(|c| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        depth < 0
    })
    .expect("a part of a statement ends")
}

fn part_of(word: &str, argument: &str, dialect: Dialect) -> String {
    match (word, dialect) {
        ("batch", _) => {
            let (parameter, rest) = split(argument, " AS ");
            let (alias, columns) = split(rest, ":");
            let columns = columns.split(',').map(|column| split(column.trim(), " "));
            match dialect {
                Dialect::Mariadb | Dialect::Mysql => mysql::render::batch(parameter, alias, columns, dialect),
                _ => batch(parameter, alias, columns, dialect),
            }
        }
        (word, Dialect::Mariadb | Dialect::Mysql) => mysql::render::part(word, argument, dialect),
        ("lookup" | "lock" | "claim", Dialect::Postgres) => {
            let (table, condition) = split(argument, " WHERE ");
            let alias = split(table, " AS ").1;
            let locks = match word {
                "lock" => " FOR UPDATE",
                "claim" => " FOR UPDATE SKIP LOCKED",
                // Keeps one index search per row: the planner cannot turn it into a scan of the table.
                _ => " OFFSET 0",
            };
            format!("CROSS JOIN LATERAL (SELECT * FROM {table} WHERE {condition}{locks}) AS {alias}")
        }
        // SQLite has a single write lock, so rows need none. CROSS keeps the order of the tables.
        ("lookup" | "lock" | "claim", Dialect::Sqlite) => {
            let (table, condition) = split(argument, " WHERE ");
            format!("CROSS JOIN {table} ON {condition}")
        }
        // A join with a function would read the whole table if it was small when the plan was made.
        ("in", Dialect::Postgres) => format!("= ANY (ARRAY({argument}))"),
        ("in", Dialect::Sqlite) => format!("IN ({argument})"),
        ("returning", _) => format!("RETURNING {argument}"),
        ("from", _) => format!("FROM {argument}"),
        ("in_order", _) => "ORDER BY n.place".to_owned(),
        ("now", Dialect::Postgres) => "clock_timestamp()".to_owned(),
        ("now", Dialect::Sqlite) => "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')".to_owned(),
        (word, _) => panic!("no part of a statement is called {word}"),
    }
}

/// Whether a part is for this database; `None` if its word names no database.
fn is_for(word: &str, dialect: Dialect) -> Option<bool> {
    let is_family = |name: &str| Dialect::ALL.into_iter().any(|dialect| dialect.family() == name);
    word.split('|').all(is_family).then(|| word.split('|').any(|name| name == dialect.family()))
}

/// A batch for PostgreSQL or SQLite.
fn batch<'a>(
    parameter: &str,
    alias: &str,
    columns: impl Iterator<Item = (&'a str, &'a str)>,
    dialect: Dialect,
) -> String {
    let first: usize = parameter.trim_start_matches('$').parse().expect("a parameter has a number");
    let (mut cells, mut names) = (Vec::new(), String::new());
    for (index, (name, kind)) in columns.enumerate() {
        cells.push(match (dialect, kind) {
            (Dialect::Postgres, kind) => format!("${}::{}[]", first + index, dialect.type_name(kind)),
            (_, "bytes") => format!("unhex(value ->> {index}) AS {name}"),
            (_, _) => format!("value ->> {index} AS {name}"),
        });
        let _ = write!(names, "{name}, ");
    }
    let cells = cells.join(", ");
    match dialect {
        Dialect::Postgres => format!("unnest({cells}) WITH ORDINALITY AS {alias} ({names}place)"),
        // `json_each` would serialise a row again for each of its columns.
        _ => format!("(SELECT {cells}, key + 1 AS place FROM jsonb_each({parameter})) AS {alias}"),
    }
}

pub(in crate::store) fn split<'a>(text: &'a str, at: &str) -> (&'a str, &'a str) {
    let (left, right) = text.split_once(at).expect("a part of a statement is whole");
    (left.trim(), right.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_become_what_each_database_understands() {
        let text = "SELECT f.x FROM {batch $1 AS n: id text} {claim t AS e WHERE e.id = n.id} {lookup u AS f WHERE f.e = e.k} \
                    WHERE e.at < {postgres least({now}, $2)}{sqlite min({now}, $2)} AND e.k {in SELECT $3}";
        assert_eq!(
            rendered(text, Dialect::Postgres),
            "SELECT f.x FROM unnest($1::text[]) WITH ORDINALITY AS n (id, place) CROSS JOIN LATERAL (SELECT * FROM t AS e \
             WHERE e.id = n.id FOR UPDATE SKIP LOCKED) AS e CROSS JOIN LATERAL (SELECT * FROM u AS f WHERE f.e = e.k \
             OFFSET 0) AS f WHERE e.at < least(clock_timestamp(), $2) AND e.k = ANY (ARRAY(SELECT $3))"
        );
        assert_eq!(
            rendered(text, Dialect::Sqlite),
            "SELECT f.x FROM (SELECT value ->> 0 AS id, key + 1 AS place FROM jsonb_each($1)) AS n CROSS JOIN t AS e ON \
             e.id = n.id CROSS JOIN u AS f ON f.e = e.k WHERE e.at < min(strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), $2) AND \
             e.k IN (SELECT $3)"
        );
    }

    #[test]
    fn each_column_of_a_batch_is_a_parameter_where_that_is_quicker() {
        let statement =
            Statement::new("SELECT $2 FROM {batch $1 AS n: id text, at time, payload bytes} WHERE $3");
        assert_eq!(
            &*statement.sql(Dialect::Postgres),
            "SELECT $4 FROM unnest($1::text[], $2::timestamptz[], $3::bytea[]) WITH ORDINALITY AS n \
             (id, at, payload, place) WHERE $5"
        );
        assert_eq!(
            &*statement.sql(Dialect::Sqlite),
            "SELECT $2 FROM (SELECT value ->> 0 AS id, value ->> 1 AS at, unhex(value ->> 2) AS payload, \
             key + 1 AS place FROM jsonb_each($1)) AS n WHERE $3"
        );
    }

    #[test]
    #[should_panic(expected = "no part of a statement is called oracle")]
    fn a_part_that_nobody_knows_is_a_mistake() {
        rendered("{oracle x}", Dialect::Postgres);
    }
}
