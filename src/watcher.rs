//! Tells that the database's files were written: a hint to look, never the truth.
//!
//! inotify on the folder, because SQLite's files come and go. Writes to the shared-memory file are
//! ignored: they come from our own reads, too.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::thread::{Exited, spawn};

mod opened;

use opened::Opened;

const SHM: &str = "-shm";

/// A thread that waits for inotify. Dropping it ends the thread.
pub struct Watcher {
    hints: Receiver<()>,
    is_wanted: Arc<AtomicBool>,
    watches: Watches,
    descriptor: WatchDescriptor,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Watches the files of the database at `path`.
    pub fn start(path: &Path, exits: &Sender<Exited>) -> std::io::Result<Watcher> {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            _ => PathBuf::from("."),
        };
        let names: Vec<OsString> = ["", "-wal", "-journal", SHM]
            .iter()
            .map(|suffix| {
                let mut name = path.file_name().unwrap_or_default().to_owned();
                name.push(suffix);
                name
            })
            .collect();
        let mut inotify = Inotify::init()?;
        let events = WatchMask::MODIFY
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::OPEN
            | WatchMask::MOVED_FROM
            | WatchMask::MOVED_TO;
        let mut watches = inotify.watches();
        let descriptor = watches.add(folder, events)?;
        // One hint says as much as ten.
        let (sender, hints) = bounded(1);
        let is_wanted = Arc::new(AtomicBool::new(false));
        let wanted = is_wanted.clone();
        let mut opened = Opened::default();
        let thread = spawn("watcher", exits, move || {
            let mut buffer = [0; 4096];
            loop {
                wait(&inotify, &opened);
                if opened.take(Instant::now()) {
                    wanted.store(true, Ordering::Relaxed);
                    let _ = sender.try_send(());
                    continue;
                }
                let events = inotify
                    .read_events_blocking(&mut buffer)
                    .map_err(|e| e.to_string())?;
                let mut ours = false;
                for event in events {
                    if event.mask.contains(inotify::EventMask::IGNORED) {
                        return Ok(()); // the watch was removed: we are to end
                    }
                    let lost = event.mask.contains(inotify::EventMask::Q_OVERFLOW);
                    let written = event.mask.contains(inotify::EventMask::MODIFY);
                    let own = |n: &OsStr| names.iter().position(|own| own == n);
                    let own = event.name.and_then(own);
                    if event.mask.contains(EventMask::OPEN) {
                        match own {
                            Some(0) => opened.database(Instant::now()),
                            Some(1) => opened.wal(),
                            _ => {}
                        }
                        continue;
                    }
                    ours |= lost || own.is_some_and(|at| !written || at + 1 < names.len());
                }
                if ours {
                    let _ = sender.try_send(());
                }
            }
        });
        Ok(Watcher {
            hints,
            is_wanted,
            watches,
            descriptor,
            thread: Some(thread),
        })
    }

    /// Whether somebody seems to have opened the database to have it for himself, since the last call.
    pub fn is_wanted(&self) -> bool {
        self.is_wanted.swap(false, Ordering::Relaxed)
    }

    /// A message per burst of writes.
    pub fn hints(&self) -> &Receiver<()> {
        &self.hints
    }
}

/// Until there are events, or somebody is to be noticed.
fn wait(inotify: &Inotify, opened: &Opened) {
    let Some(left) = opened.noticed_in(Instant::now()) else {
        return;
    };
    let mut files = [PollFd::new(inotify, PollFlags::IN)];
    let _ = poll(&mut files, Timespec::try_from(left).ok().as_ref());
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if self.watches.remove(self.descriptor.clone()).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_write_is_noticed_and_other_files_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let (exits, ended) = crossbeam_channel::unbounded();
        let watcher = Watcher::start(&dir.path().join("a.db"), &exits).unwrap();
        std::fs::write(dir.path().join("other"), "x").unwrap();
        std::fs::write(dir.path().join("a.db-shm"), "x").unwrap();
        std::fs::write(dir.path().join("a.db-wal"), "x").unwrap();
        watcher
            .hints()
            .recv_timeout(Duration::from_secs(10))
            .unwrap();
        drop(watcher);
        assert_eq!(
            ended.recv().unwrap().outcome,
            crate::thread::Outcome::Stopped
        );
    }
}
