//! A lock file that only one process at a time holds. However the process ends, the lock ends too.
//!
//! Any user who can open a file can lock it, so the file is for its owner alone.

use std::fs::{File, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::db_file::access::{FileAccess, open_regular};
use crate::db_file::with_end;

/// The file that a path leads to, even if it does not exist yet. SQLite keeps a database's other
/// files beside the file and not beside a link to it, and so do we.
pub fn follow_links(path: PathBuf) -> PathBuf {
    const MOST: usize = 40; // as many as the system follows
    let mut at = path;
    for _ in 0..MOST {
        match std::fs::read_link(&at) {
            Ok(target) => at = at.with_file_name(target),
            Err(_) => break,
        }
    }
    at
}

/// The lock file of a database. Two processes that capture from one database would clear each
/// other's marks. The lock is on a file beside the database: closing the database file itself would
/// drop the locks that SQLite has on it.
pub fn of_database(path: &Path) -> PathBuf {
    beside(path, "-harmonylite.lock")
}

/// The default Unix socket of the database's daemon, at which commands reach it.
pub fn socket_of_database(path: &Path) -> PathBuf {
    beside(path, "-harmonylite.sock")
}

/// The file that stands for a pause of the database's daemon.
pub fn pause_of_database(path: &Path) -> PathBuf {
    beside(path, "-harmonylite.paused")
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| follow_links(path.to_owned()));
    with_end(&path, end)
}

/// Time that a daemon may need to end, and so the time that its successor waits.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Takes the lock of the database at `path`. If another process holds it, retries every 20 ms until
/// `patience` is over or `is_stopped`. The error is in a user's words.
pub fn take_database(
    path: &Path,
    patience: Duration,
    is_stopped: impl Fn() -> bool,
) -> Result<File, String> {
    let (lock, deadline) = (of_database(path), Instant::now() + patience);
    loop {
        match take(&lock, &FileAccess::of_database(path)) {
            Ok(Some(file)) => return Ok(file),
            Ok(None) if Instant::now() < deadline && !is_stopped() => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(None) => {
                return Err(format!(
                    "db_path: another harmonylite runs on {}: stop it first",
                    path.display()
                ));
            }
            Err(e) => return Err(format!("locking {}: {e}", lock.display())),
        }
    }
}

/// Takes the lock at `path`; it lasts until the file is closed. None if another process has it. A
/// new file gets the owner of `access`; one of a user who is not trusted is an error.
pub fn take(path: &Path, access: &FileAccess) -> io::Result<Option<File>> {
    let file = match access.for_owner().create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => open(path, access)?,
        made => made?,
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn open(path: &Path, access: &FileAccess) -> io::Result<File> {
    let file = open_regular(path, File::options().read(true).append(true))?;
    let data = file.metadata()?;
    if !access.trusts(data.uid()) {
        let (user, path) = (data.uid(), path.display());
        return Err(io::Error::other(format!(
            "the file belongs to a different user (number {user}), who could keep the lock for \
             ever: remove {path}"
        )));
    }
    // Earlier releases made it readable for all. A file with two names may be one of others.
    if data.mode() & 0o077 != 0 && data.nlink() == 1 {
        let _ = file.set_permissions(Permissions::from_mode(0o600));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_and_what_it_points_to_have_one_lock() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir(path("data")).unwrap();
        let link = |to: &str, name| std::os::unix::fs::symlink(to, path(name)).unwrap();
        link("data/app.db", "near.db");
        link("near.db", "far.db");
        link(path("data/app.db").to_str().unwrap(), "absolute.db");
        link("round.db", "round.db");
        for name in ["near.db", "far.db", "absolute.db", "data/app.db"] {
            assert_eq!(follow_links(path(name)), path("data/app.db"), "{name}");
        }
        follow_links(path("round.db")); // comes to an end
        let locks = ["far.db", "data/app.db"].map(|name| of_database(&path(name)));
        assert_eq!(locks[0], locks[1], "before the file is there");
    }

    #[test]
    fn one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let take = |path: &Path| take(path, &FileAccess::OURS);
        let held = take(&path).unwrap();
        assert!(held.is_some() && take(&path).unwrap().is_none());
        drop(held);
        assert!(take(&path).unwrap().is_some());
        assert!(take(&folder.path().join("no/lock")).is_err());
    }

    #[test]
    fn the_file_is_for_its_owner_and_no_link() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("a.db");
        std::fs::write(&database, "").unwrap();
        let lock = of_database(&database);
        let mode = || std::fs::metadata(&lock).unwrap().mode() & 0o777;
        let take = || take_database(&database, Duration::ZERO, || false);
        drop(take().unwrap());
        assert_eq!(mode(), 0o600);
        std::fs::set_permissions(&lock, Permissions::from_mode(0o644)).unwrap();
        drop(take().unwrap());
        assert_eq!(mode(), 0o600, "an earlier release made it");
        std::fs::remove_file(&lock).unwrap();
        let target = folder.path().join("target");
        std::os::unix::fs::symlink(&target, &lock).unwrap();
        let refused = take().unwrap_err();
        assert!(refused.contains("symbolic link"), "{refused}");
        assert!(!target.exists());
    }
}
