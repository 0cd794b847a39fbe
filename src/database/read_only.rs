//! A connection that reads a database and leaves everything on disk as it is, whether the database
//! is open elsewhere or not: it makes no `-wal` and no `-shm`, and moves no frame of the WAL.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use crate::database::{DatabaseError, Result};
use crate::db_file::with_end;

/// Offset of the write format in the file's header: 2 stands for WAL.
const FORMAT_AT: usize = 18;
const WAL: u8 = 2;

/// An open database.
pub(crate) struct ReadOnly {
    pub conn: Connection,
    path: PathBuf,
    /// State of the file before it was read; none if it is read with locks.
    before: Option<FileStat>,
}

#[derive(PartialEq, Eq)]
struct FileStat {
    length: u64,
    modified: Option<SystemTime>,
    is_open_elsewhere: bool,
}

/// How to read the file.
enum ReadMode {
    /// With locks, like any connection. The `-wal` and `-shm` files exist already, or none is
    /// needed.
    Shared,
    /// Without locks: no process has the database open, and the file itself has all content.
    Alone,
    /// With an exclusive lock. No process has the database open, but there is a WAL without its
    /// index. For a connection that locks the file SQLite keeps that index in memory.
    Locked,
}

impl ReadOnly {
    pub(crate) fn open(path: &Path) -> Result<ReadOnly> {
        let failed = |source| DatabaseError::Open {
            path: path.to_owned(),
            source,
        };
        let before = FileStat::of(path);
        let way = way(path);
        let conn = connect(path, &way).map_err(failed)?;
        Ok(ReadOnly {
            conn,
            path: path.to_owned(),
            before: matches!(way, ReadMode::Alone).then_some(before),
        })
    }

    /// Whether the content was read as of one moment. Without locks, another process may have
    /// opened the database and written meanwhile.
    pub(crate) fn is_sound(&self) -> bool {
        let now = || FileStat::of(&self.path);
        self.before.as_ref().is_none_or(|before| *before == now())
    }
}

impl FileStat {
    fn of(path: &Path) -> FileStat {
        let data = std::fs::metadata(path).ok();
        FileStat {
            length: data.as_ref().map_or(0, |d| d.len()),
            modified: data.and_then(|d| d.modified().ok()),
            is_open_elsewhere: with_end(path, "-shm").exists(),
        }
    }
}

fn way(path: &Path) -> ReadMode {
    let mut header = [0; 100];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut header));
    if read.is_err() || header[FORMAT_AT] != WAL {
        return ReadMode::Shared;
    }
    let wal = std::fs::metadata(with_end(path, "-wal")).ok();
    let frames = wal.as_ref().is_some_and(|data| data.len() > 0);
    match (wal.is_some() && with_end(path, "-shm").exists(), frames) {
        (true, _) => ReadMode::Shared,
        (false, false) => ReadMode::Alone,
        (false, true) => ReadMode::Locked,
    }
}

fn connect(path: &Path, way: &ReadMode) -> rusqlite::Result<Connection> {
    let read_only = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = match way {
        ReadMode::Shared => Connection::open_with_flags(path, read_only),
        ReadMode::Alone => {
            let flags = read_only | OpenFlags::SQLITE_OPEN_URI;
            Connection::open_with_flags(immutable(path), flags)
        }
        ReadMode::Locked => {
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let conn = Connection::open_with_flags(path, flags)?;
            conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
            conn.execute_batch("PRAGMA locking_mode = EXCLUSIVE; PRAGMA wal_autocheckpoint = 0")?;
            Ok(conn)
        }
    }?;
    conn.busy_timeout(Duration::from_secs(5))?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    conn.execute_batch("PRAGMA temp_store = MEMORY")?;
    Ok(conn)
}

/// The URI of a file that SQLite reads without locks, see <https://www.sqlite.org/uri.html>.
fn immutable(path: &Path) -> OsString {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut uri = b"file://".to_vec();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' => uri.push(*byte),
            byte if byte.is_ascii_alphanumeric() => uri.push(*byte),
            byte => uri.extend(format!("%{byte:02X}").bytes()),
        }
    }
    uri.extend(b"?immutable=1");
    OsString::from_vec(uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names and contents of the files in a folder.
    fn files(folder: &Path) -> Vec<(OsString, Vec<u8>)> {
        let list = std::fs::read_dir(folder).unwrap().map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name(), std::fs::read(entry.path()).unwrap())
        });
        let mut files: Vec<_> = list.collect();
        files.sort();
        files
    }

    fn count(path: &Path) -> i64 {
        let read = ReadOnly::open(path).unwrap();
        let count = read
            .conn
            .query_row("SELECT count(*) FROM t", [], |r| r.get(0));
        assert!(read.is_sound());
        count.unwrap()
    }

    fn app(path: &Path, mode: &str) -> Connection {
        let app = Connection::open(path).unwrap();
        app.execute_batch(&format!(
            "PRAGMA journal_mode = {mode}; CREATE TABLE t(v); INSERT INTO t VALUES (1)"
        ))
        .unwrap();
        app
    }

    #[test]
    fn nothing_is_left_behind() {
        for mode in ["wal", "delete"] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("a %20?#ü.db");
            let app = app(&path, mode);
            assert_eq!(count(&path), 1, "while it is open");
            app.close().unwrap();
            let before = files(dir.path());
            assert_eq!(before.len(), 1);
            assert_eq!(count(&path), 1);
            assert!(files(dir.path()) == before, "{mode}");
        }
    }

    /// Cases: as after a crash, and copied without the -shm, or without the -wal.
    #[test]
    fn leftovers_of_a_crash_stay_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db");
        let app = app(&path, "wal");
        let schema_is_in_the_file = "PRAGMA wal_checkpoint(TRUNCATE); INSERT INTO t VALUES (2)";
        app.execute_batch(schema_is_in_the_file).unwrap();
        for (ends, rows) in [
            (&["", "-wal", "-shm"][..], 2),
            (&["", "-wal"], 2),
            (&["", "-shm"], 1),
        ] {
            let copy = tempfile::tempdir().unwrap();
            let to = copy.path().join("a.db");
            for end in ends {
                std::fs::copy(with_end(&path, end), with_end(&to, end)).unwrap();
            }
            let mut before = files(copy.path());
            assert_eq!(count(&to), rows, "{ends:?}");
            let mut after = files(copy.path());
            // The index of the WAL is a cache that also holds its locks.
            before
                .iter_mut()
                .chain(&mut after)
                .for_each(|(name, bytes)| {
                    if name == "a.db-shm" {
                        bytes.clear();
                    }
                });
            assert!(before == after, "{ends:?}");
        }
    }

    #[test]
    fn no_file_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none.db");
        assert!(ReadOnly::open(&path).is_err());
        assert!(files(dir.path()).is_empty());
    }
}
