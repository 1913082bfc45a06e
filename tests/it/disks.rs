//! Disks that fill up under load: nothing that was acknowledged is lost, nothing is applied twice, and work goes on by
//! itself when there is room again.
//!
//! The data lies on a small disk in memory, which the test fills with a file of its own. Only root may mount such a disk;
//! other users skip these tests. `stream.rs` has the same test for the stream.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    failovers::Cluster,
    outages::{assert_unavailable, created, under_load, wait_for_work},
    service::{Host, Keeper, Service, alone, eventually, is_root, load, skip},
};

/// A small disk in memory, mounted over a directory until the end of the test.
pub(crate) struct Disk {
    folder: PathBuf,
}

impl Disk {
    /// `None` if this user may not mount one.
    pub(crate) fn over(folder: &Path, megabytes: u32) -> Option<Self> {
        if !is_root() {
            skip("small-disk", "only root may mount one");
            return None;
        }
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={megabytes}m,mode=0777"), "tmpfs"]).arg(folder);
        let why = match mount.output() {
            Ok(mounted) if mounted.status.success() => return Some(Self { folder: folder.to_owned() }),
            Ok(mounted) => String::from_utf8_lossy(&mounted.stderr).trim().to_owned(),
            Err(error) => format!("the program mount cannot be run: {error}"),
        };
        skip("small-disk", &why);
        None
    }

    fn filler(&self) -> PathBuf {
        self.folder.join("filler")
    }

    /// Write a file until not one byte more fits.
    pub(crate) fn fill(&self) {
        let mut filler = File::create(self.filler()).expect("a file");
        let block = vec![0; 1 << 20];
        loop {
            match filler.write(&block) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Remove that file.
    pub(crate) fn make_room(&self) {
        fs::remove_file(self.filler()).expect("removed");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A process may still be in the directory.
        _ = Command::new("umount").arg("--lazy").arg(&self.folder).status();
    }
}

/// Send until a delivery is answered 503. Before that, rows may still fit into pages that exist.
fn send_until_refused(service: &Service) {
    let mut answer = None;
    eventually("a full disk is noticed", || {
        let next = service.post(&created());
        let refused = next.status != 200;
        answer = Some(next);
        refused
    });
    assert_unavailable(&answer.expect("an answer"));
}

/// The log explains the problem, and contains no personal data.
fn assert_tells(service: &Service, what: &str) {
    eventually("the log says so", || service.log().contains(what));
    for personal in ["Lovelace", "Augusta", "example.com"] {
        assert!(!service.log().contains(personal), "{}", service.log());
    }
}

#[test]
fn a_sqlite_file_whose_disk_is_full_under_load_has_all_that_was_acknowledged() {
    let Some(host) = Host::with(Keeper::Sqlite) else { return };
    let Some(disk) = Disk::over(host.directory.path(), 64) else { return };
    let _alone = alone();
    let told = under_load(&host, host.serve(), |_, service| {
        for _ in 0..load(1, 10) {
            wait_for_work(&host, 100);
            disk.fill();
            send_until_refused(&service);
            assert_eq!(service.status("/livez"), Some(200));
            let ready = service.get("/readyz");
            assert_unavailable(&ready);
            assert_tells(&service, "the disk is full");
            disk.make_room();
            eventually("ready", || service.status("/readyz") == Some(200));
            wait_for_work(&host, 100);
        }
        service.stop();
    });
    assert!(told.refused > 0, "the disk was not full under load");
    assert_eq!(host.sql("PRAGMA integrity_check"), [["ok"]]);
}

#[test]
fn a_postgresql_whose_disk_is_full_under_load_has_all_that_was_acknowledged() {
    let Some(cluster) = Cluster::on_small_disk(256) else { return };
    let disk = cluster.disk.as_ref().expect("it has its own");
    let host = Host::at(Keeper::Postgres, cluster.url()).expect("the server answers");
    let _alone = alone();
    let told = under_load(&host, host.serve(), |_, service| {
        for _ in 0..load(1, 10) {
            wait_for_work(&host, 100);
            disk.fill();
            send_until_refused(&service);
            assert_eq!(service.status("/livez"), Some(200));
            assert_tells(&service, "are held and tried again");
            // A PostgreSQL that cannot write its log of changes ends.
            disk.make_room();
            cluster.recover();
            eventually("ready", || service.status("/readyz") == Some(200));
            wait_for_work(&host, 100);
            // The queue may have had room for what the table of users had not.
            eventually("what was parked is applied", || host.count("webhook_queue") == 0);
        }
        service.stop();
    });
    assert!(told.refused > 0, "the disk was not full under load");
}
