//! The `.env` file.

use std::{
    env, fs, io, mem,
    path::{Path, PathBuf},
};

use super::{
    Settings,
    mistake::{Mistake, Mistakes, unreadable},
};

const NAME: &str = ".env";

/// The allowed form of a line.
const ALLOWED: &str =
    "allowed: NAME=value, with single quotes around a value that contains spaces, quotes, # or $";

/// The maximum number of broken lines that are reported by number.
const TOLD: usize = 10;

/// The names in the `.env` file and in the environment. Contains no values.
#[derive(Clone, Default)]
pub struct Dotenv {
    /// Every name to which the file gives a value. Names with an empty value count as not set.
    pub(super) names: Vec<String>,
    /// Every name that already had a value in the environment.
    pub(super) environment: Vec<String>,
    /// The errors in the file. Its lines are never shown, because they may contain secrets.
    pub(super) mistakes: Vec<Mistake>,
}

impl Dotenv {
    /// For commands that must not continue with half of the file.
    ///
    /// # Errors
    /// The file cannot be read, or one of its lines cannot be understood.
    pub fn check(&self) -> Result<(), Mistakes> {
        Mistakes::among(self.mistakes.clone()).map_or(Ok(()), Err)
    }

    /// Whether the environment or the file sets this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.names.iter().chain(&self.environment).any(|known| known == name)
    }
}

/// Loads variables from the nearest `.env` file, in the working directory or above it. Variables that the environment already
/// has keep their values. A missing file is no error, and lines that cannot be understood are skipped. Call it before
/// starting any thread and before parsing the command line.
pub fn load_dotenv() -> Dotenv {
    let set = env::vars_os().filter(|(_, value)| !value.is_empty());
    let names = set.filter_map(|(name, _)| name.into_string().ok());
    let mut dotenv = Dotenv { environment: names.collect(), ..Dotenv::default() };
    let file = find().and_then(|path| path.map(|path| Ok((fs::read(&path)?, path))).transpose());
    match file {
        Ok(None) => {}
        Ok(Some((bytes, path))) => dotenv.take(&bytes, &shown(&path)),
        // The file vanished since we found it, or the working directory no longer exists.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => dotenv.mistakes.push(Mistake {
            variable: NAME.to_owned(),
            explanation: format!("the file cannot be read: {}", unreadable(&error)),
        }),
    }
    dotenv
}

/// The nearest file.
fn find() -> io::Result<Option<PathBuf>> {
    for folder in env::current_dir()?.ancestors() {
        let path = folder.join(NAME);
        match fs::metadata(&path) {
            Ok(about) if about.is_file() => return Ok(Some(path)),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(None)
}

/// The file's name, with its directory unless that is the working directory.
fn shown(path: &Path) -> String {
    let is_here = env::current_dir().is_ok_and(|here| path.parent() == Some(&here));
    if is_here { NAME.to_owned() } else { path.display().to_string() }
}

impl Dotenv {
    fn take(&mut self, bytes: &[u8], file: &str) {
        let (text, broken) = understand(bytes);
        self.mistakes = self.mistakes_of(&broken, file);
        for (name, value) in dotenvy::from_read_iter(text.as_bytes()).flatten() {
            if value.is_empty() {
                self.mistakes.extend(self.comes_to_nothing(&name, &text, file));
            } else {
                self.names.push(name);
            }
        }
        // `from_read` stops at lines that cannot be understood. They were removed above.
        let _ = dotenvy::from_read(text.as_bytes());
    }

    /// An error for a variable of clerk-sync that the file names but leaves empty. With the default instead, users would end up
    /// in another database.
    fn comes_to_nothing(&self, name: &str, text: &str, file: &str) -> Option<Mistake> {
        let is = |other: &String| other == name;
        if self.environment.iter().any(is) || !Settings::variables().iter().any(is) {
            return None;
        }
        let (index, line) = text.lines().enumerate().find(|(_, line)| beginning(line) == name)?;
        line.contains('$').then(|| Mistake {
            variable: name.to_owned(),
            explanation: format!(
                "line {} of {file} results in an empty value, because the variable that it names with $ is not set; set \
                 that variable further up in the file or in the environment, and write it as ${{NAME}}",
                index + 1
            ),
        })
    }

    /// One error for each clerk-sync variable on a broken line, so that it does not count as not set, and one error for all
    /// other broken lines.
    fn mistakes_of(&self, broken: &[Broken], file: &str) -> Vec<Mistake> {
        let ours = Settings::variables();
        let is_ours = |line: &&Broken| ours.contains(&line.name) && !self.environment.contains(&line.name);
        let (named, others): (Vec<&Broken>, Vec<&Broken>) = broken.iter().partition(is_ours);
        let mut mistakes = Vec::new();
        if !others.is_empty() {
            let explanation = format!("{} cannot be understood; {ALLOWED}", places(&others));
            mistakes.push(Mistake { variable: file.to_owned(), explanation });
        }
        mistakes.extend(named.into_iter().map(|Broken { number, name }| Mistake {
            variable: name.clone(),
            explanation: format!("line {number} of {file} cannot be understood; {ALLOWED}"),
        }));
        mistakes
    }
}

/// `line 3`, or `lines 3, 5 and 8`.
fn places(broken: &[&Broken]) -> String {
    let mut places: Vec<String> = broken.iter().take(TOLD).map(|line| line.number.to_string()).collect();
    if broken.len() > TOLD {
        places.push(format!("{} more", broken.len() - TOLD));
    }
    match places.split_last() {
        Some((last, [])) => format!("line {last}"),
        Some((last, rest)) => format!("lines {} and {last}", rest.join(", ")),
        None => String::new(),
    }
}

/// A line that cannot be understood.
struct Broken {
    /// Counted from one.
    number: usize,
    /// The beginning of the line, if it looks like a name. It may be a secret, so it is compared but never shown.
    name: String,
}

/// The file with its broken lines replaced by empty ones, and the broken lines.
fn understand(bytes: &[u8]) -> (String, Vec<Broken>) {
    const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
    let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
    let mut broken = Vec::new();
    let mut lines: Vec<&str> = Vec::new();
    for (index, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        // No variable can contain a NUL.
        let line = str::from_utf8(line).ok().filter(|line| !line.contains('\0')).unwrap_or_else(|| {
            broken.push(Broken { number: index + 1, name: String::new() });
            "\n"
        });
        lines.push(line);
    }
    let is_understood =
        |lines: &[&str]| dotenvy::from_read_iter(lines.concat().as_bytes()).all(|variable| variable.is_ok());
    let mut start = 0;
    while start < lines.len() {
        // A value in quotes may span several lines.
        let furthest = if lines[start].contains(['"', '\'']) { lines.len() } else { start + 1 };
        let end = (start + 1..=furthest).find(|end| is_understood(&lines[start..*end]));
        if end.is_none() {
            let line = mem::replace(&mut lines[start], "\n");
            broken.push(Broken { number: start + 1, name: beginning(line) });
        }
        start = end.unwrap_or(start + 1);
    }
    broken.sort_by_key(|line| line.number);
    (lines.concat(), broken)
}

fn beginning(line: &str) -> String {
    let line = line.trim_start();
    let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
    line.chars().take_while(|character| character.is_ascii_alphanumeric() || *character == '_').collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of the lines that cannot be understood, and the names on the others.
    fn read(text: &str) -> (Vec<usize>, Vec<String>) {
        let (text, broken) = understand(text.as_bytes());
        let names = dotenvy::from_read_iter(text.as_bytes()).map(|line| line.expect("understood").0);
        (broken.iter().map(|line| line.number).collect(), names.collect())
    }

    fn complaint(text: &str) -> String {
        let (_, broken) = understand(text.as_bytes());
        Mistakes::among(Dotenv::default().mistakes_of(&broken, ".env")).expect("mistakes").to_string()
    }

    #[test]
    fn every_broken_line_is_told_by_its_number_and_hides_no_other() {
        let (broken, names) =
            read("PORT=1\n# it's a comment\n\nhunter2 and more\nHOST=::1\nA=b c\n  x\nLAST=1");
        assert_eq!(broken, [4, 6, 7]);
        assert_eq!(names, ["PORT", "HOST", "LAST"]);
        let complaint = complaint("PORT=1\nhunter2 and more\r\nHOST=::1\r\nA=hunter2 c\n  hunter2");
        assert!(complaint.contains(".env: lines 2, 4 and 5 cannot be understood; allowed: "), "{complaint}");
        assert!(!complaint.contains("hunter2"), "{complaint}");
    }

    #[test]
    fn a_value_of_several_lines_is_one_and_a_quote_that_is_not_closed_hides_nothing() {
        let (broken, names) = read("KEY=\"a\n\nb=\n\"\nPORT=1\n");
        assert_eq!((broken, names), (vec![], vec!["KEY".to_owned(), "PORT".to_owned()]));
        let (broken, names) = read("A=1\nKEY=\"a\nb\" c\nB=1\n");
        assert_eq!((broken, names), (vec![2, 3], vec!["A".to_owned(), "B".to_owned()]));
        for open in ["KEY='hunter2", "KEY=\"hunter2", "KEY=it's"] {
            let (broken, names) = read(&format!("A=1\n{open}\nPORT=1\n\nHOST=::1\n\n"));
            assert_eq!((broken, names.join(" ").as_str()), (vec![2], "A PORT HOST"), "{open}");
        }
        let (broken, _) = read("A=1\nKEY='x\n\n\n");
        assert_eq!(broken, [2]);
    }

    #[test]
    fn what_is_no_text_is_a_broken_line() {
        let (text, broken) = understand(b"\xef\xbb\xbfA=1\nB=\xff\nC=\0\nD=1\n");
        assert_eq!(broken.iter().map(|line| line.number).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(text, "A=1\n\n\nD=1\n");
    }

    #[test]
    fn a_variable_of_ours_on_a_broken_line_is_named_and_not_taken_for_missing() {
        let text = "DATABASE_URL=postgres://hunter2 x\nexport PORT 80\nhunter2=\"\n";
        let complaint = complaint(text);
        for told in [
            "DATABASE_URL (--database-url): line 1 of .env cannot be understood",
            "PORT (--port): line 2 of .env",
            ".env: line 3 cannot",
        ] {
            assert!(complaint.contains(told), "{complaint}");
        }
        assert!(!complaint.contains("hunter2"), "{complaint}");
        let mut settings = Settings::default();
        let (_, broken) = understand(text.replace("PORT", "CLERK_WEBHOOK_SIGNING_SECRET").as_bytes());
        settings.dotenv.mistakes = settings.dotenv.mistakes_of(&broken, ".env");
        let mistakes = settings.diagnose(crate::config::Needs::SERVE).mistakes;
        assert_eq!(mistakes.len(), 3, "{mistakes:?}");
    }

    #[test]
    fn a_variable_of_ours_that_comes_to_nothing_is_a_mistake() {
        let told = |name: &str, text: &str| Dotenv::default().comes_to_nothing(name, text, NAME);
        for value in ["${POSTGRES_URL}", "\"${POSTGRES_URL}\"", "$NOBODYS"] {
            let text = format!("\nDATABASE_URL={value}\nPOSTGRES_URL=postgres://\n");
            let mistake = told("DATABASE_URL", &text).expect("a mistake").to_string();
            assert!(mistake.contains("line 2 of .env results in an empty value"), "{mistake}");
        }
        let harmless = "DATABASE_URL=\nPORT=''\nTHEIRS=${NOBODYS}\n";
        for name in ["DATABASE_URL", "PORT", "THEIRS"] {
            assert_eq!(told(name, harmless), None);
        }
    }

    #[test]
    fn of_many_broken_lines_the_first_are_told() {
        let complaint = complaint(&"hunter2 x\n".repeat(30));
        assert!(complaint.contains("lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 20 more cannot"), "{complaint}");
    }

    #[test]
    fn nothing_of_a_badly_broken_file_is_shown() {
        for text in
            ["hunter2 whsec_hunter2\n", "hunter2 x=1\n", "=hunter2\n", "hunter2=x\nhunter2\n", "A='hunter2"]
        {
            let complaint = complaint(text);
            assert!(!complaint.contains("hunter2"), "{complaint}");
        }
    }
}
