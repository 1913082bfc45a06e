//! The configuration as it came out, for people: every variable with its value and where that came from. Secrets are
//! told by their kind and number, never shown.

use std::fmt;

/// One variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// Such as `PORT`.
    pub variable: String,
    /// `None`: not set and without a default, not used, or mistaken.
    pub value: Option<String>,
    pub origin: Origin,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This flag.
    CommandLine(String),
    Environment,
    /// The file `.env`.
    Dotenv,
    /// The file that the variable's `…_FILE` names.
    File(String),
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLine(flag) => write!(f, "command line ({flag})"),
            Self::Environment => f.write_str("environment"),
            Self::Dotenv => f.write_str(".env"),
            Self::File(variable) => write!(f, "file of {variable}"),
            Self::Default => f.write_str("default"),
        }
    }
}
