//! Rows that statements return.

use chrono::{DateTime, NaiveDateTime, Utc};
use sqlx::{
    Column as _, Row as _, TypeInfo as _, ValueRef as _, mysql::MySqlRow, postgres::PgRow, sqlite::SqliteRow,
};

use crate::{
    model::{ClerkId, Entity, Kinds, SvixId},
    store::{ErrorKind, Result, StoreError, mysql, postgres, sqlite},
};

/// A row of any database. Columns are read by position.
pub struct Row {
    pub(in crate::store) cells: RowCells,
    /// The kinds of objects that the row can be about.
    kinds: Kinds,
}

/// The row in its database's own type.
pub(in crate::store) enum RowCells {
    Postgres(PgRow),
    Sqlite(SqliteRow),
    Mysql(MySqlRow),
}

impl Row {
    /// Wrap the rows of a database.
    pub(in crate::store) fn all<R>(rows: Vec<R>, cells: fn(R) -> RowCells, kinds: Kinds) -> Vec<Self> {
        rows.into_iter().map(|row| Self { cells: cells(row), kinds }).collect()
    }

    /// The id in the next column; this column holds its kind.
    pub(in crate::store) fn id(&self, column: usize) -> Result<ClerkId> {
        self.maybe_id(column)?.ok_or_else(|| self.unreadable(column + 1))
    }

    /// As [`id`](Self::id), but the columns may be empty.
    pub(in crate::store) fn maybe_id(&self, column: usize) -> Result<Option<ClerkId>> {
        let kind: Option<String> = self.maybe(column)?;
        let entity = self.kinds.iter().find(|entity| kind.as_deref() == Some(entity.kind));
        entity.map_or(Ok(None), |entity| self.maybe_id_of(entity, column + 1))
    }

    /// The id of this kind in this column.
    pub(in crate::store) fn id_of(&self, entity: &'static Entity, column: usize) -> Result<ClerkId> {
        self.maybe_id_of(entity, column)?.ok_or_else(|| self.unreadable(column))
    }

    fn maybe_id_of(&self, entity: &'static Entity, column: usize) -> Result<Option<ClerkId>> {
        Ok(self.maybe::<String>(column)?.and_then(|id| ClerkId::new(entity, id)))
    }

    /// The kinds of objects that the database stores.
    pub(in crate::store) fn kinds(&self) -> Kinds {
        self.kinds
    }

    /// The value of this column, which must have one. The application may have written to some columns; an unreadable value
    /// there counts as NULL.
    pub(in crate::store) fn get<T: Readable>(&self, column: usize) -> Result<T> {
        self.maybe(column)?.ok_or_else(|| self.unreadable(column))
    }

    fn unreadable(&self, column: usize) -> StoreError {
        let name = match &self.cells {
            RowCells::Postgres(row) => row.try_column(column).map(|column| column.name().to_owned()),
            RowCells::Sqlite(row) => row.try_column(column).map(|column| column.name().to_owned()),
            RowCells::Mysql(row) => row.try_column(column).map(|column| column.name().to_owned()),
        };
        StoreError::unreadable(name.as_deref().unwrap_or_default())
    }

    /// Whether this column is NULL.
    pub(in crate::store) fn is_null(&self, column: usize) -> Result<bool> {
        match &self.cells {
            RowCells::Postgres(row) => Ok(row.try_get_raw(column).map_err(postgres::store_error)?.is_null()),
            RowCells::Sqlite(row) => Ok(row.try_get_raw(column).map_err(sqlite::explain)?.is_null()),
            RowCells::Mysql(row) => Ok(row.try_get_raw(column).map_err(mysql::explain)?.is_null()),
        }
    }

    /// The value of this column, if it is not NULL.
    pub(in crate::store) fn maybe<T: Readable>(&self, column: usize) -> Result<Option<T>> {
        T::read(self, column)
    }
}

/// The row of a statement that always returns one.
pub(in crate::store) fn only(rows: &[Row]) -> Result<&Row> {
    rows.first().ok_or_else(|| StoreError::new(ErrorKind::Broken))
}

/// A type that a column can be read as.
pub(in crate::store) trait Readable: Sized {
    fn read(row: &Row, column: usize) -> Result<Option<Self>>;
}

impl Readable for String {
    fn read(row: &Row, column: usize) -> Result<Option<Self>> {
        match &row.cells {
            RowCells::Postgres(row) => row.try_get(column).map_err(postgres::store_error),
            // Bytes that are not UTF-8 are replaced.
            RowCells::Sqlite(row) => {
                let bytes: Option<Vec<u8>> = row.try_get_unchecked(column).map_err(sqlite::explain)?;
                Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
            }
            // A lone surrogate that another program wrote must not break a page.
            RowCells::Mysql(row) => {
                let bytes: Option<Vec<u8>> = row.try_get_unchecked(column).map_err(mysql::explain)?;
                Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
            }
        }
    }
}

impl Readable for i64 {
    fn read(row: &Row, column: usize) -> Result<Option<Self>> {
        match &row.cells {
            RowCells::Postgres(row)
                if row.try_column(column).is_ok_and(|column| column.type_info().name() == "INT4") =>
            {
                let number: Option<i32> = row.try_get(column).map_err(postgres::store_error)?;
                Ok(number.map(Self::from))
            }
            RowCells::Postgres(row) => row.try_get(column).map_err(postgres::store_error),
            RowCells::Sqlite(row) => row.try_get_unchecked(column).map_err(sqlite::explain),
            RowCells::Mysql(row) => row.try_get_unchecked(column).map_err(mysql::explain),
        }
    }
}

/// For counts, which are never negative.
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
        match &row.cells {
            RowCells::Postgres(row) => row.try_get(column).map_err(postgres::store_error),
            RowCells::Sqlite(_) | RowCells::Mysql(_) => {
                Ok(row.maybe::<i64>(column)?.map(|number| number != 0))
            }
        }
    }
}

impl Readable for DateTime<Utc> {
    fn read(row: &Row, column: usize) -> Result<Option<Self>> {
        match &row.cells {
            RowCells::Postgres(row) => row.try_get(column).map_err(postgres::store_error),
            RowCells::Sqlite(_) => {
                let text: Option<String> = row.maybe(column)?;
                Ok(text.and_then(|text| DateTime::parse_from_rfc3339(&text).ok()).map(|time| time.to_utc()))
            }
            RowCells::Mysql(row) => {
                let time: Option<NaiveDateTime> = row.try_get_unchecked(column).map_err(mysql::explain)?;
                Ok(time.map(|time| time.and_utc()))
            }
        }
    }
}

impl Readable for Vec<u8> {
    fn read(row: &Row, column: usize) -> Result<Option<Self>> {
        match &row.cells {
            RowCells::Postgres(row) => row.try_get(column).map_err(postgres::store_error),
            RowCells::Sqlite(row) => row.try_get_unchecked(column).map_err(sqlite::explain),
            RowCells::Mysql(row) => row.try_get_unchecked(column).map_err(mysql::explain),
        }
    }
}

impl Readable for SvixId {
    fn read(row: &Row, column: usize) -> Result<Option<Self>> {
        Ok(row.maybe::<String>(column)?.and_then(Self::new))
    }
}
