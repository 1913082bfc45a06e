//! The parts of statements in the SQL of MySQL and MariaDB.
//!
//! Both use the same text, except for the name of a collation. Neither can return rows from every statement that writes, so a
//! statement before or after it reads what was written. MariaDB 10 reads a whole table for `UPDATE … WHERE id IN (SELECT …)`.
//! Such a search is therefore moved to the front, and the table is joined to it.

use std::sync::Arc;

use super::text::{outside, word};
use crate::store::{
    prefix,
    sql::{Dialect, Step, statement},
};

/// Marks where `FOR UPDATE` or a similar clause belongs at the end of the surrounding statement.
const LOCK: char = '\u{1}';
const CLAIM: char = '\u{2}';

/// Encloses a search for ids.
const IN: char = '\u{3}';
const END: char = '\u{4}';

/// Encloses the rows that an update uses.
const FROM: char = '\u{5}';

/// The largest possible limit. A derived table with a limit is evaluated first, and keeps its locks.
const ALL: &str = "LIMIT 18446744073709551615";

/// How ids and other texts compare: byte by byte, including trailing blanks.
pub(in crate::store) fn collation(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Mariadb => "utf8mb4_nopad_bin",
        _ => "utf8mb4_0900_bin",
    }
}

/// The statements that a text consists of.
pub(in crate::store) fn steps(text: &str, dialect: Dialect) -> Arc<[Step]> {
    // A comment may contain characters that have a meaning in the template.
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("--"));
    let text = lines.collect::<Vec<_>>().join("\n");
    let rendered = statement::rendered(&text, dialect).replace(" AS bigint)", " AS signed)");
    let rendered = upserted(&rendered);
    let steps = rendered.split(';').map(str::trim).filter(|step| !step.is_empty());
    steps.map(|step| positional(&prefix::in_text(&forced(&whole(step)), dialect))).collect()
}

/// A part of a text.
pub(in crate::store) fn part(word: &str, argument: &str, dialect: Dialect) -> String {
    let lookup = || {
        let (table, condition) = statement::split(argument, " WHERE ");
        format!("STRAIGHT_JOIN {table} ON {condition}")
    };
    match word {
        "lookup" => lookup(),
        "lock" => format!("{}{LOCK}", lookup()),
        "claim" => format!("{}{CLAIM}", lookup()),
        "in" => format!("{IN}{}{END}", locked(&searched(argument))),
        "from" => format!("{FROM}{argument}{END}"),
        // `JSON_TABLE` returns rows in order. For a sort MariaDB writes a file, which takes twice as long as writing the rows.
        "returning" | "in_order" => String::new(),
        "token" => "$0".to_owned(),
        "bin" => collation(dialect).to_owned(),
        "now" => "utc_timestamp(3)".to_owned(),
        word => panic!("no part of a statement is called {word}"),
    }
}

/// A batch with these columns. It is a derived table, so that locks do not apply to it.
pub(in crate::store) fn batch<'a>(
    parameter: &str,
    alias: &str,
    columns: impl Iterator<Item = (&'a str, &'a str)>,
    dialect: Dialect,
) -> String {
    // How each column is read from the JSON, and the value made from that.
    let (mut given, mut made) = (Vec::new(), Vec::new());
    for (index, (name, kind)) in columns.enumerate() {
        let stored = match kind {
            "bigint" | "boolean" => kind.to_owned(),
            "time" => "datetime(3)".to_owned(),
            // With a narrower type, MariaDB would silently truncate a longer text.
            _ => format!("longtext CHARACTER SET utf8mb4 COLLATE {}", collation(dialect)),
        };
        given.push(format!("c{index} {stored} PATH '$[{index}]'"));
        made.push(match kind {
            // In MariaDB 10.11, `unhex` of a long text yields no value if the statement also reads the table that it writes.
            "bytes" => format!("unhex(j.c{index} || '') AS {name}"),
            _ => format!("j.c{index} AS {name}"),
        });
    }
    format!(
        "(SELECT {}, j.place FROM JSON_TABLE({parameter}, '$[*]' COLUMNS (place FOR ORDINALITY, {})) AS j) AS {alias}",
        made.join(", "),
        given.join(", ")
    )
}

/// Translates `ON CONFLICT` without a condition. `excluded.column` becomes `VALUES(column)`.
fn upserted(sql: &str) -> String {
    let mut pieces = sql.split("excluded.");
    let mut upserted = pieces.next().unwrap_or_default().to_owned();
    for (column, rest) in pieces.map(word) {
        upserted.extend(["VALUES(", column, ")", rest]);
    }
    while let Some((before, after)) = upserted.split_once("ON CONFLICT (") {
        let (keys, after) = after.split_once(')').expect("a list of columns ends");
        let (key, _) = word(keys.trim_start());
        let change = match after.trim_start().strip_prefix("DO NOTHING") {
            Some(after) => format!("{key} = VALUES({key}){after}"),
            None => after.split_once("SET").expect("a conflict is settled").1.trim_start().to_owned(),
        };
        upserted = format!("{before}ON DUPLICATE KEY UPDATE {change}");
    }
    upserted
}

/// A statement with its locks at the end, and its searches where they are fast.
fn whole(step: &str) -> String {
    let is_write = step.starts_with("UPDATE ") || step.starts_with("DELETE ");
    if is_write { joined(step) } else { locked(&searched(step)) }
}

fn searched(sql: &str) -> String {
    sql.replace(IN, "IN (").replace(END, ")")
}

fn locked(sql: &str) -> String {
    let lock = match (sql.contains(LOCK), sql.contains(CLAIM)) {
        (false, false) => return sql.to_owned(),
        (true, _) => "FOR UPDATE",
        _ => "FOR UPDATE SKIP LOCKED",
    };
    format!("{} {ALL} {lock}", sql.replace([LOCK, CLAIM], ""))
}

/// An update or deletion that is joined to its searches.
fn joined(step: &str) -> String {
    let (mut rest, mut sources, mut conditions) = (step.to_owned(), Vec::new(), Vec::new());
    while let Some((before, after)) = rest.split_once(FROM) {
        let (source, behind) = after.split_once(END).expect("the rows end");
        sources.push(source.trim().to_owned());
        rest = format!("{before}{behind}");
    }
    while let Some((before, after)) = rest.split_once(IN) {
        let (search, behind) = after.split_once(END).expect("a search ends");
        let (before, column) =
            before.trim_end().rsplit_once(char::is_whitespace).expect("a column is looked for");
        let (first, from) = outside(search.trim(), " FROM ").expect("a search reads from somewhere");
        // Because it is evaluated first, it may read the table that is written.
        let is_limited = from.rsplit(')').next().is_some_and(|tail| tail.contains("LIMIT "));
        let limit = if is_limited { String::new() } else { format!(" {ALL}") };
        let found = format!("i{}", sources.len());
        sources.push(format!("({first} AS k FROM {}{limit}) AS {found}", from.trim()));
        conditions.push((column.to_owned(), found));
        rest = format!("{before} true{behind}");
    }
    if sources.is_empty() {
        return rest;
    }
    let (verb, rest) = rest.split_once(' ').expect("a statement has words");
    let rest = rest.trim_start().trim_start_matches("FROM ").trim_start();
    let behind = if verb == "UPDATE" { "SET " } else { "WHERE " };
    let (table, rest) = rest.split_once(behind).expect("a statement continues after its table");
    let table = table.trim();
    let name = table.split_whitespace().last().expect("a table has a name");
    let tables = format!("{} STRAIGHT_JOIN {table}", sources.join(" STRAIGHT_JOIN "));
    let condition = |(column, found): &(String, String)| {
        let of = if column.contains('.') { String::new() } else { format!("{name}.") };
        format!("{of}{column} = {found}.k")
    };
    let conditions = conditions.iter().map(condition).collect::<Vec<_>>().join(" AND ");
    let on = if conditions.is_empty() { String::new() } else { format!(" ON {conditions}") };
    match verb {
        "UPDATE" => format!("UPDATE {tables}{on} SET {rest}"),
        _ => format!("DELETE {name} FROM {tables}{on} WHERE {rest}"),
    }
}

/// Names the index for each table that is joined to others. Otherwise both servers may read a whole table that has few rows, or
/// had few at the last count. That locks every row, or waits for every session that holds one.
fn forced(sql: &str) -> String {
    const JOIN: &str = "STRAIGHT_JOIN ";
    let (mut forced, mut rest) = (String::new(), sql);
    while let Some((before, after)) = rest.split_once(JOIN) {
        let (table, behind) = word(after);
        let alias = behind.strip_prefix(" AS ").map(|named| word(named).0);
        let named = alias.map_or(table.len(), |alias| table.len() + " AS ".len() + alias.len());
        let is_compared = |column: &str| after.contains(&format!("{}.{column} = ", alias.unwrap_or(table)));
        forced = format!("{forced}{before}{JOIN}{}", &after[..named]);
        if let Some(index) = index_of(table, is_compared) {
            forced = format!("{forced} FORCE INDEX ({index})");
        }
        rest = &after[named..];
    }
    forced + rest
}

/// The index of a table that finds rows by the compared columns.
fn index_of(table: &str, is_compared: impl Fn(&str) -> bool) -> Option<String> {
    let primary = match table {
        "" => return None,
        "webhook_queue" | "processed_webhooks" => "svix_id",
        "audit_actors" => "audit_id",
        "audit_seals" => "number",
        "entity_versions" | "erasure_receipts" | "outbox_recipients" => "clerk_id",
        _ => "id",
    };
    if is_compared(primary) {
        return Some("PRIMARY".to_owned());
    }
    let is_of_many = matches!(table, "webhook_queue" | "outbox" | "audit_log");
    let key = if is_of_many { format!("{table}_clerk_id") } else { "clerk_id".to_owned() };
    is_compared("clerk_id").then_some(key)
}

/// The statement with question marks instead of numbered parameters.
fn positional(sql: &str) -> Step {
    let mut pieces = sql.split('$');
    let (mut positional, mut parameters) = (pieces.next().unwrap_or_default().to_owned(), Vec::new());
    for piece in pieces {
        if let Some(digit @ b'0'..=b'9') = piece.bytes().next() {
            parameters.push(usize::from(digit - b'0'));
            positional.extend(["?", &piece[1..]]);
        } else {
            positional.extend(["$", piece]);
        }
    }
    Step { sql: positional.into(), parameters }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sql(text: &str) -> String {
        steps(text, Dialect::Mariadb).iter().map(|step| step.sql.to_string()).collect::<Vec<_>>().join("; ")
    }

    const BATCH: &str = "(SELECT j.c0 AS id, j.place FROM JSON_TABLE(?, '$[*]' COLUMNS (place FOR ORDINALITY, c0 longtext \
                         CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin PATH '$[0]')) AS j) AS n";

    #[test]
    fn what_is_searched_for_is_joined_to() {
        assert_eq!(
            sql("DELETE FROM t WHERE id {in SELECT n.id FROM {batch $1 AS n: id text}} AND at < $2"),
            format!(
                "DELETE t FROM (SELECT n.id AS k FROM {BATCH} LIMIT 18446744073709551615) AS i0 STRAIGHT_JOIN t \
                 FORCE INDEX (PRIMARY) ON t.id = i0.k WHERE true AND at < ?"
            )
        );
        assert_eq!(
            sql(
                "UPDATE t AS u SET x = $2 WHERE u.id {in SELECT e.id FROM {batch $1 AS n: id text} {claim e AS e WHERE e.id = n.id}}"
            ),
            format!(
                "UPDATE (SELECT e.id AS k FROM {BATCH} STRAIGHT_JOIN e AS e FORCE INDEX (PRIMARY) ON e.id = n.id \
                 LIMIT 18446744073709551615 FOR UPDATE SKIP LOCKED) AS i0 STRAIGHT_JOIN t AS u FORCE INDEX (PRIMARY) ON u.id = i0.k \
                 SET x = ? WHERE true"
            )
        );
        assert_eq!(sql("SELECT 1 FROM t WHERE id {in SELECT 2}"), "SELECT 1 FROM t WHERE id IN (SELECT 2)");
    }

    #[test]
    fn locks_stand_at_the_end() {
        assert_eq!(
            sql("SELECT e.id FROM {batch $1 AS n: id text} {lock t AS e WHERE e.id = n.id}"),
            format!(
                "SELECT e.id FROM {BATCH} STRAIGHT_JOIN t AS e FORCE INDEX (PRIMARY) ON e.id = n.id LIMIT 18446744073709551615 \
                 FOR UPDATE"
            )
        );
    }

    #[test]
    fn parameters_are_counted_in_their_order() {
        let steps = steps("SELECT $2, $1, $2; SELECT $1\n-- nor $4;", Dialect::Mysql);
        assert_eq!(steps.len(), 2);
        assert_eq!(steps[0].parameters, [2, 1, 2]);
    }
}
