//! Whether the system allows writing: to the file, to its logs, and to its directory, where SQLite creates them.
//!
//! SQLite notices late, and only reports a number. So clerk-sync asks the system first. clerk-sync's message names every
//! place that blocks access, the user that clerk-sync runs as, and the command that fixes the problem.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Access, AtFlags, CWD, accessat},
    io::Errno,
    process::{getegid, geteuid},
};

use crate::store::{Result, StoreError};

/// Check that everything that belongs to the database at `path` may be written to. The file need not exist yet.
///
/// # Errors
/// [`ErrorKind::Schema`](crate::store::ErrorKind::Schema), with a message that says what to do.
pub fn check(path: &Path) -> Result<()> {
    // SQLite puts the logs next to the target of a link.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let enter = Access::EXEC_OK;
    if let Some(closed) = above(folder).find(|above| is_refused(above, enter).is_some()) {
        return Err(closed_above(&closed));
    }
    if is_refused(folder, enter).is_some() {
        return Err(refused(&[(folder.to_owned(), enter)]));
    }
    let beside = |suffix: &str| {
        let mut name = path.clone().into_os_string();
        name.push(suffix);
        PathBuf::from(name)
    };
    let write = Access::READ_OK | Access::WRITE_OK;
    let places = [(folder.to_owned(), Access::WRITE_OK)]
        .into_iter()
        .chain(["", "-wal", "-shm", "-journal"].map(|suffix| (beside(suffix), write)));
    let closed: Vec<_> = places.filter(|(place, access)| is_refused(place, *access).is_some()).collect();
    if closed.is_empty() { Ok(()) } else { Err(refused(&closed)) }
}

/// The ancestors of a directory, the outermost first.
fn above(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let above = folder.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty());
    above.map(Path::to_owned).collect::<Vec<_>>().into_iter().rev()
}

/// Why the system refuses access, if it does. For a missing place it reports another error.
fn is_refused(place: &Path, access: Access) -> Option<Errno> {
    let error = accessat(CWD, place, access, AtFlags::EACCESS).err()?;
    [Errno::ACCESS, Errno::PERM, Errno::ROFS].contains(&error).then_some(error)
}

/// The error for a closed parent directory. It may be another user's home, so the message does not suggest changing its owner.
fn closed_above(folder: &Path) -> StoreError {
    let (us, folder) = (geteuid().as_raw(), folder.display());
    StoreError::schema(format!(
        "DATABASE_URL: {folder} may not be entered by user {us}, the user that clerk-sync runs as; `chmod o+x {folder}`, or \
         name a file in another directory"
    ))
}

fn refused(closed: &[(PathBuf, Access)]) -> StoreError {
    let (first, access) = &closed[0];
    let reads = access.contains(Access::READ_OK) && is_refused(first, Access::READ_OK).is_some();
    let verb = if reads { "read" } else { "written to" };
    let (us, group) = (geteuid().as_raw(), getegid().as_raw());
    let found = format!(
        "DATABASE_URL: {} may not be {verb} by user {us}, the user that clerk-sync runs as",
        first.display()
    );
    if closed.iter().any(|(place, access)| is_refused(place, *access) == Some(Errno::ROFS)) {
        return StoreError::schema(format!(
            "{found}: it is on a file system that is mounted read-only; mount it writable (`mount -o remount,rw …`, or `docker \
             run --volume …` without `:ro`), or name a file elsewhere"
        ));
    }
    let places: Vec<String> = closed.iter().map(|(place, _)| place.display().to_string()).collect();
    let places = places.join(" ");
    let Ok(metadata) = fs::metadata(first) else {
        return StoreError::schema(format!("{found}; `chown {us}:{group} {places}`"));
    };
    let (owner, owners_group, mode) = (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777);
    let may_owner = closed.iter().filter_map(|(place, _)| fs::metadata(place).ok()).all(|metadata| {
        let needed = if metadata.is_dir() { 0o300 } else { 0o600 };
        metadata.uid() == owner && metadata.mode() & needed == needed
    });
    let remedy = match owner {
        _ if owner == us => format!("`chmod u+rwX {places}`"),
        _ if !may_owner => format!("`chown {us}:{group} {places} && chmod u+rwX {places}`"),
        0 => format!("`chown {us}:{group} {places}`"),
        _ => format!(
            "`chown {us}:{group} {places}`, or run as its owner: `docker run --user {owner}:{owners_group} …`"
        ),
    };
    StoreError::schema(format!("{found}: it belongs to user {owner} and has mode {mode:03o}; {remedy}"))
}
