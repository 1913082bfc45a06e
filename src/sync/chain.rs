//! The chain of seals over the audit trail: adding seals, and verifying that every line is as it was sealed.
//!
//! A valid chain proves that since a line was sealed it was not changed or removed, and that no line was inserted among
//! the sealed ones. A chain inside a database cannot show whether the newest seals and their lines were cut off, or
//! whether someone with full write access rewrote the whole chain. To detect that, keep the newest seal elsewhere and
//! compare the chain with it.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::{
    model::{LineHash, Mark, Seal, seal::Ids},
    store::{Store, StoreError, ToSeal, Unsealed},
};

/// Seals and lines read at once.
const SEALS: u32 = 200;
const LINES: u32 = 10_000;

/// Lines without a seal are counted up to this number.
pub const UNSEALED_COUNTED: u32 = 100_000;

/// How many faults are reported in detail; more are only counted.
const TOLD: usize = 20;

/// The result of one turn of sealing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// The newest seal before the turn.
    pub before: Option<Seal>,
    /// The newest seal now.
    pub newest: Option<Seal>,
    /// Whether there may be more lines to seal.
    pub more: bool,
}

/// Seal the next lines, at most `limit`. Returns `None` if another process sealed at the same time.
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

/// A difference from what was sealed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The name of the fault for machines.
    pub kind: &'static str,
    /// The seal that shows the fault.
    pub seal: i64,
    /// The ids of the affected lines, such as `18 22-25`; empty if the fault concerns a seal.
    pub lines: String,
    /// The message for people.
    pub message: String,
}

impl Fault {
    fn seals_missing(first: i64, last: i64) -> Self {
        let message = if first == last {
            format!("seal {first} is missing")
        } else {
            format!("seals {first} to {last} are missing")
        };
        Self { kind: "seal_missing", seal: first, lines: String::new(), message }
    }

    fn seal_changed(seal: i64) -> Self {
        let message = format!("seal {seal} was changed");
        Self { kind: "seal_changed", seal, lines: String::new(), message }
    }

    /// The seal is consistent in itself, but does not match the seal before.
    fn seal_replaced(seal: i64) -> Self {
        let message = match seal {
            1 => "seal 1 is not the first seal that was made: it was replaced".to_owned(),
            _ => format!("seal {seal} does not follow seal {}: one of them was replaced", seal - 1),
        };
        Self { kind: "seal_replaced", seal, lines: String::new(), message }
    }

    /// A seal that was kept elsewhere has another hash in the database, or is missing there.
    fn not_as_kept(seal: i64, here: Option<&str>) -> Self {
        let message = match here {
            Some(hash) => format!("seal {seal} differs from the one that was kept: here its hash is {hash}"),
            None => format!("seal {seal} was kept elsewhere and is not here: the newest seals were cut off"),
        };
        Self { kind: "seal_not_as_kept", seal, lines: String::new(), message }
    }

    fn lines_missing(seal: i64, ids: &[Ids]) -> Self {
        let message = format!("missing: {}, under seal {seal}", named(ids));
        Self { kind: "line_missing", seal, lines: Ids::text(ids), message }
    }

    fn lines_added(seal: i64, ids: &[Ids]) -> Self {
        let message = format!("inserted later: {}, among the lines of seal {seal}", named(ids));
        Self { kind: "line_added", seal, lines: Ids::text(ids), message }
    }

    fn lines_changed(seal: i64, among: Ids) -> Self {
        let what = if among.first == among.last {
            "changed:"
        } else {
            "changed, or in another order: one or more of"
        };
        let message = format!("{what} {}, under seal {seal}", named(&[among]));
        Self { kind: "line_changed", seal, lines: among.to_string(), message }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// The ids in words, such as `lines 18 22-25`.
fn named(ids: &[Ids]) -> String {
    let is_one = matches!(ids, [Ids { first, last }] if first == last);
    format!("{} {}", if is_one { "line" } else { "lines" }, Ids::text(ids))
}

/// The result of verifying the whole chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    pub seals: u64,
    /// Sealed lines that exist.
    pub lines: u64,
    pub newest: Option<Mark>,
    /// Counted up to [`UNSEALED_COUNTED`].
    pub unsealed: Unsealed,
    /// The first faults, in the order of the chain.
    pub faults: Vec<Fault>,
    /// The total number of faults.
    pub found: u64,
}

impl Verification {
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

/// Check every seal and every sealed line, and compare the chain with the seals that were `kept` elsewhere. `show`
/// repeatedly receives the number of lines checked.
///
/// # Errors
/// If the database is not available.
pub async fn verify(
    store: &dyn Store,
    kept: &[Mark],
    mut show: impl FnMut(u64),
) -> Result<Verification, StoreError> {
    let mut walk = Walk { store, buffer: Vec::new(), next: 0, after: i64::MIN };
    let mut report = Verification::default();
    let mut before: Option<Seal> = None;
    // Whether the previous seal can be trusted to say where its lines end.
    let mut sure = true;
    loop {
        let page = store.seals(before.as_ref().map_or(i64::MIN, |seal| seal.number), SEALS).await?;
        // Read lines only as far as these seals reach. The lines that a seal covers existed when it was made; after
        // them, a line can still appear before another one.
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
                report.tell(Fault::seal_changed(seal.number));
            }
            report.seals += 1;
            before = Some(seal);
        }
        show(report.lines);
    }
    let last = before.as_ref().map_or(0, |seal| seal.number);
    for mark in kept.iter().filter(|mark| mark.number > last) {
        report.tell(Fault::not_as_kept(mark.number, None));
    }
    report.newest = before.map(|seal| seal.mark());
    report.unsealed = store.unsealed(UNSEALED_COUNTED).await?;
    Ok(report)
}

/// Compare a seal with the previous one and with the kept seals; returns whether no seal is missing in between.
fn check_seal(seal: &Seal, before: Option<&Seal>, kept: &[Mark], report: &mut Verification) -> bool {
    let expected = before.map_or(0, |before| before.number).saturating_add(1);
    if seal.number > expected {
        report.tell(Fault::seals_missing(expected, seal.number - 1));
        for mark in kept.iter().filter(|mark| (expected..seal.number).contains(&mark.number)) {
            report.tell(Fault::not_as_kept(mark.number, None));
        }
    } else if seal.number < expected || seal.previous != Seal::previous_of(before) {
        report.tell(Fault::seal_replaced(seal.number));
    }
    if kept.iter().any(|mark| mark.number == seal.number && mark.hash != seal.hash) {
        report.tell(Fault::not_as_kept(seal.number, Some(&seal.hash)));
    }
    seal.number == expected
}

/// Compare a seal with the existing lines that follow those of the previous seal.
fn check_lines(seal: &Seal, lines: &[LineHash], report: &mut Verification) {
    let number = seal.number;
    let Some(gaps) = Ids::parse(&seal.gaps) else {
        return report.tell(Fault::seal_changed(number));
    };
    let ids = || lines.iter().map(|line| line.id);
    let in_a_gap = |id: i64| gaps.iter().any(|gap| (gap.first..=gap.last).contains(&id));
    let added = Ids::gathered(ids().filter(|id| *id < seal.first_id || in_a_gap(*id)));
    let missing = Ids::without(&Ids::missing(seal.first_id, seal.last_id, ids()), &gaps);
    let as_many = added.is_empty() && missing.is_empty();
    if !missing.is_empty() {
        report.tell(Fault::lines_missing(number, &missing));
    }
    if !added.is_empty() {
        report.tell(Fault::lines_added(number, &added));
    }
    if as_many && seal.content != Seal::content_of(lines) {
        report.tell(Fault::lines_changed(number, Ids { first: seal.first_id, last: seal.last_id }));
    }
}

/// Reads the lines in the order of their ids.
struct Walk<'a> {
    store: &'a dyn Store,
    buffer: Vec<LineHash>,
    /// The current position in the buffer.
    next: usize,
    /// The last id that was read.
    after: i64,
}

impl Walk<'_> {
    /// Take all remaining lines up to `last`. Lines after `until` are not read.
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

    /// Skip the lines before this one, because no trustworthy seal covers them.
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
            Fault::seals_missing(5, 5),
            Fault::seals_missing(5, 7),
            Fault::seal_replaced(5),
            Fault::lines_missing(2, &ids("7")),
            Fault::lines_missing(2, &ids("7 9-12")),
            Fault::lines_added(2, &ids("8")),
            Fault::lines_changed(2, Ids { first: 7, last: 7 }),
            Fault::lines_changed(2, Ids { first: 7, last: 12 }),
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
                "inserted later: line 8, among the lines of seal 2",
                "changed: line 7, under seal 2",
                "changed, or in another order: one or more of lines 7-12, under seal 2",
            ]
        );
    }
}
