//! Reads from the database's `-shm` file which readers are active.
//!
//! A reader in WAL mode holds a shared lock on one of five bytes. Each byte stands for a place in
//! the WAL up to which its readers read (<https://www.sqlite.org/walformat.html>). A reader of an
//! older place than the last commit cannot write any more, whether HarmonyLite writes or not. So
//! the fence need not wait for it, however long it stays (a report, a backup, Litestream).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use super::locks::{self, Bytes};

/// The bytes that readers lock.
pub(super) const READERS: Bytes = 123..128;

const SLOTS: usize = 5;

/// Bytes of one copy of the head. The file has two equal copies, and after them the notes of
/// checkpoints and readers.
const HEAD: usize = 48;

/// The fields of the `-shm` that the fence needs.
pub(super) struct Index {
    /// Number of committed frames in the WAL.
    pub frames: u32,
    /// Number of these frames that are already in the database.
    pub backfilled: u32,
    marks: [u32; SLOTS],
}

impl Index {
    /// Returns `None` while another process writes the head.
    pub(super) fn read(shm: &File) -> Option<Index> {
        let mut bytes = [0; 2 * HEAD + 24];
        shm.read_exact_at(&mut bytes, 0).ok()?;
        let number = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let is_whole = bytes[..HEAD] == bytes[HEAD..2 * HEAD];
        let (version, is_begun) = (number(0)?, bytes[12] != 0);
        let mut marks = [0; SLOTS];
        for (slot, mark) in marks.iter_mut().enumerate() {
            *mark = number(2 * HEAD + 4 + 4 * slot)?;
        }
        (is_whole && is_begun && version == 3_007_000).then_some(Index {
            frames: number(16)?,
            backfilled: number(2 * HEAD)?,
            marks,
        })
    }

    /// Whether readers of this slot see the last commit. Readers of the first slot see the database
    /// alone, without the WAL.
    fn is_current(&self, slot: usize) -> bool {
        match slot {
            0 => self.frames == self.backfilled,
            _ => self.frames == self.marks[slot],
        }
    }
}

fn byte(slot: usize) -> Bytes {
    let at = READERS.start + slot as libc::off_t;
    at..at + 1
}

/// The bytes that must be free of other processes while HarmonyLite writes; those with readers come
/// first.
fn wanted(shm: &File) -> Vec<Bytes> {
    let Some(index) = Index::read(shm) else {
        return vec![READERS];
    };
    let is_passed = |slot| !index.is_current(slot) && locks::is_taken(shm, &byte(slot));
    let mut runs: Vec<Bytes> = Vec::with_capacity(2);
    for slot in (0..SLOTS).filter(|slot| !is_passed(*slot)) {
        let byte = byte(slot);
        match runs.last_mut().filter(|run| run.end == byte.start) {
            Some(run) => run.end = byte.end,
            None => runs.push(byte),
        }
    }
    runs.sort_by_key(|run| !locks::is_taken(shm, run));
    runs
}

/// Waits, at most for `patience`, until nobody reads the last commit. If it returns true, the
/// process holds the bytes that were waited for.
pub(super) fn wait(shm: &File, patience: Duration) -> bool {
    wanted(shm)
        .first()
        .is_none_or(|run| locks::wait(shm, run, patience))
}

/// Does the same without sleeping. On a machine with one processor it sleeps: the reader could not
/// go on meanwhile.
pub(super) fn wait_busily(shm: &File, patience: Duration) -> bool {
    if std::thread::available_parallelism().is_ok_and(|n| n.get() == 1) {
        return wait(shm, patience);
    }
    let end = Instant::now() + patience;
    loop {
        let Some(run) = wanted(shm).into_iter().next() else {
            return true;
        };
        // The readers that can be passed are others after a commit.
        for _ in 0..1000 {
            if locks::take(shm, &run) {
                return true;
            }
            if Instant::now() >= end {
                return false;
            }
        }
    }
}

/// Takes all the bytes, inside a write transaction of HarmonyLite. Returns false, and holds none of
/// them, if somebody reads.
pub(super) fn take(shm: &File) -> bool {
    let taken = locks::take(shm, &READERS) || wanted(shm).iter().all(|run| locks::take(shm, run));
    if !taken {
        locks::release(shm, &READERS);
    }
    taken
}

/// Whether another process reads the last commit.
pub(super) fn is_read(shm: &File) -> bool {
    locks::is_taken(shm, &READERS) && wanted(shm).iter().any(|run| locks::is_taken(shm, run))
}
