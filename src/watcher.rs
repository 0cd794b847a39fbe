//! Tells that the database's files were written. That is a hint to poll, never the truth.
//!
//! inotify watches the folder, because SQLite's files come and go. Writes to the shared-memory file
//! are ignored, because our own reads cause them, too.
//!
//! inotify merges two equal events in a row into one, so two programs that open the database one
//! after the other would count as one. The database and its WAL are therefore watched by
//! themselves, too. Each time that one of them is opened causes two different events then, so that
//! no two in a row are equal.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};
use inotify::{Event, EventMask, Inotify, WatchDescriptor, WatchMask, Watches};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::thread::{Exited, spawn};

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

/// A thread that waits for inotify. Dropping it ends the thread.
pub struct Watcher {
    hints: Receiver<()>,
    is_wanted: Arc<AtomicBool>,
    watches: Watches,
    folder: WatchDescriptor,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Watches the files of the database at `path`. `strays` counts how often this process opened
    /// the WAL beside a connection without an event about it yet. An error comes from inotify.
    pub fn start(
        path: &Path,
        strays: Arc<AtomicUsize>,
        exits: &Sender<Exited>,
    ) -> std::io::Result<Watcher> {
        let inotify = Inotify::init()?;
        let mut watches = inotify.watches();
        strays.store(0, Ordering::SeqCst);
        let folder = watches.add(folder_of(path), events())?;
        // One hint says as much as ten, so the channel holds one.
        let (sender, hints) = bounded(1);
        let is_wanted = Arc::new(AtomicBool::new(false));
        let mut watch = InotifyWatch {
            path: path.to_owned(),
            names: ENDS.map(|end| with_end(path.file_name().unwrap_or_default(), end)),
            watches: watches.clone(),
            folder: folder.clone(),
            strays,
            opened: OpenCounts::default(),
            searches: Searches::default(),
            sender,
            is_wanted: is_wanted.clone(),
        };
        watch.separate(DATABASE);
        watch.separate(WAL);
        let thread = spawn("watcher", exits, move || watch.run(inotify));
        Ok(Watcher {
            hints,
            is_wanted,
            watches,
            folder,
            thread: Some(thread),
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
        if self.watches.remove(self.folder.clone()).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn with_end(name: &OsStr, end: &str) -> OsString {
    let mut name = name.to_owned();
    name.push(end);
    name
}

fn events() -> WatchMask {
    WatchMask::MODIFY
        | WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::OPEN
        | WatchMask::CLOSE_NOWRITE
        | WatchMask::MOVED_FROM
        | WatchMask::MOVED_TO
}

/// State of the thread.
struct InotifyWatch {
    path: PathBuf,
    names: [OsString; ENDS.len()],
    watches: Watches,
    folder: WatchDescriptor,
    strays: Arc<AtomicUsize>,
    opened: OpenCounts,
    searches: Searches,
    sender: Sender<()>,
    is_wanted: Arc<AtomicBool>,
}

impl InotifyWatch {
    fn run(mut self, mut inotify: Inotify) -> Result<(), String> {
        let mut buffer = [0; 4096];
        loop {
            wait(&inotify, &self.opened);
            if let Some(notice) = self.opened.take(Instant::now()) {
                self.notice(notice);
                continue;
            }
            let events = inotify
                .read_events_blocking(&mut buffer)
                .map_err(|e| e.to_string())?;
            let mut is_hint = false;
            for event in events {
                if event.wd == self.folder && event.mask.contains(EventMask::IGNORED) {
                    return Ok(()); // the watch was removed: we are to end
                }
                is_hint |= self.is_hint(&event);
            }
            if is_hint {
                let _ = self.sender.try_send(());
            }
        }
    }

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

    /// Whether the event tells of a write to one of our files. Counts the files that are opened.
    fn is_hint(&mut self, event: &Event<&OsStr>) -> bool {
        let has = |mask| event.mask.contains(mask);
        if has(EventMask::Q_OVERFLOW) {
            return true;
        }
        let is_file = |name: &OsStr| self.names.iter().position(|own| own == name);
        let Some(file) = event.name.and_then(is_file) else {
            return false;
        };
        if has(EventMask::OPEN) || has(EventMask::CLOSE_NOWRITE) {
            self.note_opened(file, has(EventMask::OPEN));
            return false;
        }
        if file == WAL && has(EventMask::CREATE) {
            self.separate(WAL);
        }
        file != SHM || !has(EventMask::MODIFY)
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

    /// Keeps two openings of the file apart as events; see the module's head.
    fn separate(&mut self, file: usize) {
        let path = self.path.with_file_name(&self.names[file]);
        if let Err(e) = self.watches.add(&path, WatchMask::OPEN) {
            log::debug!("watching {}: {e}", path.display()); // it is not there yet, or gone
        }
    }
}

/// Waits until there are events, or a notice is due.
fn wait(inotify: &Inotify, opened: &OpenCounts) {
    let Some(left) = opened.noticed_in(Instant::now()) else {
        return;
    };
    let mut files = [PollFd::new(inotify, PollFlags::IN)];
    let _ = poll(&mut files, Timespec::try_from(left).ok().as_ref());
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

    fn watch(path: &Path) -> (Watcher, Receiver<Exited>) {
        let (exits, ended) = crossbeam_channel::unbounded();
        (Watcher::start(path, Arc::default(), &exits).unwrap(), ended)
    }

    #[test]
    fn a_write_is_noticed_and_other_files_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let (watcher, ended) = watch(&dir.path().join("a.db"));
        std::fs::write(dir.path().join("other"), "x").unwrap();
        std::fs::write(dir.path().join("a.db-shm"), "x").unwrap();
        std::fs::write(dir.path().join("a.db-wal"), "x").unwrap();
        watcher.hints().recv_timeout(SOON).unwrap();
        drop(watcher);
        assert_eq!(
            ended.recv().unwrap().outcome,
            crate::thread::Outcome::Stopped
        );
    }

    /// The second connection is opened at the same moment. The shell reads the header first.
    #[test]
    fn who_opens_the_database_alone_is_noticed_beside_any_that_open_both() {
        let dir = tempfile::tempdir().unwrap();
        let [db, wal] = ["a.db", "a.db-wal"].map(|name| dir.path().join(name));
        let _kept = [&db, &wal].map(|path| open(path));
        let (watcher, _ended) = watch(&db);
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
    fn who_opens_both_or_only_reads_the_database_is_not_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let [db, wal, shm] = ["a.db", "a.db-wal", "a.db-shm"].map(|name| dir.path().join(name));
        let _kept = [&db, &wal, &shm].map(|path| open(path));
        let (watcher, _ended) = watch(&db);
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
