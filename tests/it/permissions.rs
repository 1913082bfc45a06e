//! A SQLite file, or its directory, that belongs to another user.
//!
//! Root may write to every file, so if root runs the tests, the program runs as user 10001. Any other user removes its own
//! permissions instead.

use std::{
    fs::{self, Permissions},
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::service::{Finished, Host, Keeper, is_root, post, user};

/// The user that the program runs as, if root runs the tests.
const US: u32 = 10_001;

/// The owner of files that the program may not write to.
const OTHER: u32 = 1_000;

struct Place {
    host: Host,
    folder: TempDir,
    program: PathBuf,
}

impl Place {
    /// Create a directory that the program owns.
    fn new() -> Self {
        let mut host = Host::with(Keeper::Sqlite).expect("SQLite is always there");
        let folder = tempfile::tempdir().unwrap();
        set_mode(folder.path(), 0o755);
        set_mode(host.directory.path(), 0o755);
        // The program's user may not enter the build directory.
        let program = host.directory.path().join("clerk-sync");
        let built = host.command(&[]);
        fs::copy(built.get_program(), &program).unwrap();
        let data = folder.path().join("data");
        fs::create_dir(&data).unwrap();
        let place = Self {
            folder,
            program,
            host: {
                host.set("DATABASE_WAIT_SECONDS", "20");
                host
            },
        };
        give(&data, US);
        place
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn file(&self) -> PathBuf {
        self.data().join("users.db")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let like = self.host.command(arguments);
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .env_clear()
            .envs(like.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .env("DATABASE_URL", format!("sqlite://{}", self.file().display()))
            .current_dir("/");
        if is_root() {
            command.uid(US).gid(US);
        }
        command
    }

    fn run(&self, arguments: &[&str]) -> Finished {
        let output = self.command(arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Finished { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    /// Assert that every command that writes, and `doctor`, ends at once and reports the path, the user and the remedy.
    fn is_refused(&self, place: &Path, remedy: &str) {
        let database = format!("sqlite://{}", self.file().display());
        let as_whom = format!(
            "by user {}, the user that clerk-sync runs as",
            if is_root() { US } else { owner(self.folder.path()) }
        );
        for arguments in
            [&["serve"][..], &["migrate"], &["dev", "--once", "--database-url", &database], &["doctor"]]
        {
            let began = Instant::now();
            let ended = self.run(arguments);
            assert!(began.elapsed() < Duration::from_secs(20), "{arguments:?} waits in vain");
            assert_eq!(ended.code, Some(78), "{arguments:?}: {ended:?}");
            let said = format!("{}{}", ended.stdout, ended.stderr);
            for part in [&format!("{} may not be", place.display()), &as_whom, &remedy.to_owned()] {
                assert!(said.contains(part), "{arguments:?} does not say {part}: {said}");
            }
        }
    }
}

fn owner(path: &Path) -> u32 {
    fs::metadata(path).unwrap().uid()
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Change the owner, which only root can do.
fn give(path: &Path, to: u32) {
    if is_root() {
        chown(path, Some(to), Some(to)).unwrap();
    }
}

/// Remove the program's write permission. Returns the beginning of the command that restores it.
fn close(path: &Path, mode: u32) -> String {
    set_mode(path, mode);
    give(path, OTHER);
    let shown = path.display();
    if is_root() { format!("`chown {US}:{US} {shown}") } else { format!("`chmod u+rwX {shown}") }
}

#[test]
fn a_directory_that_is_not_ours_ends_the_start_at_once() {
    let place = Place::new();
    for mode in [0o555, 0o644, 0o600] {
        let remedy = close(&place.data(), mode);
        place.is_refused(&place.data(), &remedy);
    }
    if is_root() {
        close(&place.data(), 0o755);
        place.is_refused(&place.data(), &format!("`docker run --user {OTHER}:{OTHER} …`"));
    }
    // The user that runs the tests must be able to remove the directory.
    set_mode(&place.data(), 0o755);
}

#[test]
fn a_file_in_a_directory_that_is_not_ours_ends_the_start_at_once() {
    let place = Place::new();
    assert_eq!(place.run(&["migrate"]).code, Some(0));
    let remedy = close(&place.data(), 0o555);
    place.is_refused(&place.data(), &remedy);
    set_mode(&place.data(), 0o755);
}

#[test]
fn a_file_or_a_log_of_it_that_is_not_ours_ends_the_start_at_once() {
    for name in ["users.db", "users.db-wal", "users.db-shm"] {
        for mode in [0o444, 0o400] {
            let place = Place::new();
            assert_eq!(place.run(&["migrate"]).code, Some(0));
            let file = place.data().join(name);
            if name != "users.db" {
                fs::write(&file, "").unwrap();
            }
            let remedy = close(&file, mode);
            place.is_refused(&file, &remedy);
        }
    }
}

#[test]
fn the_command_that_is_named_mends_it() {
    let place = Place::new();
    assert_eq!(place.run(&["migrate"]).code, Some(0));
    close(&place.file(), 0o444);
    close(&place.data(), 0o555);
    let said = place.run(&["migrate"]).stderr;
    let command = said.split('`').nth(1).unwrap_or_else(|| panic!("no command: {said}"));
    assert!(
        command.ends_with(&format!("{} {}", place.data().display(), place.file().display())),
        "{command}"
    );
    assert!(Command::new("sh").args(["-c", command]).status().unwrap().success());
    let mended = place.run(&["migrate"]);
    assert_eq!(mended.code, Some(0), "{mended:?}");
}

#[test]
fn a_read_only_mount_ends_the_start_at_once() {
    let place = Place::new();
    assert_eq!(place.run(&["migrate"]).code, Some(0));
    let data = place.data().display().to_string();
    let mount =
        format!("mount --bind {data} {data} && mount -o remount,ro,bind {data} && exec \"$0\" \"$@\"");
    let tried = Command::new("unshare").args(["--mount", "sh", "-c", &mount, "true"]).output();
    if !tried.is_ok_and(|tried| tried.status.success()) {
        return crate::service::skip("unshare", "this environment does not allow mounts");
    }
    // Not even root may write to it.
    for command in ["serve", "migrate", "doctor"] {
        let like = place.command(&[]);
        let output = Command::new("unshare")
            .args(["--mount", "sh", "-c", &mount, &place.program.display().to_string(), command])
            .env_clear()
            .envs(like.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert_eq!(output.status.code(), Some(78), "{command}: {said}");
        for part in [&data, "mounted read-only", "the user that clerk-sync runs as", "without `:ro`"] {
            assert!(said.contains(part), "{command} does not say {part}: {said}");
        }
    }
}

#[test]
fn a_service_that_may_no_longer_write_is_not_ready() {
    let host = Host::with(Keeper::Sqlite).expect("SQLite is always there");
    let folder = host.directory.path().join("data");
    fs::create_dir(&folder).unwrap();
    let file = folder.join("users.db");
    let service = host.serve_with(&["--database-url", &format!("sqlite://{}", file.display())]);
    set_mode(&file, 0o444);
    if fs::OpenOptions::new().append(true).open(&file).is_ok() {
        return crate::service::skip("unprivileged", "root may write to read-only files");
    }
    crate::service::eventually("not ready", || service.status("/readyz") == Some(503));
    set_mode(&file, 0o644);
    crate::service::eventually("ready again", || service.status("/readyz") == Some(200));
    assert_eq!(service.post(&post(&user("user.created", "user_1", 1, "Ada"))).word(), "applied");
}
