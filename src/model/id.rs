//! Identifiers, checked once on input.

use std::{borrow::Cow, collections::BTreeSet, fmt};

use serde::{Serialize, Serializer};

use super::Entity;

/// The maximum length of an identifier, in bytes. Clerk's have 32, Svix's 31; an index entry holds about 2,700.
pub const MAX_ID_BYTES: usize = 255;

/// Clerk's id of an object, such as `user_29w83sxmDNGwOuEthce5gg56FcC`, with the kind of the object. Case matters.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClerkId(&'static Entity, String);

impl ClerkId {
    /// `None` if `id` is empty or longer than [`MAX_ID_BYTES`].
    pub fn new(entity: &'static Entity, id: impl Into<String>) -> Option<Self> {
        let id = id.into();
        (1..=MAX_ID_BYTES).contains(&id.len()).then_some(Self(entity, id))
    }

    /// The kind of the object.
    pub fn entity(&self) -> &'static Entity {
        self.0
    }

    /// The id as Clerk writes it.
    pub fn as_str(&self) -> &str {
        &self.1
    }

    /// Whether these bytes contain exactly this id, not only a longer one that includes it. They may be UTF-8 or UTF-16 text with
    /// JSON escapes.
    pub fn is_named_in(&self, bytes: &[u8]) -> bool {
        let id = self.1.as_bytes();
        let bytes = &plain(bytes)[..];
        let part_of_an_id =
            |at: usize| bytes.get(at).is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
        // The letter of an escape such as `\n` is not part of an id.
        let escaped = |at: usize| at > 0 && bytes[at - 1] == b'\\';
        bytes.windows(id.len()).enumerate().any(|(start, window)| {
            let begins = start == 0 || !part_of_an_id(start - 1) || escaped(start - 1);
            window == id && begins && !part_of_an_id(start + id.len())
        })
    }

    /// Byte sequences that look like an id of this kind in an unreadable body: up to `at_most`, sorted.
    pub fn candidates_in(entity: &'static Entity, bytes: &[u8], at_most: usize) -> Vec<Self> {
        let prefix = entity.id_prefix.as_bytes();
        let bytes = &plain(bytes)[..];
        let starts = bytes.windows(prefix.len()).enumerate().filter(|(_, window)| *window == prefix);
        let ids = starts.filter_map(|(start, _)| {
            let length =
                bytes[start..].iter().take_while(|b| b.is_ascii_alphanumeric() || **b == b'_').count();
            Self::new(entity, String::from_utf8_lossy(&bytes[start..start + length]))
        });
        ids.collect::<BTreeSet<_>>().into_iter().take(at_most).collect()
    }
}

/// Removes the NULs of UTF-16 and decodes JSON escapes of ASCII.
fn plain(bytes: &[u8]) -> Cow<'_, [u8]> {
    let has_escapes = bytes.windows(2).any(|pair| pair == br"\u");
    if !has_escapes && !bytes.contains(&0) {
        return Cow::Borrowed(bytes);
    }
    let bytes: Vec<u8> = bytes.iter().copied().filter(|byte| *byte != 0).collect();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut rest = &bytes[..];
    while let Some((first, after)) = rest.split_first() {
        let escape = rest.get(..6).and_then(|escape| escape.strip_prefix(br"\u00"));
        let letter = escape.and_then(|hex| u8::from_str_radix(str::from_utf8(hex).ok()?, 16).ok());
        plain.push(letter.unwrap_or(*first));
        rest = if letter.is_some() { &rest[6..] } else { after };
    }
    Cow::Owned(plain)
}

/// Svix's id of a message (`svix-id`); the same for all retries and replays of one event.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SvixId(String);

impl SvixId {
    /// `None` unless `id` is 1 to [`MAX_ID_BYTES`] visible ASCII characters.
    pub fn new(id: impl Into<String>) -> Option<Self> {
        let id = id.into();
        let plausible = (1..=MAX_ID_BYTES).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic());
        plausible.then_some(Self(id))
    }

    /// The id as Svix writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! show_as_text {
    ($($id:ty),+) => {$(
        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Serialize for $id {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl fmt::Debug for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    )+};
}
show_as_text!(ClerkId, SvixId);

#[cfg(test)]
mod tests {
    use super::*;

    static PERSON: Entity = Entity {
        kind: "person",
        table: "people",
        id_prefix: "user_",
        events: ["", "", ""],
        also: &[],
        path: None,
        query: &[],
        within: None,
        of_each: &[],
        has_one: false,
        columns: &[],
        nested: &[],
        secrets: &[],
        follows: &[],
        has_preferences: false,
        unique: &[],
    };

    #[test]
    fn an_id_is_named_only_where_it_stands_alone() {
        let id = ClerkId::new(&PERSON, "user_1").expect("valid");
        assert!(id.is_named_in(br#"{"id":"user_1","#));
        assert!(id.is_named_in(b"user_1"));
        assert!(!id.is_named_in(br#"{"id":"user_12"}"#));
        assert!(!id.is_named_in(br#"{"id":"superuser_1"}"#));
        assert!(id.is_named_in(br#""user_12","user_1""#));
        assert!(id.is_named_in(br#""see\nuser_1""#));
    }

    #[test]
    fn an_id_is_found_however_it_is_written() {
        let id = ClerkId::new(&PERSON, "user_1").expect("valid");
        assert!(id.is_named_in(b"u\0s\0e\0r\0_\x001\0\"\0"));
        assert!(id.is_named_in(br#"{"id":"user\u005F1"}"#));
        assert!(id.is_named_in(br#"{"a":"\u00e9\u","id":"\u0075ser_\u0031"}"#));
        assert!(!id.is_named_in(br#"{"id":"user\u005f12"}"#));
        let ids = |bytes: &[u8]| {
            ClerkId::candidates_in(&PERSON, bytes, 3)
                .iter()
                .map(|id| id.as_str().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            ids(br#"{"id":"user_2","user_agent":"x","a":["user_1","user_2"]"#),
            ["user_1", "user_2", "user_agent"]
        );
        assert_eq!(ids(b"u\0s\0e\0r\0_\x001\0\"\0"), ["user_1"]);
        assert_eq!(ids(b"user_1 user_2 user_3 user_4").len(), 3);
        assert!(ids(b"").is_empty());
    }

    #[test]
    fn ids_that_no_index_can_hold_are_refused() {
        assert!(ClerkId::new(&PERSON, "").is_none());
        assert!(ClerkId::new(&PERSON, "x".repeat(256)).is_none());
        assert!(SvixId::new("msg 1").is_none());
        assert!(SvixId::new("msg_é").is_none());
        assert!(SvixId::new("msg_1").is_some());
    }
}
