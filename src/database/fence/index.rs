//! Reads from the database's `-shm` file which readers are active.
//!
//! A reader in WAL mode holds a shared lock on one of five bytes. Each byte stands for a place in
//! the WAL up to which its readers read (<https://www.sqlite.org/walformat.html>). A reader of an
//! older place than the last commit cannot write any more, whether HarmonyLite writes or not. So
//! the fence need not wait for it, however long it stays (a report, a backup, Litestream).
//!
//! A reader moves a free place to the last commit, takes its byte, and reads. If it finds no place
//! free, it takes an older one, and reads the last commit all the same. A fence makes that happen
//! if it is let go while a reader looks for a place. So [`let_go`] moves the free places first.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use super::locks::{self, Bytes};

/// The byte that a writer locks, from before it writes to the WAL until its commit counts.
pub(super) const WRITER: Bytes = 120..121;

/// The bytes that readers lock.
pub(super) const READERS: Bytes = 123..128;

pub(super) const SLOTS: usize = 5;

/// Bytes of one copy of the head. The file has two equal copies, and after them the notes of
/// checkpoints and readers.
const HEAD: usize = 48;

/// Where the place of the first slot stands.
const MARKS: usize = 2 * HEAD + 4;

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
            *mark = number(MARKS + 4 * slot)?;
        }
        (is_whole && is_begun && version == 3_007_000).then_some(Index {
            frames: number(16)?,
            backfilled: number(2 * HEAD)?,
            marks,
        })
    }

    /// Moves the places of these slots to the last commit. An error leaves them where they are.
    fn move_marks(&self, shm: &File, slots: Range<usize>) {
        let marks = vec![self.frames.to_ne_bytes(); slots.len()];
        let _ = shm.write_all_at(marks.as_flattened(), (MARKS + 4 * slots.start) as u64);
    }

    /// Whether readers of this slot see the last commit. Readers of the first slot see the database
    /// alone, without the WAL.
    pub(super) fn is_current(&self, slot: usize) -> bool {
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
/// first. `passes` leaves out those of older places.
fn wanted(shm: &File, passes: bool) -> Vec<Bytes> {
    // This comes first: a reader that is counted has moved its place before.
    let are_read: [bool; SLOTS] = std::array::from_fn(|slot| locks::is_shared(shm, &byte(slot)));
    let Some(index) = Index::read(shm) else {
        return vec![READERS];
    };
    let is_passed = |slot: usize| passes && are_read[slot] && !index.is_current(slot);
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
pub(super) fn wait(shm: &File, passes: bool, patience: Duration) -> bool {
    wanted(shm, passes)
        .first()
        .is_none_or(|run| locks::wait(shm, run, patience))
}

/// Does the same without sleeping. On a machine with one processor it sleeps: the reader could not
/// go on meanwhile.
pub(super) fn wait_busily(shm: &File, passes: bool, patience: Duration) -> bool {
    if std::thread::available_parallelism().is_ok_and(|n| n.get() == 1) {
        return wait(shm, passes, patience);
    }
    let end = Instant::now() + patience;
    loop {
        let Some(run) = wanted(shm, passes).into_iter().next() else {
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
pub(super) fn take(shm: &File, passes: bool) -> bool {
    let taken =
        locks::take(shm, &READERS) || wanted(shm, passes).iter().all(|run| locks::take(shm, run));
    if !taken {
        let_go(shm);
    }
    taken
}

/// Releases the bytes, including the locks that SQLite has on them. First it moves the free places
/// to the last commit: whoever has the byte of a place alone may do that.
pub(super) fn let_go(shm: &File) {
    if let Some(index) = Index::read(shm) {
        let all = byte(1).start..READERS.end;
        match locks::take(shm, &all) {
            true => index.move_marks(shm, 1..SLOTS),
            false => (1..SLOTS)
                .filter(|slot| locks::take(shm, &byte(*slot)))
                .for_each(|slot| index.move_marks(shm, slot..slot + 1)),
        }
    }
    locks::release(shm, &READERS);
}

/// Whether another process reads the last commit.
pub(super) fn is_read(shm: &File) -> bool {
    locks::is_taken(shm, &READERS)
        && wanted(shm, true)
            .iter()
            .any(|run| locks::is_taken(shm, run))
}
