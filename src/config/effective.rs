//! The resulting configuration, for people: every variable with its value and its source. For secrets only the kind and
//! the number are shown.

use std::fmt;

/// One variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// Such as `PORT`.
    pub variable: String,
    /// `None` if it is not set and has no default, is not used, or has an error.
    pub value: Option<String>,
    pub origin: Origin,
}

/// The source of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This flag.
    CommandLine(String),
    Environment,
    /// The file `.env`.
    Dotenv,
    /// The file that this `…_FILE` variable names.
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
