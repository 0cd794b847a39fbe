//! Who reads just now, by the database's `-shm` file.
//!
//! A reader in WAL mode shares one of five bytes, each of which stands for a place in the WAL up to
//! which it reads (<https://www.sqlite.org/walformat.html>). One that reads up to an older place
//! than the last commit cannot write any more, whoever does: it need not be waited for, however
//! long it stays (a report, a backup, Litestream).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::locks::{self, Bytes};

/// The readers' bytes.
pub(super) const READERS: Bytes = 123..128;

const SLOTS: usize = 5;

/// The head of the file: twice the same 48 bytes, then what checkpoints and readers note.
const HEAD: usize = 48;

/// What is noted in it.
pub(super) struct Index {
    /// Frames in the WAL that are committed.
    pub frames: u32,
    /// How many of these are in the database already.
    pub backfilled: u32,
    marks: [u32; SLOTS],
}

impl Index {
    /// None while it is being written.
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

    /// Whether readers of this slot see the last commit. Those of the first see the database alone.
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

/// The bytes of slots that others may not have while we write, those with readers first.
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

/// Waits until nobody reads what was committed last, and has the bytes then that tell so.
pub(super) fn wait(shm: &File, patience: Duration) -> bool {
    wanted(shm)
        .first()
        .is_none_or(|run| locks::wait(shm, run, patience))
}

/// Takes all the bytes, inside a write transaction of ours. False: somebody reads, and none is
/// ours.
pub(super) fn take(shm: &File) -> bool {
    let taken = locks::take(shm, &READERS) || wanted(shm).iter().all(|run| locks::take(shm, run));
    if !taken {
        locks::release(shm, &READERS);
    }
    taken
}

/// Whether another process reads what was committed last.
pub(super) fn is_read(shm: &File) -> bool {
    locks::is_taken(shm, &READERS) && wanted(shm).iter().any(|run| locks::is_taken(shm, run))
}
