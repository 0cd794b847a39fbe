//! Marks: rows whose version their stream has not acknowledged yet.
//!
//! A mark is (transaction number, table, key). The number is the one under which the row's version
//! was learnt, so marking a known row means learning it again. Acknowledged transactions are
//! cleared together, at the next write that happens anyway or in a pause. A mark that outlives its
//! acknowledgement costs a repetition at worst; a write of its own would cost flash every time.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use rusqlite::{Connection, params};

use crate::apply::Lives;
use crate::capture::Frames;
use crate::capture::record::never_written;
use crate::capture::republish::Republish;
use crate::capture::unsent_copy::UnsentCopy;
use crate::database::rows::Rows;
use crate::database::table::Table;
use crate::database::{Database, Result};
use crate::logging::Repeated;
use crate::model::cbor;
use crate::model::value::{OwnedValue, Value};
use crate::model::version::Version;
use crate::mutation::{self, Mutation};

/// The state of marks in memory, besides their table.
#[derive(Debug, Default)]
pub struct Marks {
    /// Whether captured rows are encoded for the publisher at once.
    pub(crate) live: bool,
    /// Every transaction up to this number is acknowledged; the marks are not cleared yet.
    acknowledged: Option<i64>,
    /// A transaction that is published in pieces: its number, and the last mark that is encoded.
    pub(super) piece: Option<Piece>,
    /// Walk that publishes rows again, marked or not.
    pub(super) republish: Republish,
    pub(crate) copy: UnsentCopy,
    /// When marks were cleared last, by [`crate::clock::Clock::uptime`].
    cleared: Duration,
    /// Changes that were rejected since the start.
    pub rejected: Cell<u64>,
    /// Limits how often rejected changes are logged.
    pub rejected_alarm: RefCell<Repeated>,
}

/// The marks of transaction `local_tx`, up to and including this one.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    pub local_tx: i64,
    pub table: i64,
    pub key: Vec<u8>,
    pub is_acknowledged: bool,
}

impl Marks {
    /// Forgets the last acknowledgement: the marks stay until the next one.
    pub(crate) fn forget_acknowledged(&mut self) {
        self.acknowledged = None;
        self.piece = None;
    }
}

impl Database {
    /// The publisher takes no more captured rows; it will call [`Database::backlog`] for the marks.
    pub fn stop_live(&mut self) {
        self.marks.live = false;
        self.marks.piece = None;
        self.marks.republish.interrupt();
    }

    /// Whether captured rows are encoded for the publisher at once.
    pub fn is_live(&self) -> bool {
        self.marks.live
    }

    /// Records that every frame of the transactions up to `local_tx` is acknowledged.
    pub fn acknowledged(&mut self, local_tx: i64) {
        self.marks.acknowledged = self.marks.acknowledged.max(Some(local_tx));
        self.marks.copy.acknowledged(local_tx);
        if let Some(piece) = self
            .marks
            .piece
            .as_mut()
            .filter(|p| p.local_tx <= local_tx + 1)
        {
            piece.is_acknowledged = true;
        }
    }

    /// Whether acknowledged marks wait to be cleared.
    pub fn has_acknowledged(&self) -> bool {
        self.marks.acknowledged.is_some()
    }

    /// Clears acknowledged marks. Inside a transaction; if that fails, the rows are published once
    /// more, which is harmless. The last acknowledged positions are stored with it: if the broker
    /// loses those messages, the node must notice that even after a restart.
    pub(crate) fn clear_marks(&mut self) -> Result<()> {
        if let Some(local_tx) = self.marks.acknowledged.take() {
            let mut cleared = self
                .conn
                .prepare_cached("DELETE FROM __harmonylite___unsent WHERE at <= ?1")?
                .execute([local_tx])?;
            if let Some(piece) = self.marks.piece.take_if(|p| p.is_acknowledged) {
                cleared += self
                    .conn
                    .prepare_cached(
                        "DELETE FROM __harmonylite___unsent
                         WHERE at = ?1 AND (table_id, key) <= (?2, ?3)",
                    )?
                    .execute(params![piece.local_tx, piece.table, piece.key])?;
            }
            self.counts.published += cleared as u64;
            self.store_positions()?;
            self.marks.cleared = self.clock.uptime();
        }
        Ok(())
    }

    /// Clears them during a capture, at most once per `cleanup_interval`: it writes another page.
    pub(crate) fn clear_marks_now_and_then(&mut self) -> Result<()> {
        match self.is_clearing_due() {
            true => self.clear_marks(),
            false => Ok(()),
        }
    }

    /// Whether marks were not cleared for `cleanup_interval`.
    fn is_clearing_due(&self) -> bool {
        self.clock.uptime() - self.marks.cleared >= self.settings.cleanup_interval
    }

    /// Stores what waits for a write ([`Database::flush`]), unless captures do it just now: a write
    /// of its own costs two pages more.
    pub fn flush_now_and_then(&mut self) -> Result<()> {
        match self.is_clearing_due() {
            true => self.flush(),
            false => self.copy_unsent(),
        }
    }

    /// Changes that were rejected since the start.
    pub fn rejected(&self) -> u64 {
        self.marks.rejected.get()
    }

    /// Whether a row that was learnt under `local_tx` may still be unsent.
    pub(crate) fn is_marked(&self, table: &Table, key: &[u8], local_tx: i64) -> Result<bool> {
        if self.is_republishing() {
            return Ok(true);
        }
        has_mark(&self.conn, table, key, local_tx)
    }

    /// Number of marks that no stream has acknowledged, counted up to `most`.
    pub fn unsent_up_to(&self, most: u64) -> Result<u64> {
        let text = "SELECT count(*) FROM (
                        SELECT 1 FROM __harmonylite___unsent WHERE at > ?1 LIMIT ?2)";
        let acknowledged = self.marks.acknowledged.unwrap_or(i64::MIN);
        let mut statement = self.conn.prepare_cached(text)?;
        Ok(statement.query_row(params![acknowledged, most as i64], |r| r.get(0))?)
    }

    /// Whether the broker has everything that this node wrote up to transaction `local_tx`.
    pub(crate) fn is_sent_up_to(&self, local_tx: i64) -> Result<bool> {
        let text = "SELECT 1 FROM __harmonylite___unsent WHERE at > ?1 AND at <= ?2 LIMIT 1";
        let acknowledged = self.marks.acknowledged.unwrap_or(i64::MIN);
        let mut statement = self.conn.prepare_cached(text)?;
        Ok(!statement.exists(params![acknowledged, local_tx])?)
    }

    /// Number of marks, acknowledged ones that are not cleared yet included.
    pub fn unsent(&self) -> Result<u64> {
        Ok(self
            .conn
            .prepare_cached("SELECT count(*) FROM __harmonylite___unsent")?
            .query_row([], |r| r.get(0))?)
    }

    /// Marks a row, whichever node its version is of. The version counts as learnt by the
    /// transaction of `frames` from now on.
    pub(crate) fn mark_republished(
        &mut self,
        table: &Table,
        key_bytes: &[u8],
        frames: &mut Frames,
    ) -> Result<()> {
        let key = cbor::key_values(key_bytes)?;
        let key: Vec<Value<'_>> = key.iter().map(OwnedValue::borrow).collect();
        let mut rows = Rows::new(&self.conn, table)?;
        if let Some(mut stored) = rows.version(&self.sites, &key)?
            && stored.local_tx != frames.local_tx
        {
            unmark(&rows, key_bytes, stored.local_tx)?;
            if table.has_late_columns() {
                let values = match rows.owned_row(&key)? {
                    Some(values) => Some(values),
                    None => self.displaced_row(table, key_bytes)?,
                };
                // By the new number the transaction would seem to have written these columns, too.
                if let Some(values) = values.filter(|_| !stored.state.deleted) {
                    let late = never_written(table, &stored, |i| values[i].borrow());
                    let late: Vec<_> = late.map(|name| (name, Version::NEVER)).collect();
                    stored.state.exceptions.extend(late);
                }
            }
            stored.local_tx = frames.local_tx;
            rows.put_version(&mut self.sites, &key, &stored)?;
        }
        put_mark(&rows, key_bytes, frames.local_tx)?;
        frames.is_republished = true;
        if frames.encode {
            self.encode_row(&mut rows, key_bytes, frames.local_tx, frames)?;
        }
        Ok(())
    }

    /// Moves a mark to the transaction of `frames`, if there is one under `local_tx`: that
    /// transaction learnt the row's version again, but a part of the row is still as transaction
    /// `local_tx` learnt it.
    pub(crate) fn mark_onwards(
        &self,
        table: &Table,
        key: &[u8],
        local_tx: i64,
        frames: &mut Frames,
    ) -> Result<()> {
        if mutation::is(Mutation::MarkLostOnJoin) {
            return Ok(());
        }
        if !has_mark(&self.conn, table, key, local_tx)? {
            return Ok(());
        }
        let mut rows = Rows::new(&self.conn, table)?;
        put_mark(&rows, key, frames.local_tx)?;
        if local_tx != frames.local_tx {
            unmark(&rows, key, local_tx)?;
        }
        if frames.encode {
            self.encode_row(&mut rows, key, frames.local_tx, frames)?;
        }
        Ok(())
    }
}

/// Whether a row is marked under transaction `local_tx`, in this database or in a copy of one.
pub(crate) fn has_mark(
    conn: &Connection,
    table: &Table,
    key: &[u8],
    local_tx: i64,
) -> Result<bool> {
    let mut mark = conn.prepare_cached(
        "SELECT 1 FROM __harmonylite___unsent WHERE at = ?1 AND table_id = ?2 AND key = ?3",
    )?;
    Ok(mark.exists(params![local_tx, table.id, key])?)
}

/// Marks a row under transaction `local_tx`.
pub(crate) fn put_mark(rows: &Rows<'_>, key: &[u8], local_tx: i64) -> Result<()> {
    rows.conn
        .prepare_cached(
            "REPLACE INTO __harmonylite___unsent(at, table_id, key) VALUES (?1, ?2, ?3)",
        )?
        .execute(params![local_tx, rows.table.id, key])?;
    Ok(())
}

/// Marks the tombstone that a row has under the former key of table number `id`. Such marks have
/// the negative of the number: a release that does not know it passes over them.
pub(super) fn mark_former(conn: &Connection, id: i64, key: &[u8], local_tx: i64) -> Result<()> {
    let text = "REPLACE INTO __harmonylite___unsent(at, table_id, key) VALUES (?1, ?2, ?3)";
    conn.prepare_cached(text)?
        .execute(params![local_tx, -id, key])?;
    Ok(())
}

/// Removes the row's mark of transaction `local_tx`, if there is one and no other life of the
/// number needs it.
pub(super) fn unmark(rows: &Rows<'_>, key: &[u8], local_tx: i64) -> Result<()> {
    let (conn, table) = (rows.conn, rows.table);
    if table.has_births && (Lives { conn, table }).shares_mark(key, local_tx)? {
        return Ok(());
    }
    rows.conn
        .prepare_cached(
            "DELETE FROM __harmonylite___unsent WHERE at = ?1 AND table_id = ?2 AND key = ?3",
        )?
        .execute(params![local_tx, rows.table.id, key])?;
    Ok(())
}
