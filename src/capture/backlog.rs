//! Encodes marked rows again: after a start, a broken connection, or an outbox that ran full.

use crate::apply::RowLife;
use crate::capture::record::{for_others, never_written, row_bytes};
use crate::capture::unsent::Piece;
use crate::capture::{Captured, Frames, Outgoing};
use crate::database::rows::{Rows, Stored, row_values};
use crate::database::table::Table;
use crate::database::{Compare, CompareReason, Database, DatabaseError, Result, values};
use crate::model::cbor;
use crate::model::text::key_literal;
use crate::model::value::{OwnedValue, Value};
use crate::model::version::Version;
use crate::mutation::{self, Mutation};

impl Database {
    /// Encodes marked rows as they are now, in the order of their transactions, up to about `limit`
    /// bytes. A transaction of up to `limit` bytes is never split; a larger one is split at twice
    /// that. Once nothing is left to encode, captures are live from here on.
    ///
    /// Captures the application's writes first: a row that it changed no longer has the values of
    /// its version. While there are more of them than fit in one transaction, it encodes nothing
    /// ([`Database::is_captured`]).
    ///
    /// Must be called only while nothing is in flight. `local_tx` of the frames is the last
    /// transaction that they cover. An error undoes the transaction.
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
                // No marks are left, so the acknowledgement of these frames clears none.
                None if db.encode_republished(limit, &mut frames)? => Some(frames.local_tx),
                last => last,
            };
            db.marks.live = last.is_none();
            let mut out = frames.finish().unwrap_or_default();
            for frame in &mut out {
                if !mutation::is(Mutation::MessageIdReused) {
                    frame.salt = frame.local_tx as u64;
                }
                frame.local_tx = last.unwrap_or_default();
            }
            if let (Some(last), true) = (last, out.is_empty()) {
                // Every marked row was superseded or is gone: there is nothing to wait for.
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
        self.capture_locked(&mut captured)?;
        debug_assert!(captured.frames.is_empty(), "nobody is live");
        Ok(self.is_captured())
    }

    /// Whether rows had the values of their versions at the end of the last capture.
    pub fn is_captured(&self) -> bool {
        let unwatched = |c: &Compare| c.cause >= CompareReason::Unwatched;
        !self.log_is_left && !self.catalog.comparing.values().any(unwatched)
    }

    /// Encodes transactions up to `limit` bytes. Returns the last one that is complete; none if
    /// there was no mark. The next one may be encoded in part: see `Marks::piece`.
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
            let (local_tx, id): (i64, i64) = (mark.get(0)?, mark.get(1)?);
            if last.is_some_and(|l| l != local_tx) && frames.bytes() >= limit {
                break;
            }
            let key_bytes = mark.get_ref(2)?.as_blob().unwrap_or_default();
            if last == Some(local_tx) && frames.bytes() >= 2 * limit {
                is_split = true;
                break;
            }
            last = Some(local_tx);
            before = (id, key_bytes.to_vec());
            let Some(table) = self.catalog.by_id.get(&id) else {
                self.encode_former(-id, key_bytes, frames)?;
                continue;
            };
            let mut rows = match open.take() {
                Some(rows) if rows.table.id == id => rows,
                _ => Rows::new(&self.conn, table)?,
            };
            self.encode_row(&mut rows, key_bytes, local_tx, frames)?;
            open = Some(rows);
        }
        let (Some(local_tx), true) = (last, is_split) else {
            return Ok(last);
        };
        let (table, key) = before;
        self.marks.piece = Some(Piece {
            local_tx,
            table,
            key,
            is_acknowledged: false,
        });
        Ok(Some(local_tx - 1))
    }

    /// Encodes one row, marked by transaction `local_tx`, with the version it has. Skips a row that
    /// learnt its version later: that one has a mark of its own, or it came from a stream.
    pub(super) fn encode_row(
        &self,
        rows: &mut Rows<'_>,
        key_bytes: &[u8],
        local_tx: i64,
        frames: &mut Frames,
    ) -> Result<()> {
        let key = cbor::key_values(key_bytes)?;
        let key: Vec<Value<'_>> = key.iter().map(OwnedValue::borrow).collect();
        if self.has_lives(rows.table) {
            let at = (key_bytes, local_tx);
            self.lives(rows.table)
                .each_learnt_by(&self.sites, at, |life| {
                    self.encode_life(rows.table, key_bytes, &life, frames)
                })?;
        }
        let Some(stored) = rows.version(&self.sites, &key)? else {
            return Ok(());
        };
        if stored.local_tx > local_tx {
            return Ok(());
        }
        let (table, version) = (rows.table, (stored.state.version, stored.birth));
        if stored.state.deleted {
            frames.delete(table, key_bytes, version, key.iter().copied());
            return Ok(());
        }
        let was = self.was(table, key_bytes)?;
        let named = (key_bytes, was.as_deref());
        let count = table.schema.columns.len();
        let written = rows.row(&key, |row| {
            let bytes = row_bytes(row_values(row, count));
            if bytes > self.limits.row_bytes {
                // The row grew since it was marked, or by a join.
                let e = DatabaseError::RowTooLarge(bytes, self.limits.row_bytes);
                let reason = format!("{e}; its key is {}", key_literal(&key));
                return self.reject_rows(table.name(), 1, &reason);
            }
            let exceptions = unsent_exceptions(table, &stored, |i| values::column(row, i));
            let values = row_values(row, count);
            frames.upsert(table, named, version, &exceptions, values);
        })?;
        if written.is_none()
            && let Some(values) = self.displaced_row(table, key_bytes)?
        {
            let values: Vec<Value<'_>> = values.iter().map(OwnedValue::borrow).collect();
            let exceptions = unsent_exceptions(table, &stored, |i| values[i]);
            frames.upsert(table, named, version, &exceptions, values.into_iter());
        }
        Ok(())
    }

    /// Encodes a life that does not have its number.
    pub(crate) fn encode_life(
        &self,
        table: &Table,
        key_bytes: &[u8],
        life: &RowLife,
        frames: &mut Frames,
    ) -> Result<()> {
        let stored = &life.stored;
        let version = (stored.state.version, stored.birth);
        if stored.state.deleted {
            let key = cbor::key_values(key_bytes)?;
            let key: Vec<Value<'_>> = key.iter().map(OwnedValue::borrow).collect();
            frames.delete(table, key_bytes, version, key.into_iter());
            return Ok(());
        }
        let values: Vec<Value<'_>> = life.values.iter().map(OwnedValue::borrow).collect();
        let exceptions = unsent_exceptions(table, stored, |i| values[i]);
        frames.upsert(
            table,
            (key_bytes, None),
            version,
            &exceptions,
            values.into_iter(),
        );
        Ok(())
    }
}

/// Versions of the columns that differ from the row's version. A column that was added after the
/// row's version was learnt, and still has its default, was never written under that version.
fn unsent_exceptions<'v>(
    table: &Table,
    stored: &Stored,
    value: impl Fn(usize) -> Value<'v>,
) -> Vec<(usize, Version)> {
    let mut state = stored.state.clone();
    if table.has_late_columns() && !mutation::is(Mutation::LateDefaultsSent) {
        for name in never_written(table, stored, &value) {
            state.exceptions.entry(name).or_insert(Version::NEVER);
        }
    }
    for_others(table, &state, value)
}
