//! Lines of `audit_log` in the form that seals use: byte by byte, so that every value that SQLite accepts in a column is
//! covered.

use chrono::DateTime;
use sqlx::{Row, TypeInfo, ValueRef, sqlite::SqliteRow};

use super::{error::explain, text};
use crate::{
    model::{LineHash, seal::Cell},
    store::{Result, StoreError},
};

/// A line, from the columns `id`, `at`, `action`, `clerk_id`, `svix_id`, `source`, `changed_fields`, `event_at` and `kind`.
pub(in crate::store) fn line(row: &SqliteRow) -> Result<LineHash> {
    let id = text::read_integer(row, "id")?.ok_or_else(|| StoreError::unreadable("id"))?;
    let cell = |index| cell(row, index);
    let cells = [time(cell(1)?), cell(2)?, cell(3)?, cell(4)?, cell(5)?, cell(6)?.listed(), time(cell(7)?)];
    Ok(LineHash::of(id, &cells, &cell(8)?))
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

/// A text counts as a time only in the exact format that clerk-sync writes.
fn time(cell: Cell<'_>) -> Cell<'_> {
    match cell {
        Cell::Text(text) => micros(text).map_or(Cell::Odd(text), Cell::Time),
        other => other,
    }
}

/// Unix microseconds of a text such as `2026-11-21T20:57:27.123Z`.
fn micros(text: &[u8]) -> Option<i64> {
    let time = DateTime::parse_from_rfc3339(std::str::from_utf8(text).ok()?).ok()?.to_utc();
    // A leap second would have the number of the next second.
    let is_ours = time.timestamp_subsec_millis() < 1000 && text::time(time).as_bytes() == text;
    is_ours.then(|| time.timestamp_micros())
}

#[cfg(test)]
mod tests {
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
            "2026-12-31T23:59:60.123Z",
            "2026-11-21T20:57:27.123z",
            "",
        ] {
            assert_eq!(micros(other.as_bytes()), None, "{other}");
        }
    }
}
