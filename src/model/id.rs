//! Identifiers, checked once at the door.

use std::fmt;

/// The longest identifier we keep, in bytes. Clerk's have 32, Svix's 31; an index entry holds about 2,700.
pub const MAX_ID_BYTES: usize = 255;

/// Clerk's id of a user, such as `user_29w83sxmDNGwOuEthce5gg56FcC`. Case matters.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClerkId(String);

impl ClerkId {
    /// `None` if `id` is empty or longer than [`MAX_ID_BYTES`].
    pub fn new(id: impl Into<String>) -> Option<Self> {
        let id = id.into();
        (1..=MAX_ID_BYTES).contains(&id.len()).then_some(Self(id))
    }

    /// The id as Clerk writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The only user that these bytes name, in UTF-8 or UTF-16, if it is only one. For bodies that nobody can read. Clerk's
    /// ids begin with the time and so have digits, which `user_agent` and its like have not.
    pub fn only_one_in(bytes: &[u8]) -> Option<Self> {
        const PREFIX: &[u8] = b"user_";
        let text: Vec<u8> = bytes.iter().copied().filter(|byte| *byte != 0).collect();
        let ids = text.windows(PREFIX.len()).enumerate().filter(|(_, window)| *window == PREFIX);
        let mut ids = ids.filter_map(|(start, _)| {
            let rest = &text[start + PREFIX.len()..];
            let length = rest.iter().take_while(|byte| byte.is_ascii_alphanumeric()).count();
            let id = &text[start..start + PREFIX.len() + length];
            let is_id = id.iter().any(u8::is_ascii_digit);
            is_id.then(|| String::from_utf8_lossy(id).into_owned())
        });
        let first = ids.next()?;
        if ids.all(|id| id == first) { Self::new(first) } else { None }
    }

    /// Whether these bytes name exactly this id, and not merely a longer one that contains it.
    pub fn is_named_in(&self, bytes: &[u8]) -> bool {
        let id = self.0.as_bytes();
        let part_of_an_id =
            |at: usize| bytes.get(at).is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
        // The letter of an escape such as `\n` belongs to no id.
        let escaped = |at: usize| at > 0 && bytes[at - 1] == b'\\';
        bytes.windows(id.len()).enumerate().any(|(start, window)| {
            let begins = start == 0 || !part_of_an_id(start - 1) || escaped(start - 1);
            window == id && begins && !part_of_an_id(start + id.len())
        })
    }
}

/// Svix's id of a message (`svix-id`): the same over retries and replays of one event.
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
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )+};
}
show_as_text!(ClerkId, SvixId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_named_only_where_it_stands_alone() {
        let id = ClerkId::new("user_1").expect("valid");
        assert!(id.is_named_in(br#"{"id":"user_1","#));
        assert!(id.is_named_in(b"user_1"));
        assert!(!id.is_named_in(br#"{"id":"user_12"}"#));
        assert!(!id.is_named_in(br#"{"id":"superuser_1"}"#));
        assert!(id.is_named_in(br#""user_12","user_1""#));
        assert!(id.is_named_in(br#""see\nuser_1""#));
    }

    #[test]
    fn a_body_that_names_one_user_is_about_them() {
        let only = |bytes: &[u8]| ClerkId::only_one_in(bytes).map(|id| id.as_str().to_owned());
        assert_eq!(only(br#"{"id":"user_1","again":"user_1"#), Some("user_1".to_owned()));
        assert_eq!(only(br#"["user_1","user_2"]"#), None);
        assert_eq!(only(br#"{"id":"user_1","user_agent":"curl"#), Some("user_1".to_owned()));
        assert_eq!(only(b"u\0s\0e\0r\0_\x001\0\"\0"), Some("user_1".to_owned()));
        assert_eq!(only(br#"{"type":"user_"}"#), None);
        assert_eq!(only(b""), None);
    }

    #[test]
    fn ids_that_no_index_can_hold_are_refused() {
        assert!(ClerkId::new("").is_none());
        assert!(ClerkId::new("x".repeat(256)).is_none());
        assert!(SvixId::new("msg 1").is_none());
        assert!(SvixId::new("msg_é").is_none());
        assert!(SvixId::new("msg_1").is_some());
    }
}
