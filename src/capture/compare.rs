//! Finds changes by comparison, for tables whose triggers were not in place for a while.
//!
//! Triggers go missing when a table is rebuilt (the 12 steps of
//! <https://www.sqlite.org/lang_altertable.html#otheralter>), before installation, and in the moment
//! between CREATE TABLE and our noticing. Row against version: without a version, or with another
//! hash, it changed; a live version without a row was deleted. A large table is walked through in
//! short steps; what happens to rows in the meantime is in the raw log as usual.

use std::sync::Arc;

use crate::capture::{Frames, Touched, Why};
use crate::database::rows::{Rows, Stored};
use crate::database::table::Table;
use crate::database::{Cause, Compare, Database, Phase, Result, TIME_BOX, values};
use crate::model::cbor;
use crate::model::value::{OwnedValue, Value};
use crate::model::version::milliseconds;

/// Keys looked at between two looks at the clock.
const STEP: usize = 128;

impl Database {
    /// Goes on with the comparisons under way, for one time box. Returns how many rows changed.
    pub(crate) fn compare_some(&mut self, frames: &mut Frames) -> Result<usize> {
        let began = self.clock.uptime();
        let mut changes = 0;
        while let Some(id) = self.catalog.comparing.keys().min().copied() {
            match self.catalog.by_id.get(&id).cloned() {
                Some(table) => match self.guarded(|db| db.compare_step(&table, frames))? {
                    Ok(more) => changes += more,
                    Err(reason) => {
                        self.set_aside_rows(table.name(), 1, &reason);
                        self.set_compare(id, None)?;
                    }
                },
                None => self.set_compare(id, None)?,
            }
            if self.clock.uptime() - began >= TIME_BOX {
                break;
            }
        }
        Ok(changes)
    }

    fn compare_step(&mut self, table: &Arc<Table>, frames: &mut Frames) -> Result<usize> {
        let compare = self.catalog.comparing[&table.id].clone();
        if self.damage.is_known(table.id, &[]) {
            self.set_aside_rows(table.name(), 1, "its pages are damaged");
            self.set_compare(table.id, None)?;
            return Ok(0);
        }
        self.damage.look_at(table.id, &[]);
        let keys = self.next_keys(table, &compare)?;
        self.damage.look_away();
        let mut changes = 0;
        for key in &keys {
            changes += usize::from(self.compare_key(table, key, compare.cause, frames)?);
        }
        let next = match (keys.len() == STEP, compare.phase) {
            (true, _) => Some(Compare {
                after: keys.last().cloned(),
                ..compare
            }),
            (false, Phase::Rows) => Some(Compare {
                phase: Phase::Versions,
                after: None,
                ..compare
            }),
            (false, Phase::Versions) => None,
        };
        self.set_compare(table.id, next)?;
        Ok(changes)
    }

    /// Compares one row, as the walk would.
    pub(crate) fn compare_key(
        &mut self,
        table: &Arc<Table>,
        key_bytes: &[u8],
        cause: Cause,
        frames: &mut Frames,
    ) -> Result<bool> {
        let key = cbor::key_values(key_bytes)?;
        let key: Vec<Value<'_>> = key.iter().map(OwnedValue::borrow).collect();
        let mut time_ms = self.stamp_now()?;
        let mut rows = Rows::new(&self.conn, table)?;
        let live = |stored: Option<Stored>| stored.filter(|s| !s.state.deleted);
        let stored = rows.version(&self.sites, &key)?;
        let is_asked = !matches!(cause, Cause::Before | Cause::Unwatched);
        let is_here = is_asked && rows.exists(&key)?;
        drop(rows);
        let why = match (cause, stored) {
            (Cause::Before, None) => Why::Before,
            (Cause::Before | Cause::Unwatched, _) => Why::Compared,
            (Cause::Rebuilt, stored) => {
                // Newer than what it was, and older than any write since.
                if is_here && live(stored).is_some() {
                    time_ms = 0;
                }
                Why::Compared
            }
            (Cause::Rekeyed(hlc), _) => {
                time_ms = milliseconds(hlc).min(time_ms);
                Why::Compared
            }
            (Cause::Added | Cause::Dropped, stored) => match live(stored) {
                None => return Ok(false), // its change is in the raw log
                Some(stored) if is_here => {
                    return self.rehash(table, (&key, key_bytes), stored, cause, frames);
                }
                Some(_) => Why::Compared, // displaced, or an eviction that was not seen
            },
        };
        let touched = Touched {
            key: key_bytes.to_vec(),
            why,
            time_ms,
        };
        let changed = self.record_changes(table, &[touched], frames)? > 0;
        self.settle_captured()?;
        Ok(changed)
    }

    /// The row's columns have other names. Its version stays; if some of its content may never have
    /// been sent under the new name, it is marked. True if so.
    fn rehash(
        &mut self,
        table: &Table,
        (key, key_bytes): (&[Value<'_>], &[u8]),
        stored: Stored,
        cause: Cause,
        frames: &mut Frames,
    ) -> Result<bool> {
        let mut rows = Rows::new(&self.conn, table)?;
        let Some(values) = rows.owned_row(key)? else {
            return Ok(false);
        };
        let hash = table.content_hash(values.iter().map(OwnedValue::borrow));
        if hash == stored.hash {
            return Ok(false);
        }
        rows.put_version(&mut self.sites, key, &Stored { hash, ..stored })?;
        let is_sent = cause == Cause::Added && self.settings.publish;
        if is_sent {
            drop(rows);
            self.mark_again(table, key_bytes, frames)?;
        }
        Ok(is_sent)
    }

    /// The next keys of the phase, in key order. Rows with NULL in the key are passed over.
    fn next_keys(&self, table: &Table, compare: &Compare) -> Result<Vec<Vec<u8>>> {
        let from_start = compare.after.is_none();
        let text = match compare.phase {
            Phase::Rows => table.scan_keys(from_start, STEP),
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
