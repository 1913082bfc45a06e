//! Seals over `audit_log`, and the lines as seals see them: byte for byte, so that nothing is overlooked that SQLite would
//! let somebody write into a column.

use chrono::NaiveDate;
use serde_json::json;
use sqlx::{Row, SqliteConnection, TypeInfo, ValueRef, sqlite::SqliteRow};

use super::{error::explain, text};
use crate::{
    model::{LineHash, Seal, seal::Cell},
    store::{Result, Unsealed},
};

/// Append seals; false if any of their numbers is there already.
pub(super) async fn add(connection: &mut SqliteConnection, seals: &[Seal]) -> Result<bool> {
    let rows = text::rows(seals.iter().map(|seal| {
        json!({
            "number": seal.number,
            "sealed_at": text::time(seal.sealed_at),
            "first_id": seal.first_id,
            "last_id": seal.last_id,
            "lines": seal.lines,
            "gaps": seal.gaps,
            "content": seal.content,
            "previous": seal.previous,
            "hash": seal.hash,
        })
    }))?;
    let done = sqlx::query(
        "INSERT INTO audit_seals (number, sealed_at, first_id, last_id, lines, gaps, content, previous, hash)
         SELECT n.value ->> 'number', n.value ->> 'sealed_at', n.value ->> 'first_id', n.value ->> 'last_id',
                n.value ->> 'lines', n.value ->> 'gaps', n.value ->> 'content', n.value ->> 'previous',
                n.value ->> 'hash'
         FROM json_each(?1) AS n
         -- Or what follows would be taken for the condition of a join.
         WHERE true
         ON CONFLICT (number) DO NOTHING",
    )
    .bind(rows)
    .execute(connection)
    .await
    .map_err(explain)?;
    Ok(done.rows_affected() == seals.len() as u64)
}

/// The newest seal.
pub(super) async fn newest(connection: &mut SqliteConnection) -> Result<Option<Seal>> {
    let row = sqlx::query(
        "SELECT number, sealed_at, first_id, last_id, lines, gaps, content, previous, hash FROM audit_seals
         ORDER BY number DESC LIMIT 1",
    )
    .fetch_optional(connection)
    .await
    .map_err(explain)?;
    row.as_ref().map(seal).transpose()
}

/// Seals in the order of their numbers.
pub(super) async fn seals(connection: &mut SqliteConnection, after: i64, limit: u32) -> Result<Vec<Seal>> {
    let rows = sqlx::query(
        "SELECT number, sealed_at, first_id, last_id, lines, gaps, content, previous, hash FROM audit_seals
         WHERE number > ?1 ORDER BY number LIMIT ?2",
    )
    .bind(after)
    .bind(limit)
    .fetch_all(connection)
    .await
    .map_err(explain)?;
    rows.iter().map(seal).collect()
}

/// What somebody else has written into a column counts as nothing, which fits no hash.
fn seal(row: &SqliteRow) -> Result<Seal> {
    let integer = |column| Ok(text::read_integer(row, column)?.unwrap_or_default());
    let read = |column| Ok(text::read(row, column)?.unwrap_or_default());
    Ok(Seal {
        number: integer("number")?,
        sealed_at: text::read_time(row, "sealed_at")?.unwrap_or_default(),
        first_id: integer("first_id")?,
        last_id: integer("last_id")?,
        lines: integer("lines")?,
        gaps: read("gaps")?,
        content: read("content")?,
        previous: read("previous")?,
        hash: read("hash")?,
    })
}

/// Lines in the order of their ids.
pub(super) async fn lines(
    connection: &mut SqliteConnection,
    after: i64,
    until: i64,
    limit: u32,
) -> Result<Vec<LineHash>> {
    let rows = sqlx::query(
        "SELECT id, at, action, clerk_id, svix_id, source, changed_fields, event_at FROM audit_log
         WHERE id > ?1 AND id <= ?2 ORDER BY id LIMIT ?3",
    )
    .bind(after)
    .bind(until)
    .bind(limit)
    .fetch_all(connection)
    .await
    .map_err(explain)?;
    rows.iter().map(line).collect()
}

fn line(row: &SqliteRow) -> Result<LineHash> {
    let id = text::read_integer(row, "id")?.ok_or_else(|| text::unreadable("id"))?;
    let cells = [
        time(cell(row, 1)?),
        cell(row, 2)?,
        cell(row, 3)?,
        cell(row, 4)?,
        cell(row, 5)?,
        list(cell(row, 6)?),
        time(cell(row, 7)?),
    ];
    Ok(LineHash::of(id, &cells))
}

fn cell(row: &SqliteRow, index: usize) -> Result<Cell<'_>> {
    let value = row.try_get_raw(index).map_err(explain)?;
    if value.is_null() {
        return Ok(Cell::Null);
    }
    let is_text = value.type_info().name() == "TEXT";
    let bytes = row.try_get_unchecked(index).map_err(explain)?;
    Ok(if is_text { Cell::Text(bytes) } else { Cell::Odd(bytes) })
}

/// A time is a time only in the one form in which we write it.
fn time(cell: Cell<'_>) -> Cell<'_> {
    match cell {
        Cell::Text(text) => micros(text).map_or(Cell::Odd(text), Cell::Time),
        other => other,
    }
}

/// Unix microseconds of a text such as `2026-11-21T20:57:27.123Z`.
fn micros(text: &[u8]) -> Option<i64> {
    const FORM: &[u8; 24] = b"0000-00-00T00:00:00.000Z";
    let fits = |(have, want): (&u8, &u8)| if *want == b'0' { have.is_ascii_digit() } else { have == want };
    if text.len() != FORM.len() || !text.iter().zip(FORM).all(fits) {
        return None;
    }
    let number = |at: usize, digits: usize| {
        text[at..at + digits].iter().fold(0, |number, digit| number * 10 + u32::from(digit - b'0'))
    };
    let day = NaiveDate::from_ymd_opt(i32::try_from(number(0, 4)).ok()?, number(5, 2), number(8, 2))?;
    let time = day.and_hms_milli_opt(number(11, 2), number(14, 2), number(17, 2), number(20, 3))?;
    Some(time.and_utc().timestamp_micros())
}

/// So is a list, whose text leaves nothing to choose.
fn list(cell: Cell<'_>) -> Cell<'_> {
    let Cell::Text(text) = cell else { return cell };
    let list: Option<Vec<Option<String>>> = serde_json::from_slice(text).ok();
    let list = list.filter(|list| serde_json::to_vec(list).is_ok_and(|again| again == text));
    list.map_or(Cell::Odd(text), Cell::List)
}

/// How many lines no seal covers.
pub(super) async fn unsealed(connection: &mut SqliteConnection, at_most: u32) -> Result<Unsealed> {
    let row = sqlx::query(
        "SELECT count(*) AS lines, min(at) AS since FROM (
             SELECT at FROM audit_log
             WHERE id > coalesce((SELECT last_id FROM audit_seals ORDER BY number DESC LIMIT 1), 0)
             ORDER BY id
             LIMIT ?1
         )",
    )
    .bind(at_most)
    .fetch_one(connection)
    .await
    .map_err(explain)?;
    let lines = text::read_integer(&row, "lines")?.unwrap_or_default();
    Ok(Unsealed { lines: lines.unsigned_abs(), since: text::read_time(&row, "since")? })
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    #[test]
    fn a_time_has_one_form() {
        let now = DateTime::from_timestamp_millis(1_795_294_647_123).expect("a time");
        assert_eq!(micros(text::time(now).as_bytes()), Some(now.timestamp_micros()));
        for other in [
            "2026-11-21T20:57:27Z",
            "2026-11-21 20:57:27.123Z",
            "2026-11-21T20:57:27.123+00:00",
            "2026-13-21T20:57:27.123Z",
            "2026-11-21T20:57:27.123z",
            "",
        ] {
            assert_eq!(micros(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn a_list_has_one_form() {
        assert!(matches!(list(Cell::Text(b"[\"email\"]")), Cell::List(_)));
        assert!(matches!(list(Cell::Text(b"[]")), Cell::List(_)));
        for other in [b"[ \"email\"]".as_slice(), b"{}", b"\"email\"", b"[\"e\\u006dail\"]", b""] {
            assert!(matches!(list(Cell::Text(other)), Cell::Odd(_)));
        }
    }
}
