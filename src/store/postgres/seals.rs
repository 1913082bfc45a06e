//! Lines of `audit_log` in the form that seals use.

use sqlx::{Row as _, postgres::PgRow};

use super::{get, store_error};
use crate::{
    model::{LineHash, seal::Cell},
    store::{ErrorKind, Result, StoreError},
};

/// A line, from the columns `id`, `at`, `action`, `clerk_id`, `svix_id`, `source`, `changed_fields`, `event_at` and `kind`.
pub(in crate::store) fn line(row: &PgRow) -> Result<LineHash> {
    let (text, time) = (|index| text(row, index), |index| time(row, index));
    let cells = [time(1)?, text(2)?, text(3)?, text(4)?, text(5)?, list(row, 6)?, time(7)?];
    Ok(LineHash::of(get(row, 0)?, &cells, &text(8)?))
}

fn text(row: &PgRow, index: usize) -> Result<Cell<'_>> {
    Ok(get::<Option<&str>>(row, index)?.map_or(Cell::Null, |text| Cell::Text(text.as_bytes())))
}

fn list(row: &PgRow, index: usize) -> Result<Cell<'_>> {
    if let Ok(list) = get::<Option<Vec<Option<String>>>>(row, index) {
        return Ok(list.map_or(Cell::Null, Cell::List));
    }
    // For example an array of arrays.
    let value = row.try_get_raw(index).map_err(store_error)?;
    Ok(Cell::Odd(value.as_bytes().map_err(|_| StoreError::new(ErrorKind::Broken))?))
}

fn time(row: &PgRow, index: usize) -> Result<Cell<'_>> {
    Ok(micros(row, index)?.map_or(Cell::Null, Cell::Time))
}

/// Unix microseconds of a time, including times that no calendar has: infinity is a time in PostgreSQL.
fn micros(row: &PgRow, index: usize) -> Result<Option<i64>> {
    /// From 1970 to 2000, when the server's time begins.
    const EPOCH: i64 = 946_684_800_000_000;
    let micros: Option<i64> = row.try_get_unchecked(index).map_err(store_error)?;
    Ok(micros.map(|micros| micros.wrapping_add(EPOCH)))
}
