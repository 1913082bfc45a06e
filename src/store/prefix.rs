//! `TABLE_PREFIX`: a prefix for clerk-sync's tables where a database has no schemas, so that the application can have tables
//! with the same names.
//!
//! clerk-sync's SQL uses the plain names. Before a statement is sent, the names of tables, views and triggers in it get the
//! prefix, and on SQLite those of indexes too. The prefix is removed from the database's answers. A process uses one database,
//! so the prefix is set once. On PostgreSQL the tables have their own schema instead.

use std::{
    borrow::Cow,
    collections::HashSet,
    sync::{LazyLock, OnceLock},
};

use super::{
    migration::{MYSQL, Migration, SQLITE},
    sql::Dialect,
};

static PREFIX: OnceLock<String> = OnceLock::new();

/// The names that get the prefix on SQLite. MySQL and MariaDB have their own set, because their index names belong to tables.
static ON_SQLITE: LazyLock<HashSet<&'static str>> = LazyLock::new(|| {
    let mut names = made_by(SQLITE, &["TABLE", "VIEW", "TRIGGER", "INDEX"]);
    names.extend(["_clerk_sync_migrations", "users_unique_email"]);
    names
});
static ON_MYSQL: LazyLock<HashSet<&'static str>> = LazyLock::new(|| {
    let mut names = made_by(MYSQL, &["TABLE", "VIEW", "TRIGGER"]);
    names.insert("_clerk_sync_migrations");
    names
});

/// Keywords after which a name is a table rather than a column.
const BEFORE: [&str; 14] = [
    "FROM",
    "JOIN",
    "STRAIGHT_JOIN",
    "INTO",
    "UPDATE",
    "DELETE",
    "TABLE",
    "VIEW",
    "TRIGGER",
    "INDEX",
    "EXISTS",
    "ON",
    "TO",
    "REFERENCES",
];

/// Set the prefix of clerk-sync's tables. Only the first call counts, because a process uses one database.
pub fn set(prefix: &str) {
    PREFIX.get_or_init(|| prefix.to_owned());
}

fn current() -> &'static str {
    PREFIX.get().map_or("", String::as_str)
}

/// The name of a clerk-sync table in the database.
pub(super) fn of_table(name: &str) -> String {
    format!("{}{name}", current())
}

/// The name without the prefix; `None` if the prefix is missing.
pub(super) fn plain_table(name: &str) -> Option<&str> {
    name.strip_prefix(current())
}

/// clerk-sync's SQL with the names that the database uses.
pub fn in_text(sql: &str, dialect: Dialect) -> Cow<'_, str> {
    let prefix = current();
    let names = match dialect {
        // Without a prefix the sets of names are not needed.
        _ if prefix.is_empty() => return Cow::Borrowed(sql),
        Dialect::Postgres => return Cow::Borrowed(sql),
        Dialect::Sqlite => &*ON_SQLITE,
        Dialect::Mariadb | Dialect::Mysql => &*ON_MYSQL,
    };
    with(prefix, names, sql)
}

/// The database's message with clerk-sync's plain names.
pub(super) fn out_of_text(message: &str) -> Cow<'_, str> {
    without(current(), message)
}

fn with<'a>(prefix: &str, names: &HashSet<&str>, sql: &'a str) -> Cow<'a, str> {
    if prefix.is_empty() {
        return Cow::Borrowed(sql);
    }
    let mut text = String::with_capacity(sql.len() + 64);
    // The previous token that is not blank.
    let mut before = "";
    let mut tokens = Tokens(sql).peekable();
    while let Some(token) = tokens.next() {
        match token {
            Token::Word(word) if names.contains(word) && before != "." => {
                let is_qualifying = matches!(tokens.peek(), Some(Token::Other(".")));
                if is_qualifying || BEFORE.iter().any(|known| known.eq_ignore_ascii_case(before)) {
                    text.push_str(prefix);
                }
                text.push_str(word);
            }
            // A name that is looked up in the catalogue.
            Token::Literal(literal) if names.contains(literal.trim_matches('\'')) => {
                text.push('\'');
                text.push_str(prefix);
                text.push_str(&literal[1..]);
            }
            token => text.push_str(token.text()),
        }
        match token {
            Token::Blank(_) => {}
            token => before = token.text(),
        }
    }
    Cow::Owned(text)
}

fn without<'a>(prefix: &str, message: &'a str) -> Cow<'a, str> {
    if prefix.is_empty() {
        return Cow::Borrowed(message);
    }
    let plain = |word: &'a str| {
        let name = word.strip_prefix(prefix)?;
        (ON_SQLITE.contains(name) || ON_MYSQL.contains(name)).then_some(name)
    };
    let mut text = String::with_capacity(message.len());
    let mut rest = message;
    while !rest.is_empty() {
        let length = rest.find(|c| !is_of_word(c)).unwrap_or(rest.len());
        let (word, behind) = rest.split_at(length);
        text.push_str(plain(word).unwrap_or(word));
        let next = behind.chars().next().map_or(0, char::len_utf8);
        text.push_str(&behind[..next]);
        rest = &behind[next..];
    }
    Cow::Owned(text)
}

/// The names of objects of these sorts that the migrations create.
fn made_by(migrations: &'static [Migration], sorts: &[&str]) -> HashSet<&'static str> {
    let mut names = HashSet::new();
    for migration in migrations {
        let words = Tokens(migration.sql).filter_map(|token| match token {
            Token::Word(word) => Some(word),
            _ => None,
        });
        let mut words = words.peekable();
        while let Some(word) = words.next() {
            if word != "CREATE" {
                continue;
            }
            let sort = words.by_ref().find(|word| ["TABLE", "VIEW", "TRIGGER", "INDEX"].contains(word));
            while words.next_if(|word| ["IF", "NOT", "EXISTS"].contains(word)).is_some() {}
            if let Some(name) = words.next()
                && sort.is_some_and(|sort| sorts.contains(&sort))
            {
                names.insert(name);
            }
        }
    }
    names
}

/// The tokens of a text.
struct Tokens<'a>(&'a str);

#[derive(Clone, Copy)]
enum Token<'a> {
    Word(&'a str),
    /// Including its quotes.
    Literal(&'a str),
    /// Whitespace or a comment.
    Blank(&'a str),
    Other(&'a str),
}

impl<'a> Token<'a> {
    fn text(self) -> &'a str {
        match self {
            Self::Word(text) | Self::Literal(text) | Self::Blank(text) | Self::Other(text) => text,
        }
    }
}

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let text = self.0;
        let first = text.chars().next()?;
        let until = |at: Option<usize>| at.unwrap_or(text.len());
        let length = match first {
            c if is_of_word(c) => until(text.find(|c| !is_of_word(c))),
            // An escaped quote is doubled, so it ends one literal and begins another.
            '\'' => until(text[1..].find('\'').map(|at| at + 2)),
            '-' if text.starts_with("--") => until(text.find('\n')),
            c if c.is_whitespace() => until(text.find(|c: char| !c.is_whitespace())),
            c => c.len_utf8(),
        };
        let (token, rest) = text.split_at(length);
        self.0 = rest;
        Some(match first {
            c if is_of_word(c) => Token::Word(token),
            '\'' => Token::Literal(token),
            c if c.is_whitespace() || token.starts_with("--") => Token::Blank(token),
            _ => Token::Other(token),
        })
    }
}

fn is_of_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_ours_get_the_prefix_and_nothing_else_does() {
        for (plain, named) in [
            ("SELECT permissions FROM roles", "SELECT permissions FROM my_roles"),
            ("SELECT permissions.name FROM permissions", "SELECT my_permissions.name FROM my_permissions"),
            ("SELECT p.permissions FROM roles AS p", "SELECT p.permissions FROM my_roles AS p"),
            (
                "INSERT INTO users (email) VALUES ('users of it')",
                "INSERT INTO my_users (email) VALUES ('users of it')",
            ),
            ("WHERE tbl_name = 'users' -- FROM users", "WHERE tbl_name = 'my_users' -- FROM users"),
            (
                "DELETE outbox FROM (SELECT 1) AS i JOIN outbox ON outbox.id = i.k",
                "DELETE my_outbox FROM (SELECT 1) AS i JOIN my_outbox ON my_outbox.id = i.k",
            ),
            ("FROM orders AS users", "FROM orders AS users"),
        ] {
            assert_eq!(with("my_", &ON_MYSQL, plain), named);
            assert_eq!(with("", &ON_MYSQL, plain), plain);
        }
        assert_eq!(
            with("my_", &ON_SQLITE, "CREATE INDEX IF NOT EXISTS users_email_idx ON users (email)"),
            "CREATE INDEX IF NOT EXISTS users_email_idx ON my_users (email)"
        );
        assert_eq!(
            with("my_", &ON_SQLITE, "DROP INDEX users_unique_email"),
            "DROP INDEX my_users_unique_email"
        );
    }

    #[test]
    fn what_the_database_says_loses_it() {
        let said = "UNIQUE constraint failed: my_users.clerk_id, my_own.users";
        assert_eq!(without("my_", said), "UNIQUE constraint failed: users.clerk_id, my_own.users");
    }

    #[test]
    fn whatever_migrations_make_is_known() {
        for table in crate::store::schema::TABLES.iter() {
            assert!(ON_SQLITE.contains(table.name) && ON_MYSQL.contains(table.name), "{}", table.name);
        }
        assert!(ON_SQLITE.contains("signups_by_week") && ON_MYSQL.contains("active_subscriptions"));
        assert!(ON_SQLITE.contains("audit_log_clerk_id") && !ON_MYSQL.contains("audit_log_clerk_id"));
    }
}
