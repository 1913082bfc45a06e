//! PostgreSQL servers that crash under load, standbys that take over, and a PgBouncer that is killed: nothing that was
//! acknowledged is lost, and nothing is applied twice. Each test starts the servers that it kills.
//!
//! `TEST_POSTGRES_BIN` names the directory that holds `initdb`; without it these tests are skipped.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{
    disks::Disk,
    outages::{PgBouncer, under_load, wait_for_work},
    proxy::{Mode, Proxy},
    service::{Host, Keeper, alone, eventually, free_port, load, skip, unprivileged},
};

/// A server with its data, which ends with the test.
pub(crate) struct Cluster {
    bin: PathBuf,
    /// The disk of the folder, if it has its own. It is taken away before the folder is removed.
    pub(crate) disk: Option<Disk>,
    folder: TempDir,
    port: u16,
}

impl Cluster {
    /// `None` if the programs are missing.
    fn new() -> Option<Self> {
        let cluster = Self::installed()?;
        cluster.create();
        Some(cluster)
    }

    /// A server whose data has a disk of this size. `None` if the programs are missing, or the disk.
    pub(crate) fn on_small_disk(megabytes: u32) -> Option<Self> {
        let mut cluster = Self::installed()?;
        cluster.disk = Some(Disk::over(cluster.folder.path(), megabytes)?);
        cluster.create();
        Some(cluster)
    }

    fn installed() -> Option<Self> {
        let bin = env::var_os("TEST_POSTGRES_BIN");
        if bin.is_none() {
            skip("postgres-programs", "TEST_POSTGRES_BIN does not name their directory");
        }
        bin.map(|bin| Self::at(Path::new(&bin)))
    }

    fn at(bin: &Path) -> Self {
        let folder = tempfile::Builder::new().prefix("pg").tempdir().expect("a directory");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("permissions");
        Self { bin: bin.to_owned(), disk: None, folder, port: free_port() }
    }

    /// Create the data, and start the server.
    fn create(&self) {
        self.run(
            "initdb",
            &["--pgdata", &self.data(), "--username", "postgres", "--auth", "trust", "--no-sync"],
        );
        self.start();
    }

    fn data(&self) -> String {
        self.folder.path().join("data").display().to_string()
    }

    fn address(&self) -> (String, u16) {
        ("127.0.0.1".to_owned(), self.port)
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// Run one of PostgreSQL's programs, which refuse to run as root; returns whether it succeeded.
    fn try_run(&self, program: &str, arguments: &[&str]) -> bool {
        let mut command = unprivileged(self.bin.join(program));
        // A server that the program starts would keep a pipe open.
        let log = fs::File::create(self.folder.path().join("log")).expect("a file");
        command.args(arguments).current_dir(self.folder.path()).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a file")).stderr(log);
        command.status().expect("the program starts").success()
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let log = || fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        assert!(self.try_run(program, arguments), "{program} {arguments:?}: {}", log());
    }

    /// Start the server, and wait until it accepts connections. Processes of the killed server may briefly hold its memory.
    fn start(&self) {
        let options = format!(
            "-p {} -c listen_addresses=127.0.0.1 -c unix_socket_directories={} -c max_connections=100",
            self.port,
            self.folder.path().display()
        );
        let server_log = self.folder.path().join("server.log").display().to_string();
        let start =
            ["start", "--wait", "--pgdata", &self.data(), "--log", &server_log, "--options", &options];
        eventually("PostgreSQL starts", || self.try_run("pg_ctl", &start));
    }

    /// Wait until the server accepts connections, and start it again if it has given up.
    pub(crate) fn recover(&self) {
        let ready = ["--host", "127.0.0.1", "--port", &self.port.to_string()];
        eventually("PostgreSQL recovers", || {
            if !self.try_run("pg_ctl", &["status", "--pgdata", &self.data()]) {
                self.start();
            }
            self.try_run("pg_isready", &ready)
        });
    }

    /// Kill the postmaster; its child processes then end by themselves.
    fn kill(&self) {
        let pid = fs::read_to_string(Path::new(&self.data()).join("postmaster.pid")).expect("its process");
        let pid = pid.lines().next().and_then(|line| Pid::from_raw(line.parse().ok()?)).expect("a number");
        kill_process(pid, Signal::KILL).expect("killed");
    }

    /// A synchronous standby: from now on, it has every commit of this server before the commit is acknowledged.
    fn standby(&self) -> Self {
        let standby = Self::at(&self.bin);
        let source = format!("host=127.0.0.1 port={} user=postgres application_name=standby", self.port);
        let copy = ["--pgdata", &standby.data(), "--write-recovery-conf", "--checkpoint=fast", "--no-sync"];
        standby.run("pg_basebackup", &[&copy[..], &["--dbname", &source]].concat());
        standby.start();
        let host = Host::at(Keeper::Postgres, self.url()).expect("the server answers");
        host.sql("ALTER SYSTEM SET synchronous_standby_names = '*'");
        host.sql("SELECT pg_reload_conf()");
        eventually("the standby is synchronous", || {
            host.count("pg_stat_replication WHERE sync_state = 'sync'") == 1
        });
        standby
    }

    /// Promote this standby to primary.
    fn promote(&self) {
        self.run("pg_ctl", &["promote", "--wait", "--pgdata", &self.data()]);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        _ = self.try_run("pg_ctl", &["stop", "--mode", "immediate", "--pgdata", &self.data()]);
    }
}

#[test]
fn a_server_that_is_killed_under_load_has_all_that_was_acknowledged() {
    let Some(cluster) = Cluster::new() else { return };
    let host = Host::at(Keeper::Postgres, cluster.url()).expect("the server answers");
    let _alone = alone();
    under_load(&host, host.serve(), |_, service| {
        for _ in 0..load(2, 50) {
            wait_for_work(&host, 100);
            cluster.kill();
            cluster.start();
        }
        wait_for_work(&host, 100);
        service.stop();
    });
}

#[test]
fn a_standby_that_takes_over_under_load_has_all_that_was_acknowledged() {
    let Some(mut primary) = Cluster::new() else { return };
    let proxy = Proxy::to(primary.address(), Mode::Pass, Duration::ZERO);
    let url = format!("postgres://postgres@{}/postgres", proxy.address);
    let host = Host::at(Keeper::Postgres, url).expect("the server answers");
    let _alone = alone();
    under_load(&host, host.serve(), |_, service| {
        for _ in 0..load(2, 50) {
            let standby = primary.standby();
            wait_for_work(&host, 100);
            primary.kill();
            standby.promote();
            proxy.lead_to(standby.address());
            proxy.cut();
            primary = standby;
        }
        wait_for_work(&host, 100);
        service.stop();
    });
}

#[test]
fn behind_a_pgbouncer_that_is_killed_under_load_nothing_acknowledged_is_lost() {
    let Some(mut host) = Host::with(Keeper::Postgres) else { return };
    let Some(mut bouncer) = PgBouncer::start(&host) else { return };
    host.reach_server_at(bouncer.address);
    let _alone = alone();
    under_load(&host, host.serve(), |_, service| {
        for _ in 0..load(3, 50) {
            wait_for_work(&host, 100);
            let port = bouncer.address.port();
            bouncer.kill();
            thread::sleep(Duration::from_millis(200));
            bouncer = PgBouncer::start_at(&host, port).expect("it was there before");
        }
        wait_for_work(&host, 100);
        service.stop();
    });
}
