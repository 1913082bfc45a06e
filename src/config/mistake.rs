//! What is wrong with the configuration, all of it in one report.

use std::{fmt, io};

/// The longest part of a value that is shown, in characters.
const MAX_SHOWN_CHARS: usize = 60;

/// One variable that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The variable's name, such as `PORT`; or a place in a file, such as `clerk-sync.toml, sink "crm", url`, or `.env`
    /// for that file as a whole.
    pub variable: String,
    /// What was found and what is allowed. Never a secret.
    pub explanation: String,
}

impl Mistake {
    /// Whether it is this variable that cannot be used, given directly or in a file.
    pub fn is_about(&self, variable: &str) -> bool {
        self.variable == variable || self.variable.strip_suffix("_FILE") == Some(variable)
    }

    /// The key that is mistaken, if it is one of this sink.
    pub fn key_of_sink(&self, sink: &str) -> Option<&str> {
        let (_, key) = self.variable.split_once(&format!(", sink \"{sink}\", "))?;
        Some(key)
    }

    /// What was found, and what is to be done about it as far as that is said apart.
    pub fn parts(&self) -> (String, Option<String>) {
        let (found, remedy) = apart(&self.explanation);
        (Self { explanation: found, ..self.clone() }.to_string(), remedy)
    }
}

/// A sentence of ours without its end, which says what is allowed or what to do, and that end.
pub fn apart(sentence: &str) -> (String, Option<String>) {
    // What is quoted in it may have a semicolon too.
    let place = sentence.find("; allowed").or_else(|| sentence.rfind("; "));
    match place {
        Some(place) => (sentence[..place].to_owned(), Some(sentence[place + "; ".len()..].to_owned())),
        None => (sentence.to_owned(), None),
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { variable, explanation } = self;
        // A place in a file has no flag.
        if !variable.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_') {
            return write!(f, "{variable}: {explanation}");
        }
        write!(f, "{variable} ({}): {explanation}", flag(variable))
    }
}

/// Everything that is wrong; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(Vec<Mistake>);

impl Mistakes {
    /// `None` if nothing is wrong.
    pub(super) fn among(mistakes: Vec<Mistake>) -> Option<Self> {
        (!mistakes.is_empty()).then_some(Self(mistakes))
    }

    /// The mistakes, in the order in which the variables are documented.
    pub fn iter(&self) -> impl Iterator<Item = &Mistake> {
        self.0.iter()
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration cannot be used:")?;
        self.0.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
    }
}

impl std::error::Error for Mistakes {}

/// The flag of a variable: `DATABASE_URL` is `--database-url`, and only `CONFIG_FILE` is something shorter.
pub(super) fn flag(variable: &str) -> String {
    if variable == "CONFIG_FILE" {
        return "--config".to_owned();
    }
    format!("--{}", variable.to_ascii_lowercase().replace('_', "-"))
}

/// Why a file cannot be read, in words that are not Rust's.
pub fn unreadable(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file".to_owned(),
        io::ErrorKind::InvalidData => "it is no text in UTF-8".to_owned(),
        io::ErrorKind::IsADirectory => "it is a directory".to_owned(),
        kind => kind.to_string(),
    }
}

/// A value as it may be shown, or nothing where it looks like a secret that strayed into another variable.
pub(super) fn shown(value: &str) -> String {
    // The fourth is the first one in base64.
    let secret = ["whsec_", "sk_live_", "sk_test_", "d2hzZWNf", "@"].iter().any(|mark| value.contains(mark));
    if secret {
        return "a value that looks like a secret".to_owned();
    }
    let start: String = value.chars().take(MAX_SHOWN_CHARS).collect();
    let ellipsis = if start.len() < value.len() { "…" } else { "" };
    format!("{start:?}{ellipsis}")
}
