//! The terminal: what commands print there, and what they ask whoever sits at it.
//!
//! Ids, addresses and messages are other people's: of their characters none reaches a terminal that could steer it. What
//! is JSON stays JSON. A reader that has gone away is not an error.

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

/// Print a line, or several, to standard output.
macro_rules! say {
    () => { $crate::cli::terminal::print(format_args!("")) };
    ($($text:tt)*) => { $crate::cli::terminal::print(format_args!($($text)*)) };
}
pub(super) use say;

pub(super) fn print(text: fmt::Arguments<'_>) {
    print_styled(&plain(&text.to_string()));
}

/// The same with text that steers the terminal, all of which is ours: see [`plain`] for the rest of it.
pub(super) fn print_styled(text: &str) {
    write(format!("{text}\n").as_bytes());
}

/// Why some of what was printed did not arrive.
static CUT_OFF: OnceLock<io::Error> = OnceLock::new();

/// Print this as it is. A reader that has gone away has seen enough; any other trouble is told by [`arrived`].
pub(super) fn write(bytes: &[u8]) {
    let mut out = stdout();
    if let Err(error) = out.write_all(bytes).and_then(|()| out.flush())
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        // The first says it.
        _ = CUT_OFF.set(error);
    }
}

/// Whether all that was printed arrived, as far as anybody wanted it: a list that is cut off must not look complete.
pub(super) fn arrived() -> Result<(), Failure> {
    match CUT_OFF.get() {
        Some(error) => Err(Failure::failed(format!("the output is cut off: {}", unreadable(error)))),
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
    // Something everywhere, so that nobody takes one column for the next.
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

/// Print how many there are of something, and the first of them by name.
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

/// A line on standard error that says how far it is; where that is no terminal, nothing.
pub(super) fn progress(template: &str) -> ProgressBar {
    if !stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    ProgressBar::no_length().with_style(progress_style(template))
}

/// How such a line looks; `{rate}` is what is done in a second.
pub(super) fn progress_style(template: &str) -> ProgressStyle {
    let rate = |state: &ProgressState, text: &mut dyn fmt::Write| {
        let _ = write!(text, "{:.0} a second", state.per_sec());
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.with_key("rate", rate)
}

/// Print to standard error why a command failed.
pub(super) fn complain(text: &str) {
    let _ = writeln!(stderr(), "{}", plain(text));
}

/// A text with characters that steer or that nobody sees written as `\u001b`: all but ends of lines and tabs.
pub(super) fn plain(text: &str) -> Cow<'_, str> {
    written_out(text, |character| steers(character) && !matches!(character, '\n' | '\t'))
}

/// The same of what stands within a line, such as an id of somebody else's: it does not end the line either.
pub(super) fn word(text: &str) -> Cow<'_, str> {
    written_out(text, steers)
}

fn steers(character: char) -> bool {
    character.is_control() || is_hidden(character)
}

/// Whether standard output is a terminal that shows colours to somebody who wants them.
pub(super) fn has_colours() -> bool {
    let is_set = |variable| env::var_os(variable).is_some_and(|value| !value.is_empty());
    let is_dumb = env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
    stdout().is_terminal() && !is_set("NO_COLOR") && !is_dumb
}

/// Ask whoever sits at the terminal, and go on at y or yes. Where nobody sits only `--yes` counts.
pub(super) fn confirm(question: &str) -> Result<(), Failure> {
    if !stdin().is_terminal() || !stderr().is_terminal() {
        return Err(Failure::usage(format!(
            "{question} There is no terminal to ask at: say --yes if you are sure. Nothing was changed"
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
