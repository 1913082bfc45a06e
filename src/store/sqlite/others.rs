//! Detecting work that another process has added. SQLite sends no notifications, but every commit changes the write-ahead log
//! next to the file. Checking that does not access the database.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use tokio::time::sleep;

use crate::store::{Listener, Result};

/// The polling interval.
const POLL: Duration = Duration::from_millis(500);

/// The length and the time of the last write, of the log and of the database.
type State = [Option<(u64, SystemTime)>; 2];

/// Polls the files.
pub(super) struct Watch {
    files: [PathBuf; 2],
    seen: State,
}

impl Watch {
    /// Detects changes from now on.
    pub(super) fn of(path: &Path) -> Self {
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        let files = [log.into(), path.to_owned()];
        Self { seen: state(&files), files }
    }
}

#[async_trait]
impl Listener for Watch {
    async fn heard(&mut self) -> Result<()> {
        loop {
            sleep(POLL).await;
            let now = state(&self.files);
            if now != self.seen {
                self.seen = now;
                return Ok(());
            }
        }
    }
}

fn state(files: &[PathBuf; 2]) -> State {
    files.each_ref().map(|file| {
        let found = fs::metadata(file).ok()?;
        Some((found.len(), found.modified().ok()?))
    })
}
