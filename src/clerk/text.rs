//! JSON text that any store can hold.
//!
//! Signed JSON may contain `\u0000` and lone surrogates, but databases refuse them. A client may write them into its own
//! metadata, so they must not block the updates of a user: both become U+FFFD, the replacement character. [`fits_every_store`]
//! rejects metadata with numbers or nesting that some database cannot hold.

use std::borrow::Cow;

/// A body as text; invalid UTF-8 becomes U+FFFD.
pub(super) fn decoded(body: &[u8]) -> Cow<'_, str> {
    // Bodies are nearly always valid, and this check is many times faster than the repair.
    str::from_utf8(body).map_or_else(|_| String::from_utf8_lossy(body), Cow::Borrowed)
}

const REPLACEMENT: &str = r"\ufffd";

/// Replace every escaped NUL and every escaped lone surrogate, in keys and in values. Borrows if there is nothing to replace,
/// which is nearly always the case.
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

/// How deep metadata may be nested: hardly any program, clerk-sync included, reads deeper JSON.
const MOST_NESTED: usize = 127;

/// How many digits a number in metadata may have before the point, and how many after it, written without an exponent. The
/// largest floating-point number has 309 and the smallest 324. PostgreSQL holds more, but writes out each digit.
const MOST_DIGITS: i64 = 1_000;

/// Whether every database can hold this JSON and return it at no more than a fair multiple of its length.
pub(super) fn fits_every_store(json: &str) -> bool {
    let bytes = json.as_bytes();
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(byte) = bytes.get(at) {
        let length = match byte {
            b'"' => length_of_string(&bytes[at..]),
            b'-' | b'0'..=b'9' => {
                let number = &json[at..];
                let end = number.find(|c: char| !matches!(c, '0'..='9' | '+' | '-' | '.' | 'e' | 'E'));
                let number = end.map_or(number, |end| &number[..end]);
                if !is_writable(number) {
                    return false;
                }
                number.len()
            }
            b'[' | b'{' => {
                depth += 1;
                if depth > MOST_NESTED {
                    return false;
                }
                1
            }
            b']' | b'}' => {
                depth = depth.saturating_sub(1);
                1
            }
            _ => 1,
        };
        at += length;
    }
    true
}

/// The length of a string, including both quotation marks.
fn length_of_string(bytes: &[u8]) -> usize {
    let mut at = 1;
    while let Some(next) = bytes.get(at..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest)) {
        at += next;
        if bytes[at] == b'"' {
            return at + 1;
        }
        at += 2;
    }
    bytes.len()
}

/// Whether a number can be written with at most [`MOST_DIGITS`] on either side of its point.
fn is_writable(number: &str) -> bool {
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (whole, fraction) = mantissa.trim_start_matches('-').split_once('.').unwrap_or((mantissa, ""));
    let Ok(exponent) = exponent.parse::<i64>() else { return false };
    let length = |part: &str| i64::try_from(part.len()).unwrap_or(i64::MAX);
    length(whole).saturating_add(exponent) <= MOST_DIGITS
        && length(fraction).saturating_sub(exponent) <= MOST_DIGITS
        && length(whole).max(length(fraction)) <= MOST_DIGITS
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

    #[test]
    fn what_a_database_cannot_hold_is_found_wherever_it_stands() {
        let nested = |depth: usize| format!("{}1{}", r#"{"a":["#.repeat(depth / 2), "]}".repeat(depth / 2));
        let long = |digits: usize| "7".repeat(digits);
        for fits in [
            "17",
            "-0.5e-3",
            "1.7976931348623157e308",
            "5e-324",
            "null",
            r#""1e400000 [[[ \" 1e400000""#,
            r#"{"1e400000":"\\","n":-12345678901234567890123.5}"#,
            &nested(126),
            &long(1_000),
            &format!("0.{}", long(1_000)),
        ] {
            assert!(fits_every_store(fits), "{fits}");
        }
        for beyond in [
            "1e400000",
            "1E+400000",
            "-1e-400000",
            "1e99999999999999999999",
            "0e99999999999999999999",
            r#"{"a":"\\","b":[1,2e131000]}"#,
            "0.00001e1200",
            &nested(128),
            &long(1_001),
            &format!("0.{}", long(1_001)),
            &format!("[{}e-999]", long(1_001)),
        ] {
            assert!(!fits_every_store(beyond), "{beyond}");
            assert!(!fits_every_store(&format!(r#"{{"a":["x",{beyond}]}}"#)), "{beyond}");
        }
    }
}
