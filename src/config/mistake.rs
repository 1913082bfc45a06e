//! The errors in the configuration, all in one report.

use std::{fmt, io};

/// The maximum length of a shown value, in characters.
const MAX_SHOWN_CHARS: usize = 60;

/// One variable that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The variable's name, such as `PORT`; a place in a file, such as `clerk-sync.toml, sink "crm", url`; or `.env` for the
    /// whole file.
    pub variable: String,
    /// The value found and the allowed values. Never a secret.
    pub explanation: String,
}

impl Mistake {
    /// Whether this is about the variable or its `…_FILE` variable.
    pub fn is_about(&self, variable: &str) -> bool {
        self.variable == variable || self.variable.strip_suffix("_FILE") == Some(variable)
    }

    /// The key with the error, if it belongs to this sink.
    pub fn key_of_sink(&self, sink: &str) -> Option<&str> {
        let (_, key) = self.variable.split_once(&format!(", sink \"{sink}\", "))?;
        Some(key)
    }

    /// What was found, and the remedy if the explanation has one.
    pub fn parts(&self) -> (String, Option<String>) {
        let (found, remedy) = apart(&self.explanation);
        (Self { explanation: found, ..self.clone() }.to_string(), remedy)
    }
}

/// Splits a message into what was found and what is allowed or what to do.
pub fn apart(sentence: &str) -> (String, Option<String>) {
    // A quoted value may contain a semicolon too.
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
        let in_names = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
        if !variable.bytes().all(in_names) {
            return write!(f, "{variable}: {explanation}");
        }
        write!(f, "{variable} ({}): {explanation}", flag(variable))
    }
}

/// All errors; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(Vec<Mistake>);

impl Mistakes {
    /// `None` if there are no errors.
    pub(super) fn among(mistakes: Vec<Mistake>) -> Option<Self> {
        (!mistakes.is_empty()).then_some(Self(mistakes))
    }

    /// The errors, in the order of the documentation.
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

/// The flag of a variable: `DATABASE_URL` is `--database-url`. The exception is `CONFIG_FILE`, which is `--config`.
pub(super) fn flag(variable: &str) -> String {
    if variable == "CONFIG_FILE" {
        return "--config".to_owned();
    }
    format!("--{}", variable.to_ascii_lowercase().replace('_', "-"))
}

/// Why a file cannot be read, in plain words.
pub fn unreadable(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file".to_owned(),
        io::ErrorKind::InvalidData => "it is not UTF-8 text".to_owned(),
        io::ErrorKind::IsADirectory => "it is a directory".to_owned(),
        kind => kind.to_string(),
    }
}

/// A value as it may be shown. A value that looks like a secret in the wrong variable is not shown.
pub(super) fn shown(value: &str) -> String {
    // "d2hzZWNf" is "whsec_" in base64.
    let secret = ["whsec_", "sk_live_", "sk_test_", "d2hzZWNf", "@"].iter().any(|mark| value.contains(mark));
    if secret {
        return "a value that looks like a secret".to_owned();
    }
    let start: String = value.chars().take(MAX_SHOWN_CHARS).collect();
    let ellipsis = if start.len() < value.len() { "…" } else { "" };
    format!("{start:?}{ellipsis}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_shown_with_its_flag_even_if_its_name_has_a_digit_and_a_place_in_a_file_without_one() {
        let shown = |variable: &str| {
            Mistake { variable: variable.to_owned(), explanation: "wrong".to_owned() }.to_string()
        };
        assert_eq!(
            shown("SYNC_FIELDS_USER_WEB3_WALLET"),
            "SYNC_FIELDS_USER_WEB3_WALLET (--sync-fields-user-web3-wallet): wrong"
        );
        for place in [".env", ".env, line 3", "clerk-sync.toml, sink \"crm\", url"] {
            assert_eq!(shown(place), format!("{place}: wrong"));
        }
    }
}
