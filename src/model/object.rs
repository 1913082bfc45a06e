//! An object as the database stores it, and the patches that change it.

use std::{fmt, ops::Index};

use chrono::{DateTime, Utc};

use super::{Anonymized, ClerkId, Field, FieldSet, rfc3339};

/// The value of one synced field.
#[derive(Clone, Default)]
pub enum Value {
    #[default]
    Null,
    Text(String),
    Int(i64),
    Bool(bool),
    Time(DateTime<Utc>),
    /// JSON text. Two texts are equal if they have the same meaning.
    Json(String),
}

impl Value {
    /// The value of a text field.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The value of an integer field.
    pub fn int(&self) -> Option<i64> {
        match self {
            Self::Int(number) => Some(*number),
            _ => None,
        }
    }

    /// The value of a boolean field.
    pub fn bool(&self) -> Option<bool> {
        match self {
            Self::Bool(truth) => Some(*truth),
            _ => None,
        }
    }

    /// The value of a time field.
    pub fn time(&self) -> Option<DateTime<Utc>> {
        match self {
            Self::Time(time) => Some(*time),
            _ => None,
        }
    }

    /// The JSON text of a metadata field.
    pub fn json(&self) -> Option<&str> {
        match self {
            Self::Json(json) => Some(json),
            _ => None,
        }
    }
}

impl Value {
    /// The value in messages to other systems; `None` for JSON that is nested too deep for the parser.
    pub fn to_json(&self) -> Option<serde_json::Value> {
        Some(match self {
            Self::Null => serde_json::Value::Null,
            Self::Text(text) => text.as_str().into(),
            Self::Int(number) => (*number).into(),
            Self::Bool(truth) => (*truth).into(),
            Self::Time(time) => rfc3339(*time).into(),
            Self::Json(json) => serde_json::from_str(json).ok()?,
        })
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Text(a), Self::Text(b)) => a == b,
            (Self::Int(a), Self::Int(b)) => a == b,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Time(a), Self::Time(b)) => a == b,
            (Self::Json(a), Self::Json(b)) => a == b || json::means_the_same(a, b),
            _ => false,
        }
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Null => "null",
            Self::Text(_) => "text",
            Self::Int(_) => "int",
            Self::Bool(_) => "bool",
            Self::Time(_) => "time",
            Self::Json(_) => "json",
        })
    }
}

/// All synced fields of an object: one value per [`Field`], `Null` if it has none.
#[derive(Clone, Debug, Default)]
pub struct Profile(Vec<Value>);

impl Profile {
    /// Replaces the value of one field.
    pub fn set(&mut self, field: Field, value: Value) {
        if self.0.len() <= field.place() {
            self.0.resize_with(field.entity().columns.len(), Value::default);
        }
        self.0[field.place()] = value;
    }

    /// Applies a patch and returns the fields whose values changed, in the order of the columns.
    pub fn apply(&mut self, patch: &Patch, allowed: FieldSet) -> Vec<Field> {
        let news = patch.0.iter().filter(|(field, value)| allowed.contains(*field) && self[*field] != *value);
        let news: Vec<(Field, Value)> = news.cloned().collect();
        let mut changed: Vec<Field> = news.iter().map(|(field, _)| *field).collect();
        changed.sort_unstable();
        for (field, value) in news {
            self.set(field, value);
        }
        changed
    }
}

impl Index<Field> for Profile {
    type Output = Value;

    fn index(&self, field: Field) -> &Value {
        self.0.get(field.place()).unwrap_or(&Value::Null)
    }
}

impl PartialEq for Profile {
    fn eq(&self, other: &Self) -> bool {
        let value = |profile: &Self, place: usize| profile.0.get(place).cloned().unwrap_or_default();
        (0..self.0.len().max(other.0.len())).all(|place| value(self, place) == value(other, place))
    }
}

/// The values in an event. A field that is absent keeps its stored value; `Null` clears it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Patch(Vec<(Field, Value)>);

impl Patch {
    /// Sets the new value of `field`.
    pub fn set(&mut self, field: Field, value: Value) {
        self.0.retain(|(other, _)| *other != field);
        self.0.push((field, value));
    }

    /// Whether it contains no fields. The raw object does not count.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|(field, _)| field.is_raw())
    }

    /// The new value of `field`; `None` if the patch does not contain it.
    pub fn get(&self, field: Field) -> Option<&Value> {
        self.0.iter().find(|(other, _)| *other == field).map(|(_, value)| value)
    }
}

/// A row of an object, without the columns that belong to the application.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    pub clerk_id: ClerkId,
    pub profile: Profile,
    /// When the object was created, by Clerk's clock, if known.
    pub created_at: Option<DateTime<Utc>>,
    /// When the object last changed, by Clerk's clock. The epoch if unknown, which is NULL in the database.
    pub updated_at: DateTime<Utc>,
    /// When clerk-sync last wrote the row because of new data.
    pub synced_at: DateTime<Utc>,
    /// Set when the row is anonymised, or earlier by the application.
    pub deleted_at: Option<DateTime<Utc>>,
}

impl Object {
    /// When the object last changed, by Clerk's clock, if known.
    pub fn known_updated_at(&self) -> Option<DateTime<Utc>> {
        (self.updated_at != DateTime::UNIX_EPOCH).then_some(self.updated_at)
    }

    /// Whether the row is anonymised. The deletion mark is not enough, because a row with a delayed erasure has it too. The
    /// address is not enough either, because any user may have one of that form.
    pub fn is_anonymized(&self) -> bool {
        let is_empty = |field: Field| match field.anonymized {
            Anonymized::Kept => true,
            Anonymized::Null => self.profile[field] == Value::Null,
            Anonymized::Text(text) => self.profile[field].text() == Some(text),
            Anonymized::Address => self.profile[field].text().is_some_and(is_anonymous_address),
        };
        self.deleted_at.is_some() && self.clerk_id.entity().telling().all(is_empty)
    }
}

/// Whether the address has the form of [`Anonymized::Address`].
fn is_anonymous_address(email: &str) -> bool {
    let number = email.strip_prefix("deleted-").and_then(|rest| rest.strip_suffix("@anonymized.local"));
    number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
}

mod json {
    //! Compares JSON by meaning: key order, white space and the notation of numbers do not matter.

    use serde_json::Value;

    use super::Decimal;

    pub(super) fn means_the_same(a: &str, b: &str) -> bool {
        match (serde_json::from_str(a), serde_json::from_str(b)) {
            (Ok(a), Ok(b)) => same(&a, &b),
            // JSON that is nested too deep for the parser counts as different and is written.
            _ => false,
        }
    }

    fn same(a: &Value, b: &Value) -> bool {
        match (a, b) {
            (Value::Array(a), Value::Array(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
            }
            (Value::Object(a), Value::Object(b)) => {
                a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
            }
            (Value::Number(a), Value::Number(b)) => {
                a == b || Decimal::parse(a.as_str()) == Decimal::parse(b.as_str())
            }
            _ => a == b,
        }
    }
}

/// An exact decimal number of any size.
#[derive(PartialEq, Eq)]
pub(crate) struct Decimal {
    pub(crate) negative: bool,
    /// The significant digits; empty for zero.
    pub(crate) digits: String,
    /// The power of ten of the last digit.
    pub(crate) power: i128,
}

impl Decimal {
    /// Parses a number in JSON notation; `None` if it is not a number.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all = [whole, fraction].concat();
        if all.is_empty() || !all.bytes().all(|digit| digit.is_ascii_digit()) {
            return None;
        }
        let digits = all.trim_end_matches('0');
        let trailing_zeros = all.len() - digits.len();
        let digits = digits.trim_start_matches('0').to_owned();
        if digits.is_empty() {
            return Some(Self { negative: false, digits, power: 0 });
        }
        let exponent = exponent.parse::<i64>().unwrap_or(i64::MAX);
        let power = i128::from(exponent) - fraction.len() as i128 + trailing_zeros as i128;
        Some(Self { negative, digits, power })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Column, Entity, Holds};

    fn json(text: &str) -> Value {
        Value::Json(text.to_owned())
    }

    #[test]
    fn json_is_compared_by_meaning() {
        assert_eq!(json(r#"{"a":1,"b":[true,null]}"#), json(r#"{ "b": [true, null], "a": 1.0 }"#));
        assert_eq!(json("1e2"), json("100"));
        assert_eq!(json("-0"), json("0.00"));
        assert_ne!(json("12345678901234567890123"), json("12345678901234567890124"));
        assert_ne!(json("0.1"), json("0.10000000000000001"));
        assert_ne!(json("1"), json("-1"));
        assert_ne!(json("[1,2]"), json("[2,1]"));
    }

    #[test]
    fn json_too_deep_to_compare_counts_as_different_unless_it_is_the_same_text() {
        let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
        assert_eq!(json(&deep), json(&deep));
        assert_ne!(json(&deep), json(&format!(" {deep}")));
    }

    static PERSON: Entity = Entity {
        kind: "person",
        table: "people",
        id_prefix: "user_",
        events: ["person.created", "person.updated", "person.deleted"],
        also: &[],
        path: None,
        query: &[],
        within: None,
        of_each: &[],
        has_one: false,
        columns: &[
            Column::new("email", Holds::Text).identifies().anonymized(Anonymized::Address),
            Column::new("name", Holds::Text).identifies().anonymized(Anonymized::Text("Deleted")),
            Column::new("phone", Holds::Text).identifies(),
            Column::new("banned", Holds::Bool),
        ],
        nested: &[],
        secrets: &[],
        follows: &[],
        has_preferences: false,
        unique: &[],
    };
    const EMAIL: Field = PERSON.field("email");
    const NAME: Field = PERSON.field("name");
    const PHONE: Field = PERSON.field("phone");

    #[test]
    fn a_patch_changes_only_what_is_allowed_and_differs() {
        let allowed: FieldSet = [EMAIL, NAME].into_iter().collect();
        let mut profile = Profile::default();
        profile.set(NAME, Value::Text("Ada".to_owned()));
        let mut patch = Patch::default();
        patch.set(PHONE, Value::Text("+15555550100".to_owned()));
        patch.set(NAME, Value::Text("Ada".to_owned()));
        patch.set(EMAIL, Value::Text("ada@example.com".to_owned()));

        assert_eq!(profile.apply(&patch, allowed), vec![EMAIL]);
        assert_eq!(profile[PHONE], Value::Null);
        patch.set(NAME, Value::Null);
        patch.set(EMAIL, Value::Null);
        assert_eq!(profile.apply(&patch, allowed), vec![EMAIL, NAME]);
        assert_eq!(profile, Profile::default());
    }

    #[test]
    fn only_a_row_with_nothing_left_in_it_is_anonymised() {
        let at = DateTime::from_timestamp_millis(0).expect("in range");
        let mut user = Object {
            clerk_id: ClerkId::new(&PERSON, "user_1").expect("valid"),
            profile: Profile::default(),
            created_at: None,
            updated_at: at,
            synced_at: at,
            deleted_at: Some(at),
        };
        user.profile.set(NAME, Value::Text("Deleted".to_owned()));
        user.profile.set(EMAIL, Value::Text("ada@anonymized.local".to_owned()));
        assert!(!user.is_anonymized());
        user.profile.set(EMAIL, Value::Text("deleted-17@anonymized.local".to_owned()));
        assert!(user.is_anonymized());
        assert!(!Object { deleted_at: None, ..user.clone() }.is_anonymized());
        user.profile.set(PHONE, Value::Text("+15555550100".to_owned()));
        assert!(!user.is_anonymized());
    }

    #[test]
    fn debug_output_shows_no_values() {
        let value = Value::Text("ada@example.com".to_owned());
        assert_eq!(format!("{value:?}"), "text");
    }
}
