//! JSON text that any store can hold.
//!
//! `\u0000` and lone surrogates are legal in signed JSON and refused by databases. A client may write them into
//! its own metadata, so they must not be able to freeze a user: both become U+FFFD, the replacement character.

use std::borrow::Cow;

/// A body as text; what is no UTF-8 becomes U+FFFD.
pub(super) fn decoded(body: &[u8]) -> Cow<'_, str> {
    // Nearly always valid, and this check is many times faster than the repair.
    str::from_utf8(body).map_or_else(|_| String::from_utf8_lossy(body), Cow::Borrowed)
}

const REPLACEMENT: &str = r"\ufffd";

/// Replace every escaped NUL and every escaped lone surrogate, in keys and in values.
/// Borrows if there is nothing to do, which is nearly always.
pub(super) fn storable(json: &str) -> Cow<'_, str> {
    let bytes = json.as_bytes();
    let mut clean = String::new();
    let mut copied = 0;
    let mut at = 0;
    let next_backslash = |from: usize| Some(from + memchr::memchr(b'\\', bytes.get(from..)?)?);
    while let Some(backslash) = next_backslash(at) {
        at = backslash + 2; // an escape is two bytes, `\\` included
        let Some(unit) = escaped_unit(bytes, backslash) else { continue };
        at = backslash + 6;
        let bad = match unit {
            0xD800..=0xDBFF if matches!(escaped_unit(bytes, at), Some(0xDC00..=0xDFFF)) => {
                at += 6;
                false
            }
            0 | 0xD800..=0xDFFF => true,
            _ => false,
        };
        if bad {
            clean.push_str(&json[copied..backslash]);
            clean.push_str(REPLACEMENT);
            copied = at;
        }
    }
    if copied == 0 {
        return Cow::Borrowed(json);
    }
    clean.push_str(&json[copied..]);
    Cow::Owned(clean)
}

/// The UTF-16 unit of a `\uXXXX` that starts here.
fn escaped_unit(bytes: &[u8], at: usize) -> Option<u16> {
    let escape = bytes.get(at..at + 6)?;
    let hex = escape.strip_prefix(br"\u").filter(|hex| hex.iter().all(u8::is_ascii_hexdigit))?;
    u16::from_str_radix(str::from_utf8(hex).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nul_and_lone_surrogates_become_replacement_characters() {
        for (json, expected) in [
            (r#""a\u0000b""#, r#""a\ufffdb""#),
            (r#""\ud800""#, r#""\ufffd""#),
            (r#""\udc00\ud83d""#, r#""\ufffd\ufffd""#),
            (r#""\ud83dx""#, r#""\ufffdx""#),
            (r#""\ud83d\ud83d\ude00""#, r#""\ufffd\ud83d\ude00""#),
            (r#"{"\u0000":1}"#, r#"{"\ufffd":1}"#),
        ] {
            assert_eq!(storable(json), expected);
        }
    }

    #[test]
    fn everything_else_is_left_as_it_is() {
        for json in [
            r#""\ud83d\ude00""#,
            r#""\\u0000""#,
            r#""\\\\ud800""#,
            r#""\n\t\"\u00e9""#,
            r#""\u00"#,
            r#""\"#,
            r#""\uzzzz""#,
            "",
            "é",
        ] {
            assert!(matches!(storable(json), Cow::Borrowed(same) if same == json), "{json}");
        }
        assert_eq!(storable(r#""\\\u0000""#), r#""\\\ufffd""#);
    }
}
