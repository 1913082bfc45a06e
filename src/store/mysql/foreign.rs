//! Reading an application's table.

use sqlx::{
    AssertSqlSafe, MySqlConnection,
    mysql::{MySql, MySqlArguments},
    query::Query,
};

use super::{inspect::ask, migrations};
use crate::store::{
    ErrorKind, ForeignColumn, ForeignReading, ForeignRow, ForeignTable, Result, StoreError,
    foreign::{self, Words},
    prefix,
    schema::quoted,
    sql::{Row, only},
};

/// The error for a write in a read-only transaction, even by a function that a condition calls.
const READ_ONLY: &str = "1792";

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
    let counts = ask(connection, patient(&statement)).await?;
    let zone = zone(connection).await?;
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
        format!("'{}', {value}", name.replace('\\', "\\\\").replace('\'', "''"))
    };
    let pairs = reading.columns.iter().map(pair).collect::<Vec<_>>().join(", ");
    let id = text(&quoted(&reading.id));
    let json = format!("json_object({pairs})");
    let statement = foreign::page(reading, &id, &json, &found.quoted(), &WORDS);
    // A prepared statement is always a single one, whatever the condition contains.
    let rows = ask(connection, patient(&statement).bind(after).bind(after).bind(limit)).await;
    let refused = |error: StoreError| match error.code.as_deref() {
        Some(READ_ONLY) => StoreError { kind: ErrorKind::Refused, ..error },
        _ => error,
    };
    foreign::rows(rows.map_err(refused), reading, &WORDS)
}

fn patient<'q>(statement: &str) -> Query<'q, MySql, MySqlArguments> {
    sqlx::query(AssertSqlSafe(statement.replacen("SELECT ", PATIENT, 1))).persistent(false)
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
        let texts = [
            "char",
            "varchar",
            "tinytext",
            "text",
            "mediumtext",
            "longtext",
            "enum",
            "set",
            "binary",
            "varbinary",
        ];
        ForeignColumn {
            name: self.name.clone(),
            is_text: texts.contains(&&*self.type_name),
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
    let query = sqlx::query(
        "SELECT CAST(table_schema AS char), CAST(table_name AS char), CAST(column_name AS char), CAST(data_type AS char),
                table_schema = database()
         FROM information_schema.columns
         WHERE table_schema = coalesce(?, database()) AND table_name = ?
         ORDER BY table_schema, table_name, ordinal_position",
    );
    let mut rows = Vec::new();
    for row in ask(connection, query.bind(database).bind(&name)).await? {
        let (database, name): (String, String) = (row.get(0)?, row.get(1)?);
        let column = Column { name: row.get(2)?, type_name: row.get::<String>(3)?.to_ascii_lowercase() };
        rows.push((database, name, row.get::<bool>(4)?, column));
    }
    // This query compares names without regard to case. In SQL, whether case matters depends on the server's file system.
    if rows.iter().any(|(_, found, ..)| *found == name) {
        rows.retain(|(_, found, ..)| *found == name);
    }
    let first = rows.first().map(|(database, name, is_ours, _)| (database.clone(), name.clone(), *is_ours));
    let Some((database, name, is_in_our_database)) = first else {
        return Err(StoreError::schema(format!(
            "there is no table {table} that the user of DATABASE_URL may read: write it as in SQL, such as `User`, or shop.`User` for \
             a table of another database"
        )));
    };
    let of_it = rows.into_iter().filter(|(_, found, ..)| *found == name);
    Ok(Found { columns: of_it.map(|(.., column)| column).collect(), database, is_in_our_database, name })
}

/// The database, if it is given, and the table.
fn parts(table: &str) -> (Option<String>, String) {
    let quotes = ['`', '"'];
    let mut quote = None;
    let dot = table.char_indices().find(|(_, c)| {
        match quote {
            Some(open) if *c == open => quote = None,
            None if quotes.contains(c) => quote = Some(*c),
            _ => {}
        }
        quote.is_none() && *c == '.'
    });
    let bare = |name: &str| {
        let inner = |quote: char| name.strip_prefix(quote)?.strip_suffix(quote).map(|name| (name, quote));
        let doubled =
            |(name, quote): (&str, char)| name.replace(&format!("{quote}{quote}"), &quote.to_string());
        quotes.into_iter().find_map(inner).map_or_else(|| name.to_owned(), doubled)
    };
    match dot {
        Some((dot, _)) => (Some(bare(&table[..dot])), bare(&table[dot + 1..])),
        None => (None, bare(table)),
    }
}

/// The zone in which the application's sessions write times without a zone, if the database can show it. clerk-sync's own
/// sessions cannot, because the driver requests UTC.
async fn zone(connection: &mut MySqlConnection) -> Result<Option<String>> {
    let rows = ask(connection, sqlx::query("SELECT @@global.time_zone, @@system_time_zone")).await?;
    let row: &Row = only(&rows)?;
    Ok(zone_of(&row.get::<String>(0)?, &row.get::<String>(1)?))
}

/// The zone that is set, or otherwise the machine's, which only counts if it is UTC.
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
