//! How the fence notices readers of a database; this depends on the journal mode.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rusqlite::Connection;

use super::index;
use super::locks::{self, Bytes};
use crate::database::{DatabaseError, Result};

/// Bytes of the database file. Readers lock one of them in rollback mode; an application that has
/// the database for itself locks them in any mode.
const DATABASE_READERS: Bytes = 0x4000_0002..0x4000_0002 + 510;

/// A byte of the `-shm` that nobody uses. [`locks::are_seen`] tests with it.
const UNUSED: Bytes = 200..201;

#[derive(Clone)]
pub(super) enum FenceKind {
    Off,
    Wal(Arc<Wal>),
    /// Readers are noticed by their locks on this database file.
    Journal(Arc<File>),
}

/// The files beside a database in WAL mode. They stay open for as long as the connection does: to
/// [`crate::watcher`], opening the WAL anew would look like a connection of another process.
pub(super) struct Wal {
    pub shm: File,
    file: File,
    path: PathBuf,
}

impl Wal {
    fn open(database: &Path) -> io::Result<Wal> {
        let name = |end| {
            let mut name = database.as_os_str().to_owned();
            name.push(end);
            PathBuf::from(name)
        };
        let path = name("-wal");
        let (shm, file) = (open(&name("-shm"))?, open(&path)?);
        match locks::are_seen(&shm, &UNUSED) {
            true => Ok(Wal { shm, file, path }),
            false => {
                std::mem::forget(shm); // closed, it would take the connection's locks with it
                Err(io::Error::other("tried with a process of our own"))
            }
        }
    }

    /// Syncs the committed frames to the disk.
    pub(super) fn sync(&self) -> Result<()> {
        let synced = self.file.sync_data();
        synced.map_err(|e| DatabaseError::Sync(self.path.clone(), e))
    }
}

impl FenceKind {
    /// Determines the way for the database of `conn`, outside of transactions. `strays` is
    /// incremented when the WAL is opened.
    pub(super) fn of(conn: &Connection, strays: &AtomicUsize) -> Result<FenceKind> {
        let Some(path) = conn.path().filter(|path| !path.is_empty()).map(Path::new) else {
            return Ok(FenceKind::Off);
        };
        let mode: String = conn.query_row("PRAGMA journal_mode", [], |r| r.get(0))?;
        // SQLite makes the `-shm` at the first read.
        conn.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
        let way = match mode == "wal" {
            true => {
                strays.fetch_add(1, Ordering::SeqCst); // before the event can come
                Wal::open(path).map(|wal| FenceKind::Wal(Arc::new(wal)))
            }
            false => open(path).map(|db| FenceKind::Journal(Arc::new(db))),
        };
        Ok(way.unwrap_or_else(|e| {
            log::warn!(
                "courtesy: HarmonyLite cannot see locks of other processes on {} ({e}): SQLite \
                 may refuse transactions of the application that read before they write as busy",
                path.display()
            );
            FenceKind::Off
        }))
    }

    /// Whether another process may be writing right now.
    pub(super) fn may_be_written(&self) -> bool {
        match self {
            FenceKind::Off | FenceKind::Journal(_) => true,
            FenceKind::Wal(wal) => locks::is_taken(&wal.shm, &index::WRITER),
        }
    }

    /// Whether another process reads the last commit.
    pub(super) fn is_read(&self) -> bool {
        match self {
            FenceKind::Off => false,
            FenceKind::Wal(wal) => index::is_read(&wal.shm),
            FenceKind::Journal(db) => locks::is_taken(db, &DATABASE_READERS),
        }
    }
}

/// Whether another process has the database file for itself.
pub(in crate::database) fn is_written(db: &File) -> bool {
    locks::is_written(db, &DATABASE_READERS)
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    let options = options.read(true).write(true);
    options.custom_flags(libc::O_NOFOLLOW).open(path)
}
