//! The files that change when another process adds work. SQLite sends no notifications, but every commit changes the
//! write-ahead log next to the file. Checking that does not access the database.

use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use async_trait::async_trait;

use crate::store::{Result, polling::Marks};

/// The log and the database.
pub(super) struct Files([PathBuf; 2]);

impl Files {
    pub(super) fn of(path: &Path) -> Self {
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        Self([log.into(), path.to_owned()])
    }
}

#[async_trait]
impl Marks for Files {
    /// The length and the time of the last write of each; `None` if the file is missing.
    type Seen = [Option<(u64, SystemTime)>; 2];

    async fn read(&self) -> Result<Self::Seen> {
        Ok(self.0.each_ref().map(|file| {
            let found = fs::metadata(file).ok()?;
            Some((found.len(), found.modified().ok()?))
        }))
    }
}
