//! A file that one process at a time holds locked: it is let go of however that process ends.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// Beside the database, because two processes that capture from one database would clear each
/// other's marks; and none in the database itself, because closing the file again would drop the
/// locks that SQLite has on it.
pub fn of_database(path: &Path) -> PathBuf {
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push("-harmonylite.lock");
    path.with_file_name(name)
}

/// The same, or why not in a user's words.
pub fn take_database(path: &Path) -> Result<File, String> {
    let lock = of_database(path);
    match take(&lock) {
        Ok(Some(file)) => Ok(file),
        Ok(None) => Err(format!(
            "db_path: another harmonylite works on {}: stop that one first",
            path.display()
        )),
        Err(e) => Err(format!("locking {}: {e}", lock.display())),
    }
}

/// Takes the lock at `path`, which is held as long as the file is open. None if somebody has it.
pub fn take(path: &Path) -> io::Result<Option<File>> {
    let file = File::options()
        .read(true)
        .append(true)
        .create(true)
        .open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let held = take(&path).unwrap();
        assert!(held.is_some() && take(&path).unwrap().is_none());
        drop(held);
        assert!(take(&path).unwrap().is_some());
        assert!(take(&folder.path().join("no/lock")).is_err());
    }
}
