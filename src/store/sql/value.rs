//! What statements are given.

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::{
    model::{ClerkId, SvixId},
    store::{Result, StoreError, Trouble},
};

/// The value of one parameter.
#[derive(Clone)]
pub enum Value<'a> {
    Text(Option<&'a str>),
    /// The same, made for this statement: many rows travel as one JSON text.
    Rows(String),
    Batch(super::Batch<'a>),
    Int(Option<i64>),
    Bool(bool),
    Time(Option<DateTime<Utc>>),
    Bytes(&'a [u8]),
}

/// Many rows as one parameter, for the parts `list` and `rows` of a [`Statement`](super::Statement). Times in them are
/// written as [`rfc3339`](crate::model::rfc3339) does.
pub(in crate::store) fn list<T: Serialize>(rows: impl IntoIterator<Item = T>) -> Result<Value<'static>> {
    let rows: Vec<T> = rows.into_iter().collect();
    serde_json::to_string(&rows).map(Value::Rows).map_err(|_| StoreError::new(Trouble::BadData))
}

/// The parameters of a statement, in the order of their numbers.
macro_rules! values {
    ($($value:expr),* $(,)?) => { &[$($crate::store::sql::Value::from($value)),*] };
}
pub(in crate::store) use values;

macro_rules! from {
    ($($type:ty => |$value:ident| $made:expr;)+) => {
        $(impl<'a> From<$type> for Value<'a> {
            fn from($value: $type) -> Self {
                $made
            }
        })+
    };
}

from! {
    &'a str => |text| Value::Text(Some(text));
    &'a String => |text| Value::Text(Some(text));
    Option<&'a str> => |text| Value::Text(text);
    &'a Option<String> => |text| Value::Text(text.as_deref());
    &'a ClerkId => |id| Value::Text(Some(id.as_str()));
    Option<&'a ClerkId> => |id| Value::Text(id.map(ClerkId::as_str));
    &'a SvixId => |id| Value::Text(Some(id.as_str()));
    Option<&'a SvixId> => |id| Value::Text(id.map(SvixId::as_str));
    i64 => |number| Value::Int(Some(number));
    Option<i64> => |number| Value::Int(number);
    u32 => |number| Value::Int(Some(number.into()));
    bool => |truth| Value::Bool(truth);
    DateTime<Utc> => |time| Value::Time(Some(time));
    Option<DateTime<Utc>> => |time| Value::Time(time);
    &'a [u8] => |bytes| Value::Bytes(bytes);
}
