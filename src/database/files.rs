//! Notices changes to the database's files while they are open here: another program replaced a
//! file, removed `-wal` or `-shm`, or copied a file over the database itself.
//!
//! From that moment on this process writes nothing more. SQLite does not check the file names
//! again. It would go on in a deleted file, and at the last close copy the old WAL over the new
//! database (<https://www.sqlite.org/howtocorrupt.html>, 1 and 2).

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use rusqlite::Connection;
use rusqlite::config::DbConfig;
use rustix::fs::{FlockOperation, fcntl_lock};

use super::{Database, DatabaseError, Result};
use crate::db_file::{Number, number, number_at, with_end};

/// A header that looks foreign is read again after this time: a write may be under way.
const READ_AGAIN: Duration = Duration::from_millis(2);

/// The files that are open here.
pub(crate) struct Files {
    path: PathBuf,
    /// Device and inode of the database file; `None` if they are not available.
    number: Option<Number>,
    /// `-wal` and `-shm`; `None` unless the database is in WAL mode.
    beside: Option<[(PathBuf, Number); 2]>,
    /// The database file, for reading its header without SQLite. Closing it drops the locks that
    /// SQLite has on the file in this process, so it is closed after the connection.
    header: Option<File>,
    seen: Option<FileState>,
    found: Option<Found>,
    /// A change by another program was found.
    is_lost: Arc<AtomicBool>,
    /// `-shm`, locked so that nobody uses a WAL that is being moved away.
    locked: Option<File>,
}

/// Tells a connection beside the main one whether it may checkpoint.
pub(crate) struct OpenedFiles {
    names: Vec<(PathBuf, Number)>,
    is_lost: Arc<AtomicBool>,
}

impl OpenedFiles {
    /// Whether the files are still those that are open.
    pub(crate) fn is_there(&self) -> bool {
        !self.is_lost.load(Ordering::Relaxed) && self.names.iter().all(is_there)
    }
}

/// An error of the disk other than `NotFound` does not count as a missing file.
fn is_there((name, open): &(PathBuf, Number)) -> bool {
    match std::fs::metadata(name) {
        Ok(there) => number(&there) == *open,
        Err(e) => e.kind() != io::ErrorKind::NotFound,
    }
}

/// A change that another program made to the files.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    /// A different database file is in the place, or none.
    Replaced,
    /// The database file is the same, but its content is foreign.
    Overwritten,
    /// `-wal` or `-shm` is gone or was replaced.
    Removed(PathBuf),
}

/// State of the database file at the last check.
#[derive(Debug, PartialEq, Eq)]
struct FileState {
    size: u64,
    modified: Option<SystemTime>,
    header: Option<Header>,
}

/// Fields of the first 100 bytes (<https://www.sqlite.org/fileformat2.html#the_database_header>).
#[derive(Debug, PartialEq, Eq)]
struct Header {
    page_size: [u8; 2],
    /// The versions for reading and for writing: both are 2 in WAL mode.
    versions: [u8; 2],
    change_counter: u32,
}

impl Header {
    fn parse(bytes: &[u8; 100]) -> Option<Header> {
        let counter = [bytes[24], bytes[25], bytes[26], bytes[27]];
        bytes.starts_with(b"SQLite format 3\0").then_some(Header {
            page_size: [bytes[16], bytes[17]],
            versions: [bytes[18], bytes[19]],
            change_counter: u32::from_be_bytes(counter),
        })
    }

    /// Whether no checkpoint can turn this header into `now`. In WAL mode only checkpoints write to
    /// the file, the mode cannot change while the file is open here, and the counter never
    /// decreases.
    fn is_foreign(&self, now: Option<&Header>) -> bool {
        now.is_none_or(|now| {
            let behind = self.change_counter.wrapping_sub(now.change_counter);
            let is_behind = behind != 0 && behind < 1 << 31;
            is_behind || now.page_size != self.page_size || now.versions != self.versions
        })
    }
}

impl Files {
    /// The files of the database at `path`, which is open.
    pub(crate) fn open(path: &Path, conn: &Connection) -> Files {
        let mut files = Files {
            path: path.to_owned(),
            number: number_at(path),
            beside: None,
            header: File::open(path).ok(),
            seen: None,
            found: None,
            is_lost: Arc::default(),
            locked: None,
        };
        files.note_beside(conn);
        files
    }

    /// Forgets `-wal` and `-shm`: the connection is closed, so another program may replace them.
    pub(crate) fn forget_beside(&mut self) {
        (self.beside, self.seen) = (None, None);
    }

    /// The database file, which the caller must not close. Fails if a different file is in its
    /// place.
    pub(crate) fn database(&self) -> Result<Option<&File>> {
        match number_at(&self.path) {
            there if there.is_some() && there != self.number => {
                Err(DatabaseError::Replaced(self.path.clone()))
            }
            _ => Ok(self.header.as_ref()),
        }
    }

    /// The files to check for a second connection of this process.
    pub(crate) fn opened(&self) -> OpenedFiles {
        let database = self.number.map(|number| (self.path.clone(), number));
        OpenedFiles {
            names: database
                .into_iter()
                .chain(self.beside.clone().into_iter().flatten())
                .collect(),
            is_lost: self.is_lost.clone(),
        }
    }

    /// Size of the WAL file in bytes; 0 if there is none.
    pub(crate) fn wal_bytes(&self) -> u64 {
        let wal = self.beside.as_ref().map(|[(wal, _), _]| wal);
        let data = wal.and_then(|wal| std::fs::metadata(wal).ok());
        data.map_or(0, |data| data.len())
    }

    /// Notes `-wal` and `-shm`, if the database is in WAL mode. The application can change the mode
    /// at any time.
    fn note_beside(&mut self, conn: &Connection) {
        let names = ["-wal", "-shm"].map(|end| with_end(&self.path, end));
        if number_at(&names[1]).is_none() {
            return;
        }
        // SQLite opens them only when it reads the content.
        let get_mode = || -> rusqlite::Result<String> {
            let first = "SELECT count(*) FROM (SELECT 1 FROM sqlite_schema LIMIT 1)";
            conn.query_row(first, [], |r| r.get::<_, i64>(0))?;
            conn.query_row("PRAGMA journal_mode", [], |r| r.get(0))
        };
        if get_mode().as_deref() != Ok("wal") {
            return;
        }
        let numbers = [&names[0], &names[1]].map(|name| number_at(name));
        let ([wal, shm], [Some(wal_number), Some(shm_number)]) = (names, numbers) else {
            return;
        };
        self.beside = Some([(wal, wal_number), (shm, shm_number)]);
        self.seen = self.see().ok();
    }

    fn see(&self) -> io::Result<FileState> {
        let data = std::fs::metadata(&self.path)?;
        let mut bytes = [0; 100];
        let file = self.header.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let header = match file.read_exact_at(&mut bytes, 0) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => None,
            read => read.map(|()| Header::parse(&bytes))?,
        };
        Ok(FileState {
            size: data.size(),
            modified: data.modified().ok(),
            header,
        })
    }

    /// Returns the change by another program, if there is one. A missing database file counts only
    /// with `must_be`, because a different file may be about to take its place.
    fn check(&mut self, conn: &Connection, must_be: bool) -> Option<Found> {
        let there = std::fs::metadata(&self.path);
        let there = match (self.number, there) {
            (_, Err(e)) => {
                let is_gone = must_be && e.kind() == io::ErrorKind::NotFound;
                return is_gone.then_some(Found::Replaced);
            }
            (Some(open), Ok(there)) if number(&there) != open => return Some(Found::Replaced),
            (_, Ok(there)) => there,
        };
        let Some(beside) = &self.beside else {
            self.note_beside(conn);
            return None;
        };
        if let Some((gone, _)) = beside.iter().find(|open| !is_there(open)) {
            return Some(Found::Removed(gone.clone()));
        }
        self.look_locked(&there, conn)
    }

    fn look_locked(&mut self, there: &Metadata, conn: &Connection) -> Option<Found> {
        let before = self.seen.as_ref()?;
        if before.size == there.size() && before.modified == there.modified().ok() {
            return None;
        }
        let is_foreign = |now: &FileState| {
            let header = before.header.as_ref();
            header.is_some_and(|header| header.is_foreign(now.header.as_ref()))
        };
        let mut now = self.see().ok()?;
        if is_foreign(&now) {
            std::thread::sleep(READ_AGAIN);
            now = self.see().ok()?;
            if is_foreign(&now) {
                return Some(Found::Overwritten);
            }
        }
        // A checkpoint changed the file, or a copy with the same header did: no cached page may be
        // used after this.
        let _ = conn.release_memory();
        self.seen = Some(now);
        None
    }

    /// Removes a WAL that belongs to the previous database file, so that no program uses it with
    /// the new file. Does nothing while another process has it open.
    fn take_wal_away(&mut self, conn: &Connection, found: &Found) -> io::Result<()> {
        // If one of them was replaced, they may belong to another program.
        let beside = self.beside.as_ref();
        let Some([(wal, _), (shm, _)]) = beside.filter(|files| files.iter().all(is_there)) else {
            return Ok(());
        };
        let file = File::options().read(true).write(true).open(shm)?;
        let locked = fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive);
        self.locked = Some(file);
        if locked.is_err() {
            log::warn!(
                "another program has {} open: stop it, and put the file in its place again",
                self.path.display()
            );
            return Ok(());
        }
        std::fs::remove_file(shm)?;
        // The previous database file is still open here under another name, and the checkpoint
        // makes it complete.
        if *found == Found::Replaced && is_all_taken_in(conn) || std::fs::metadata(wal)?.len() == 0
        {
            return std::fs::remove_file(wal);
        }
        let aside = with_end(&self.path, ".harmonylite-old-wal");
        std::fs::rename(wal, &aside)?;
        log::warn!(
            "{} belonged to the former database: it is {} now",
            wal.display(),
            aside.display()
        );
        Ok(())
    }
}

/// Whether a checkpoint copied the whole WAL into the database.
fn is_all_taken_in(conn: &Connection) -> bool {
    let counts = |r: &rusqlite::Row<'_>| Ok((r.get::<_, i64>(1)?, r.get::<_, i64>(2)?));
    let done = conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], counts);
    done.is_ok_and(|(frames, taken_in)| frames == taken_in)
}

impl Database {
    /// Fails if another program changed the files that are open here, and from then on always. With
    /// `must_be` it also fails if there is no database file. Takes a few microseconds.
    pub fn check_files(&mut self, must_be: bool) -> Result<()> {
        if self.files.found.is_none()
            && let Some(found) = self.files.check(&self.conn, must_be)
        {
            self.let_go(found);
        }
        let path = || self.settings.path.clone();
        match &self.files.found {
            None => Ok(()),
            Some(Found::Replaced) => Err(DatabaseError::Replaced(path())),
            Some(Found::Overwritten) => Err(DatabaseError::Overwritten(path())),
            Some(Found::Removed(name)) => Err(DatabaseError::Removed(name.clone())),
        }
    }

    /// Whether the files that are open here are no longer the database.
    pub(crate) fn is_lost(&self) -> bool {
        self.files.found.is_some()
    }

    /// Makes sure that nothing is written from here on, not even when the connection is closed.
    fn let_go(&mut self, found: Found) {
        self.files.is_lost.store(true, Ordering::Relaxed);
        let config = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
        if let Err(e) = self.conn.set_db_config(config, true) {
            log::warn!("closing without a checkpoint: {e}");
        }
        if matches!(found, Found::Replaced | Found::Overwritten)
            && let Err(e) = self.files.take_wal_away(&self.conn, &found)
        {
            log::warn!("moving the former WAL away: {e}");
        }
        self.files.found = Some(found);
    }
}
