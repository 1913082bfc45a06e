//! Statements with their values written into the text.
//!
//! In a session that a pooler shares, no statement can stay prepared, and preparing one for a single run costs a round trip. So
//! the values are sent within the text. Each is written with the type that it would be bound as.

use std::fmt::Write as _;

use chrono::{DateTime, SecondsFormat, Utc};

use crate::store::sql::{Cells, Dialect, Statement, Value};

/// The statement with its values in place of its parameters.
pub(super) fn written(statement: &Statement, values: &[Value<'_>]) -> String {
    let literals: Vec<String> = values.iter().flat_map(literals_of).collect();
    let sql = statement.sql(Dialect::Postgres);
    let mut pieces = sql.split('$');
    let mut text = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let digits = piece.bytes().take_while(u8::is_ascii_digit).count();
        let literal =
            piece[..digits].parse::<usize>().ok().and_then(|number| literals.get(number.checked_sub(1)?));
        match literal {
            Some(literal) => text = text + literal + &piece[digits..],
            None => text = text + "$" + piece,
        }
    }
    text
}

/// One literal for each parameter that the value takes.
fn literals_of(value: &Value<'_>) -> Vec<String> {
    let one = |text: Option<String>, kind: &str| vec![typed(text.as_deref(), kind)];
    match value {
        Value::Text(text) => vec![typed(*text, "text")],
        Value::Int(number) => one(number.map(|number| number.to_string()), "bigint"),
        Value::Bool(truth) => one(Some(truth.to_string()), "boolean"),
        Value::Time(at) => one(at.map(time), "timestamptz"),
        Value::Bytes(bytes) => one(Some(hexadecimal(bytes)), "bytea"),
        Value::Batch(batch) => batch.columns.iter().map(array).collect(),
    }
}

fn array(cells: &Cells<'_>) -> String {
    fn of<T>(cells: &[T], kind: &str, element: impl Fn(&T) -> Option<String>) -> String {
        let mut text = String::from("{");
        for (index, cell) in cells.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let _ = match element(cell) {
                // Within quotes no other character is special.
                Some(element) => {
                    write!(text, "{comma}\"{}\"", element.replace('\\', "\\\\").replace('"', "\\\""))
                }
                None => write!(text, "{comma}NULL"),
            };
        }
        text.push('}');
        typed(Some(&text), kind)
    }
    match cells {
        Cells::Text(cells) if cells.iter().all(Option::is_none) => typed(Some("{}"), "text[]"),
        Cells::Text(cells) => of(cells, "text[]", |cell| cell.map(str::to_owned)),
        Cells::Int(cells) => of(cells, "bigint[]", |cell| cell.map(|number| number.to_string())),
        Cells::Bool(cells) => of(cells, "boolean[]", |cell| cell.map(|truth| truth.to_string())),
        Cells::Time(cells) => of(cells, "timestamptz[]", |cell| cell.map(time)),
        Cells::Bytes(cells) => of(cells, "bytea[]", |cell| Some(hexadecimal(cell))),
    }
}

/// A constant of this type. A backslash has the same meaning whatever `standard_conforming_strings` is set to.
fn typed(text: Option<&str>, kind: &str) -> String {
    match text {
        Some(text) => format!("(E'{}'::{kind})", text.replace('\\', "\\\\").replace('\'', "''")),
        None => format!("(NULL::{kind})"),
    }
}

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, true)
}

fn hexadecimal(bytes: &[u8]) -> String {
    format!("\\x{}", hex::encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sql::{batch, values};

    #[test]
    fn values_are_written_where_they_are_bound() {
        let statement =
            Statement::made("SELECT $2, $3 FROM {batch $1 AS n: a text, b text, c bytes}".to_owned());
        let rows = [("it's \\ \"one\"", None, b"\x00'".as_slice()), ("$2 {x}", Some(""), b"")];
        let rows = batch(&rows).text(|row| row.0).text(|row| row.1).bytes(|row| row.2);
        let at = DateTime::from_timestamp_millis(1_700_000_000_123);
        assert_eq!(
            written(&statement, values![rows, "a'\\b$1", at]),
            "SELECT (E'a''\\\\b$1'::text), (E'2023-11-14T22:13:20.123000Z'::timestamptz) FROM unnest(\
             (E'{\"it''s \\\\\\\\ \\\\\"one\\\\\"\",\"$2 {x}\"}'::text[])::text[], (E'{NULL,\"\"}'::text[])::text[], \
             (E'{\"\\\\\\\\x0027\",\"\\\\\\\\x\"}'::bytea[])::bytea[]) WITH ORDINALITY AS n (a, b, c, place)"
        );
    }

    #[test]
    fn nothing_is_null_of_its_type() {
        let statement = Statement::made("SELECT $1, $2, $3, $4".to_owned());
        assert_eq!(
            written(&statement, values![None::<&str>, None::<i64>, true, i64::MIN]),
            "SELECT (NULL::text), (NULL::bigint), (E'true'::boolean), (E'-9223372036854775808'::bigint)"
        );
    }
}
