//! What all keepers share of reading a table that is not ours: what is asked of it, and what the answers say.
//!
//! The statements are assembled, because the names are not ours. They are quoted, and each was found in the database. A
//! condition is the user's, who has the database's password.

use super::{
    ErrorKind, ForeignColumn, ForeignReading, ForeignRow, ForeignTable, Result, StoreError, schema,
    sql::{Row, only},
};

/// What is not written alike everywhere.
pub(super) struct Words {
    /// A name, whatever it contains.
    pub(super) quoted: fn(&str) -> String,
    /// What stands in a column of this quoted name, as a text that compares byte by byte.
    pub(super) text: fn(&str) -> String,
    /// Whether a text is nothing but digits and letters without accents.
    pub(super) is_plain: fn(&str) -> String,
    /// Whether this id comes behind the one where a page begins, which is the first parameter, if it is given.
    pub(super) is_behind: fn(id: &str) -> String,
    /// The parameter that is the limit of a page.
    pub(super) limit: &'static str,
    /// When a condition has to quote the name of a column, and how.
    pub(super) hint: &'static str,
}

/// Of PostgreSQL and SQLite.
pub(super) const STANDARD: Words = Words {
    quoted: schema::quoted,
    text: |column| format!("CAST({column} AS text)"),
    is_plain: |text| {
        const CHARACTERS: &str = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        format!("ltrim({text}, '{CHARACTERS}') = ''")
    },
    is_behind: |id| format!("($1 IS NULL OR {id} > $1)"),
    limit: "$2",
    hint: "with a column's name in double quotes if it has capital letters",
};

/// The statement that counts what is in the columns of a table.
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

/// The table, by the answer to that.
pub(super) fn counted(rows: &[Row], columns: Vec<ForeignColumn>) -> Result<ForeignTable> {
    let row = only(rows)?;
    let counted = |(column, first): (ForeignColumn, usize)| {
        let (filled, like_ids, ids) = (row.get(first)?, row.get(first + 1)?, row.get(first + 2)?);
        Ok(ForeignColumn { filled, like_ids, ids, ..column })
    };
    let columns = columns.into_iter().zip((1..).step_by(3)).map(counted).collect::<Result<_>>()?;
    Ok(ForeignTable { columns, rows: row.get(0)?, zone: None, hides_rows: false })
}

/// The statement that reads a page behind an id, of at most so many rows. `id` is the expression for the id as a text that
/// compares byte by byte: ids that differ only in case are two users. `json` is that for the other columns.
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

/// What that gives.
pub(super) fn rows(
    rows: Result<Vec<Row>>,
    reading: &ForeignReading,
    words: &Words,
) -> Result<Vec<ForeignRow>> {
    let rows = rows.map_err(|error| explained(error, reading, words))?;
    let read = |row: &Row| {
        let values = serde_json::from_str(&row.get::<String>(1)?).unwrap_or_default();
        Ok(ForeignRow { id: row.get(0)?, values, meets_condition: row.get(2)? })
    };
    rows.iter().map(read).collect()
}

/// The same trouble, named if it can only come from the condition that the user wrote.
fn explained(error: StoreError, reading: &ForeignReading, words: &Words) -> StoreError {
    let ours = !matches!(error.kind, ErrorKind::Broken | ErrorKind::BadData | ErrorKind::Refused);
    if ours || reading.condition.is_none() {
        return error;
    }
    StoreError::schema(format!(
        "--deleted-when: the database refuses this condition on {} ({}): write what may stand behind WHERE, such as \
         \"status = 'deleted'\", {}",
        reading.table,
        error.code_or_kind(),
        words.hint
    ))
}
