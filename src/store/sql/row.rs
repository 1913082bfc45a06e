//! What statements give.

use chrono::{DateTime, Utc};
use sqlx::{Column as _, Row as _, TypeInfo as _, ValueRef as _, postgres::PgRow, sqlite::SqliteRow};

use crate::{
    entity::USER,
    model::{ClerkId, SvixId},
    store::{Result, StoreError, Trouble, postgres, sqlite},
};

/// A row of any database. Columns are read by their places.
pub enum Row {
    Postgres(PgRow),
    Sqlite(SqliteRow),
}

impl Row {
    /// What must stand in this column. The application may have written into some, and what cannot be read there counts as
    /// NULL.
    pub(in crate::store) fn get<T: Readable>(&self, column: usize) -> Result<T> {
        self.maybe(column)?.ok_or_else(|| {
            let name = match self {
                Self::Postgres(row) => row.try_column(column).map(|column| column.name().to_owned()),
                Self::Sqlite(row) => row.try_column(column).map(|column| column.name().to_owned()),
            };
            let place = format!("column {} cannot be read", name.as_deref().unwrap_or_default());
            StoreError { place: Some(place), ..StoreError::new(Trouble::Broken) }
        })
    }

    /// Whether nothing stands in this column.
    pub(in crate::store) fn is_null(&self, column: usize) -> Result<bool> {
        match self {
            Self::Postgres(row) => Ok(row.try_get_raw(column).map_err(postgres::store_error)?.is_null()),
            Self::Sqlite(row) => Ok(row.try_get_raw(column).map_err(sqlite::explain)?.is_null()),
        }
    }

    /// What stands in this column, if it is not NULL.
    pub(in crate::store) fn maybe<T: Readable>(&self, column: usize) -> Result<Option<T>> {
        T::read(self, column)
    }
}

/// The row of a statement that always gives one.
pub(in crate::store) fn only(rows: &[Row]) -> Result<&Row> {
    rows.first().ok_or_else(|| StoreError::new(Trouble::Broken))
}

/// What a column can hold.
pub(in crate::store) trait Readable: Sized {
    fn read(row: &Row, column: usize) -> Result<Option<Self>>;
}

impl Readable for String {
    fn read(row: &Row, column: usize) -> Result<Option<Self>> {
        match row {
            Row::Postgres(row) => row.try_get(column).map_err(postgres::store_error),
            // What is no UTF-8 is read as far as it goes.
            Row::Sqlite(row) => {
                let bytes: Option<Vec<u8>> = row.try_get_unchecked(column).map_err(sqlite::explain)?;
                Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
            }
        }
    }
}

impl Readable for i64 {
    fn read(row: &Row, column: usize) -> Result<Option<Self>> {
        match row {
            Row::Postgres(row)
                if row.try_column(column).is_ok_and(|column| column.type_info().name() == "INT4") =>
            {
                let number: Option<i32> = row.try_get(column).map_err(postgres::store_error)?;
                Ok(number.map(Self::from))
            }
            Row::Postgres(row) => row.try_get(column).map_err(postgres::store_error),
            Row::Sqlite(row) => row.try_get_unchecked(column).map_err(sqlite::explain),
        }
    }
}

/// What counts is not negative.
impl Readable for u64 {
    fn read(row: &Row, column: usize) -> Result<Option<Self>> {
        Ok(row.maybe::<i64>(column)?.map(i64::unsigned_abs))
    }
}

impl Readable for u32 {
    fn read(row: &Row, column: usize) -> Result<Option<Self>> {
        Ok(row.maybe::<u64>(column)?.map(|number| Self::try_from(number).unwrap_or(Self::MAX)))
    }
}

impl Readable for bool {
    fn read(row: &Row, column: usize) -> Result<Option<Self>> {
        match row {
            Row::Postgres(row) => row.try_get(column).map_err(postgres::store_error),
            Row::Sqlite(_) => Ok(row.maybe::<i64>(column)?.map(|number| number != 0)),
        }
    }
}

impl Readable for DateTime<Utc> {
    fn read(row: &Row, column: usize) -> Result<Option<Self>> {
        match row {
            Row::Postgres(row) => row.try_get(column).map_err(postgres::store_error),
            Row::Sqlite(_) => {
                let text: Option<String> = row.maybe(column)?;
                Ok(text.and_then(|text| DateTime::parse_from_rfc3339(&text).ok()).map(|time| time.to_utc()))
            }
        }
    }
}

impl Readable for Vec<u8> {
    fn read(row: &Row, column: usize) -> Result<Option<Self>> {
        match row {
            Row::Postgres(row) => row.try_get(column).map_err(postgres::store_error),
            Row::Sqlite(row) => row.try_get_unchecked(column).map_err(sqlite::explain),
        }
    }
}

impl Readable for ClerkId {
    fn read(row: &Row, column: usize) -> Result<Option<Self>> {
        Ok(row.maybe::<String>(column)?.and_then(|id| Self::new(&USER, id)))
    }
}

impl Readable for SvixId {
    fn read(row: &Row, column: usize) -> Result<Option<Self>> {
        Ok(row.maybe::<String>(column)?.and_then(Self::new))
    }
}
