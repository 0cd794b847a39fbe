//! Marks: rows whose version no stream has acknowledged yet.
//!
//! A mark is (transaction number, table, key). Acknowledged transactions are cleared all at once,
//! and not before the next write that happens anyway or a pause: a mark that outlives its
//! acknowledgement costs a repetition at worst, a write of its own costs flash every time.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::time::Duration;

use rusqlite::params;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::capture::Frames;
use crate::capture::again::Again;
use crate::database::rows::Rows;
use crate::database::table::Table;
use crate::database::{Database, Result};
use crate::mutation::{self, Mutation};

/// While changes are captured all the time, acknowledged marks are cleared this often.
const CLEAR_EVERY: Duration = Duration::from_secs(1);

/// What is known about marks beyond the table.
#[derive(Debug, Default)]
pub struct Marks {
    /// Whether captured rows are encoded for the publisher at once.
    pub(crate) live: bool,
    /// Every transaction up to here is acknowledged; marks not yet cleared.
    acknowledged: Option<i64>,
    /// A transaction under way in pieces: its number, and the mark up to which it is encoded.
    pub(super) piece: Option<Piece>,
    /// Rows to be published again, marked or not.
    pub(super) again: Again,
    /// When marks were cleared last, by [`crate::clock::Clock::uptime`].
    cleared: Duration,
    /// Changes that could not be captured since the start.
    pub set_aside: Cell<u64>,
    index: RefCell<Option<Index>>,
}

/// Keys of marks, as hashes. Marks are stored in the order in which they are sent; an index by key
/// beside that would cost a page more with each write. So it is made for the walks that ask for
/// one row after the other, and for as long as they take.
#[derive(Debug)]
struct Index {
    /// Marks of transactions from here on are not in it, but for those of rows that have versions of
    /// earlier ones ([`Database::mark_again`]).
    before: i64,
    /// What was marked; it may not be any more.
    hashes: HashSet<u64>,
}

fn hash(table: i64, key: &[u8]) -> u64 {
    xxh3_64_with_seed(key, table as u64)
}

/// Marks of one transaction, up to and with this one.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    pub at: i64,
    pub table: i64,
    pub key: Vec<u8>,
    pub is_acknowledged: bool,
}

impl Marks {
    /// What was acknowledged last is no longer known: the marks stay until the next one is.
    pub(crate) fn forget_acknowledged(&mut self) {
        self.acknowledged = None;
        self.piece = None;
    }
}

impl Database {
    /// The publisher does not want rows any more; it will come for the marks.
    pub fn stop_live(&mut self) {
        self.marks.live = false;
        self.marks.piece = None;
        self.marks.again.interrupt();
    }

    pub fn is_live(&self) -> bool {
        self.marks.live
    }

    /// Every frame of the transactions up to `at` is acknowledged.
    pub fn acknowledged(&mut self, at: i64) {
        self.marks.acknowledged = self.marks.acknowledged.max(Some(at));
        if let Some(piece) = self.marks.piece.as_mut().filter(|p| p.at <= at + 1) {
            piece.is_acknowledged = true;
        }
    }

    /// Whether marks wait to be cleared.
    pub fn has_acknowledged(&self) -> bool {
        self.marks.acknowledged.is_some()
    }

    /// Clears acknowledged marks. Inside a transaction; if that fails, the marks are published once
    /// more, which is harmless. With them goes to disk what was acknowledged last: should the broker
    /// forget it, that must be noticed even after a restart.
    pub(crate) fn clear_marks(&mut self) -> Result<()> {
        if let Some(at) = self.marks.acknowledged.take() {
            self.conn
                .prepare_cached("DELETE FROM __harmonylite___unsent WHERE at <= ?1")?
                .execute([at])?;
            if let Some(piece) = self.marks.piece.take_if(|p| p.is_acknowledged) {
                self.conn
                    .prepare_cached(
                        "DELETE FROM __harmonylite___unsent
                         WHERE at = ?1 AND (table_id, key) <= (?2, ?3)",
                    )?
                    .execute(params![piece.at, piece.table, piece.key])?;
            }
            self.store_positions()?;
            self.marks.cleared = self.clock.uptime();
        }
        Ok(())
    }

    /// The same by the way of a capture, but not at each one: it would write two pages more.
    pub(crate) fn clear_marks_now_and_then(&mut self) -> Result<()> {
        match self.clock.uptime() - self.marks.cleared >= CLEAR_EVERY {
            true => self.clear_marks(),
            false => Ok(()),
        }
    }

    /// Changes that could not be captured since the start.
    pub fn set_aside(&self) -> u64 {
        self.marks.set_aside.get()
    }

    /// From here on [`Database::is_marked`] does not look through all marks.
    pub(crate) fn index_marks(&mut self) -> Result<()> {
        if self.marks.index.get_mut().is_some() {
            return Ok(());
        }
        let mut list = self
            .conn
            .prepare("SELECT table_id, key FROM __harmonylite___unsent")?;
        let read = |r: &rusqlite::Row<'_>| {
            let key = r.get_ref(1)?.as_blob().unwrap_or_default();
            Ok(hash(r.get(0)?, key))
        };
        let hashes = list.query_map([], read)?.collect::<rusqlite::Result<_>>()?;
        let before = self.reservation.peek_number();
        self.marks.index = RefCell::new(Some(Index { before, hashes }));
        Ok(())
    }

    /// The walk is over.
    pub(crate) fn forget_index_of_marks(&mut self) {
        self.marks.index.take();
    }

    /// Whether a row may still be unsent that was learnt under `at`.
    pub(crate) fn is_marked(&self, table: &Table, key: &[u8], at: i64) -> Result<bool> {
        if self.publishes_again() {
            return Ok(true);
        }
        let never = |i: &Index| at < i.before && !i.hashes.contains(&hash(table.id, key));
        if self.marks.index.borrow().as_ref().is_some_and(never) {
            return Ok(false);
        }
        let mut marks = self.conn.prepare_cached(
            "SELECT 1 FROM __harmonylite___unsent
             WHERE at >= ?1 AND table_id = ?2 AND key = ?3 LIMIT 1",
        )?;
        Ok(marks.exists(params![at, table.id, key])?)
    }

    /// Number of marks.
    pub fn unsent(&self) -> Result<u64> {
        Ok(self
            .conn
            .prepare_cached("SELECT count(*) FROM __harmonylite___unsent")?
            .query_row([], |r| r.get(0))?)
    }

    /// Marks a row under the transaction of `frames`, whoever's version it is; `at` is the one that
    /// it may be marked under so far.
    pub(crate) fn mark_again(
        &self,
        table: &Table,
        key: &[u8],
        at: i64,
        frames: &mut Frames,
    ) -> Result<()> {
        self.conn
            .prepare_cached(
                "REPLACE INTO __harmonylite___unsent(at, table_id, key) VALUES (?1, ?2, ?3)",
            )?
            .execute(params![at, table.id, key])?;
        if let Some(index) = self.marks.index.borrow_mut().as_mut() {
            index.hashes.insert(hash(table.id, key));
        }
        self.mark_onwards(table, key, at, frames)
    }

    /// The version of a row was learnt again by the transaction of `frames`, but a part of it is
    /// still what transaction `at` learnt: if that part is marked unsent, the mark moves along.
    pub(crate) fn mark_onwards(
        &self,
        table: &Table,
        key: &[u8],
        at: i64,
        frames: &mut Frames,
    ) -> Result<()> {
        if mutation::is(Mutation::MarkLostOnJoin) {
            return Ok(());
        }
        let moved = self
            .conn
            .prepare_cached(
                "UPDATE OR REPLACE __harmonylite___unsent SET at = ?4
                 WHERE at = ?1 AND table_id = ?2 AND key = ?3",
            )?
            .execute(params![at, table.id, key, frames.at])?;
        if moved > 0 && frames.encode {
            let mut rows = Rows::new(&self.conn, table)?;
            self.encode_row(&mut rows, key, frames.at, frames)?;
        }
        Ok(())
    }
}
