//! Seals over the audit trail: SHA-256 over its lines and the seal before.
//!
//! The hashed form is unambiguous: it contains the type and the length of every value. It is the same for every database. It must
//! never change, because existing seals would no longer match their lines.

use std::{fmt, str::FromStr};

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};

/// One value of a line, as stored in its column.
#[derive(Clone, Debug)]
pub enum Cell<'a> {
    Null,
    /// UTF-8.
    Text(&'a [u8]),
    /// Unix microseconds.
    Time(i64),
    List(Vec<Option<String>>),
    /// A value that this column cannot have, in the database's bytes: the line was tampered with.
    Odd(&'a [u8]),
}

impl Cell<'_> {
    /// Parses the JSON text of a list. Only the form that clerk-sync writes is accepted, so that each list has a single form.
    #[must_use]
    pub fn listed(self) -> Self {
        let Self::Text(text) = self else { return self };
        let list: Option<Vec<Option<String>>> = serde_json::from_slice(text).ok();
        let list = list.filter(|list| serde_json::to_vec(list).is_ok_and(|again| again == text));
        list.map_or(Self::Odd(text), Self::List)
    }

    fn write(&self, text: &mut Vec<u8>) {
        match self {
            Self::Null => text.push(0),
            Self::Text(value) => write_bytes(text, 1, value),
            Self::Time(micros) => {
                text.push(2);
                text.extend_from_slice(&micros.to_be_bytes());
            }
            Self::List(values) => {
                text.push(3);
                text.extend_from_slice(&(values.len() as u64).to_be_bytes());
                for value in values {
                    let value = value.as_deref().map_or(Cell::Null, |value| Cell::Text(value.as_bytes()));
                    value.write(text);
                }
            }
            Self::Odd(value) => write_bytes(text, 4, value),
        }
    }
}

fn write_bytes(text: &mut Vec<u8>, kind: u8, value: &[u8]) {
    text.push(kind);
    text.extend_from_slice(&(value.len() as u64).to_be_bytes());
    text.extend_from_slice(value);
}

/// The id and the hash of a line of `audit_log`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineHash {
    pub id: i64,
    hash: [u8; 32],
}

impl LineHash {
    /// Hashes the line with this id and, in this order, `at`, `action`, `clerk_id`, `svix_id`, `source`, `changed_fields` and
    /// `event_at`, and with the kind of its object.
    pub fn of(id: i64, cells: &[Cell<'_>; 7], kind: &Cell<'_>) -> Self {
        // Lines had no kind when all of them were about users.
        let is_of_a_user = matches!(kind, Cell::Text(b"user"));
        let mut text = Vec::with_capacity(320);
        text.extend_from_slice(if is_of_a_user { b"clerk-sync line 1" } else { b"clerk-sync line 2" });
        text.extend_from_slice(&id.to_be_bytes());
        for cell in cells.iter().chain((!is_of_a_user).then_some(kind)) {
            cell.write(&mut text);
        }
        Self { id, hash: Sha256::digest(&text).into() }
    }
}

/// A range of ids, including both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    pub first: i64,
    pub last: i64,
}

impl fmt::Display for Ids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, last } = self;
        if first == last { write!(f, "{first}") } else { write!(f, "{first}-{last}") }
    }
}

impl Ids {
    /// The ids from `first` to `last` that are missing in `ids`, which must be sorted.
    pub fn missing(first: i64, last: i64, ids: impl IntoIterator<Item = i64>) -> Vec<Self> {
        if first > last {
            return Vec::new();
        }
        Self::without(&[Self { first, last }], &Self::gathered(ids))
    }

    /// The ids in `these` that are not in `others`. Both must be sorted, without adjacent ranges.
    pub fn without(these: &[Self], others: &[Self]) -> Vec<Self> {
        let mut left = Vec::new();
        for range in these {
            let mut next = range.first;
            for other in others.iter().filter(|other| other.last >= range.first && other.first <= range.last)
            {
                if other.first > next {
                    left.push(Self { first: next, last: other.first - 1 });
                }
                next = other.last.saturating_add(1);
            }
            if next <= range.last {
                left.push(Self { first: next, last: range.last });
            }
        }
        left
    }

    /// Combines single ids into ranges.
    pub fn gathered(ids: impl IntoIterator<Item = i64>) -> Vec<Self> {
        let mut gathered: Vec<Self> = Vec::new();
        for id in ids {
            match gathered.last_mut() {
                Some(range) if range.last.checked_add(1) == Some(id) => range.last = id,
                _ => gathered.push(Self { first: id, last: id }),
            }
        }
        gathered
    }

    /// The text form, such as `18 22-25`.
    pub fn text(ranges: &[Self]) -> String {
        ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    /// Parses the text form; `None` if it is invalid.
    pub fn parse(text: &str) -> Option<Vec<Self>> {
        let range = |word: &str| {
            let (first, last) = word.split_once('-').unwrap_or((word, word));
            Some(Self { first: first.parse().ok()?, last: last.parse().ok()? })
        };
        let ranges: Option<Vec<Self>> = text.split_whitespace().map(range).collect();
        ranges.filter(|ranges| {
            ranges.iter().all(|range| range.first <= range.last)
                && ranges.windows(2).all(|pair| pair[0].last < pair[1].first)
        })
    }
}

/// A row of `audit_seals`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seal {
    /// 1, 2, 3, …
    pub number: i64,
    /// In whole milliseconds.
    pub sealed_at: DateTime<Utc>,
    pub first_id: i64,
    pub last_id: i64,
    pub lines: i64,
    /// Unused ids between the first and the last.
    pub gaps: String,
    /// SHA-256 over the lines.
    pub content: String,
    /// The hash of the seal before.
    pub previous: String,
    /// SHA-256 over all other fields.
    pub hash: String,
}

impl Seal {
    /// The maximum number of lines per seal. To find a changed line, an operator has to check only these.
    pub const LINES: usize = 100;

    /// The seals over these lines, which follow the lines of the newest seal.
    pub fn chain(newest: Option<&Self>, lines: &[LineHash], at: DateTime<Utc>) -> Vec<Self> {
        let mut seals: Vec<Self> = Vec::with_capacity(lines.len().div_ceil(Self::LINES));
        for lines in lines.chunks(Self::LINES) {
            seals.extend(Self::next(seals.last().or(newest), lines, at));
        }
        seals
    }

    fn next(before: Option<&Self>, lines: &[LineHash], at: DateTime<Utc>) -> Option<Self> {
        let (first, last) = (lines.first()?, lines.last()?);
        let mut seal = Self {
            number: before.map_or(0, |before| before.number) + 1,
            sealed_at: DateTime::from_timestamp_millis(at.timestamp_millis()).unwrap_or(at),
            first_id: first.id,
            last_id: last.id,
            lines: lines.len().try_into().unwrap_or(i64::MAX),
            gaps: Ids::text(&Ids::missing(first.id, last.id, lines.iter().map(|line| line.id))),
            content: Self::content_of(lines),
            previous: Self::previous_of(before),
            hash: String::new(),
        };
        seal.hash = seal.hash_of_all();
        Some(seal)
    }

    /// The value of `previous` in the seal after this one.
    pub fn previous_of(before: Option<&Self>) -> String {
        before.map_or_else(|| "0".repeat(64), |before| before.hash.clone())
    }

    /// The value of `content` for these lines.
    pub fn content_of(lines: &[LineHash]) -> String {
        let mut hash = Sha256::new();
        hash.update(b"clerk-sync lines 1");
        for line in lines {
            hash.update(line.hash);
        }
        hex::encode(hash.finalize())
    }

    /// The correct value of `hash` for the other fields.
    pub fn hash_of_all(&self) -> String {
        let mut text = b"clerk-sync seal 1".to_vec();
        for number in
            [self.number, self.sealed_at.timestamp_millis(), self.first_id, self.last_id, self.lines]
        {
            text.extend_from_slice(&number.to_be_bytes());
        }
        for value in [&self.gaps, &self.content, &self.previous] {
            write_bytes(&mut text, 1, value.as_bytes());
        }
        hex::encode(Sha256::digest(&text))
    }

    /// The part of this seal to store elsewhere.
    pub fn mark(&self) -> Mark {
        Mark { number: self.number, hash: self.hash.clone() }
    }
}

/// Number and hash of a seal, which identify it: `17:2c26…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    pub number: i64,
    pub hash: String,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.number, self.hash)
    }
}

impl FromStr for Mark {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "a seal is written as its number, a colon and 64 hexadecimal digits";
        let (number, hash) = text.trim().split_once(':').ok_or(FORM)?;
        let number = number.parse().ok().filter(|number| *number > 0).ok_or(FORM)?;
        if hash.len() != 64 || !hash.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(FORM);
        }
        Ok(Self { number, hash: hash.to_ascii_lowercase() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(id: i64) -> LineHash {
        cells(id, b"USER_CREATED", b"user_1")
    }

    fn cells(id: i64, action: &[u8], clerk_id: &[u8]) -> LineHash {
        let fields = Cell::List(vec![Some("email".to_owned()), None]);
        let cells = [
            Cell::Time(1_767_225_600_000_123),
            Cell::Text(action),
            Cell::Text(clerk_id),
            Cell::Null,
            Cell::Text(b"webhook"),
            fields,
            Cell::Time(0),
        ];
        LineHash::of(id, &cells, &Cell::Text(b"user"))
    }

    fn seal(lines: &[LineHash]) -> Seal {
        Seal::chain(None, lines, DateTime::UNIX_EPOCH).remove(0)
    }

    /// The form that existing seals in databases were computed from.
    #[test]
    fn a_list_has_one_form() {
        assert!(matches!(Cell::Text(b"[\"email\"]").listed(), Cell::List(_)));
        assert!(matches!(Cell::Text(b"[]").listed(), Cell::List(_)));
        for other in [b"[ \"email\"]".as_slice(), b"{}", b"\"email\"", b"[\"e\\u006dail\"]", b""] {
            assert!(matches!(Cell::Text(other).listed(), Cell::Odd(_)));
        }
    }

    #[test]
    fn what_is_hashed_never_changes() {
        let sealed = seal(&[line(1), line(3)]);
        assert_eq!(sealed.content, "be874508dd02f3352fadb86452c6a43650200dfa3c326567df96316f760d8d2b");
        assert_eq!(sealed.hash, "4e14941512c2e24cb12a7990923bbdfb7e56519877010fce63e195dace474bca");
    }

    #[test]
    fn no_two_lines_are_written_alike() {
        assert_ne!(cells(1, b"ab", b"c"), cells(1, b"a", b"bc"));
        assert_ne!(cells(1, b"a", b"b"), cells(2, b"a", b"b"));
        let text = |cell: Cell<'_>| {
            let mut text = Vec::new();
            cell.write(&mut text);
            text
        };
        let empty = [
            Cell::Null,
            Cell::Text(b""),
            Cell::Odd(b""),
            Cell::List(vec![]),
            Cell::List(vec![None]),
            Cell::List(vec![Some(String::new())]),
        ];
        let texts: std::collections::HashSet<Vec<u8>> = empty.into_iter().map(text).collect();
        assert_eq!(texts.len(), 6);
    }

    #[test]
    fn seals_follow_one_another_and_cover_every_line_once() {
        let lines: Vec<LineHash> = (1..=250).map(line).collect();
        let first = Seal::chain(None, &lines[..120], DateTime::UNIX_EPOCH);
        let rest = Seal::chain(first.last(), &lines[120..], DateTime::UNIX_EPOCH);
        let all: Vec<&Seal> = first.iter().chain(&rest).collect();
        assert_eq!(all.iter().map(|seal| seal.lines).collect::<Vec<_>>(), [100, 20, 100, 30]);
        assert_eq!(all.iter().map(|seal| seal.number).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert!(all.windows(2).all(|pair| pair[1].previous == pair[0].hash));
        assert!(all.iter().all(|seal| seal.hash == seal.hash_of_all() && seal.gaps.is_empty()));
        assert!(Seal::chain(None, &[], DateTime::UNIX_EPOCH).is_empty());
    }

    #[test]
    fn gaps_are_told_and_understood() {
        let sealed = seal(&[line(17), line(19), line(26)]);
        assert_eq!((sealed.gaps.as_str(), sealed.first_id, sealed.last_id), ("18 20-25", 17, 26));
        let gaps = Ids::parse(&sealed.gaps).expect("ranges");
        assert_eq!(gaps, Ids::missing(17, 26, [17, 19, 26]));
        assert!(Ids::missing(3, 2, []).is_empty());
        assert_eq!(Ids::text(&Ids::missing(1, 9, [])), "1-9");
        assert_eq!(Ids::text(&Ids::missing(1, 9, [0, 3, 12])), "1-2 4-9");
        let left = Ids::without(&[Ids { first: 1, last: 9 }, Ids { first: 20, last: 20 }], &gaps);
        assert_eq!(Ids::text(&left), "1-9");
        let left = Ids::without(&[Ids { first: 17, last: 30 }], &gaps);
        assert_eq!(Ids::text(&left), "17 19 26-30");
        assert_eq!(Ids::text(&Ids::gathered([3, 4, 5, 9])), "3-5 9");
        for text in ["a", "5-3", "3 3", "3-5 4", "-", "1--2"] {
            assert_eq!(Ids::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_mark_is_read_as_it_is_written() {
        let mark = seal(&[line(1)]).mark();
        assert_eq!(mark.to_string().parse(), Ok(mark.clone()));
        assert_eq!(mark.to_string().to_ascii_uppercase().parse(), Ok(mark));
        for text in ["", "1", "1:", "0:00", "x:y", "1:zz"] {
            assert!(text.parse::<Mark>().is_err(), "{text}");
        }
    }
}
