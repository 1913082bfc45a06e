//! What was found, for people and for programs.

use serde_json::{Value, json};

use crate::cli::{
    say,
    terminal::{has_colours, plain, print_styled},
};

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    /// What was looked at. The names are public.
    check: String,
    status: Status,
    found: String,
    /// What to do; every warning and every failure has one.
    remedy: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Ok,
    /// It works, and is probably not meant so, or will not work for long.
    Warn,
    /// With the exit code that a command would end with that met the same; of several the highest counts.
    Fail(u8),
    /// It could not be looked at.
    Skip,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail(_) => "fail",
            Self::Skip => "skip",
        }
    }

    fn colour(self) -> &'static str {
        match self {
            Self::Ok => "\x1b[32m",
            Self::Warn => "\x1b[33m",
            Self::Fail(_) => "\x1b[1;31m",
            Self::Skip => "\x1b[2m",
        }
    }
}

impl Finding {
    pub(super) fn ok(check: impl Into<String>, found: impl Into<String>) -> Self {
        Self { check: check.into(), status: Status::Ok, found: found.into(), remedy: None }
    }

    pub(super) fn warn(
        check: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let remedy = Some(remedy.into());
        Self { check: check.into(), status: Status::Warn, found: found.into(), remedy }
    }

    pub(super) fn fail(
        check: impl Into<String>,
        code: u8,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let remedy = Some(remedy.into());
        Self { check: check.into(), status: Status::Fail(code), found: found.into(), remedy }
    }

    pub(super) fn skip(check: impl Into<String>, why: impl Into<String>) -> Self {
        Self { check: check.into(), status: Status::Skip, found: why.into(), remedy: None }
    }

    pub(super) fn failed(&self) -> bool {
        matches!(self.status, Status::Fail(_))
    }

    pub(super) fn as_json(&self) -> Value {
        let Self { check, status, found, remedy } = self;
        json!({ "check": check, "status": status.name(), "found": found, "remedy": remedy })
    }

    fn lines(&self, width: usize, colours: bool) -> String {
        let Self { check, status, found, remedy } = self;
        let (check, found) = (plain(check), plain(found));
        // Padded before it is coloured, or the colour would count.
        let mut word = format!("{:<4}", status.name());
        if colours {
            word = format!("{}{word}\x1b[0m", status.colour());
        }
        let line = format!("{word}  {check:<width$}  {found}");
        match remedy {
            None => line,
            Some(remedy) => format!("{line}\n{:indent$}→ {}", "", plain(remedy), indent = width + 8),
        }
    }
}

/// What was found; if that is nothing, that all is well.
pub(super) fn or_ok(found: Vec<Finding>, check: &str, well: impl Into<String>) -> Vec<Finding> {
    if found.is_empty() { vec![Finding::ok(check, well)] } else { found }
}

/// Print for people.
pub(super) fn print(findings: &[Finding]) {
    let colours = has_colours();
    let width = findings.iter().map(|finding| finding.check.chars().count()).max().unwrap_or(0);
    for finding in findings {
        print_styled(&finding.lines(width, colours));
    }
    let count = |name| findings.iter().filter(|finding| finding.status.name() == name).count();
    let counts = ["ok", "warn", "fail", "skip"].map(|name| format!("{} {name}", count(name)));
    say!("\n{}", counts.join(", "));
}

/// What to end with, if anything failed.
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
