//! Checks whether the clocks agree. Webhooks older or newer than `WEBHOOK_TOLERANCE_SECONDS` are refused, so a difference
//! of half of that is a failure: the other half is needed for the time in transit. A difference of more than 30 s is a
//! warning.

use chrono::{DateTime, TimeDelta, Utc};

use super::report::Finding;
use crate::cli::Failure;

const TOLD: TimeDelta = TimeDelta::seconds(30);

/// A smaller difference is never a failure, even if the tolerance is small: networks can take that long.
const LEAST: TimeDelta = TimeDelta::seconds(5);

/// The interval in which something happened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) from: DateTime<Utc>,
    pub(super) until: DateTime<Utc>,
}

impl Span {
    /// The interval of a clock reading with a precision of one second.
    pub(super) fn second(from: DateTime<Utc>) -> Self {
        Self { from, until: from + TimeDelta::seconds(1) }
    }
}

/// The minimum by which the other clock is ahead, if both were read at the same time within these spans.
fn ahead(ours: Span, theirs: Span) -> TimeDelta {
    if theirs.from > ours.until {
        theirs.from - ours.until
    } else if theirs.until < ours.from {
        theirs.until - ours.from
    } else {
        TimeDelta::zero()
    }
}

pub(super) fn judge(check: &str, whose: &str, ours: Span, theirs: Span, tolerance_seconds: u32) -> Finding {
    let ahead = ahead(ours, theirs);
    let distance = ahead.abs();
    let bad = (TimeDelta::seconds(tolerance_seconds.into()) / 2).max(LEAST);
    if distance <= TOLD.min(bad) {
        let apart = distance.num_milliseconds();
        return Finding::ok(
            check,
            if apart == 0 {
                format!("{whose} and this machine agree")
            } else {
                format!("{whose} and this machine differ by {}.{:03} s", apart / 1000, apart % 1000)
            },
        );
    }
    let direction = if ahead > TimeDelta::zero() { "ahead of" } else { "behind" };
    let found = format!(
        "{whose} is {} s {direction} this machine; webhooks that are off by more than {tolerance_seconds} s are refused",
        distance.num_seconds()
    );
    let remedy =
        "set both clocks by NTP: `timedatectl` shows this machine's, `timedatectl set-ntp true` fixes it";
    if distance > bad {
        Finding::fail(check, Failure::FAILED, found, remedy)
    } else {
        Finding::warn(check, found, remedy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_767_225_600 + seconds, 0).expect("in range")
    }

    fn status(theirs: i64, tolerance: u32) -> String {
        let ours = Span { from: at(0), until: at(1) };
        let finding = judge("clock", "Clerk", ours, Span::second(at(theirs)), tolerance);
        finding.as_json()["status"].as_str().expect("a word").to_owned()
    }

    #[test]
    fn half_a_minute_is_told_and_half_the_tolerance_is_a_failure() {
        // The other clock was read at the end of a second and this machine's at the beginning, or vice versa.
        for (theirs, expected) in
            [(0, "ok"), (31, "ok"), (32, "warn"), (151, "warn"), (152, "fail"), (600, "fail")]
        {
            assert_eq!(status(theirs, 300), expected, "{theirs}");
            assert_eq!(status(-theirs, 300), expected, "-{theirs}");
        }
    }

    #[test]
    fn a_small_tolerance_is_no_reason_to_doubt_clocks_that_agree() {
        assert_eq!(status(5, 0), "ok");
        assert_eq!(status(7, 0), "fail");
        assert_eq!(status(7, 10), "fail");
    }

    #[test]
    fn which_clock_is_ahead_is_told() {
        let ours = Span { from: at(0), until: at(0) };
        let told =
            |theirs| judge("clock", "Clerk", ours, Span::second(at(theirs)), 300).as_json().to_string();
        assert!(told(600).contains("Clerk is 600 s ahead of this machine"), "{}", told(600));
        assert!(told(-601).contains("Clerk is 600 s behind this machine"), "{}", told(-601));
    }
}
