//! Outgoing changes: the application's writes become versions, marks and frames.
//!
//! The triggers note keys in the change log. [`Database::capture`] reads those keys, reads what the
//! rows *are* by now, gives them versions, marks them unsent and empties the log, all in one
//! transaction: a crash leaves either the log or the marks, never neither. It hands the encoded
//! rows to the publisher. While nobody can send, it keeps the marks alone, and
//! [`Database::backlog`] encodes the rows later.
//!
//! An entry that cannot be captured is rejected: it is counted and logged, and the rest goes on.

use std::sync::Arc;

use crate::database::rows::Rows;
use crate::database::table::Table;
use crate::database::{Database, DatabaseError, Result};
use crate::model::cbor;
use crate::model::text::key_literal;
use crate::model::value::Value;
use crate::mutation::{self, Mutation};

mod backlog;
mod change_log;
mod compare;
mod fate;
mod frames;
mod gone_rows;
mod left_out;
mod record;
mod republish;
mod unsent;
mod unsent_copy;
mod waiting;
pub mod walk;

pub(crate) use fate::{Became, Fate, Fates};
pub(crate) use frames::Frames;
pub use frames::{MAX_QUEUED_BYTES, Outgoing};
pub(crate) use gone_rows::GoneRows;
pub(crate) use record::{ChangeEvidence, Recorder, is_late, unwritten};
pub use unsent::Marks;
pub(crate) use unsent::{has_mark, put_mark};
pub(crate) use unsent_copy::{Unsent, UnsentCopy};
pub(crate) use waiting::{KINDS, MARK};

/// Result of one capture.
#[derive(Debug, Default)]
pub struct Captured {
    /// Frames to be published; empty while the publisher is not live.
    pub frames: Vec<Outgoing>,
    /// Rows that got a version.
    pub changes: usize,
    /// There is more to capture: the caller repeats the call.
    pub more: bool,
}

/// A key of the change log, with what its entries say together.
#[derive(Clone)]
pub(crate) struct Touched {
    key: Vec<u8>,
    why: ChangeEvidence,
    time_ms: i64,
    fate: Fate,
}

/// Keys of the change log, by table.
type Batch = Vec<(Arc<Table>, Vec<Touched>)>;

impl Database {
    /// Captures what the application committed, as much as fits in one short transaction. An error
    /// undoes that transaction.
    pub fn capture(&mut self) -> Result<Captured> {
        let captured = self.write_past_damage(|db| {
            let mut captured = Captured::default();
            db.capture_locked(&mut captured)?;
            Ok(captured)
        })?;
        self.copy_unsent()?;
        Ok(captured)
    }

    /// The same inside a transaction. True if the change log is empty now.
    pub(crate) fn capture_locked(&mut self, captured: &mut Captured) -> Result<bool> {
        let began = self.clock.uptime();
        self.note_data_version()?;
        self.refresh_catalog()?;
        self.clear_marks_now_and_then()?;
        let mut frames = Frames::new(self);
        if !self.log_is_left {
            self.log_run = frames.local_tx;
        }
        let mut emptied = false;
        while !emptied {
            if let Some(batch) = self.take_back(&mut frames)? {
                captured.changes += self.record_batch(&batch, &mut frames)?;
                if self.clock.uptime() - began >= self.time_box() {
                    break;
                }
                continue;
            }
            let Some((batch, last)) = self.read_log()? else {
                emptied = true;
                break;
            };
            let set = self.settings.scan_max_changes;
            captured.changes += self.record_batch(&batch, &mut frames)?;
            if let Some((table, touched)) = batch.last()
                && let Some(touched) = touched.last()
            {
                self.note_captured(table, &cbor::key_values(&touched.key)?)?;
            }
            emptied = self.drop_log(last.id, last.entries < set)?;
            if self.clock.uptime() - began >= self.time_box() {
                break;
            }
        }
        if emptied {
            self.settle_captured()?;
        } else {
            let unsettled = std::mem::take(&mut self.catalog.to_settle);
            self.catalog.resettle.extend(unsettled.into_keys());
        }
        // The comparison has a time box of its own: on a slow machine the log may use up all of the
        // first one, each time.
        if emptied && !self.catalog.comparing.is_empty() {
            captured.changes += self.compare_some(&mut frames)?;
            self.settle_captured()?;
        }
        if emptied && self.catalog.retry_held.is_some() {
            self.retry_held(&mut frames)?;
        }
        self.take_drop_requests()?;
        if emptied && !self.catalog.ending.is_empty() {
            self.end_held()?;
        }
        self.log_is_left = !emptied;
        if captured.changes > 0 {
            self.fence.note_application();
        }
        captured.more = self.has_more();
        self.take_captured(frames, captured);
        Ok(emptied)
    }

    /// Hands the frames to the publisher, unless they are more than it keeps in memory.
    pub(crate) fn take_captured(&mut self, frames: Frames, captured: &mut Captured) {
        match frames.finish() {
            Some(mut frames) => captured.frames.append(&mut frames),
            None => self.stop_live(),
        }
    }

    fn record_batch(&mut self, batch: &Batch, frames: &mut Frames) -> Result<usize> {
        let mut changes = 0;
        for (table, touched) in batch {
            match self.guarded(|db| db.record_changes(table, touched, frames))? {
                Ok(more) => changes += more,
                Err(_) => changes += self.record_one_by_one(table, touched, frames)?,
            }
        }
        Ok(changes)
    }

    /// Captures the entries one by one after their batch failed: the one at fault is rejected, the
    /// others are not.
    fn record_one_by_one(
        &mut self,
        table: &Arc<Table>,
        touched: &[Touched],
        frames: &mut Frames,
    ) -> Result<usize> {
        let mut changes = 0;
        for entry in touched {
            let one = std::slice::from_ref(entry);
            match self.guarded(|db| db.record_changes(table, one, frames))? {
                Ok(more) => changes += more,
                Err(reason) => self.reject_rows(table.name(), 1, &reason),
            }
        }
        Ok(changes)
    }

    /// Counts and logs changes that cannot be replicated.
    pub(crate) fn reject_rows(&self, table: &str, count: u64, reason: &str) {
        let now = self.clock.uptime();
        match self.marks.rejected_alarm.borrow_mut().rings(now) {
            Some(0) => log::warn!("rejected {count} change(s) of table {table}: {reason}"),
            Some(more) => log::warn!(
                "rejected {count} change(s) of table {table}, after {more} others: {reason}"
            ),
            None => log::debug!("rejected {count} change(s) of table {table}: {reason}"),
        }
        let before = self.marks.rejected.get();
        self.marks.rejected.set(before + count);
    }

    /// Gives the touched rows of a table their versions, and notes which displaced rows must be
    /// settled.
    fn record_changes(
        &mut self,
        table: &Arc<Table>,
        touched: &[Touched],
        frames: &mut Frames,
    ) -> Result<usize> {
        let written = self.record_table(table, touched, frames)?;
        let has_displaced = self.catalog.displaced.contains(&table.id);
        if !has_displaced && !self.has_lives(table) {
            return Ok(written.len());
        }
        let hidden = match has_displaced {
            true => self.delete_hidden(table, &written, frames)?,
            false => Vec::new(),
        };
        let changes = written.len() + hidden.len();
        let keys: Vec<Vec<u8>> = written.into_iter().chain(hidden).map(|t| t.key).collect();
        self.forget_displaced(table, &keys)?;
        let to_settle = self.catalog.to_settle.entry(table.id).or_default();
        to_settle.extend(keys);
        Ok(changes)
    }

    /// Settles the captured rows with the displaced ones. The change log must be empty: a row in it
    /// has no version yet, or an old one, and would lose to rows that it is to displace.
    pub(crate) fn settle_captured(&mut self) -> Result<()> {
        if mutation::is(Mutation::NoSettleOnCapture) {
            self.catalog.to_settle.clear();
            self.catalog.resettle.clear();
        }
        for (id, keys) in std::mem::take(&mut self.catalog.to_settle) {
            if !self.catalog.may_settle(id) {
                self.catalog.resettle.insert(id);
            } else if let Some(table) = self.catalog.by_id.get(&id).cloned()
                && let Err(reason) =
                    self.guarded_rows(&table, |()| true, |db, t| db.settle_local(t, &keys))?
            {
                log::warn!("rows of table {} stay displaced: {reason}", table.name());
            }
            self.elect_captured(id, &keys)?;
        }
        let catalog = &self.catalog;
        let is_ready = |id: &i64| !catalog.comparing.contains_key(id) && catalog.may_settle(*id);
        let ready: Vec<i64> = self
            .catalog
            .resettle
            .iter()
            .copied()
            .filter(is_ready)
            .collect();
        for id in ready {
            self.catalog.resettle.remove(&id);
            self.resettle_guarded(id)?;
        }
        Ok(())
    }

    /// Gives the numbers of rows that died to those that wait for them.
    fn elect_captured(&mut self, id: i64, keys: &[Vec<u8>]) -> Result<()> {
        let table = self.catalog.by_id.get(&id).cloned();
        let Some(table) = table.filter(|t| self.has_lives(t) && self.catalog.may_settle(id)) else {
            return Ok(());
        };
        for key_bytes in keys {
            let key = cbor::key_values(key_bytes)?;
            let key: Vec<Value<'_>> = key.iter().map(|v| v.borrow()).collect();
            self.elect(&table, &key, key_bytes)?;
        }
        Ok(())
    }

    /// Gives the touched rows of a table their versions. Returns the rows that changed.
    fn record_table(
        &mut self,
        table: &Table,
        touched: &[Touched],
        frames: &mut Frames,
    ) -> Result<Vec<Touched>> {
        let former = self.former_versions(table, touched)?;
        let was = touched.iter().map(|entry| match frames.encode {
            true => self.was(table, &entry.key),
            false => Ok(None),
        });
        let mut was = was.collect::<Result<Vec<_>>>()?;
        let mut rows = Rows::new(&self.conn, table)?;
        let mut recorder = Recorder {
            sites: &mut self.sites,
            frames,
            node: self.node,
            comparing: self.catalog.comparing.contains_key(&table.id),
            displaced: self.catalog.displaced.contains(&table.id),
            publish: self.settings.publish,
            forgotten: match mutation::is(Mutation::ForgottenStampedAgain) {
                true => 0,
                false => self.tombstone_age.forgotten(),
            },
            former: 0,
            was: None,
            row_bytes: self.limits.row_bytes,
            highest: 0,
            log_run: self.log_run,
            births: self.settings.births && table.has_births,
            has_lives: self.catalog.lives.contains(&table.id),
        };
        let mut written = Vec::new();
        let mut damaged = 0;
        let mut too_large = Vec::new();
        for (i, entry) in touched.iter().enumerate() {
            recorder.former = former.get(i).copied().unwrap_or(0);
            recorder.was = was[i].take();
            if self.damage.is_known(table.id, &entry.key) {
                damaged += 1;
                continue;
            }
            self.damage.begin_row(table.id, &entry.key);
            let key = cbor::key_values(&entry.key)?;
            let key: Vec<Value<'_>> = key.iter().map(|v| v.borrow()).collect();
            match recorder.record(&mut rows, &key, entry) {
                Ok(true) => written.push(entry.clone()),
                Ok(false) => {}
                Err(e @ DatabaseError::RowTooLarge(..)) => {
                    too_large.push(format!("{e}; its key is {}", key_literal(&key)));
                }
                Err(e) => return Err(e),
            }
        }
        let (highest, has_lives) = (recorder.highest, recorder.has_lives);
        self.damage.end_row();
        drop(rows);
        if has_lives {
            self.catalog.lives.insert(table.id);
        }
        self.note_given(highest)?;
        if let Some(now_ms) = self.broker_time_ms() {
            self.note_ahead(highest, now_ms);
        }
        if !self.settings.publish {
            let is_of_app = |entry: &&Touched| entry.why != ChangeEvidence::Before;
            self.counts.kept_here += written.iter().filter(is_of_app).count() as u64;
        }
        for reason in too_large {
            self.reject_rows(table.name(), 1, &reason);
        }
        if damaged > 0 {
            self.reject_rows(table.name(), damaged, "the row is damaged");
        }
        Ok(written)
    }

    /// Per row the hlc that it had under the former key of its table, or 0; empty if the table has
    /// no former key. The new version of a row must be above that hlc.
    fn former_versions(&self, table: &Table, touched: &[Touched]) -> Result<Vec<i64>> {
        if !self.catalog.former.contains_key(&table.id) {
            return Ok(Vec::new());
        }
        let mut rows = Rows::new(&self.conn, table)?;
        let mut version = |entry: &Touched| {
            let key = cbor::key_values(&entry.key)?;
            let key: Vec<Value<'_>> = key.iter().map(|v| v.borrow()).collect();
            let Some(values) = rows.owned_row(&key)? else {
                return Ok(0);
            };
            let value = |name: &str| {
                let at = table.schema.columns.iter().position(|c| c.lower == name);
                at.map(|i| values[i].borrow())
            };
            let former = self.former_row(table, value, None)?;
            let before = self.deleted_before(table, value)?;
            let before = before.iter().map(|(_, f)| f.stored.state.version.hlc);
            Ok(before.chain(former.map(|f| f.outdone())).max().unwrap_or(0))
        };
        touched.iter().map(&mut version).collect()
    }

    /// Deletes the displaced rows that only a row now deleted by the application kept out of the
    /// table: the user meant the same thing by them. A row that a REPLACE evicted has no such
    /// effect.
    fn delete_hidden(
        &mut self,
        table: &Arc<Table>,
        written: &[Touched],
        frames: &mut Frames,
    ) -> Result<Vec<Touched>> {
        let mut hidden = Vec::new();
        for entry in written.iter().filter(|t| t.why == ChangeEvidence::Real) {
            let key = cbor::key_values(&entry.key)?;
            let key: Vec<Value<'_>> = key.iter().map(|v| v.borrow()).collect();
            if !Rows::new(&self.conn, table)?.exists(&key)? {
                for key in self.hidden_only_by(table, &entry.key)? {
                    hidden.push(Touched {
                        key,
                        fate: Fate::hidden(),
                        ..entry.clone()
                    });
                }
            }
        }
        self.record_table(table, &hidden, frames)
    }
}
