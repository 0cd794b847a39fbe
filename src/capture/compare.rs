//! Finds changes by comparison, in tables whose triggers were missing for a while.
//!
//! Triggers are missing when a table is rebuilt (the 12 steps of
//! <https://www.sqlite.org/lang_altertable.html#otheralter>), before installation, and in the
//! moment between a CREATE TABLE and our noticing it. The comparison reads each row with its
//! version. A row without a version, or with a different hash, changed; a live version without a
//! row means a delete. A large table is compared in short steps; changes in the meantime are in the
//! change log as usual.

use std::sync::Arc;

use crate::capture::{ChangeEvidence, Fate, Frames, Touched};
use crate::database::rows::{Rows, Stored};
use crate::database::table::Table;
use crate::database::{Compare, CompareReason, Database, FormerRow, Phase, Result, seen, values};
use crate::model::cbor;
use crate::model::value::{OwnedValue, Value};
use crate::model::version::milliseconds;
use crate::mutation::{self, Mutation};

/// Keys that one step compares before the clock is read again.
pub(super) const STEP: usize = 128;

impl Database {
    /// Continues the comparisons under way, for one time box. Returns how many rows changed.
    pub(crate) fn compare_some(&mut self, frames: &mut Frames) -> Result<usize> {
        let began = self.clock.uptime();
        let mut changes = 0;
        while let Some(id) = self.next_compared() {
            match self.catalog.by_id.get(&id).cloned() {
                Some(table) => match self.guarded(|db| db.compare_step(&table, frames))? {
                    Ok(more) => changes += more,
                    Err(reason) => {
                        self.reject_rows(table.name(), 1, &reason);
                        self.set_compare(id, None)?;
                    }
                },
                None => self.set_compare(id, None)?,
            }
            if self.clock.uptime() - began >= self.time_box() {
                break;
            }
        }
        Ok(changes)
    }

    /// Number of the table that is compared now; the table may be gone.
    fn next_compared(&self) -> Option<i64> {
        let may = |id: &&i64| self.catalog.may_settle(**id);
        self.catalog.comparing.keys().filter(may).min().copied()
    }

    /// The table that is compared now, and how far its comparison has come.
    pub(super) fn under_comparison(&self) -> Option<(&Arc<Table>, &Compare)> {
        let id = self.next_compared()?;
        let table = self.catalog.by_id.get(&id)?;
        Some((table, self.catalog.comparing.get(&id)?))
    }

    fn compare_step(&mut self, table: &Arc<Table>, frames: &mut Frames) -> Result<usize> {
        let compare = self.catalog.comparing[&table.id].clone();
        if self.damage.is_known(table.id, &[]) {
            self.reject_rows(table.name(), 1, "its pages are damaged");
            self.set_compare(table.id, None)?;
            return Ok(0);
        }
        if compare.phase == Phase::Former {
            return self.match_step(table, compare);
        }
        if compare.phase == Phase::LeftOut {
            let next = self.left_out_step(table, compare, frames)?;
            self.set_compare(table.id, next)?;
            return Ok(0);
        }
        self.damage.begin_row(table.id, &[]);
        match compare.phase {
            Phase::Versions if compare.after.is_none() => {
                if !self.count_gone(table, &compare)? {
                    self.damage.end_row();
                    return Ok(0);
                }
            }
            Phase::Versions => {}
            _ => self.gone_rows.forget(table.id),
        }
        let keys = self.next_keys(table, &compare)?;
        self.damage.end_row();
        let mut changes = 0;
        for key in &keys {
            changes += usize::from(self.compare_key(table, key, compare.cause, frames)?);
            if compare.is_renamed && compare.phase == Phase::Versions && self.settings.publish {
                self.mark_republished(table, key, frames)?;
            }
        }
        let next = match (keys.len() == STEP, compare.phase) {
            (true, _) => Some(Compare {
                after: keys.last().cloned(),
                ..compare
            }),
            (false, Phase::Versions | Phase::LeftOut) => {
                self.gone_rows.forget(table.id);
                let is_rekeyed = matches!(compare.cause, CompareReason::Rekeyed(_));
                is_rekeyed.then_some(Compare {
                    phase: Phase::LeftOut,
                    after: None,
                    ..compare
                })
            }
            (false, _) => Some(Compare {
                phase: Phase::Versions,
                after: None,
                ..compare
            }),
        };
        self.set_compare(table.id, next)?;
        Ok(changes)
    }

    /// One step of indexing rows by their content (`Phase::Former`). After the last step held rows
    /// are tried again: some waited for it.
    fn match_step(&mut self, table: &Table, compare: Compare) -> Result<usize> {
        let after = self.fill_contents(table, compare.after.as_deref())?;
        let phase = match after {
            Some(_) => Phase::Former,
            None => Phase::Rows,
        };
        self.set_compare(
            table.id,
            Some(Compare {
                phase,
                after,
                ..compare
            }),
        )?;
        if phase == Phase::Rows {
            self.catalog.retry_held = Some(None);
        }
        Ok(0)
    }

    /// Compares one row with its version.
    pub(crate) fn compare_key(
        &mut self,
        table: &Arc<Table>,
        key_bytes: &[u8],
        cause: CompareReason,
        frames: &mut Frames,
    ) -> Result<bool> {
        let key = cbor::key_values(key_bytes)?;
        let key: Vec<Value<'_>> = key.iter().map(OwnedValue::borrow).collect();
        if matches!(
            cause,
            CompareReason::Added | CompareReason::Dropped | CompareReason::Rebuilt
        ) && let Some(is_sent) = self.rehash(table, (&key, key_bytes), cause, frames)?
        {
            return Ok(is_sent);
        }
        let counts_as_now = mutation::is(Mutation::RekeyedCountsAsNow);
        if matches!(cause, CompareReason::Rekeyed(_) | CompareReason::Matched(_))
            && !counts_as_now
            && let Some(changed) = self.compare_former(table, (&key, key_bytes), cause, frames)?
        {
            return Ok(changed);
        }
        let mut time_ms = self.stamp_now()?;
        let mut rows = Rows::new(&self.conn, table)?;
        let stored = rows.version(&self.sites, &key)?;
        let is_live = stored.as_ref().is_some_and(|s| !s.state.deleted);
        let mut why = ChangeEvidence::Compared;
        match cause {
            CompareReason::Before | CompareReason::BeforeRebuilt if stored.is_none() => {
                why = ChangeEvidence::Before;
            }
            // The new version is above the old one, and below any write since.
            CompareReason::BeforeRebuilt | CompareReason::Rebuilt | CompareReason::Unwatched
                if is_live && !rows.exists(&key)? =>
            {
                time_ms = match mutation::is(Mutation::LeftOutCountsAsNow) {
                    true => time_ms,
                    false => 0,
                };
            }
            CompareReason::BeforeRebuilt | CompareReason::Rebuilt if is_live => {
                (why, time_ms) = (ChangeEvidence::Rebuilt, 0);
            }
            CompareReason::Rekeyed(hlc) if !counts_as_now => {
                time_ms = milliseconds(hlc).min(time_ms)
            }
            _ => {}
        }
        drop(rows);
        let touched = Touched {
            key: key_bytes.to_vec(),
            why,
            time_ms,
            fate: Fate::default(),
        };
        let changed = self.record_changes(table, &[touched], frames)? > 0;
        self.settle_captured()?;
        Ok(changed)
    }

    /// Compares a row of a table whose key changed. The row keeps the version that it had under the
    /// old key. It is published under the new key with that version, because a node that migrated
    /// earlier may wait for it. True if the row changed. None if the row is gone or the table has
    /// no former key: then it is compared in the usual way.
    fn compare_former(
        &mut self,
        table: &Arc<Table>,
        (key, key_bytes): (&[Value<'_>], &[u8]),
        cause: CompareReason,
        frames: &mut Frames,
    ) -> Result<Option<bool>> {
        if !self.catalog.former.contains_key(&table.id) {
            return Ok(None);
        }
        let mut rows = Rows::new(&self.conn, table)?;
        let Some(values) = rows.owned_row(key)? else {
            return Ok(None);
        };
        let value = |name: &str| {
            let at = table.schema.columns.iter().position(|c| c.lower == name);
            at.map(|i| values[i].borrow())
        };
        if rows.version(&self.sites, key)?.is_some() {
            // The change log has all that happened to the row since. It is still the same row.
            drop(rows);
            let former = self.former_row(table, value, None)?;
            let is_new = |f: &FormerRow| f.content.is_none() && f.became.is_none();
            if let Some(former) = former.filter(is_new) {
                self.note_became(table.id, &former.key, key_bytes)?;
            }
            return Ok(Some(false));
        }
        let mut touched = Touched {
            key: key_bytes.to_vec(),
            why: ChangeEvidence::Before,
            time_ms: 0,
            fate: Fate::default(),
        };
        drop(rows);
        let former = self.former_row(table, value, None)?;
        if let (None, CompareReason::Matched(Some(time_ms))) = (&former, cause) {
            // The row may be one of those that were written just before the migration.
            touched.why = ChangeEvidence::Real;
            touched.time_ms = self.stamp_kept(time_ms)?;
        }
        if let Some(former) = former {
            let is_same = self.recognize(table, &former, (key, key_bytes), &values)?;
            let stored = &former.stored;
            let hash = match is_same {
                true => {
                    let values = values.iter().map(OwnedValue::borrow);
                    table.content_hash(stored.local_tx, values)
                }
                false => stored.hash.wrapping_add(1), // newer than what it was, and no more
            };
            if stored.state.version.hlc > 0 {
                let stored = Stored {
                    hash,
                    ..stored.clone()
                };
                let mut rows = Rows::new(&self.conn, table)?;
                rows.put_version(&mut self.sites, key, &stored)?;
                drop(rows);
                touched.why = ChangeEvidence::Rebuilt;
                if mutation::is(Mutation::MigratedCountsAsNow) {
                    touched.time_ms = self.stamp_now()?;
                }
            }
            if let Some(time_ms) = former.written_ms {
                touched.why = ChangeEvidence::Real;
                touched.time_ms = self.stamp_kept(time_ms)?;
            }
        } else {
            self.note_seen(table.id, seen::NEW)?;
        }
        let changed = self.record_changes(table, &[touched], frames)? > 0;
        let is_sent = self.settings.publish && !mutation::is(Mutation::RekeyedNotSent);
        if !changed && is_sent {
            self.mark_republished(table, key_bytes, frames)?;
        }
        self.settle_captured()?;
        Ok(Some(changed))
    }

    /// Notes that this row is the one that had the former key: no other row is, and rows that
    /// arrive under the former key are this one. True if its content is as before.
    fn recognize(
        &mut self,
        table: &Table,
        former: &FormerRow,
        (key, key_bytes): (&[Value<'_>], &[u8]),
        values: &[OwnedValue],
    ) -> Result<bool> {
        self.claim(table, former)?;
        self.note_became(table.id, &former.key, key_bytes)?;
        if let Some(like_it) = self.former_like(table, former)? {
            // Either row may be the one: rows that arrive under their former keys are held.
            self.note_became(table.id, &former.key, &[])?;
            self.note_became(table.id, &like_it, &[])?;
        }
        if former.stored.state.deleted {
            return Ok(false);
        }
        let is_same = self.is_as_before(table, former, values);
        if former.written_ms.is_none() {
            self.see_key(table, former, key, is_same)?;
        }
        Ok(is_same)
    }

    /// Gives a row whose columns were renamed its new hash; its version stays, also while the row
    /// is displaced. If part of its content may never have been published under the new names, the
    /// row is marked. True if so; none if the row must be compared.
    fn rehash(
        &mut self,
        table: &Table,
        (key, key_bytes): (&[Value<'_>], &[u8]),
        cause: CompareReason,
        frames: &mut Frames,
    ) -> Result<Option<bool>> {
        let mut rows = Rows::new(&self.conn, table)?;
        let stored = rows.version(&self.sites, key)?;
        let Some(stored) = stored.filter(|s| !s.state.deleted) else {
            // The change of this row is in the change log.
            return Ok((cause != CompareReason::Rebuilt).then_some(false));
        };
        let values = match rows.owned_row(key)? {
            Some(_) if cause == CompareReason::Rebuilt => return Ok(None),
            Some(values) => Some(values),
            None => self.displaced_row(table, key_bytes)?,
        };
        let Some(values) = values else {
            return Ok(None); // an eviction that was not seen
        };
        let now = || values.iter().map(OwnedValue::borrow);
        let hash = table.content_hash(stored.local_tx, now());
        if hash == stored.hash {
            return Ok(Some(false));
        }
        rows.put_version(&mut self.sites, key, &Stored { hash, ..stored })?;
        let is_sent = cause == CompareReason::Added && self.settings.publish;
        if is_sent {
            drop(rows);
            self.mark_republished(table, key_bytes, frames)?;
        }
        Ok(Some(is_sent))
    }

    /// The next keys of the phase, in key order, at most `STEP`.
    /// Rows with NULL in the key are skipped.
    pub(super) fn next_keys(&self, table: &Table, compare: &Compare) -> Result<Vec<Vec<u8>>> {
        let from_start = compare.after.is_none();
        let text = match compare.phase {
            Phase::Rows | Phase::Former | Phase::LeftOut => table.scan_keys(from_start, STEP),
            Phase::Versions if compare.is_renamed => table.scan_all_versions(from_start, STEP),
            Phase::Versions => table.scan_versions(from_start, STEP),
        };
        let mut statement = self.conn.prepare_cached(&text)?;
        let after = compare
            .after
            .as_deref()
            .map(cbor::key_values)
            .transpose()?
            .unwrap_or_default();
        let mut rows = statement.query(rusqlite::params_from_iter(after))?;
        let mut keys = Vec::new();
        while let Some(row) = rows.next()? {
            keys.push(table.key_bytes((0..table.key_len()).map(|i| values::column(row, i))));
        }
        Ok(keys)
    }
}
