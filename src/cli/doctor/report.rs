//! The findings, as text and as JSON.

use serde_json::{Value, json};

use crate::cli::{
    say,
    terminal::{has_colours, plain, print_styled},
};

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    /// The name of the check, which is public.
    check: String,
    status: Status,
    found: String,
    /// What to do; every warning and every failure has a remedy.
    remedy: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Ok,
    /// The checked part works, but is probably misconfigured, or will not work for long.
    Warn,
    /// With the exit code of a command that has the same failure; the highest code of all findings counts.
    Fail(u8),
    /// The check was not possible.
    Skip,
}

impl Status {
    /// Its name, and its colour on a terminal.
    fn shown(self) -> (&'static str, &'static str) {
        match self {
            Self::Ok => ("ok", "\x1b[32m"),
            Self::Warn => ("warn", "\x1b[33m"),
            Self::Fail(_) => ("fail", "\x1b[1;31m"),
            Self::Skip => ("skip", "\x1b[2m"),
        }
    }
}

impl Finding {
    fn new(check: &str, status: Status, found: impl Into<String>, remedy: Option<String>) -> Self {
        Self { check: check.to_owned(), status, found: found.into(), remedy }
    }

    pub(super) fn ok(check: &str, found: impl Into<String>) -> Self {
        Self::new(check, Status::Ok, found, None)
    }

    pub(super) fn warn(check: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(check, Status::Warn, found, Some(remedy.into()))
    }

    pub(super) fn fail(check: &str, code: u8, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(check, Status::Fail(code), found, Some(remedy.into()))
    }

    pub(super) fn skip(check: &str, why: impl Into<String>) -> Self {
        Self::new(check, Status::Skip, why, None)
    }

    pub(super) fn failed(&self) -> bool {
        matches!(self.status, Status::Fail(_))
    }

    pub(super) fn as_json(&self) -> Value {
        let Self { check, status, found, remedy } = self;
        json!({ "check": check, "status": status.shown().0, "found": found, "remedy": remedy })
    }

    fn lines(&self, width: usize, colours: bool) -> String {
        let Self { check, status, found, remedy } = self;
        let (check, found) = (plain(check), plain(found));
        // Padded before it is coloured, because escape codes would count as characters.
        let (name, colour) = status.shown();
        let mut word = format!("{name:<4}");
        if colours {
            word = format!("{colour}{word}\x1b[0m");
        }
        let line = format!("{word}  {check:<width$}  {found}");
        match remedy {
            None => line,
            Some(remedy) => format!("{line}\n{:indent$}→ {}", "", plain(remedy), indent = width + 8),
        }
    }
}

/// The findings; if there are none, a single finding that all is well.
pub(super) fn or_ok(found: Vec<Finding>, check: &str, well: impl Into<String>) -> Vec<Finding> {
    if found.is_empty() { vec![Finding::ok(check, well)] } else { found }
}

/// Print the findings as text.
pub(super) fn print(findings: &[Finding]) {
    let colours = has_colours();
    let width = findings.iter().map(|finding| finding.check.chars().count()).max().unwrap_or(0);
    for finding in findings {
        print_styled(&finding.lines(width, colours));
    }
    let count = |name| findings.iter().filter(|finding| finding.status.shown().0 == name).count();
    let counts = ["ok", "warn", "fail", "skip"].map(|name| format!("{} {name}", count(name)));
    say!("\n{}", counts.join(", "));
}

/// The exit code, if a check failed.
pub(super) fn exit_code(findings: &[Finding]) -> Option<u8> {
    let codes = findings.iter().filter_map(|finding| match finding.status {
        Status::Fail(code) => Some(code),
        _ => None,
    });
    codes.max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Failure;

    #[test]
    fn of_several_failures_the_highest_code_counts_and_warnings_count_for_nothing() {
        let fail = |code| Finding::fail("x", code, "", "");
        let (wrong, away, mistaken) =
            (fail(Failure::FAILED), fail(Failure::UNREACHABLE), fail(Failure::CONFIGURATION));
        let calm = [Finding::ok("x", ""), Finding::warn("x", "", ""), Finding::skip("x", "")];
        assert_eq!(exit_code(&calm), None);
        assert_eq!(exit_code(std::slice::from_ref(&wrong)), Some(1));
        assert_eq!(exit_code(&[wrong.clone(), away.clone()]), Some(69));
        assert_eq!(exit_code(&[mistaken, wrong, away]), Some(78));
    }

    #[test]
    fn what_was_found_stands_in_one_column_and_the_remedy_below_it() {
        let finding = Finding::warn("disk", "little is left", "make room");
        assert_eq!(finding.lines(8, false), "warn  disk      little is left\n                → make room");
        let coloured = finding.lines(8, true);
        assert!(coloured.starts_with("\x1b[33mwarn\x1b[0m  disk      little"), "{coloured:?}");
    }
}
