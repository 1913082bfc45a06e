//! Mapping of the application's columns to clerk-sync's columns.
//!
//! Names are compared without regard to case and underscores: `clerkId` and `clerk_id` are the same. Without an option, a
//! column is read only if its name is unambiguous. A column whose name is merely similar is reported, and read only if
//! the operator asks for it.

use std::collections::BTreeSet;

use chrono_tz::Tz;

use super::{
    Wish,
    marks::{self, Mark},
    mistake,
};
use crate::{
    entity::USER,
    model::{Field, FieldSet},
    store::{ForeignColumn, ForeignTable, Result},
};

/// The columns that are read, and those that look like clerk-sync's columns but are not read.
pub(super) struct Columns {
    pub(super) id: String,
    /// Each column that is read, with the clerk-sync column that it fills: a field, `created_at` or `updated_at`.
    pub(super) read: Vec<(String, &'static str)>,
    pub(super) marks: Vec<(String, Mark)>,
    /// Each column that is not read, with the reason.
    pub(super) unread: Vec<(String, String)>,
}

impl Columns {
    pub(super) fn of(table: &ForeignTable, wish: &Wish, synced: FieldSet) -> Result<Self> {
        let id = id_column(table, wish)?;
        let mut columns = Self { id, read: Vec::new(), marks: Vec::new(), unread: Vec::new() };
        for (ours, theirs) in &wish.columns {
            columns.wished(table, wish, ours, theirs, synced)?;
        }
        let is_free = |column: &&ForeignColumn| column.filled > 0 && column.name != columns.id;
        let filled: Vec<&ForeignColumn> = table.columns.iter().filter(is_free).collect();
        for ours in synced.of(&USER).map(Field::name).chain(["created_at"]) {
            if wish.columns.iter().all(|(wished, _)| wished != ours) {
                columns.read.extend(first(&filled, &names(ours)).map(|column| (column, ours)));
            }
        }
        if let Some(column) = &wish.clerk_updated_at {
            columns.read.push((named(table, wish, column, "--clerk-updated-at")?, "updated_at"));
        }
        for column in filled {
            let is_known = columns.read.iter().any(|(name, _)| *name == column.name)
                || columns.unread.iter().any(|(name, _)| *name == column.name);
            if is_known {
                continue;
            }
            let plain = plain(&column.name);
            if let Some(mark) = marks::mark(&plain) {
                columns.marks.push((column.name.clone(), mark));
            } else if let Some(why) = why_unread(&plain, &column.name, synced) {
                columns.unread.push((column.name.clone(), why));
            }
        }
        Ok(columns)
    }

    /// Apply one `--column` option: the operator says which column fills one of clerk-sync's columns.
    fn wished(
        &mut self,
        table: &ForeignTable,
        wish: &Wish,
        ours: &str,
        theirs: &str,
        synced: FieldSet,
    ) -> Result<()> {
        let column = named(table, wish, theirs, "--column")?;
        let instead = match ours {
            "clerk_id" | "id" => format!("--id-column {theirs}"),
            "updated_at" => format!("--clerk-updated-at {theirs} if it is Clerk's own time"),
            "deleted_at" => "--deleted-when CONDITION".to_owned(),
            _ => {
                let field = USER.named(ours);
                let name = if ours == "created_at" { Some("created_at") } else { field.map(Field::name) };
                let Some(name) = name else {
                    let names: Vec<&str> = USER.selectable().map(Field::name).collect();
                    return Err(mistake(format!(
                        "--column {ours}={theirs}: {ours} is not a column that is filled from Clerk. Those are created_at, {}",
                        names.join(", ")
                    )));
                };
                if field.is_none_or(|field| synced.contains(field)) {
                    self.read.retain(|(_, other)| *other != name);
                    self.read.push((column, name));
                } else {
                    self.unread.push((column, format!("{ours} is not in SYNC_FIELDS")));
                }
                return Ok(());
            }
        };
        Err(mistake(format!("--column {ours}={theirs} is not possible: use {instead}")))
    }

    /// The column that fills this clerk-sync column.
    pub(super) fn filling(&self, ours: &str) -> Option<&str> {
        self.read.iter().find(|(_, name)| *name == ours).map(|(column, _)| column.as_str())
    }

    /// The names of all columns to read, except the id column.
    pub(super) fn to_read(&self) -> Vec<String> {
        let read = self.read.iter().map(|(column, _)| column);
        let names: BTreeSet<&String> = read.chain(self.marks.iter().map(|(column, _)| column)).collect();
        names.into_iter().cloned().collect()
    }

    /// The time zone for times without one, and its name in the report.
    pub(super) fn zone(&self, table: &ForeignTable, wish: &Wish) -> Result<(Tz, String)> {
        if let Some(zone) = wish.time_zone {
            return Ok((zone, zone.name().to_owned()));
        }
        let of_the_database = table.zone.as_deref().map(|name| name.trim_matches(['"', '\'']));
        if let Some(zone) = of_the_database.and_then(|name| name.parse::<Tz>().ok()) {
            return Ok((zone, format!("{}, the zone of the database", zone.name())));
        }
        let lacks_zone = |column: &&ForeignColumn| {
            column.lacks_zone
                && self.read.iter().any(|(name, ours)| *name == column.name && ours.ends_with("_at"))
        };
        match table.columns.iter().find(lacks_zone) {
            None => Ok((Tz::UTC, "UTC".to_owned())),
            Some(column) => Err(mistake(format!(
                "the times in {} have no time zone, and clerk-sync cannot tell which one was meant: pass it with \
                 --time-zone, such as --time-zone UTC (what Prisma writes) or --time-zone Europe/Berlin",
                column.name
            ))),
        }
    }
}

/// The id column: named by the operator, or found by its content.
fn id_column(table: &ForeignTable, wish: &Wish) -> Result<String> {
    const OBVIOUS: [&str; 3] = ["clerkid", "clerkuserid", "clerkuser"];
    if let Some(column) = &wish.id_column {
        return named(table, wish, column, "--id-column");
    }
    let is_obvious = |column: &&ForeignColumn| OBVIOUS.contains(&plain(&column.name).as_str());
    let names = |columns: &[&ForeignColumn]| {
        columns.iter().map(|column| column.name.as_str()).collect::<Vec<_>>().join(", ")
    };
    let all: Vec<&ForeignColumn> = table.columns.iter().collect();
    let obvious: Vec<&ForeignColumn> = all.iter().copied().filter(is_obvious).collect();
    let mut found: Vec<&ForeignColumn> = all.iter().copied().filter(|column| column.ids > 0).collect();
    if found.is_empty() {
        // Accept ids of another length than Clerk's. User names may begin with `user_` too, so name columns do not count.
        let is_name = |column: &&ForeignColumn| plain(&column.name).contains("name");
        found = all.iter().copied().filter(|column| column.like_ids > 0 && !is_name(column)).collect();
    }
    let obvious_and_found: Vec<&ForeignColumn> = found.iter().copied().filter(is_obvious).collect();
    let is_empty = |columns: &[&ForeignColumn]| columns.iter().all(|column| column.filled == 0);
    match (&obvious_and_found[..], &found[..], &obvious[..]) {
        ([column], ..) | ([], [], [column]) => Ok(column.name.clone()),
        ([], [column], obvious) if is_empty(obvious) && !refers_to_others(&column.name) => {
            Ok(column.name.clone())
        }
        (_, [], _) => Err(mistake(format!(
            "{} has no column that holds Clerk's user ids, which begin with user_. Name the column with --id-column, such as \
             --id-column clerk_id. Its columns are: {}",
            wish.table,
            names(&all)
        ))),
        (_, found, obvious) => {
            let mut candidates = found.to_vec();
            candidates
                .extend(obvious.iter().filter(|column| found.iter().all(|other| other.name != column.name)));
            Err(mistake(format!(
                "it is not clear which column of {} holds Clerk's user ids. It may be {}. Name it, such as --id-column {}",
                wish.table,
                names(&candidates),
                candidates.first().map_or("clerk_id", |column| column.name.as_str())
            )))
        }
    }
}

/// Whether a column's name suggests that its ids are those of other users, not of the row's own user.
fn refers_to_others(name: &str) -> bool {
    const OTHERS: [&str; 12] = [
        "owner", "invit", "refer", "author", "creat", "manag", "parent", "assign", "approv", "updated",
        "sponsor", "deleted",
    ];
    let plain = plain(name);
    plain.ends_with("by") || plain.ends_with("byid") || OTHERS.iter().any(|word| plain.contains(word))
}

/// A column that the operator names.
fn named(table: &ForeignTable, wish: &Wish, name: &str, option: &str) -> Result<String> {
    let exactly = table.columns.iter().find(|column| column.name == name);
    let about = || {
        let mut found = table.columns.iter().filter(|column| plain(&column.name) == plain(name));
        found.next().filter(|_| found.next().is_none())
    };
    exactly.or_else(about).map(|column| column.name.clone()).ok_or_else(|| {
        let names: Vec<&str> = table.columns.iter().map(|column| column.name.as_str()).collect();
        mistake(format!(
            "{option}: {} has no column {name}. Its columns are: {}",
            wish.table,
            names.join(", ")
        ))
    })
}

fn first(columns: &[&ForeignColumn], names: &[&str]) -> Option<String> {
    let found = |name: &&str| columns.iter().find(|column| plain(&column.name) == plain(name));
    names.iter().find_map(found).map(|column| column.name.clone())
}

/// The possible names of a column that fills this clerk-sync column, in order of preference.
fn names(ours: &'static str) -> Vec<&'static str> {
    let others: &[&str] = match ours {
        "email" => &["email_address", "primary_email", "primary_email_address"],
        "image_url" => &["profile_image_url", "avatar_url"],
        _ => &[],
    };
    [&[ours], others].concat()
}

/// Why a column that looks like one of clerk-sync's is not read; `None` if it does not look like one.
fn why_unread(plain: &str, name: &str, synced: FieldSet) -> Option<String> {
    if ["name", "fullname", "displayname", "realname"].contains(&plain) {
        return Some(
            "looks like first_name and last_name in one: the next backfill fills both from Clerk".to_owned(),
        );
    }
    match stem(plain) {
        "updated" | "update" | "modified" | "changed" => {
            return Some(format!(
                "probably the time when your application wrote the row. If it is Clerk's own updated_at, use \
                 --clerk-updated-at {name}"
            ));
        }
        "created" | "create" | "creation" | "joined" | "registered" | "signedup" | "inserted" => {
            return Some(format!("looks like created_at: use --column created_at={name}"));
        }
        _ => {}
    }
    let field = looks_like(plain)?;
    let ours = field.name();
    Some(if synced.contains(field) {
        format!("looks like {ours}: use --column {ours}={name}")
    } else {
        format!("looks like {ours}, which is not in SYNC_FIELDS")
    })
}

/// The name of a time column without its usual prefixes and suffixes, as in `last_modified_at` or `date_joined`.
fn stem(plain: &str) -> &str {
    const AFTER: [&str; 6] = ["at", "on", "ts", "timestamp", "time", "date"];
    let rest = ["last", "date"].iter().find_map(|word| plain.strip_prefix(word)).unwrap_or(plain);
    AFTER.iter().find_map(|word| rest.strip_suffix(word)).filter(|rest| !rest.is_empty()).unwrap_or(rest)
}

/// The field that a column of this name may hold.
fn looks_like(plain_name: &str) -> Option<Field> {
    // Matches on parts of the name; the first match counts.
    const WORDS: [(&str, &[&str]); 11] = [
        ("phone_number", &["phone", "mobile", "contactnumber"]),
        // Before `email`: a column such as `email_verified` does not hold an address.
        ("email_verified", &["verified", "emailverif", "emailconfirm"]),
        ("email", &["email", "mailaddress"]),
        ("first_name", &["firstname", "givenname", "forename", "fname"]),
        ("last_name", &["lastname", "familyname", "surname", "lname"]),
        ("image_url", &["avatar", "image", "photo", "picture", "img"]),
        ("username", &["username", "userhandle", "nick", "screenname", "loginname"]),
        ("banned", &["banned", "blocked", "suspended"]),
        ("last_sign_in_at", &["lastsignin", "lastlogin", "lastlogged", "signedinat"]),
        ("last_active_at", &["lastactiv", "lastseen"]),
        ("public_metadata", &["publicmeta"]),
    ];
    let contains = |words: &[&str]| words.iter().any(|word| plain_name.contains(word));
    let known = WORDS.iter().find(|(_, words)| contains(words)).and_then(|(ours, _)| USER.named(ours));
    known.or_else(|| USER.selectable().find(|field| plain_name.contains(&plain(field.name()))))
}

pub(super) fn plain(name: &str) -> String {
    name.replace(['_', '-', ' '], "").to_ascii_lowercase()
}
