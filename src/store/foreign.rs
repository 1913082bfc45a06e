//! Reading an application's table: the statements and the interpretation of their results, shared by all backends.
//!
//! The statements are assembled, because they contain the application's names. These are quoted, and each was found in the
//! database. The condition is written by the operator, who has the database's password anyway.

use super::{
    ErrorKind, ForeignColumn, ForeignReading, ForeignRow, ForeignTable, Result, StoreError, schema,
    sql::{Row, only},
};

/// SQL that differs between databases.
pub(super) struct Words {
    /// Quotes a name, whatever it contains.
    pub(super) quoted: fn(&str) -> String,
    /// The value of the column with this quoted name, as a text that compares byte by byte.
    pub(super) text: fn(&str) -> String,
    /// The condition that a text consists only of digits and letters without accents.
    pub(super) is_plain: fn(&str) -> String,
    /// The condition that this id comes after the first parameter, which is where a page begins; true if that parameter is
    /// NULL.
    pub(super) is_behind: fn(id: &str) -> String,
    /// The parameter for the page's limit.
    pub(super) limit: &'static str,
    /// When and how a condition has to quote a column name.
    pub(super) hint: &'static str,
}

/// For PostgreSQL and SQLite.
pub(super) const STANDARD: Words = Words {
    quoted: schema::quoted,
    text: |column| format!("CAST({column} AS text)"),
    is_plain: |text| {
        const CHARACTERS: &str = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        format!("ltrim({text}, '{CHARACTERS}') = ''")
    },
    is_behind: |id| format!("($1 IS NULL OR {id} > $1)"),
    limit: "$2",
    hint: "with column names in double quotes if they contain capital letters",
};

/// The statement that counts the values in a table's columns.
pub(super) fn counting(columns: &[ForeignColumn], table: &str, words: &Words) -> String {
    let counts = columns.iter().map(|column| {
        let name = (words.quoted)(&column.name);
        if !column.is_text {
            return format!(", count({name}), 0, 0");
        }
        let text = (words.text)(&name);
        let is_plain = (words.is_plain)(&format!("substr({text}, 6)"));
        format!(
            ", count(CASE WHEN {text} <> '' THEN 1 END), count(CASE WHEN substr({text}, 1, 5) = 'user_' THEN 1 END),
             count(CASE WHEN substr({text}, 1, 5) = 'user_' AND length({text}) = 32 AND {is_plain} THEN 1 END)"
        )
    });
    format!("SELECT count(*){} FROM {table}", counts.collect::<String>())
}

/// The table, from the result of [`counting`].
pub(super) fn counted(rows: &[Row], columns: Vec<ForeignColumn>) -> Result<ForeignTable> {
    let row = only(rows)?;
    let counted = |(column, first): (ForeignColumn, usize)| {
        let (filled, like_ids, ids) = (row.get(first)?, row.get(first + 1)?, row.get(first + 2)?);
        Ok(ForeignColumn { filled, like_ids, ids, ..column })
    };
    let columns = columns.into_iter().zip((1..).step_by(3)).map(counted).collect::<Result<_>>()?;
    Ok(ForeignTable { columns, rows: row.get(0)?, zone: None, hides_rows: false })
}

/// The statement that reads a page of rows after an id. `id` is an SQL expression for the id as a text that compares byte by
/// byte, because ids that differ only in case are two users. `json` is an expression for the other columns.
pub(super) fn page(reading: &ForeignReading, id: &str, json: &str, table: &str, words: &Words) -> String {
    format!(
        "SELECT {id}, {json}, (
             {condition}
         ) IS TRUE
         FROM {table}
         WHERE {id} <> '' AND {is_behind}
         ORDER BY {id}
         LIMIT {limit}",
        condition = reading.condition.as_deref().unwrap_or("false"),
        is_behind = (words.is_behind)(id),
        limit = words.limit,
    )
}

/// The rows of a [`page`].
pub(super) fn rows(
    rows: Result<Vec<Row>>,
    reading: &ForeignReading,
    words: &Words,
) -> Result<Vec<ForeignRow>> {
    let rows = rows.map_err(|error| explained(refused(error), reading, words))?;
    let read = |row: &Row| {
        let values = serde_json::from_str(&row.get::<String>(1)?).unwrap_or_default();
        Ok(ForeignRow { id: row.get(0)?, values, meets_condition: row.get(2)? })
    };
    rows.iter().map(read).collect()
}

/// The same error, as a refusal if a function that a condition calls writes.
fn refused(error: StoreError) -> StoreError {
    // The codes of SQLite and of MySQL and MariaDB for a write in a read-only mode.
    match error.code.as_deref() {
        Some("8" | "1792") => StoreError { kind: ErrorKind::Refused, ..error },
        _ => error,
    }
}

/// The same error, explained if only the operator's condition can have caused it.
fn explained(error: StoreError, reading: &ForeignReading, words: &Words) -> StoreError {
    let ours = !matches!(error.kind, ErrorKind::Broken | ErrorKind::BadData | ErrorKind::Refused);
    if ours || reading.condition.is_none() {
        return error;
    }
    StoreError::schema(format!(
        "--deleted-when: the database refuses this condition on {} ({}): write an expression that is valid after WHERE, such as \
         \"status = 'deleted'\", {}",
        reading.table,
        error.code_or_kind(),
        words.hint
    ))
}
