//! Tells that the database's files were written. That is a hint to poll, never the truth.
//!
//! Of the folder, inotify tells which files come and go, as SQLite's do. Of the database and its
//! WAL it tells each write. Writes to other files in the folder wake nobody.
//!
//! Programs that open the database are counted by a second inotify, which is read when the first
//! one tells that one of the files was opened. inotify merges two equal events in a row into one,
//! so two programs that open the database one after the other would count as one. The second
//! inotify therefore watches the folder, and the database and its WAL by themselves, too. Each time
//! that one of them is opened causes two different events then, so that no two in a row are equal.

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use inotify::{Event, EventMask, Events, Inotify, WatchDescriptor, WatchMask, Watches};

use crate::db_file::with_end;
use crate::poller::{Poller, Source};

mod opened;
mod waiting;

use opened::{Notice, OpenCounts};
pub use waiting::is_waited_for;
use waiting::{Alone, Searches};

/// Suffixes of the files of a database: the database itself, and the files that SQLite puts beside
/// it.
const ENDS: [&str; 4] = ["", "-wal", "-journal", "-shm"];
const DATABASE: usize = 0;
const WAL: usize = 1;
const SHM: usize = 3;

/// The second inotify is read again this long after a file was opened: its event may come last.
const AGAIN: Duration = Duration::from_millis(5);

/// Longest time between two reads of the second inotify: other files that are opened fill it.
const EMPTIED: Duration = Duration::from_secs(60);

/// Hints from inotify. Dropping it ends the watch.
pub struct Watcher {
    hints: Receiver<()>,
    is_wanted: Arc<AtomicBool>,
    watches: Watches,
    folder: WatchDescriptor,
}

impl Watcher {
    /// Watches the files of the database at `path`. `strays` counts how often this process opened
    /// the WAL beside a connection without an event about it yet. An error comes from inotify.
    pub fn start(
        path: &Path,
        strays: Arc<AtomicUsize>,
        poller: &Poller,
    ) -> std::io::Result<Watcher> {
        let (wakes, opens) = (Inotify::init()?, Inotify::init()?);
        let mut watches = wakes.watches();
        strays.store(0, Ordering::SeqCst);
        let folder = watches.add(folder_of(path), comings_and_goings())?;
        let opened = WatchMask::OPEN | WatchMask::CLOSE_NOWRITE;
        opens.watches().add(folder_of(path), opened)?;
        // One hint says as much as ten, so the channel holds one.
        let (sender, hints) = bounded(1);
        let is_wanted = Arc::new(AtomicBool::new(false));
        let mut watch = InotifyWatch {
            openings: opens.watches(),
            wakes,
            opens,
            due: Instant::now(),
            path: path.to_owned(),
            names: ENDS.map(|end| {
                with_end(path, end)
                    .file_name()
                    .unwrap_or_default()
                    .to_owned()
            }),
            watches: watches.clone(),
            folder: folder.clone(),
            strays,
            opened: OpenCounts::default(),
            searches: Searches::default(),
            sender,
            is_wanted: is_wanted.clone(),
        };
        for file in [DATABASE, WAL, SHM] {
            watch.add(file);
        }
        poller.add(Box::new(watch));
        Ok(Watcher {
            hints,
            is_wanted,
            watches,
            folder,
        })
    }

    /// Whether, since the last call, a program seems to have opened the database to have it for
    /// itself.
    pub fn is_wanted(&self) -> bool {
        self.is_wanted.swap(false, Ordering::Relaxed)
    }

    /// Receives a message per burst of writes.
    pub fn hints(&self) -> &Receiver<()> {
        &self.hints
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.watches.remove(self.folder.clone());
    }
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn comings_and_goings() -> WatchMask {
    WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVED_FROM | WatchMask::MOVED_TO
}

/// The part of the watch that waits.
struct InotifyWatch {
    wakes: Inotify,
    opens: Inotify,
    /// When to look without an event.
    due: Instant,
    path: PathBuf,
    names: [OsString; ENDS.len()],
    watches: Watches,
    /// Watches of the second inotify.
    openings: Watches,
    folder: WatchDescriptor,
    strays: Arc<AtomicUsize>,
    opened: OpenCounts,
    searches: Searches,
    sender: Sender<()>,
    is_wanted: Arc<AtomicBool>,
}

impl Source for InotifyWatch {
    fn files(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.wakes.as_fd()]
    }

    fn within(&self) -> Option<Duration> {
        Some(self.due.saturating_duration_since(Instant::now()))
    }

    fn handle(&mut self) -> Result<bool, String> {
        let mut buffer = [0; 4096];
        let (mut is_hint, mut is_opened) = (false, false);
        while let Some(events) = read(&mut self.wakes, &mut buffer)? {
            for event in events {
                if event.wd == self.folder && event.mask.contains(EventMask::IGNORED) {
                    return Ok(false); // the watch was removed: it is to end
                }
                is_hint |= self.is_hint(&event);
                is_opened |= event.mask.contains(EventMask::OPEN);
            }
        }
        while let Some(events) = read(&mut self.opens, &mut buffer)? {
            events.for_each(|event| self.count(&event));
        }
        if let Some(notice) = self.opened.take(Instant::now()) {
            self.notice(notice);
        }
        if is_hint {
            let _ = self.sender.try_send(());
        }
        let now = Instant::now();
        let notice = self.opened.noticed_in(now);
        let again = is_opened.then_some(AGAIN);
        self.due = now + notice.into_iter().chain(again).min().unwrap_or(EMPTIED);
        Ok(true)
    }
}

impl InotifyWatch {
    /// Handles a notice: a program has the database open alone, or may have. Sends a hint if that
    /// program seems to want the database for itself.
    fn notice(&mut self, notice: Notice) {
        let is_wanted = match notice {
            Notice::Alone => waiting::who_is_alone(&self.path) != Alone::Reader,
            Notice::Doubt => self.searches.is_waited_for(&self.path),
        };
        if !is_wanted {
            return;
        }
        self.is_wanted.store(true, Ordering::Relaxed);
        let _ = self.sender.try_send(());
    }

    /// Whether the event tells of a change to one of our files.
    fn is_hint(&mut self, event: &Event<&OsStr>) -> bool {
        let has = |mask| event.mask.contains(mask);
        if has(EventMask::Q_OVERFLOW) {
            return true;
        }
        let Some(name) = event.name else {
            return has(EventMask::MODIFY); // of a file
        };
        let Some(file) = self.names.iter().position(|own| own == name) else {
            return false;
        };
        if has(EventMask::CREATE) || has(EventMask::MOVED_TO) {
            self.add(file);
        }
        true
    }

    /// Counts the files that are opened.
    fn count(&mut self, event: &Event<&OsStr>) {
        let is_file = |name: &OsStr| self.names.iter().position(|own| own == name);
        if let Some(file) = event.name.and_then(is_file) {
            self.note_opened(file, event.mask.contains(EventMask::OPEN));
        }
    }

    fn note_opened(&mut self, file: usize, is_open: bool) {
        let take = |n: usize| n.checked_sub(1);
        match file {
            DATABASE if is_open => self.opened.database(Instant::now()),
            // A program that only read the beginning, as SQLite's shell does before it opens the
            // database.
            DATABASE => self.opened.closed(),
            WAL if is_open => {
                let (set, fetch) = (Ordering::SeqCst, Ordering::SeqCst);
                if self.strays.fetch_update(set, fetch, take).is_err() {
                    self.opened.wal(Instant::now());
                }
            }
            SHM if is_open => self.opened.shm(),
            _ => {}
        }
    }

    /// Watches a file by itself; see the module's head. Our own reads write to the shared memory.
    fn add(&mut self, file: usize) {
        let path = self.path.with_file_name(&self.names[file]);
        let opened = WatchMask::OPEN | WatchMask::CLOSE_NOWRITE;
        let wakes = match file {
            DATABASE | WAL => opened | WatchMask::MODIFY,
            SHM => WatchMask::OPEN,
            _ => return,
        };
        let added = self.watches.add(&path, wakes).and_then(|_| match file {
            SHM => Ok(()),
            _ => self.openings.add(&path, WatchMask::OPEN).map(drop),
        });
        if let Err(e) = added {
            log::debug!("watching {}: {e}", path.display()); // it is not there yet, or gone
        }
    }
}

/// The events that are there, in parts; none if there are no more.
fn read<'b>(inotify: &mut Inotify, buffer: &'b mut [u8]) -> Result<Option<Events<'b>>, String> {
    match inotify.read_events(buffer) {
        Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(e) => Err(e.to_string()),
        Ok(events) => Ok(Some(events)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::Duration;

    use super::*;

    /// Longer than any test takes.
    const SOON: Duration = Duration::from_secs(10);

    fn open(path: &Path) -> File {
        let mut options = File::options();
        options.read(true).write(true).create(true);
        options.truncate(false).open(path).unwrap()
    }

    fn watch(path: &Path) -> Watcher {
        let poller = Poller::start(&crossbeam_channel::unbounded().0).unwrap();
        Watcher::start(path, Arc::default(), &poller).unwrap()
    }

    #[test]
    fn a_write_is_noticed_and_other_files_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let watcher = watch(&dir.path().join("a.db"));
        std::fs::write(dir.path().join("other"), "x").unwrap();
        std::fs::write(dir.path().join("a.db-shm"), "x").unwrap();
        std::fs::write(dir.path().join("a.db-wal"), "x").unwrap();
        watcher.hints().recv_timeout(SOON).unwrap();
        let hints = watcher.hints().clone();
        drop(watcher);
        let is_over = |e: crossbeam_channel::RecvTimeoutError| e.is_disconnected();
        while !hints.recv_timeout(SOON).is_err_and(is_over) {}
    }

    /// The second connection is opened at the same moment. The shell reads the header first.
    #[test]
    fn a_program_that_opens_the_database_alone_is_noticed_beside_any_that_open_both() {
        let dir = tempfile::tempdir().unwrap();
        let [db, wal] = ["a.db", "a.db-wal"].map(|name| dir.path().join(name));
        let _kept = [&db, &wal].map(|path| open(path));
        let watcher = watch(&db);
        for round in 0..20 {
            let _both = open(&db);
            let _alone = open(&db);
            let _wal = open(&wal);
            let until = Instant::now() + SOON;
            while !watcher.is_wanted() {
                let hint = watcher.hints().recv_deadline(until);
                assert!(hint.is_ok(), "not noticed, round {round}");
            }
        }
    }

    #[test]
    fn a_program_that_opens_both_or_only_reads_is_not_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let [db, wal, shm] = ["a.db", "a.db-wal", "a.db-shm"].map(|name| dir.path().join(name));
        let _kept = [&db, &wal, &shm].map(|path| open(path));
        let watcher = watch(&db);
        drop(File::open(&db).unwrap());
        let _first = [&db, &db, &wal, &wal, &shm].map(|path| open(path));
        // A backup, which takes a while.
        let mut copies = std::process::Command::new("sleep");
        let mut copies = copies
            .arg("100")
            .stdin(File::open(&db).unwrap())
            .spawn()
            .unwrap();
        let quiet = watcher.hints().recv_timeout(Duration::from_millis(300));
        copies.kill().unwrap();
        copies.wait().unwrap();
        assert!(quiet.is_err() && !watcher.is_wanted());
    }
}
