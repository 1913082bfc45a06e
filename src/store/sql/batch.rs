//! Many rows as one parameter.

use std::ops::Range;

use chrono::{DateTime, Utc};
use serde_json::Value as Json;

/// Rows for the part `batch` of a [`Statement`](super::Statement), stored by column in the order in which it names them.
#[derive(Clone, Default)]
pub struct Batch<'a> {
    pub(in crate::store) columns: Vec<Cells<'a>>,
    pub(in crate::store) rows: usize,
}

/// One column. PostgreSQL receives it as an array.
#[derive(Clone)]
pub(in crate::store) enum Cells<'a> {
    Text(Vec<Option<&'a str>>),
    Int(Vec<Option<i64>>),
    Bool(Vec<Option<bool>>),
    Time(Vec<Option<DateTime<Utc>>>),
    Bytes(Vec<&'a [u8]>),
}

impl Batch<'_> {
    /// The rows as a JSON array of arrays. `time` formats times; bytes become hexadecimal digits.
    pub(in crate::store) fn json(&self, time: fn(DateTime<Utc>) -> String) -> String {
        let cells: Vec<Vec<Json>> = self.columns.iter().map(|cells| cells.json(time)).collect();
        let mut columns: Vec<_> = cells.into_iter().map(Vec::into_iter).collect();
        let row =
            |_| Json::Array(columns.iter_mut().map(|column| column.next().unwrap_or_default()).collect());
        Json::Array((0..self.rows).map(row).collect()).to_string()
    }
}

impl<'a> Batch<'a> {
    /// The same rows in portions of roughly at most this many bytes as JSON. A larger single row is its own portion. Returns
    /// none if all rows fit into one portion.
    pub(in crate::store) fn portions(&self, bytes: usize) -> Vec<Batch<'a>> {
        let (mut portions, mut start, mut taken) = (Vec::new(), 0, 0);
        for row in 0..self.rows {
            let size: usize = self.columns.iter().map(|cells| cells.size(row)).sum();
            if row > start && taken + size > bytes {
                portions.push(self.portion(start..row));
                (start, taken) = (row, 0);
            }
            taken += size;
        }
        if start > 0 {
            portions.push(self.portion(start..self.rows));
        }
        portions
    }

    fn portion(&self, rows: Range<usize>) -> Batch<'a> {
        let columns = self.columns.iter().map(|cells| cells.portion(rows.clone()));
        Batch { columns: columns.collect(), rows: rows.len() }
    }
}

impl<'a> Cells<'a> {
    fn portion(&self, rows: Range<usize>) -> Cells<'a> {
        match self {
            Self::Text(texts) => Cells::Text(texts[rows].to_vec()),
            Self::Int(numbers) => Cells::Int(numbers[rows].to_vec()),
            Self::Bool(truths) => Cells::Bool(truths[rows].to_vec()),
            Self::Time(times) => Cells::Time(times[rows].to_vec()),
            Self::Bytes(bytes) => Cells::Bytes(bytes[rows].to_vec()),
        }
    }
}

impl Cells<'_> {
    /// The approximate size of one cell as JSON, in bytes.
    fn size(&self, row: usize) -> usize {
        match self {
            Self::Text(texts) => texts[row].map_or(0, str::len),
            Self::Bytes(bytes) => 2 * bytes[row].len(),
            Self::Int(_) | Self::Bool(_) | Self::Time(_) => 24,
        }
    }

    fn json(&self, form: fn(DateTime<Utc>) -> String) -> Vec<Json> {
        match self {
            Self::Text(texts) => texts.iter().map(|text| Json::from(*text)).collect(),
            Self::Int(numbers) => numbers.iter().map(|number| Json::from(*number)).collect(),
            Self::Bool(truths) => truths.iter().map(|truth| Json::from(*truth)).collect(),
            Self::Time(times) => times.iter().map(|time| Json::from(time.map(form))).collect(),
            Self::Bytes(bytes) => bytes.iter().map(|bytes| Json::from(hex::encode(bytes))).collect(),
        }
    }
}

/// Begin a batch with one row for each item.
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
        assert_eq!(batch.json(|time| time.to_rfc3339()), r#"[["one",1,"6f6e65"],["two",2,"74776f"]]"#);
    }

    #[test]
    fn a_large_batch_is_cut_between_rows() {
        let texts = ["one", "two", "three", "four"];
        let batch = batch(&texts).text(|text| *text).batch;
        let cut = |bytes| -> Vec<String> {
            batch.portions(bytes).iter().map(|portion| portion.json(|time| time.to_rfc3339())).collect()
        };
        assert!(cut(100).is_empty());
        assert_eq!(cut(6), [r#"[["one"],["two"]]"#, r#"[["three"]]"#, r#"[["four"]]"#]);
        assert_eq!(cut(1).len(), 4);
    }
}
