//! Reading an application's table.

use sqlx::MySqlConnection;

use super::{
    migrations,
    text::{identifier, literal},
};
use crate::store::{
    ErrorKind, ForeignColumn, ForeignReading, ForeignRow, ForeignTable, Result, StoreError,
    foreign::{self, Words},
    prefix,
    schema::quoted,
    sql::{Row, ask::Ask as _, values},
};

/// Names are in double quotes: see `sql_mode`. Only names and the operator's condition are written into a statement.
const WORDS: Words = Words {
    quoted,
    text,
    // A `$` would let a line feed pass.
    is_plain: |text| format!("{text} NOT REGEXP '[^0-9A-Za-z]'"),
    is_behind: |id| format!("(? IS NULL OR {id} > ?)"),
    limit: "?",
    hint: "with column names in double quotes if they are reserved words of SQL",
};

/// A time limit for reading the whole table, in each server's own syntax. The other server treats it as a comment.
const PATIENT: &str =
    "/*M! SET STATEMENT max_statement_time = 300 FOR */ SELECT /*+ MAX_EXECUTION_TIME(300000) */ ";

/// The table, its columns and counts of their values.
pub(super) async fn describe(connection: &mut MySqlConnection, table: &str) -> Result<ForeignTable> {
    let found = find(connection, table).await?;
    if found.is_in_our_database && found.name == prefix::of_table("users") {
        // The table may have been created by another application. In that case, the advice about such tables is more useful.
        migrations::check(connection, &[]).await?;
        return Err(StoreError::schema(format!(
            "{table} is clerk-sync's own table in database {}: name the application's table",
            found.database
        )));
    }
    let columns: Vec<ForeignColumn> = found.columns.iter().map(Column::described).collect();
    let statement = foreign::counting(&columns, &found.quoted(), &WORDS);
    let counts = connection.verbatim(&patient(&statement), values![]).await?;
    let row = connection.one("SELECT @@global.time_zone, @@system_time_zone", values![]).await?;
    let zone = zone_of(&row.get::<String>(0)?, &row.get::<String>(1)?);
    Ok(ForeignTable { zone, ..foreign::counted(&counts, columns)? })
}

/// Up to `limit` rows after this id, ordered by id. The connection is in a read-only transaction.
pub(super) async fn read(
    connection: &mut MySqlConnection,
    reading: &ForeignReading,
    after: Option<&str>,
    limit: u32,
) -> Result<Vec<ForeignRow>> {
    if reading.condition.as_deref().is_some_and(has_parameter) {
        // The driver would refuse it, and the connection could not be used again.
        return foreign::rows(Err(StoreError::new(ErrorKind::Refused)), reading, &WORDS);
    }
    let found = find(connection, &reading.table).await?;
    let pair = |name: &String| {
        let value = found
            .columns
            .iter()
            .find(|column| column.name == *name)
            .map_or_else(|| quoted(name), Column::value);
        format!("{}, {value}", literal(name))
    };
    let pairs = reading.columns.iter().map(pair).collect::<Vec<_>>().join(", ");
    let id = text(&quoted(&reading.id));
    let json = format!("json_object({pairs})");
    let statement = foreign::page(reading, &id, &json, &found.quoted(), &WORDS);
    // A prepared statement is always a single one, whatever the condition contains.
    let rows = connection.verbatim(&patient(&statement), values![after, after, limit]).await;
    foreign::rows(rows, reading, &WORDS)
}

fn patient(statement: &str) -> String {
    statement.replacen("SELECT ", PATIENT, 1)
}

/// The value of a column, as a text that compares byte by byte.
fn text(column: &str) -> String {
    format!("CONVERT({column} USING utf8mb4) COLLATE utf8mb4_bin")
}

/// Whether a condition has a question mark outside quotes, which would be a parameter.
fn has_parameter(condition: &str) -> bool {
    let (mut quote, mut escaped) = (None, false);
    condition.chars().any(|c| {
        match quote {
            Some(_) if escaped => escaped = false,
            Some('\'') if c == '\\' => escaped = true,
            // A doubled quote ends one quotation and begins another.
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if matches!(c, '\'' | '"' | '`') => quote = Some(c),
            None => return c == '?',
        }
        false
    })
}

struct Found {
    database: String,
    is_in_our_database: bool,
    name: String,
    columns: Vec<Column>,
}

/// A column, with the server's name of its type.
struct Column {
    name: String,
    type_name: String,
}

impl Found {
    fn quoted(&self) -> String {
        format!("{}.{}", quoted(&self.database), quoted(&self.name))
    }
}

impl Column {
    /// Nothing is counted yet.
    fn described(&self) -> ForeignColumn {
        let is_text = matches!(
            &*self.type_name,
            "char"
                | "varchar"
                | "tinytext"
                | "text"
                | "mediumtext"
                | "longtext"
                | "enum"
                | "set"
                | "binary"
                | "varbinary"
        );
        ForeignColumn {
            name: self.name.clone(),
            is_text,
            lacks_zone: self.type_name == "datetime",
            ..ForeignColumn::default()
        }
    }

    /// An expression for the column's value that JSON accepts.
    fn value(&self) -> String {
        let column = quoted(&self.name);
        match &*self.type_name {
            // A point in time, which clerk-sync's sessions receive in UTC.
            "timestamp" => format!("concat(date_format({column}, '%Y-%m-%dT%H:%i:%s.%f'), 'Z')"),
            // JSON has no bytes. MySQL cannot convert bytes to text if they are not UTF-8.
            "binary" | "varbinary" | "tinyblob" | "blob" | "mediumblob" | "longblob" => {
                format!("coalesce(CONVERT({column} USING utf8mb4), hex({column}))")
            }
            "bit" => format!("{column} + 0"),
            _ => column,
        }
    }
}

/// The table of this name, written plainly (`User`, `shop.User`) or as in SQL (`` shop.`User` ``).
async fn find(connection: &mut MySqlConnection, table: &str) -> Result<Found> {
    let (database, name) = parts(table);
    let query =
        "SELECT CAST(table_schema AS char), CAST(table_name AS char), CAST(column_name AS char), CAST(lower(data_type) AS char),
                table_schema = database()
         FROM information_schema.columns
         WHERE table_schema = coalesce(?, database()) AND table_name = ?
         ORDER BY table_schema, table_name, ordinal_position";
    let rows = connection.verbatim(query, values![&database, &name]).await?;
    let names: Vec<String> = rows.iter().map(|row| row.get(1)).collect::<Result<_>>()?;
    // This query compares names without regard to case. In SQL, whether case matters depends on the server's file system.
    let first = names.iter().position(|found| *found == name).unwrap_or(0);
    let Some(row) = rows.get(first) else {
        return Err(StoreError::schema(format!(
            "there is no table {table} that the user of DATABASE_URL may read: write it as in SQL, such as `User`, or shop.`User` for \
             a table of another database"
        )));
    };
    let of_it = rows.iter().zip(&names).filter(|(_, name)| **name == names[first]);
    let column = |(row, _): (&Row, &String)| Ok(Column { name: row.get(2)?, type_name: row.get(3)? });
    Ok(Found {
        database: row.get(0)?,
        is_in_our_database: row.get(4)?,
        columns: of_it.map(column).collect::<Result<_>>()?,
        name: names[first].clone(),
    })
}

/// The database, if it is given, and the table.
fn parts(table: &str) -> (Option<String>, String) {
    let bare = |name: &str| match identifier(name) {
        Some((inner, "")) => inner,
        _ => name.to_owned(),
    };
    // A quoted name can contain dots.
    let dot = match identifier(table) {
        Some((_, rest)) => rest.starts_with('.').then(|| table.len() - rest.len()),
        None => table.find('.'),
    };
    match dot {
        Some(dot) => (Some(bare(&table[..dot])), bare(&table[dot + 1..])),
        None => (None, bare(table)),
    }
}

/// The zone in which the application's sessions write times without a zone, if the database can show it. clerk-sync's own
/// sessions cannot, because the driver requests UTC. It is the zone that is set, or otherwise the machine's, which only counts
/// if it is UTC.
fn zone_of(set: &str, of_the_machine: &str) -> Option<String> {
    let is_utc =
        |zone: &str| matches!(zone, "UTC" | "GMT" | "Etc/UTC" | "Etc/GMT" | "UCT" | "+00:00" | "-00:00");
    match set {
        zone if is_utc(zone) => Some("UTC".to_owned()),
        "SYSTEM" => is_utc(of_the_machine).then(|| "UTC".to_owned()),
        // A fixed offset from UTC has no daylight saving time.
        zone => zone.contains('/').then(|| zone.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_named_as_people_write_it() {
        let named = |text| {
            let (database, name) = parts(text);
            (database.unwrap_or_default(), name)
        };
        for (text, database, name) in [
            ("User", "", "User"),
            ("`User`", "", "User"),
            ("\"User\"", "", "User"),
            ("shop.User", "shop", "User"),
            ("`my.shop`.`a``b`", "my.shop", "a`b"),
            ("`", "", "`"),
        ] {
            assert_eq!(named(text), (database.to_owned(), name.to_owned()), "{text}");
        }
    }

    #[test]
    fn a_question_mark_is_a_parameter_only_outside_quotes() {
        for text in ["status = 'gone?'", "`a?` = 1", "\"a?\" = 1", "a = 'it''s ?'", "a = 'it\\'s ?'", "a = 1"]
        {
            assert!(!has_parameter(text), "{text}");
        }
        for text in ["?", "a = 'x' AND b = ?", "a = 'x\\\\' AND ?", "'' ? ''"] {
            assert!(has_parameter(text), "{text}");
        }
    }

    #[test]
    fn a_zone_is_known_where_somebody_has_said_it() {
        for (set, of_the_machine, zone) in [
            ("SYSTEM", "UTC", Some("UTC")),
            ("SYSTEM", "CET", None),
            ("+00:00", "CET", Some("UTC")),
            ("Europe/Berlin", "UTC", Some("Europe/Berlin")),
            ("+02:00", "UTC", None),
        ] {
            assert_eq!(zone_of(set, of_the_machine).as_deref(), zone, "{set} {of_the_machine}");
        }
    }
}
