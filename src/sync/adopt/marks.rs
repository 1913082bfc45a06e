//! How a table marks users as deleted.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value as Json;

use super::values::{Time, time, truth};
use crate::store::ForeignRow;

/// A column that may mark a user as deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// A value here, such as a time or "yes", means that the user is deleted.
    Deleted,
    /// A value here means that the user is deactivated, and perhaps deleted.
    PutAside,
    /// A "no" here means that the user is deactivated, and perhaps deleted.
    Active,
    /// A status word here says whether the user is deleted.
    Status,
}

/// What a row says about the deletion of its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said<'a> {
    Deleted,
    /// This column may mean that the user is deleted.
    Perhaps(&'a str),
}

/// The kind of mark for a column name, which is given in lower case and without underscores.
pub(super) fn mark(plain: &str) -> Option<Mark> {
    const DELETED: [&str; 36] = [
        "deletedat",
        "isdeleted",
        "deleted",
        "deletedon",
        "deletedby",
        "deletedtime",
        "deletedtimestamp",
        "deleteddate",
        "datedeleted",
        "deletiondate",
        "deletiontime",
        "deletedts",
        "softdeleted",
        "softdeletedat",
        "issoftdeleted",
        "harddeleted",
        "userdeleted",
        "accountdeleted",
        "wasdeleted",
        "removedat",
        "isremoved",
        "removed",
        "erasedat",
        "iserased",
        "erased",
        "anonymizedat",
        "isanonymized",
        "anonymized",
        "anonymisedat",
        "isanonymised",
        "anonymised",
        "purgedat",
        "fivetrandeleted",
        "abcdcdeletedat",
        "sdcdeletedat",
        "hevomarkeddeleted",
    ];
    const PUT_ASIDE: [&str; 18] = [
        "archivedat",
        "isarchived",
        "archived",
        "deactivatedat",
        "isdeactivated",
        "deactivated",
        "disabledat",
        "isdisabled",
        "disabled",
        "inactive",
        "isinactive",
        "inactivesince",
        "closedat",
        "isclosed",
        "terminatedat",
        "isterminated",
        "discardedat",
        "trashedat",
    ];
    const ACTIVE: [&str; 7] =
        ["isactive", "active", "isenabled", "enabled", "useractive", "accountactive", "accountenabled"];
    const STATUS: [&str; 10] = [
        "status",
        "state",
        "userstatus",
        "userstate",
        "accountstatus",
        "accountstate",
        "lifecycle",
        "lifecyclestate",
        "lifecyclestatus",
        "recordstatus",
    ];
    const OTHERS: [&str; 4] = ["delet", "erase", "anonymi", "purge"];
    const NO_MARKS: [&str; 4] = ["able", "can", "undelet", "allow"];
    let says = |words: &[&str]| words.iter().any(|word| plain.contains(word));
    if DELETED.contains(&plain) {
        Some(Mark::Deleted)
    } else if ACTIVE.contains(&plain) {
        Some(Mark::Active)
    } else if STATUS.contains(&plain) {
        Some(Mark::Status)
    } else if PUT_ASIDE.contains(&plain) || (says(&OTHERS) && !says(&NO_MARKS)) {
        Some(Mark::PutAside)
    } else {
        None
    }
}

/// What a row says about the deletion of its user. With `by_condition` the operator has given a condition for deleted
/// users, so a column alone does not mark a user as deleted.
pub(super) fn said<'a>(
    row: &ForeignRow,
    marks: &'a [(String, Mark)],
    by_condition: bool,
    now: DateTime<Utc>,
) -> Option<Said<'a>> {
    if row.meets_condition {
        return Some(Said::Deleted);
    }
    let mut perhaps = None;
    for (column, mark) in marks {
        let Some(json) = row.values.get(column) else { continue };
        let said = match mark {
            Mark::Deleted => is_set(json, now).then_some(Said::Deleted),
            Mark::PutAside => is_set(json, now).then_some(Said::Perhaps(column)),
            Mark::Active => (truth(json) == Some(false)).then_some(Said::Perhaps(column)),
            Mark::Status => by_word(json, column),
        };
        match said {
            Some(Said::Deleted) if !by_condition => return said,
            Some(_) => perhaps = perhaps.or(Some(Said::Perhaps(column))),
            None => {}
        }
    }
    perhaps
}

/// Whether the value means "yes". A time in the future does not: some tables use one for "never". One day of tolerance
/// allows for different time zones.
fn is_set(json: &Json, now: DateTime<Utc>) -> bool {
    if let Some(truth) = truth(json) {
        return truth;
    }
    let begun = |at: DateTime<Utc>| at <= now + TimeDelta::days(1);
    match (json, time(json)) {
        (Json::Null, _) => false,
        (_, Some(Time::At(at))) => begun(at),
        (_, Some(Time::WithoutZone(at))) => begun(at.and_utc()),
        (Json::String(text), None) => {
            !matches!(text.trim().to_ascii_lowercase().as_str(), "" | "infinity" | "null" | "none")
                && !text.starts_with("0000-")
        }
        _ => true,
    }
}

fn by_word<'a>(json: &Json, column: &'a str) -> Option<Said<'a>> {
    const DELETED: [&str; 9] = [
        "deleted",
        "softdeleted",
        "harddeleted",
        "removed",
        "erased",
        "anonymized",
        "anonymised",
        "purged",
        "isdeleted",
    ];
    const PERHAPS: [&str; 6] = ["archived", "inactive", "deactivated", "disabled", "closed", "terminated"];
    let word = json.as_str()?.to_ascii_lowercase().replace(['_', '-', ' '], "");
    if DELETED.contains(&word.as_str()) {
        Some(Said::Deleted)
    } else if PERHAPS.contains(&word.as_str()) || word.contains("delet") {
        Some(Said::Perhaps(column))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn says(column: &str, value: Json) -> Option<Said<'static>> {
        let marks: Vec<(String, Mark)> = mark(&column.replace('_', "").to_ascii_lowercase())
            .map(|mark| (column.to_owned(), mark))
            .into_iter()
            .collect();
        let values = serde_json::Map::from_iter([(column.to_owned(), value)]);
        let row = ForeignRow { id: "user_1".to_owned(), values, meets_condition: false };
        let now = DateTime::from_timestamp(1_800_000_000, 0).expect("a time");
        said(&row, &marks, false, now).map(|said| match said {
            Said::Deleted => Said::Deleted,
            Said::Perhaps(_) => Said::Perhaps(""),
        })
    }

    #[test]
    fn every_usual_mark_of_a_deletion_is_understood() {
        for (column, value) in [
            ("deletedAt", json!("2024-01-01T00:00:00")),
            ("deleted_at", json!(1_700_000_000_000_i64)),
            ("isDeleted", json!(true)),
            ("is_deleted", json!(1)),
            ("deleted", json!("t")),
            ("deleted", json!("yes")),
            ("deleted_by", json!("admin")),
            ("_fivetran_deleted", json!(true)),
            ("status", json!("DELETED")),
            ("state", json!("soft-deleted")),
        ] {
            assert_eq!(says(column, value.clone()), Some(Said::Deleted), "{column} {value}");
        }
        for (column, value) in [
            ("is_active", json!(false)),
            ("isActive", json!(0)),
            ("active", json!("false")),
            ("status", json!("inactive")),
            ("status", json!("PENDING_DELETION")),
            ("archived_at", json!("2024-01-01")),
            ("deletionRequestedAt", json!("2024-01-01")),
        ] {
            assert_eq!(says(column, value.clone()), Some(Said::Perhaps("")), "{column} {value}");
        }
        for (column, value) in [
            ("deletedAt", json!(null)),
            ("deleted_at", json!(0)),
            ("deleted_at", json!("")),
            ("deleted_at", json!("infinity")),
            ("deleted_at", json!("9999-12-31 00:00:00")),
            ("deleted_at", json!("0000-00-00 00:00:00")),
            ("is_deleted", json!(false)),
            ("deleted", json!("N")),
            ("is_active", json!(true)),
            ("is_active", json!(null)),
            ("status", json!("active")),
            ("status", json!(null)),
            ("deletable", json!(true)),
            ("can_delete", json!(true)),
            ("bio", json!("deleted")),
        ] {
            assert_eq!(says(column, value.clone()), None, "{column} {value}");
        }
    }
}
