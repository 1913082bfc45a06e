//! From the error numbers of MySQL and MariaDB to [`ErrorKind`]. SQLSTATE is not used: some errors have none, and others a
//! misleading one. Messages are dropped, because they contain row values. Only names are extracted from those whose format
//! leaves no room for anything else, in the language that the sessions request.

use sqlx::{Error, mysql::MySqlDatabaseError};

use super::text::{identifier, qualified};
use crate::{
    entity,
    store::{ErrorKind, StoreError, UNIQUE_EMAIL_INDEX, prefix, schema, sql::of_driver},
};

// Sources: https://dev.mysql.com/doc/mysql-errors/9.7/en/server-error-reference.html and
// https://mariadb.com/docs/server/reference/error-codes/mariadb-error-code-reference
const DUPLICATE: u16 = 1062;
const TABLE_DENIED: u16 = 1142;
const COLUMN_DENIED: u16 = 1143;
const NO_TABLE: u16 = 1146;
const OUT_OF_RANGE: u16 = 1264;
const TOO_LONG: u16 = 1406;
const REFERENCED: u16 = 1451;
const NOT_REFERENCED: u16 = 1452;

/// The error number of MySQL's own clients when a password would have to be sent over an unencrypted connection.
const NEEDS_TLS: &str = "2061";

/// The error number of these clients for an authentication plugin that they do not have.
const UNKNOWN_PLUGIN: &str = "2059";

/// Convert an error of the driver or the server.
pub(in crate::store) fn explain(error: Error) -> StoreError {
    match error {
        Error::Database(told) => match told.try_downcast_ref::<MySqlDatabaseError>() {
            Some(told) => understood(told.number(), &prefix::out_of_text(told.message())),
            None => StoreError::new(ErrorKind::Broken),
        },
        // Use only clerk-sync's own text, because the driver's may quote a file's content.
        Error::Configuration(why) if why.to_string().starts_with("RSA auth backend disabled") => {
            closed(NEEDS_TLS, PASSWORD_NEEDS_TLS)
        }
        Error::Protocol(why) if why.starts_with("unknown authentication plugin") => {
            closed(UNKNOWN_PLUGIN, OTHER_PLUGIN)
        }
        error => of_driver(&error, "ssl-mode, ssl-ca, ssl-cert, ssl-key"),
    }
}

/// Convert an error of opening a connection. Whatever it is, there is no connection.
pub(super) fn connect_error(error: Error) -> StoreError {
    let error = explain(error);
    match error.kind {
        ErrorKind::Broken | ErrorKind::BadData | ErrorKind::Refused | ErrorKind::Raced => {
            StoreError { kind: ErrorKind::Unavailable, ..error }
        }
        _ => error,
    }
}

/// Convert an error of a statement that writes rows of this table of synced objects. All other code that runs there belongs to
/// the application: triggers, constraints, defaults and generated columns.
pub(super) fn objects_error(error: Error, table: &str) -> StoreError {
    blamed(explain(error), table)
}

/// Whether the statement cannot run because something that it names does not exist, or because a function in it fails. If
/// clerk-sync's own columns all exist, the application is at fault.
pub(super) fn is_of_the_statement(error: &StoreError) -> bool {
    error.kind == ErrorKind::Broken
        && number(error).is_some_and(|number| {
            !matches!(number, TABLE_DENIED | COLUMN_DENIED) && !is_of_the_session(number)
        })
}

const PASSWORD_NEEDS_TLS: &str = "the account of DATABASE_URL uses caching_sha2_password or sha256_password, whose password is only \
     sent over an encrypted connection: use TLS (ssl-mode=REQUIRED in DATABASE_URL, and a server that supports it), or give the \
     account another authentication plugin, such as mysql_native_password on MariaDB";

const OTHER_PLUGIN: &str = "the account of DATABASE_URL uses an authentication plugin that clerk-sync does not support: give it \
                            caching_sha2_password or mysql_native_password";

fn closed(code: &str, place: &str) -> StoreError {
    StoreError { kind: ErrorKind::Unavailable, code: Some(code.to_owned()), place: Some(place.to_owned()) }
}

/// What the server reports, without values.
fn understood(number: u16, message: &str) -> StoreError {
    let kind = match number {
        // Another transaction assigned the value or created the row first.
        DUPLICATE if key(message).is_some_and(|(table, key)| is_of_ours(table, key)) => ErrorKind::Raced,
        _ => trouble(number),
    };
    StoreError { kind, code: Some(number.to_string()), place: place(number, message) }
}

/// The same error for a statement that writes to this table.
fn blamed(error: StoreError, table: &str) -> StoreError {
    let place = error.place.as_deref().unwrap_or_default();
    let is_theirs = match number(&error) {
        // clerk-sync's own database is connected, so a trigger uses another one. clerk-sync divides nothing, so a trigger does.
        Some(1044 | 1049 | 1365) => true,
        Some(TABLE_DENIED | COLUMN_DENIED) => {
            place.strip_prefix("table ").is_some_and(|other| other != table)
        }
        // A column that a trigger fills, in this table or another one.
        Some(TOO_LONG | OUT_OF_RANGE) => {
            place.strip_prefix("column ").is_some_and(|column| !is_our_column(table, column))
        }
        _ => error.kind == ErrorKind::Refused,
    };
    if !is_theirs {
        return error;
    }
    let told = if matches!(number(&error), Some(1044 | 1049)) { None } else { error.place };
    let place = told.unwrap_or_else(|| format!("table {table}"));
    StoreError { kind: ErrorKind::Refused, code: error.code, place: Some(place) }
}

fn is_our_column(table: &str, column: &str) -> bool {
    let tables = schema::TABLES.iter().filter(|ours| ours.name == table);
    tables.flat_map(|ours| &ours.columns).any(|(name, _)| name.eq_ignore_ascii_case(column))
}

fn number(error: &StoreError) -> Option<u16> {
    error.code.as_deref()?.parse().ok()
}

fn trouble(number: u16) -> ErrorKind {
    match number {
        // Deadlock; the row or the table has changed; prepare again; another member of the cluster was faster.
        1213 | 1020 | 1412 | 1615 | 3101 => ErrorKind::Conflict,
        // Lock wait; NOWAIT; ended by a time limit, or by an administrator.
        1205 | 3572 | 1969 | 3024 | 1317 => ErrorKind::Locked,
        // Read only.
        1290 | 1792 | 1836 | 1874
        // Full: connections, memory, disk, locks, prepared statements.
        | 1021 | 1037 | 1038 | 1040 | 1041 | 1114 | 1135 | 1203 | 1206 | 1226 | 1461 | 1637
        // Shutting down; killed; cut off; not yet ready.
        | 1047 | 1053 | 1077 | 1079 | 1080 | 1152 | 1158..=1161 | 1180 | 1184 | 1927 | 2006 | 2013 | 3169 | 4031
        // Storage: a file cannot be opened, read or written.
        | 3 | 1015 | 1016 | 1023 | 1024 | 1026 | 1030
        // Access refused.
        | 1044 | 1045 | 1049 | 1129 | 1130 | 1251 | 1524 | 1698 | 1820 | 1862 | 3118 | 3159 | 4151 => {
            ErrorKind::Unavailable
        }
        // Too long, out of range, invalid value, not UTF-8, not JSON, larger than a packet or a row.
        TOO_LONG | OUT_OF_RANGE | 1074 | 1118 | 1153 | 1265 | 1292 | 1300 | 1366 | 1367 | 1390 | 1411 | 1441 | 1690
        | 3140 | 3141 | 3157 | 3158 => ErrorKind::BadData,
        // Constraints.
        1022 | 1048 | DUPLICATE | 1169 | 1216 | 1217 | 1364 | 1586 | REFERENCED | NOT_REFERENCED | 1761 | 1762 | 3819 | 4025
        // Errors that triggers raise, and actions that they may not do.
        | 1339 | 1365 | 1422 | 1424 | 1442 | 1456 | 1643..=1645 => ErrorKind::Refused,
        _ => ErrorKind::Broken,
    }
}

/// Numbers that are not a refusal by the application: errors of a session, its prepared statements or a broken table, and
/// invalid SQL of clerk-sync.
fn is_of_the_session(number: u16) -> bool {
    matches!(number, 126 | 127 | 145 | 1034 | 1064 | 1179 | 1194 | 1195 | 1210 | 1243 | 1295 | 1399 | 1568)
}

/// Whether one of clerk-sync's keys reports that another row has the address, the id or the unique values. MariaDB does not
/// name the table.
fn is_of_ours(table: Option<&str>, key: &str) -> bool {
    let is_of = |ours: &str| {
        let of_it = key.strip_prefix(ours).and_then(|rest| rest.strip_prefix('_'));
        table.is_none_or(|table| table == ours)
            && (matches!(key, UNIQUE_EMAIL_INDEX | "clerk_id") || matches!(of_it, Some("clerk_id" | "live")))
    };
    entity::ALL.iter().any(|entity| is_of(entity.table))
}

/// The meaning of a common number, or otherwise the names in a message.
fn place(number: u16, message: &str) -> Option<String> {
    let meaning = match number {
        1045 | 1698 => {
            "the server refuses the user or the password of DATABASE_URL, or requires TLS for it (ssl-mode=REQUIRED)"
        }
        1044 => "the user of DATABASE_URL may not use this database",
        1049 => "the database that DATABASE_URL names does not exist",
        1129 => "the server has blocked this machine after too many failed connections: FLUSH HOSTS",
        1130 => "the server accepts no connections from this machine",
        1820 | 1862 => "the password of the user of DATABASE_URL has expired",
        3118 | 4151 => "the account of the user of DATABASE_URL is locked",
        3159 => "the server requires TLS: ssl-mode=REQUIRED in DATABASE_URL",
        1290 | 1836 | 1874 => "it is read-only: it is a replica, or read_only is on",
        1040 | 1203 | 1226 => "the server accepts no more connections",
        1461 => "max_prepared_stmt_count of the server is reached",
        1153 => "the data is larger than max_allowed_packet of the server",
        1419 => "the server keeps a binary log: triggers need SUPER, or log_bin_trust_function_creators = 1",
        _ => return names(number, message),
    };
    Some(meaning.to_owned())
}

/// The names in a message. The text that a trigger raises (1644) can be anything, even an e-mail address.
fn names(number: u16, message: &str) -> Option<String> {
    match number {
        DUPLICATE => {
            let (table, key) = key(message)?;
            let table = table.map(|table| format!("table {table}, ")).unwrap_or_default();
            Some(format!("{table}constraint {key}"))
        }
        REFERENCED | NOT_REFERENCED => foreign_key(message),
        4025 => {
            let (name, rest) = identifier(message.strip_prefix("CONSTRAINT ")?)?;
            let (table, rest) = qualified(rest.strip_prefix(" failed for ")?)?;
            rest.is_empty().then(|| format!("table {table}, constraint {name}"))
        }
        TABLE_DENIED => Some(format!("table {}", denied(message.rsplit_once(" for table ")?.1)?)),
        COLUMN_DENIED => Some(format!("table {}", denied(message.rsplit_once(" in table ")?.1)?)),
        _ => NAMING.iter().filter(|(known, ..)| *known == number).find_map(|(_, what, before, behind)| {
            let name = plain(message.strip_prefix(before)?.split_once(behind)?.0)?;
            let name = if number == NO_TABLE { last_of(name) } else { name };
            Some(format!("{what} {name}"))
        }),
    }
}

/// Messages with one name: the number, what it names, and the texts before and behind the name.
const NAMING: [(u16, &str, &str, &str); 10] = [
    (3819, "constraint", "Check constraint '", "' is violated."),
    (1048, "column", "Column '", "' cannot be null"),
    (1364, "column", "Field '", "' doesn't have a default value"),
    (TOO_LONG, "column", "Data too long for column '", "' at row "),
    (OUT_OF_RANGE, "column", "Out of range value for column '", "' at row "),
    (1054, "column", "Unknown column '", "' in "),
    (NO_TABLE, "table", "Table '", "' doesn't exist"),
    (1442, "table", "Can't update table '", "' in "),
    (1305, "function", "FUNCTION ", " does not exist"),
    (1305, "function", "PROCEDURE ", " does not exist"),
];

/// The table and the key of `Duplicate entry '…' for key 'users.email'`. The value in the message can be any text, even a part
/// of this pattern.
fn key(message: &str) -> Option<(Option<&str>, &str)> {
    let told = message.strip_prefix("Duplicate entry '")?.strip_suffix('\'')?;
    let name = plain(told.rsplit_once("' for key '")?.1)?;
    Some(name.rsplit_once('.').map_or((None, name), |(table, key)| (Some(table), key)))
}

/// The names in ``… a foreign key constraint fails (`shop`.`orders`, CONSTRAINT `of_user` FOREIGN KEY (…``.
fn foreign_key(message: &str) -> Option<String> {
    let (_, told) = message.split_once(" a foreign key constraint fails (")?;
    let (table, rest) = qualified(told)?;
    let (name, rest) = identifier(rest.strip_prefix(", CONSTRAINT ")?)?;
    rest.starts_with(" FOREIGN KEY (").then(|| format!("table {table}, constraint {name}"))
}

/// The table in `'orders'` or `` `shop`.`orders` ``.
fn denied(told: &str) -> Option<String> {
    if let Some(name) = told.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')) {
        return plain(name).map(str::to_owned);
    }
    let (table, rest) = qualified(told)?;
    rest.is_empty().then_some(table)
}

/// The name, if it has only characters of plain identifiers.
fn plain(name: &str) -> Option<&str> {
    let is_plain = (1..=200).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.$-".contains(&byte));
    is_plain.then_some(name)
}

/// A name without that of its database.
fn last_of(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(_, last)| last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place_of(number: u16, message: &str) -> Option<String> {
        understood(number, message).place
    }

    #[test]
    fn every_number_that_we_meet_has_its_trouble() {
        for (number, expected) in [
            (1213, ErrorKind::Conflict),
            (1412, ErrorKind::Conflict),
            (1205, ErrorKind::Locked),
            (3572, ErrorKind::Locked),
            (1290, ErrorKind::Unavailable),
            (1040, ErrorKind::Unavailable),
            (1461, ErrorKind::Unavailable),
            (1406, ErrorKind::BadData),
            (1153, ErrorKind::BadData),
            (1451, ErrorKind::Refused),
            (1644, ErrorKind::Refused),
            (4025, ErrorKind::Refused),
            (1054, ErrorKind::Broken),
            (1064, ErrorKind::Broken),
            (0, ErrorKind::Broken),
        ] {
            assert_eq!(understood(number, "Ada").kind, expected, "{number}");
            assert!(!understood(number, "Ada").to_string().contains("Ada"), "{number}");
        }
        for number in [1969, 3024, 1317] {
            assert!(understood(number, "").took_too_long(), "{number}");
        }
        for number in [1044, 1045, 1049, 1698] {
            assert!(understood(number, "").is_closed_door(), "{number}");
        }
    }

    #[test]
    fn no_value_is_taken_for_the_name_of_a_key() {
        let mariadb = "Duplicate entry 'ada@example.com' for key 'by_email'";
        assert_eq!(place_of(1062, mariadb).as_deref(), Some("constraint by_email"));
        let mysql = "Duplicate entry 'ada@example.com' for key 'users.by_email'";
        assert_eq!(place_of(1062, mysql).as_deref(), Some("table users, constraint by_email"));
        assert!(understood(1062, mysql).is_taken());
        let hostile = "Duplicate entry 'x' for key 'ada' for key 'by_email'";
        assert_eq!(place_of(1062, hostile).as_deref(), Some("constraint by_email"));
        let hostile = "Duplicate entry 'x' for key 'users_unique_email' for key 'by_email'";
        assert_eq!(understood(1062, hostile).kind, ErrorKind::Refused);
        for odd in [
            "Duplicate entry 'ada@example.com' for key 'by email'",
            "Duplicate entry 'ada' for key 'ada@example.com'",
            "Duplicate entry 'ada' for key 'by_email",
            "Doppelter Eintrag 'ada' für Schlüssel 'by_email'",
            "ada",
            "",
        ] {
            assert_eq!(place_of(1062, odd), None, "{odd}");
        }
    }

    #[test]
    fn a_key_of_ours_means_that_somebody_was_faster() {
        for key in [
            "users_unique_email",
            "users.users_unique_email",
            "organization_memberships_live",
            "organization_memberships.organization_memberships_live",
            "clerk_id",
            "users.clerk_id",
            "users.users_clerk_id",
        ] {
            let message = format!("Duplicate entry 'x' for key '{key}'");
            assert_eq!(understood(1062, &message).kind, ErrorKind::Raced, "{key}");
        }
        for key in ["PRIMARY", "users.PRIMARY", "profiles.clerk_id", "orders_live", "email"] {
            let message = format!("Duplicate entry 'x' for key '{key}'");
            assert_eq!(understood(1062, &message).kind, ErrorKind::Refused, "{key}");
        }
    }

    #[test]
    fn a_foreign_key_has_names_and_nothing_else() {
        let of = |table: &str, name: &str| {
            place_of(
                1451,
                &format!(
                    "Cannot delete or update a parent row: a foreign key constraint fails (`shop`.`{table}`, CONSTRAINT \
                     `{name}` FOREIGN KEY (`user_id`) REFERENCES `users` (`clerk_id`))"
                ),
            )
        };
        assert_eq!(of("orders", "of user").as_deref(), Some("table orders, constraint of user"));
        assert_eq!(
            of("or``ders", "a``, CONSTRAINT ``b").as_deref(),
            Some("table or`ders, constraint a`, CONSTRAINT `b")
        );
        assert_eq!(of("orders", &"x".repeat(65)), None);
        assert_eq!(of("orders", "a\nb"), None);
        assert_eq!(of("", ""), None);
        for odd in [
            "a foreign key constraint fails",
            "x a foreign key constraint fails (`shop`.`orders",
            "ada@example.com",
        ] {
            assert_eq!(place_of(1452, odd), None, "{odd}");
        }
    }

    #[test]
    fn names_are_taken_out_of_the_other_messages() {
        for (number, message, expected) in [
            (4025, "CONSTRAINT `adult` failed for `shop`.`users`", Some("table users, constraint adult")),
            (4025, "CONSTRAINT `adult` failed for `shop`.`users` with ada", None),
            (3819, "Check constraint 'users_chk_1' is violated.", Some("constraint users_chk_1")),
            (1048, "Column 'tenant' cannot be null", Some("column tenant")),
            (1364, "Field 'tenant' doesn't have a default value", Some("column tenant")),
            (1406, "Data too long for column 'note' at row 1", Some("column note")),
            (1406, "Data too long for ada", None),
            (1366, "Incorrect integer value: 'ada' for column `shop`.`users`.`age` at row 1", None),
            (1292, "Truncated incorrect INTEGER value: 'ada'", None),
            (1054, "Unknown column 'gone' in 'field list'", Some("column gone")),
            (1054, "Unknown column 'ada@example.com' in 'field list'", None),
            (1146, "Table 'shop.gone' doesn't exist", Some("table gone")),
            (1305, "FUNCTION shop.gone does not exist", Some("function shop.gone")),
            (1305, "SAVEPOINT erasure does not exist", None),
            (1142, "INSERT command denied to user 'app'@'%' for table 'log'", Some("table log")),
            (1142, "INSERT command denied to user 'app'@'%' for table `shop`.`log`", Some("table log")),
            (
                1143,
                "SELECT command denied to user 'app'@'%' for column 'a' in table 'log'",
                Some("table log"),
            ),
            (1644, "ada@example.com is on holiday", None),
        ] {
            assert_eq!(place_of(number, message).as_deref(), expected, "{message}");
        }
    }

    #[test]
    fn what_a_trigger_fails_with_is_the_applications_refusal() {
        let blamed = |number, message| blamed(understood(number, message), "users");
        let theirs = [
            (1644, "ada", "table users"),
            (1049, "Unknown database 'gone'", "table users"),
            (1142, "INSERT command denied to user 'app'@'%' for table 'log'", "table log"),
            (1406, "Data too long for column 'note' at row 1", "column note"),
            (1442, "Can't update table 'users' in stored function/trigger", "table users"),
        ];
        for (number, message, place) in theirs {
            let error = blamed(number, message);
            assert_eq!((error.kind, error.place.as_deref()), (ErrorKind::Refused, Some(place)), "{message}");
        }
        let long = blamed(1406, "Data too long for column 'email' at row 1");
        assert_eq!(long.kind, ErrorKind::BadData);
        let denied = blamed(1142, "UPDATE command denied to user 'app'@'%' for table 'users'");
        assert_eq!(denied.kind, ErrorKind::Broken);
        assert!(!is_of_the_statement(&denied));
        assert!(is_of_the_statement(&blamed(1146, "Table 'shop.gone' doesn't exist")));
        assert!(!is_of_the_statement(&blamed(1064, "")));
        assert!(!is_of_the_statement(&blamed(1205, "")));
        assert!(!is_of_the_statement(&StoreError::new(ErrorKind::Broken)));
    }

    #[test]
    fn a_password_that_needs_tls_is_told_in_words() {
        let told = "RSA auth backend disabled; enable feature `mysql-rsa` (or `rsa` if using sqlx-mysql directly) or use TLS.";
        let error = connect_error(Error::Configuration(told.into()));
        assert!(error.is_closed_door() && error.to_string().contains("ssl-mode=REQUIRED"), "{error}");
        let error = connect_error(Error::Configuration("hunter2".into()));
        assert!(!error.is_closed_door() && !error.to_string().contains("hunter2"), "{error}");
    }
}
