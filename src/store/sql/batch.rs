//! Many rows as one parameter.

use chrono::{DateTime, Utc};
use serde_json::Value as Json;

use crate::model::rfc3339;

/// Rows for the part `batch` of a [`Statement`](super::Statement), column by column, in the order in which it names them.
#[derive(Clone, Default)]
pub struct Batch<'a> {
    pub(in crate::store) columns: Vec<Cells<'a>>,
    pub(in crate::store) rows: usize,
}

/// One column. PostgreSQL takes it as an array.
#[derive(Clone)]
pub(in crate::store) enum Cells<'a> {
    Text(Vec<Option<&'a str>>),
    Int(Vec<Option<i64>>),
    Bool(Vec<Option<bool>>),
    Time(Vec<Option<DateTime<Utc>>>),
    Bytes(Vec<&'a [u8]>),
}

impl Batch<'_> {
    /// As a JSON array of rows, each of which is an array; bytes are hexadecimal digits.
    pub(in crate::store) fn json(&self) -> String {
        let cells: Vec<Vec<Json>> = self.columns.iter().map(Cells::json).collect();
        let mut columns: Vec<_> = cells.into_iter().map(Vec::into_iter).collect();
        let row =
            |_| Json::Array(columns.iter_mut().map(|column| column.next().unwrap_or_default()).collect());
        Json::Array((0..self.rows).map(row).collect()).to_string()
    }
}

impl Cells<'_> {
    fn json(&self) -> Vec<Json> {
        match self {
            Self::Text(texts) => texts.iter().map(|text| Json::from(*text)).collect(),
            Self::Int(numbers) => numbers.iter().map(|number| Json::from(*number)).collect(),
            Self::Bool(truths) => truths.iter().map(|truth| Json::from(*truth)).collect(),
            Self::Time(times) => times.iter().map(|time| Json::from(time.map(rfc3339))).collect(),
            Self::Bytes(bytes) => bytes.iter().map(|bytes| Json::from(hex::encode(bytes))).collect(),
        }
    }
}

/// Begin a batch of one row for each of these.
pub(in crate::store) fn batch<T>(items: &[T]) -> Columns<'_, T> {
    Columns { items, batch: Batch { columns: Vec::new(), rows: items.len() } }
}

/// Adds columns to a batch.
pub(in crate::store) struct Columns<'a, T> {
    items: &'a [T],
    batch: Batch<'a>,
}

impl<'a, T> Columns<'a, T> {
    pub(in crate::store) fn text<V: Into<Option<&'a str>>>(self, value: impl Fn(&'a T) -> V) -> Self {
        let cells = Cells::Text(self.items.iter().map(|item| value(item).into()).collect());
        self.with(cells)
    }

    pub(in crate::store) fn int(self, value: impl Fn(&'a T) -> i64) -> Self {
        self.maybe_int(|item| Some(value(item)))
    }

    pub(in crate::store) fn maybe_int(self, value: impl Fn(&'a T) -> Option<i64>) -> Self {
        let cells = Cells::Int(self.items.iter().map(value).collect());
        self.with(cells)
    }

    pub(in crate::store) fn bool<V: Into<Option<bool>>>(self, value: impl Fn(&'a T) -> V) -> Self {
        let cells = Cells::Bool(self.items.iter().map(|item| value(item).into()).collect());
        self.with(cells)
    }

    pub(in crate::store) fn time<V: Into<Option<DateTime<Utc>>>>(self, value: impl Fn(&'a T) -> V) -> Self {
        let cells = Cells::Time(self.items.iter().map(|item| value(item).into()).collect());
        self.with(cells)
    }

    pub(in crate::store) fn bytes(self, value: impl Fn(&'a T) -> &'a [u8]) -> Self {
        let cells = Cells::Bytes(self.items.iter().map(value).collect());
        self.with(cells)
    }

    fn with(mut self, cells: Cells<'a>) -> Self {
        self.batch.columns.push(cells);
        self
    }
}

impl<'a, T> From<Columns<'a, T>> for super::Value<'a> {
    fn from(columns: Columns<'a, T>) -> Self {
        Self::Batch(columns.batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_becomes_an_array_of_rows() {
        let items = [("one", 1), ("two", 2)];
        let batch =
            batch(&items).text(|item| item.0).int(|item| item.1).bytes(|item| item.0.as_bytes()).batch;
        assert_eq!(batch.json(), r#"[["one",1,"6f6e65"],["two",2,"74776f"]]"#);
    }
}
