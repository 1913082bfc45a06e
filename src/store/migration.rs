//! Migrations: SQL files embedded in the binary. They are applied in order and recorded with a checksum.

use sha2::{Digest, Sha256};

/// One migration of one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migration {
    /// 1, 2, 3, …
    pub version: i64,
    pub name: &'static str,
    pub(super) sql: &'static str,
}

impl Migration {
    /// SHA-256 of the file, in hexadecimal. A different value reveals that the file was changed after it was applied.
    pub(super) fn checksum(&self) -> String {
        hex::encode(Sha256::digest(self.sql))
    }

    /// Whether it creates this table.
    pub(super) fn makes(&self, table: &str) -> bool {
        self.sql.contains(&format!("CREATE TABLE IF NOT EXISTS {table} ("))
    }

    /// Every migration of `known`, and whether it is applied. A newer database may have more.
    pub(super) fn status(known: &[Self], applied: &[(i64, String)]) -> Vec<MigrationStatus> {
        let is_applied = |migration: &Self| applied.iter().any(|(version, _)| *version == migration.version);
        let status =
            |migration: &Self| MigrationStatus { migration: *migration, applied: is_applied(migration) };
        known.iter().map(status).collect()
    }

    /// As [`status`](Self::status), after checking what was applied.
    ///
    /// # Errors
    /// As for [`pending`](Self::pending).
    pub(super) fn checked(known: &[Self], applied: &[(i64, String)]) -> super::Result<Vec<MigrationStatus>> {
        Self::pending(known, applied).map(|_| Self::status(known, applied))
    }

    /// The migrations of `known` that are not applied yet. `applied` holds the versions and checksums of the others.
    ///
    /// # Errors
    /// If the database is newer than this program, or a file differs from the one that was applied.
    pub(super) fn pending(known: &[Self], applied: &[(i64, String)]) -> super::Result<Vec<Self>> {
        for (version, checksum) in applied {
            let Some(migration) = known.iter().find(|migration| migration.version == *version) else {
                return Err(super::StoreError::schema(format!(
                    "the database has migration {version}, which this version of clerk-sync does not know: run a newer version"
                )));
            };
            if migration.checksum() != *checksum {
                return Err(super::StoreError::schema(format!(
                    "migration {version} ({}) was applied from a different file: run the version of clerk-sync that applied it",
                    migration.name
                )));
            }
        }
        let status = Self::status(known, applied).into_iter();
        Ok(status.filter(|status| !status.applied).map(|status| status.migration).collect())
    }
}

/// A migration and whether it is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MigrationStatus {
    pub migration: Migration,
    pub applied: bool,
}

// The files in `migrations/`, by database.
include!(concat!(env!("OUT_DIR"), "/migrations.rs"));

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [Migration; 2] =
        [Migration { version: 1, name: "one", sql: "a" }, Migration { version: 2, name: "two", sql: "b" }];

    #[test]
    fn only_what_is_not_applied_is_pending() {
        let first = (1, KNOWN[0].checksum());
        assert_eq!(Migration::pending(&KNOWN, &[]).expect("fine").len(), 2);
        assert_eq!(Migration::pending(&KNOWN, &[first]).expect("fine"), [KNOWN[1]]);
    }

    #[test]
    fn a_newer_database_and_a_changed_file_are_refused() {
        assert!(Migration::pending(&KNOWN, &[(3, "x".to_owned())]).is_err());
        assert!(Migration::pending(&KNOWN, &[(1, "x".to_owned())]).is_err());
    }
}
