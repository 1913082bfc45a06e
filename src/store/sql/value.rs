//! Parameters of statements.

use chrono::{DateTime, Utc};

use crate::model::{ClerkId, SvixId};

/// The value of one parameter.
#[derive(Clone)]
pub enum Value<'a> {
    Text(Option<&'a str>),
    Batch(super::Batch<'a>),
    Int(Option<i64>),
    Bool(bool),
    Time(Option<DateTime<Utc>>),
    Bytes(&'a [u8]),
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
