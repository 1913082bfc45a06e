//! Lines of `audit_log` in the form that seals use: byte by byte, so that every value that a column accepts is covered, for
//! example a date that no calendar has.

use chrono::NaiveDate;
use sqlx::{Row as _, mysql::MySqlRow};

use super::error::explain;
use crate::{
    model::{LineHash, seal::Cell},
    store::{Result, StoreError},
};

/// A line, from the columns `id`, `at`, `action`, `clerk_id`, `svix_id`, `source`, `changed_fields`, `event_at` and `kind` of a
/// prepared statement.
pub(in crate::store) fn line(row: &MySqlRow) -> Result<LineHash> {
    let id: Option<i64> = row.try_get_unchecked(0).map_err(explain)?;
    let (text, time) = (|index| text(row, index), |index| time(row, index));
    let cells = [time(1)?, text(2)?, text(3)?, text(4)?, text(5)?, text(6)?.listed(), time(7)?];
    Ok(LineHash::of(id.ok_or_else(|| StoreError::unreadable("id"))?, &cells, &text(8)?))
}

fn text(row: &MySqlRow, index: usize) -> Result<Cell<'_>> {
    Ok(bytes(row, index)?.map_or(Cell::Null, Cell::Text))
}

fn time(row: &MySqlRow, index: usize) -> Result<Cell<'_>> {
    let time = |bytes| micros(bytes).map_or(Cell::Odd(bytes), Cell::Time);
    Ok(bytes(row, index)?.map_or(Cell::Null, time))
}

/// The bytes of a column. The driver treats a zero date as NULL, but only NULL itself has no bytes.
fn bytes(row: &MySqlRow, index: usize) -> Result<Option<&[u8]>> {
    row.try_get_raw(index).map_err(explain)?;
    Ok(row.try_get_unchecked(index).ok())
}

/// Unix microseconds of a time. It consists of a length, a year of two bytes, and the rest without trailing zero parts. Source:
/// <https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_binary_resultset.html>
fn micros(bytes: &[u8]) -> Option<i64> {
    let (length, parts) = bytes.split_first()?;
    if usize::from(*length) != parts.len() || !matches!(length, 4 | 7 | 11) {
        return None;
    }
    let mut all = [0; 11];
    all[..parts.len()].copy_from_slice(parts);
    let [low, high, month, day, hour, minute, second, micros @ ..] = all;
    let year = u16::from_le_bytes([low, high]);
    let date = NaiveDate::from_ymd_opt(year.into(), month.into(), day.into())?;
    // A larger value would be a leap second.
    let micros = Some(u32::from_le_bytes(micros)).filter(|micros| *micros < 1_000_000)?;
    let time = date.and_hms_micro_opt(hour.into(), minute.into(), second.into(), micros)?;
    Some(time.and_utc().timestamp_micros())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_the_server_sends_them() {
        let milliseconds = [&[11, 0xea, 0x07, 11, 21, 20, 57, 27][..], &123_000_u32.to_le_bytes()].concat();
        assert_eq!(micros(&milliseconds), Some(1_795_294_647_123_000));
        assert_eq!(micros(&[7, 0xea, 0x07, 11, 21, 20, 57, 27]), Some(1_795_294_647_000_000));
        assert_eq!(micros(&[4, 0xb2, 0x07, 1, 1]), Some(0));
        for odd in [
            &[0][..],
            &[],
            &[4, 0xea, 0x07, 0, 0],
            &[4, 0xea, 0x07, 2, 31],
            &[7, 0xea, 0x07, 11, 21, 20, 57],
            &[7, 0xea, 0x07, 11, 21, 23, 59, 60],
            &[8, 0xea, 0x07, 11, 21, 20, 57, 27, 1],
            b"2026-11-21 20:57:27.123",
        ] {
            assert_eq!(micros(odd), None, "{odd:?}");
        }
        let leap = [&[11, 0xea, 0x07, 11, 21, 23, 59, 59][..], &1_000_000_u32.to_le_bytes()].concat();
        assert_eq!(micros(&leap), None);
    }
}
