//! The terminal: output of commands, and questions to the operator.
//!
//! Ids, addresses and messages come from outside: characters in them that could control a terminal are escaped before
//! they are printed. JSON is printed unchanged. A reader that closes the pipe is not an error.

use std::{
    borrow::Cow,
    env, fmt,
    io::{self, IsTerminal, Write, stderr, stdin, stdout},
    sync::OnceLock,
};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use super::Failure;
use crate::{
    config::unreadable,
    telemetry::plain::{is_hidden, written_out},
};

/// Print one or more lines to standard output.
macro_rules! say {
    () => { $crate::cli::terminal::print(format_args!("")) };
    ($($text:tt)*) => { $crate::cli::terminal::print(format_args!($($text)*)) };
}
pub(super) use say;

pub(super) fn print(text: fmt::Arguments<'_>) {
    print_styled(&plain(&text.to_string()));
}

/// The same, for text that contains control sequences of clerk-sync: the caller applies [`plain`] to the other parts.
pub(super) fn print_styled(text: &str) {
    write(format!("{text}\n").as_bytes());
}

/// Why some of the output was not written.
static CUT_OFF: OnceLock<io::Error> = OnceLock::new();

/// Print bytes as they are. A reader that closes the pipe is ignored; [`arrived`] reports any other error.
pub(super) fn write(bytes: &[u8]) {
    let mut out = stdout();
    if let Err(error) = out.write_all(bytes).and_then(|()| out.flush())
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        // Only the first error is kept.
        _ = CUT_OFF.set(error);
    }
}

/// Whether all output that the reader wanted was written: a truncated list must not look complete.
pub(super) fn arrived() -> Result<(), Failure> {
    match CUT_OFF.get() {
        Some(error) => Err(Failure::failed(format!("the output is incomplete: {}", unreadable(error)))),
        None => Ok(()),
    }
}

/// Print rows under a header, every column as wide as its widest entry.
pub(super) fn table<const COLUMNS: usize>(header: [&str; COLUMNS], rows: &[[String; COLUMNS]]) {
    for line in aligned(header, rows) {
        say!("{line}");
    }
}

fn aligned<const COLUMNS: usize>(header: [&str; COLUMNS], rows: &[[String; COLUMNS]]) -> Vec<String> {
    // Every cell has text, so that columns cannot be confused.
    let cell = |text: &String| if text.is_empty() { "-".into() } else { word(text).into_owned() };
    let rows = rows.iter().map(|row| row.each_ref().map(cell));
    let lines: Vec<[String; COLUMNS]> = [header.map(str::to_owned)].into_iter().chain(rows).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..COLUMNS).map(width).collect();
    let line = |cells: &[String; COLUMNS]| {
        let cells = cells.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    lines.iter().map(line).collect()
}

/// Print a count, and the first items by name.
pub(super) fn counted(number: u64, what: &str, named: &[impl ToString]) {
    say!("{number:>9}  {what}");
    for name in named {
        say!("           {}", word(&name.to_string()));
    }
    let more = number - named.len() as u64;
    if more > 0 {
        say!("           and {more} more");
    }
}

/// A progress line on standard error; nothing where that is not a terminal.
pub(super) fn progress(template: &str) -> ProgressBar {
    if !stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    ProgressBar::no_length().with_style(progress_style(template))
}

/// The style of a progress line; `{rate}` is the number of items per second.
pub(super) fn progress_style(template: &str) -> ProgressStyle {
    let rate = |state: &ProgressState, text: &mut dyn fmt::Write| {
        let _ = write!(text, "{:.0} per second", state.per_sec());
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.with_key("rate", rate)
}

/// Print to standard error why a command failed.
pub(super) fn complain(text: &str) {
    let _ = writeln!(stderr(), "{}", plain(text));
}

/// A text with control and invisible characters written as `\u001b`, except line ends and tabs.
pub(super) fn plain(text: &str) -> Cow<'_, str> {
    written_out(text, |character| steers(character) && !matches!(character, '\n' | '\t'))
}

/// The same for text within a line, such as an id from outside: line ends and tabs are written out too.
pub(super) fn word(text: &str) -> Cow<'_, str> {
    written_out(text, steers)
}

fn steers(character: char) -> bool {
    character.is_control() || is_hidden(character)
}

/// Whether standard output is a terminal that shows colours, and the user has not disabled them.
pub(super) fn has_colours() -> bool {
    let is_set = |variable| env::var_os(variable).is_some_and(|value| !value.is_empty());
    let is_dumb = env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
    stdout().is_terminal() && !is_set("NO_COLOR") && !is_dumb
}

/// Ask the operator, and continue at y or yes. Without a terminal only `--yes` confirms.
pub(super) fn confirm(question: &str) -> Result<(), Failure> {
    if !stdin().is_terminal() || !stderr().is_terminal() {
        return Err(Failure::usage(format!(
            "{question} There is no terminal for this question: pass --yes if you are sure. Nothing was changed"
        )));
    }
    write!(stderr(), "{} [y/N] ", plain(question))?;
    let mut answer = String::new();
    stdin().read_line(&mut answer)?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::failed("nothing was changed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_columns_that_begin_at_the_same_place() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned);
        let lines = aligned(["ID", "USER", "ERROR"], &[row(["1", "", "a\nb c"]), row(["100", "Zoë", ""])]);
        assert_eq!(lines, ["ID   USER  ERROR", "1    -     a\\u000ab c", "100  Zoë   -"]);
    }

    #[test]
    fn what_would_steer_a_terminal_is_written_out_and_json_stays_json() {
        let id = "user_\u{1b}[2J\u{9b}31m\r\u{7f}\u{8}\u{202e}\u{200b}";
        assert_eq!(plain(id), "user_\\u001b[2J\\u009b31m\\u000d\\u007f\\u0008\\u202e\\u200b");
        assert_eq!(word("user_1\n\tok"), "user_1\\u000a\\u0009ok");
        assert_eq!(plain("Zoë\n\t→ 東京"), "Zoë\n\t→ 東京");
        let json = serde_json::json!({ "id": id }).to_string();
        let read: serde_json::Value = serde_json::from_str(&plain(&json)).expect("JSON");
        assert_eq!(read["id"], id);
    }
}
