//! The chain of seals over the audit trail: putting the next ones on, and proving that every line is as it was sealed.
//!
//! What it proves: since a line was sealed nobody changed it, took it away, or slipped another one in among those that were
//! sealed. What no chain inside a database can prove: that its newest seals, with their lines, were not cut off, or all of
//! it written anew by somebody who can write everything. For that the newest seal is kept elsewhere, and compared.

use std::fmt;

use chrono::{DateTime, Utc};

use crate::{
    model::{LineHash, Mark, Seal, seal::Ids},
    store::{Store, StoreError, ToSeal, Unsealed},
};

/// Seals and lines read at once.
const SEALS: u32 = 200;
const LINES: u32 = 10_000;

/// Lines that wait for their seal are counted up to so many.
pub const UNSEALED_COUNTED: u32 = 100_000;

/// Faults that are told; more are counted.
const TOLD: usize = 20;

/// What a turn of sealing came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// The newest seal before.
    pub before: Option<Seal>,
    /// The newest one now.
    pub newest: Option<Seal>,
    /// Whether there may be more to seal.
    pub more: bool,
}

/// Seal the next lines, at most `limit`. `None` if somebody else did at the same time.
///
/// # Errors
/// If the database is not available.
pub async fn seal(store: &dyn Store, limit: u32, now: DateTime<Utc>) -> Result<Option<Sealed>, StoreError> {
    let ToSeal { newest, lines } = store.to_seal(limit).await?;
    let mut seals = Seal::chain(newest.as_ref(), &lines, now);
    if !seals.is_empty() && !store.add_seals(&seals).await? {
        return Ok(None);
    }
    let more = lines.len() as u64 >= u64::from(limit);
    Ok(Some(Sealed { newest: seals.pop().or_else(|| newest.clone()), before: newest, more }))
}

/// Something that is not as it was sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    SealsMissing {
        first: i64,
        last: i64,
    },
    SealChanged {
        number: i64,
    },
    /// It fits itself, and not the seal before.
    SealReplaced {
        number: i64,
    },
    LinesMissing {
        seal: i64,
        ids: Vec<Ids>,
    },
    LinesAdded {
        seal: i64,
        ids: Vec<Ids>,
    },
    LinesChanged {
        seal: i64,
        among: Ids,
    },
    /// A seal that was kept elsewhere is another one here, or none.
    NotAsKept {
        number: i64,
        here: Option<String>,
    },
}

impl Fault {
    /// What machines call it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::SealsMissing { .. } => "seal_missing",
            Self::SealChanged { .. } => "seal_changed",
            Self::SealReplaced { .. } => "seal_replaced",
            Self::LinesMissing { .. } => "line_missing",
            Self::LinesAdded { .. } => "line_added",
            Self::LinesChanged { .. } => "line_changed",
            Self::NotAsKept { .. } => "seal_not_as_kept",
        }
    }

    /// The seal that shows it.
    pub fn seal(&self) -> i64 {
        match self {
            Self::SealsMissing { first: seal, .. }
            | Self::SealChanged { number: seal }
            | Self::SealReplaced { number: seal }
            | Self::NotAsKept { number: seal, .. }
            | Self::LinesMissing { seal, .. }
            | Self::LinesAdded { seal, .. }
            | Self::LinesChanged { seal, .. } => *seal,
        }
    }

    fn is_about_one_line(&self) -> bool {
        match self {
            Self::LinesMissing { ids, .. } | Self::LinesAdded { ids, .. } => {
                matches!(ids[..], [Ids { first, last }] if first == last)
            }
            Self::LinesChanged { among, .. } => among.first == among.last,
            _ => false,
        }
    }

    /// The ids it is about, such as `18 22-25`; empty if it is about a seal.
    pub fn lines(&self) -> String {
        match self {
            Self::LinesMissing { ids, .. } | Self::LinesAdded { ids, .. } => Ids::text(ids),
            Self::LinesChanged { among, .. } => among.to_string(),
            _ => String::new(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.lines();
        let word = if self.is_about_one_line() { "line" } else { "lines" };
        match self {
            Self::SealsMissing { first, last } if first == last => write!(f, "seal {first} is missing"),
            Self::SealsMissing { first, last } => write!(f, "seals {first} to {last} are missing"),
            Self::SealChanged { number } => write!(f, "seal {number} was changed"),
            Self::SealReplaced { number: 1 } => {
                f.write_str("seal 1 is not the first one that was made: it was replaced")
            }
            Self::SealReplaced { number } => {
                write!(f, "seal {number} does not follow seal {}: one of them was replaced", number - 1)
            }
            Self::LinesMissing { seal, .. } => write!(f, "missing: {word} {lines}, under seal {seal}"),
            Self::LinesAdded { seal, .. } => {
                write!(f, "slipped in later: {word} {lines}, among those of seal {seal}")
            }
            Self::LinesChanged { seal, .. } if self.is_about_one_line() => {
                write!(f, "changed: line {lines}, under seal {seal}")
            }
            Self::LinesChanged { seal, .. } => {
                write!(
                    f,
                    "changed, or in another order: one or more of the {word} {lines}, under seal {seal}"
                )
            }
            Self::NotAsKept { number, here: Some(hash) } => {
                write!(f, "seal {number} is another one than was kept: here it is {hash}")
            }
            Self::NotAsKept { number, here: None } => {
                write!(f, "seal {number}, which was kept, is not here: the newest ones were cut off")
            }
        }
    }
}

/// What a look at the whole chain found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub seals: u64,
    /// Lines that are there and sealed.
    pub lines: u64,
    pub newest: Option<Mark>,
    /// Counted up to [`UNSEALED_COUNTED`].
    pub unsealed: Unsealed,
    /// The first ones, in the order of the chain.
    pub faults: Vec<Fault>,
    /// How many there are in all.
    pub found: u64,
}

impl Report {
    /// Whether everything is as it was sealed.
    pub fn is_whole(&self) -> bool {
        self.found == 0
    }

    fn tell(&mut self, fault: Fault) {
        self.found += 1;
        if self.faults.len() < TOLD {
            self.faults.push(fault);
        }
    }
}

/// Look at every seal and every line that is sealed, and compare with seals that were `kept` elsewhere. `show` hears again
/// and again how many lines were seen.
///
/// # Errors
/// If the database is not available.
pub async fn verify(
    store: &dyn Store,
    kept: &[Mark],
    mut show: impl FnMut(u64),
) -> Result<Report, StoreError> {
    let mut walk = Walk { store, buffer: Vec::new(), next: 0, after: i64::MIN };
    let mut report = Report::default();
    let mut before: Option<Seal> = None;
    // Whether the seal before says truly where its lines end.
    let mut sure = true;
    loop {
        let page = store.seals(before.as_ref().map_or(i64::MIN, |seal| seal.number), SEALS).await?;
        // Lines are read no further than these seals reach: what they cover was there when they were made, but behind it
        // a line can still appear before another.
        let Some(until) = page.iter().map(|seal| seal.last_id).max() else { break };
        for seal in page {
            let follows = check_seal(&seal, before.as_ref(), kept, &mut report);
            let was_sure = sure && follows;
            sure = seal.hash == seal.hash_of_all();
            if sure {
                if !was_sure {
                    walk.skip_to(seal.first_id, until).await?;
                }
                let lines = walk.take(seal.last_id, until).await?;
                report.lines += lines.len() as u64;
                check_lines(&seal, &lines, &mut report);
            } else {
                report.tell(Fault::SealChanged { number: seal.number });
            }
            report.seals += 1;
            before = Some(seal);
        }
        show(report.lines);
    }
    let last = before.as_ref().map_or(0, |seal| seal.number);
    for mark in kept.iter().filter(|mark| mark.number > last) {
        report.tell(Fault::NotAsKept { number: mark.number, here: None });
    }
    report.newest = before.map(|seal| seal.mark());
    report.unsealed = store.unsealed(UNSEALED_COUNTED).await?;
    Ok(report)
}

/// Compare a seal with the one before, and with what was kept; whether none is missing in between.
fn check_seal(seal: &Seal, before: Option<&Seal>, kept: &[Mark], report: &mut Report) -> bool {
    let expected = before.map_or(0, |before| before.number).saturating_add(1);
    if seal.number > expected {
        report.tell(Fault::SealsMissing { first: expected, last: seal.number - 1 });
        for mark in kept.iter().filter(|mark| (expected..seal.number).contains(&mark.number)) {
            report.tell(Fault::NotAsKept { number: mark.number, here: None });
        }
    } else if seal.number < expected || seal.previous != Seal::previous_of(before) {
        report.tell(Fault::SealReplaced { number: seal.number });
    }
    if kept.iter().any(|mark| mark.number == seal.number && mark.hash != seal.hash) {
        report.tell(Fault::NotAsKept { number: seal.number, here: Some(seal.hash.clone()) });
    }
    seal.number == expected
}

/// Compare a seal with the lines that are there, from behind those of the seal before.
fn check_lines(seal: &Seal, lines: &[LineHash], report: &mut Report) {
    let number = seal.number;
    let Some(gaps) = Ids::parse(&seal.gaps) else {
        return report.tell(Fault::SealChanged { number });
    };
    let ids = || lines.iter().map(|line| line.id);
    let in_a_gap = |id: i64| gaps.iter().any(|gap| (gap.first..=gap.last).contains(&id));
    let added = Ids::gathered(ids().filter(|id| *id < seal.first_id || in_a_gap(*id)));
    let missing = Ids::without(&Ids::missing(seal.first_id, seal.last_id, ids()), &gaps);
    let as_many = added.is_empty() && missing.is_empty();
    if !missing.is_empty() {
        report.tell(Fault::LinesMissing { seal: number, ids: missing });
    }
    if !added.is_empty() {
        report.tell(Fault::LinesAdded { seal: number, ids: added });
    }
    if as_many && seal.content != Seal::content_of(lines) {
        let among = Ids { first: seal.first_id, last: seal.last_id };
        report.tell(Fault::LinesChanged { seal: number, among });
    }
}

/// A walk through the lines in the order of their ids.
struct Walk<'a> {
    store: &'a dyn Store,
    buffer: Vec<LineHash>,
    /// Where in the buffer we are.
    next: usize,
    /// The last id that was read.
    after: i64,
}

impl Walk<'_> {
    /// All lines up to `last` that were not taken yet. Nothing is read behind `until`.
    async fn take(&mut self, last: i64, until: i64) -> Result<Vec<LineHash>, StoreError> {
        let mut taken = Vec::new();
        loop {
            let rest = &self.buffer[self.next..];
            let count = rest.partition_point(|line| line.id <= last);
            taken.extend_from_slice(&rest[..count]);
            self.next += count;
            if self.next < self.buffer.len() || self.after >= last {
                return Ok(taken);
            }
            self.buffer = self.store.audit_lines(self.after, until, LINES).await?;
            self.next = 0;
            // A page that is not full is the last one.
            self.after = match self.buffer.last() {
                Some(line) if self.buffer.len() as u64 == u64::from(LINES) => line.id,
                _ => until,
            };
        }
    }

    /// Pass over the lines before this one, which no seal speaks of that can be believed.
    async fn skip_to(&mut self, first: i64, until: i64) -> Result<(), StoreError> {
        self.take(first.saturating_sub(1), until).await.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_told_in_a_sentence() {
        let ids = |text: &str| Ids::parse(text).expect("ids");
        let told: Vec<String> = [
            Fault::SealsMissing { first: 5, last: 5 },
            Fault::SealsMissing { first: 5, last: 7 },
            Fault::SealReplaced { number: 5 },
            Fault::LinesMissing { seal: 2, ids: ids("7") },
            Fault::LinesMissing { seal: 2, ids: ids("7 9-12") },
            Fault::LinesAdded { seal: 2, ids: ids("8") },
            Fault::LinesChanged { seal: 2, among: Ids { first: 7, last: 7 } },
            Fault::LinesChanged { seal: 2, among: Ids { first: 7, last: 12 } },
        ]
        .iter()
        .map(ToString::to_string)
        .collect();
        assert_eq!(
            told,
            [
                "seal 5 is missing",
                "seals 5 to 7 are missing",
                "seal 5 does not follow seal 4: one of them was replaced",
                "missing: line 7, under seal 2",
                "missing: lines 7 9-12, under seal 2",
                "slipped in later: line 8, among those of seal 2",
                "changed: line 7, under seal 2",
                "changed, or in another order: one or more of the lines 7-12, under seal 2",
            ]
        );
    }
}
