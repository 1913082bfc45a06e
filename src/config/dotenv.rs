//! The `.env` file.

use std::env;

use super::mistake::{Mistake, Mistakes, unreadable};

/// Take variables from the nearest `.env` file, here or in a directory above. What the environment has already
/// wins. No file is fine. Call it before any thread is started and before the command line is read. Gives the names
/// of what was taken.
///
/// # Errors
/// If the file cannot be read or one of its lines cannot be understood. The line is never shown: it may be a secret.
pub fn load_dotenv() -> Result<Vec<String>, Mistakes> {
    let names = dotenvy::dotenv_iter().into_iter().flatten().map_while(Result::ok).map(|(name, _)| name);
    let taken = names.filter(|name| env::var_os(name).is_none()).collect();
    match dotenvy::dotenv() {
        Err(error) if !error.not_found() => {
            let before = dotenvy::dotenv_iter().ok().and_then(last_name);
            Err(Mistakes::of(explain(&error, before)))
        }
        _ => Ok(taken),
    }
}

type Line = dotenvy::Result<(String, String)>;

/// The name on the last line before the broken one.
fn last_name(lines: impl Iterator<Item = Line>) -> Option<String> {
    let (name, _) = lines.map_while(Result::ok).last()?;
    // In a file that is badly broken even a name may be part of a secret.
    name.bytes()
        .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
        .then_some(name)
}

/// The error itself quotes the line.
fn explain(error: &dotenvy::Error, before: Option<String>) -> Mistake {
    let explanation = match error {
        dotenvy::Error::LineParse(..) => {
            let place = before.map(|name| format!(" after the one of {name}")).unwrap_or_default();
            format!(
                "a line{place} cannot be understood; allowed is NAME=value, with single quotes around a value that \
                 holds spaces, quotes, # or $"
            )
        }
        dotenvy::Error::Io(error) => format!("the file cannot be read: {}", unreadable(error)),
        _ => "the file cannot be read".to_owned(),
    };
    Mistake { variable: ".env".to_owned(), explanation }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(text: &str) -> String {
        let lines = || dotenvy::from_read_iter(text.as_bytes());
        let error = lines().find_map(Result::err).expect("a line that cannot be understood");
        Mistakes::of(explain(&error, last_name(lines()))).to_string()
    }

    #[test]
    fn a_broken_line_is_told_by_its_place_and_never_shown() {
        let complaint = complaint("PORT=1\n# comment\nADMIN_TOKEN=hunter2 and more\nHOST=::1\n");
        assert!(complaint.contains(".env: a line after the one of PORT cannot be understood"), "{complaint}");
        assert!(!complaint.contains("hunter2"), "{complaint}");
    }

    #[test]
    fn nothing_of_a_badly_broken_file_is_shown() {
        for text in ["hunter2 whsec_hunter2\n", "hunter2 x=1\n", "=hunter2\n", "hunter2=x\nhunter2\n"] {
            let complaint = complaint(text);
            assert!(!complaint.contains("hunter2"), "{complaint}");
        }
    }
}
