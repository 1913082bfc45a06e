//! How a table says that somebody is deleted.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value as Json;

use super::values::{Time, time, truth};
use crate::store::ForeignRow;

/// A column by which a table says who is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// Whoever has something here is deleted: a time, or yes.
    Deleted,
    /// Whoever has something here is put aside, and perhaps deleted.
    PutAside,
    /// Whoever has a no here is put aside, and perhaps deleted.
    Active,
    /// A word says it.
    Status,
}

/// What a row says of a deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said<'a> {
    Deleted,
    /// By this column it may be so.
    Perhaps(&'a str),
}

/// What a column of this name says, given without case and underscores.
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

/// What a row says of a deletion. `by_condition`: the user has said who is deleted, so that a column alone does not.
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

/// Whether a column has something that means yes. Times to come do not, such as those that stand for never; our clock and
/// that of the table may differ by a zone.
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
