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

use crate::capture::again::Again;
use crate::capture::record::{indexed, row_bytes};
use crate::capture::{Captured, Frames, Outgoing};
use crate::database::rows::{Rows, Stored, row_values};
use crate::database::table::Table;
use crate::database::{Cause, Compare, Database, DatabaseError, Result, values};
use crate::model::cbor;
use crate::model::text::key_literal;
use crate::model::value::{OwnedValue, Value};
use crate::model::version::Version;
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
    piece: Option<Piece>,
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
struct Piece {
    at: i64,
    table: i64,
    key: Vec<u8>,
    is_acknowledged: bool,
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

    /// Encodes marked rows as they are now, in the order of their transactions, up to about `limit`
    /// bytes: a transaction of up to that is never split, a larger one is at twice that. With
    /// nothing left to encode, captures are live from here on.
    ///
    /// What the application wrote meanwhile is captured first: a row that it changed has no longer
    /// the values of its version. While there is more of that than fits in one transaction, nothing
    /// is encoded ([`Database::is_captured`]).
    ///
    /// To be called only while nothing is in flight. Frames carry the last transaction they cover.
    pub fn backlog(&mut self, limit: usize) -> Result<Vec<Outgoing>> {
        self.write(|db| {
            let early = mutation::is(Mutation::NoCaptureBeforeBacklog);
            if !early && !db.capture_before_backlog()? {
                return Ok(vec![]);
            }
            db.refresh_catalog()?;
            db.clear_marks()?;
            let mut frames = Frames::numbered(db, true);
            let last = match db.encode_marked(limit, &mut frames)? {
                // No marks are left, so that none of them is cleared with these.
                None if db.encode_again(limit, &mut frames)? => Some(frames.at),
                last => last,
            };
            db.marks.live = last.is_none();
            let mut out = frames.finish().unwrap_or_default();
            for frame in &mut out {
                if !mutation::is(Mutation::MessageIdReused) {
                    frame.salt = frame.at as u64;
                }
                frame.at = last.unwrap_or_default();
            }
            if let (Some(last), true) = (last, out.is_empty()) {
                // All of it was superseded or is gone: nothing to wait for.
                db.acknowledged(last);
                db.clear_marks()?;
                db.marks.live = false;
                return Ok(vec![]);
            }
            Ok(out)
        })
    }

    fn capture_before_backlog(&mut self) -> Result<bool> {
        let mut captured = Captured::default();
        self.capture_inside(&mut captured)?;
        debug_assert!(captured.frames.is_empty(), "nobody is live");
        Ok(self.is_captured())
    }

    /// Whether rows have the values of their versions, as far as the last capture saw.
    pub fn is_captured(&self) -> bool {
        let unwatched = |c: &Compare| c.cause == Cause::Unwatched;
        !self.log_is_left && !self.catalog.comparing.values().any(unwatched)
    }

    /// Encodes transactions until `limit`; returns the last one that is complete with that, none if
    /// there was no mark. The next one may be begun: see [`Marks::piece`].
    fn encode_marked(&mut self, limit: usize, frames: &mut Frames) -> Result<Option<i64>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT at, table_id, key FROM __harmonylite___unsent ORDER BY at, table_id, key",
        )?;
        self.marks.piece = None;
        let mut marks = statement.query([])?;
        let mut last = None;
        let mut before = (0, Vec::new());
        let mut is_split = false;
        let mut open: Option<Rows<'_>> = None;
        while let Some(mark) = marks.next()? {
            let (at, id): (i64, i64) = (mark.get(0)?, mark.get(1)?);
            if last.is_some_and(|l| l != at) && frames.bytes() >= limit {
                break;
            }
            let key_bytes = mark.get_ref(2)?.as_blob().unwrap_or_default();
            if last == Some(at) && frames.bytes() >= 2 * limit {
                is_split = true;
                break;
            }
            last = Some(at);
            before = (id, key_bytes.to_vec());
            let Some(table) = self.catalog.by_id.get(&id) else {
                continue;
            };
            let mut rows = match open.take() {
                Some(rows) if rows.table.id == id => rows,
                _ => Rows::new(&self.conn, table)?,
            };
            self.encode_row(&mut rows, key_bytes, at, frames)?;
            open = Some(rows);
        }
        let (Some(at), true) = (last, is_split) else {
            return Ok(last);
        };
        let (table, key) = before;
        self.marks.piece = Some(Piece {
            at,
            table,
            key,
            is_acknowledged: false,
        });
        Ok(Some(at - 1))
    }

    /// Encodes one row marked by transaction `at` with the version it has. If it learnt that one
    /// later, there is another mark for it, or it came from a stream.
    pub(super) fn encode_row(
        &self,
        rows: &mut Rows<'_>,
        key_bytes: &[u8],
        at: i64,
        frames: &mut Frames,
    ) -> Result<()> {
        let key = cbor::key_values(key_bytes)?;
        let key: Vec<Value<'_>> = key.iter().map(OwnedValue::borrow).collect();
        let Some(stored) = rows.version(&self.sites, &key)? else {
            return Ok(());
        };
        if stored.at > at {
            return Ok(());
        }
        let (table, version) = (rows.table, stored.state.version);
        if stored.state.deleted {
            frames.delete(table, key_bytes, version, key.iter().copied());
            return Ok(());
        }
        let count = table.schema.columns.len();
        let written = rows.row(&key, |row| {
            let bytes = row_bytes(row_values(row, count));
            if bytes > self.limits.row_bytes {
                // It grew since it was marked, or by a join.
                let e = DatabaseError::RowTooLarge(bytes, self.limits.row_bytes);
                let reason = format!("{e}; its key is {}", key_literal(&key));
                return self.set_aside_rows(table.name(), 1, &reason);
            }
            let exceptions = unsent_exceptions(table, &stored, |i| values::column(row, i));
            let values = row_values(row, count);
            frames.upsert(table, key_bytes, version, &exceptions, values);
        })?;
        if written.is_none()
            && let Some(values) = self.displaced_row(table, key_bytes)?
        {
            let values: Vec<Value<'_>> = values.iter().map(OwnedValue::borrow).collect();
            let exceptions = unsent_exceptions(table, &stored, |i| values[i]);
            frames.upsert(table, key_bytes, version, &exceptions, values.into_iter());
        }
        Ok(())
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

/// Versions of columns that differ from the row's. A column that was added after the row's version
/// was learnt and still has its default was never written under that version.
fn unsent_exceptions<'v>(
    table: &Table,
    stored: &Stored,
    value: impl Fn(usize) -> Value<'v>,
) -> Vec<(usize, Version)> {
    let mut exceptions = indexed(table, &stored.state.exceptions);
    if table.has_late_columns() {
        for (i, column) in table.schema.columns.iter().enumerate() {
            let known = stored.state.exceptions.contains_key(&column.lower);
            if !mutation::is(Mutation::LateDefaultsSent)
                && !known
                && stored.at < table.born[i]
                && value(i).same(&column.default.borrow())
            {
                exceptions.push((i, Version::NEVER));
            }
        }
    }
    exceptions
}
