//! Makes text from other people safe to show. Names and ids may contain characters that are invisible, or that reverse or hide
//! the text around them. These are escaped, as in `\u202e`.

use std::{
    borrow::Cow,
    fmt::Write as _,
    io::{self, Write},
};

use tracing_subscriber::fmt::MakeWriter;

/// Whether the character is invisible or reverses text: Unicode's default-ignorable characters, its line and paragraph
/// separators, and annotation characters.
pub fn is_hidden(character: char) -> bool {
    matches!(character,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
        | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// The text with these characters escaped as in JSON, so that JSON stays valid.
pub fn written_out(text: &str, which: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&which) {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len() + 5);
    for character in text.chars() {
        if which(character) {
            for unit in character.encode_utf16(&mut [0; 2]) {
                let _ = write!(plain, "\\u{unit:04x}");
            }
        } else {
            plain.push(character);
        }
    }
    Cow::Owned(plain)
}

/// An HTML page without such characters, and without control characters. In a text they are escaped. In a tag, hidden characters
/// become character references; control characters cannot be referenced and are escaped.
pub fn html(page: String) -> String {
    let steers = |character: char| character.is_control() && !matches!(character, '\n' | '\t');
    if !page.contains(|character| is_hidden(character) || steers(character)) {
        return page;
    }
    let mut plain = String::with_capacity(page.len() + 100);
    let mut in_tag = false;
    for character in page.chars() {
        match character {
            '<' => in_tag = true,
            '>' => in_tag = false,
            _ => {}
        }
        if in_tag && is_hidden(character) {
            let _ = write!(plain, "&#x{:x};", u32::from(character));
        } else if is_hidden(character) || steers(character) {
            plain.push_str(&written_out(character.encode_utf8(&mut [0; 4]), |_| true));
        } else {
            plain.push(character);
        }
    }
    plain
}

/// A log writer that escapes such characters.
pub(super) struct Plain<W>(pub(super) W);

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for Plain<W> {
    type Writer = Plain<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        Plain(self.0.make_writer())
    }
}

impl<W: Write> Write for Plain<W> {
    /// Each call gets a whole line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // The formatter escapes lower control characters itself; it uses one of them for colours.
        let steers = |character| is_hidden(character) || matches!(character, '\u{7f}'..='\u{9f}');
        match str::from_utf8(line) {
            Ok(text) if text.contains(steers) => {
                self.0.write_all(written_out(text, steers).as_bytes())?;
                Ok(line.len())
            }
            _ => self.0.write(line),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_sees_is_written_out_and_json_stays_json() {
        let name = "a\u{202e}b\u{2066}c\u{200b}d\u{feff}e\u{2028}f\u{e0041}g\u{fe0f}";
        let plain = written_out(name, is_hidden);
        assert_eq!(plain, "a\\u202eb\\u2066c\\u200bd\\ufeffe\\u2028f\\udb40\\udc41g\\ufe0f");
        let json = serde_json::json!({ name: name }).to_string();
        let read: serde_json::Value = serde_json::from_str(&written_out(&json, is_hidden)).expect("JSON");
        assert_eq!(read[name], name);
        assert_eq!(
            written_out("Zoë ‘東京’ שלום 1\u{202f}000 👍", is_hidden),
            "Zoë ‘東京’ שלום 1\u{202f}000 👍"
        );
    }

    #[test]
    fn a_page_names_in_attributes_what_it_writes_out_in_texts() {
        let page = "<a title=\"x\u{202e}y\">x\u{202e}y\u{1b}\u{9b}\n</a>".to_owned();
        assert_eq!(html(page), "<a title=\"x&#x202e;y\">x\\u202ey\\u001b\\u009b\n</a>");
    }

    #[test]
    fn a_line_of_the_log_steers_no_terminal() {
        let mut log = Vec::new();
        Plain(&mut log).write_all("{\"id\":\"a\u{202e}\u{9b}31m\"}\n".as_bytes()).expect("room");
        assert_eq!(log, b"{\"id\":\"a\\u202e\\u009b31m\"}\n");
    }
}
