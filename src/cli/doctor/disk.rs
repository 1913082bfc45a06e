//! The disk: the free space where SQLite keeps its file, or the size of a server's database.

use std::path::Path;

use indicatif::BinaryBytes;
use rustix::fs::statvfs;

use super::{configuration::Given, report::Finding};
use crate::{
    cli::Failure,
    config::Database,
    store::{Result as Stored, Size},
};

const CHECK: &str = "disk";

/// Less free space than this is a warning, and so is less than a tenth of the volume.
const ENOUGH: u64 = 1 << 30;

/// With less than this, SQLite cannot even write its log.
const NEXT_TO_NOTHING: u64 = 16 << 20;

/// The directory of a file.
pub(super) fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

pub(super) fn check(given: &Given, size: Option<Stored<Size>>) -> Finding {
    if given.is_mistaken("DATABASE_URL") {
        return Finding::skip(CHECK, "the configuration does not say which database");
    }
    match (&given.config.database, size) {
        (Database::Sqlite { path }, size) => {
            let size = size.and_then(Result::ok);
            let Ok(volume) = statvfs(folder(path)) else {
                return Finding::skip(CHECK, "the system does not report the free space");
            };
            judge(size, volume.f_bavail * volume.f_frsize, volume.f_blocks * volume.f_frsize)
        }
        (_, None) => Finding::skip(CHECK, "the database cannot be inspected"),
        (_, Some(Err(error))) => Finding::skip(CHECK, error.to_string()),
        (_, Some(Ok(Size { database, ours }))) => {
            let ours = ours
                .map(|ours| format!(", {} of it in clerk-sync's tables", BinaryBytes(ours)))
                .unwrap_or_default();
            let place = "the free space of the server is not visible from here";
            Finding::ok(CHECK, format!("the database uses {}{ours}; {place}", BinaryBytes(database)))
        }
    }
}

fn judge(size: Option<Size>, free: u64, all: u64) -> Finding {
    let file =
        size.map(|size| format!("the file uses {}, and ", BinaryBytes(size.database))).unwrap_or_default();
    let found = format!("{file}{} of {} are free", BinaryBytes(free), BinaryBytes(all));
    let remedy =
        "free space on the volume of DATABASE_URL, or stop clerk-sync and move the file to a larger volume";
    if free < NEXT_TO_NOTHING {
        Finding::fail(CHECK, Failure::FAILED, found, remedy)
    } else if free < ENOUGH || free < all / 10 {
        Finding::warn(CHECK, found, remedy)
    } else {
        Finding::ok(CHECK, found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_with_less_than_a_gibibyte_or_a_tenth_free_is_told() {
        let status = |free, all| judge(None, free, all).as_json()["status"].as_str().map(str::to_owned);
        let gib = 1 << 30;
        assert_eq!(status(20 * gib, 100 * gib).as_deref(), Some("ok"));
        assert_eq!(status(9 * gib, 100 * gib).as_deref(), Some("warn"));
        assert_eq!(status(gib - 1, 2 * gib).as_deref(), Some("warn"));
        assert_eq!(status(0, 100 * gib).as_deref(), Some("fail"));
    }
}
