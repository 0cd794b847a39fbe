//! Keeps change log entries and marks of known tables that are not here just now.
//!
//! Between two steps of a migration a table is gone for a moment, or is not adopted yet. Its change
//! log entries and marks move to a table of their own, so that capture can go on with the rest;
//! they come back with the table. An entry keeps the time that it counts as.

use rusqlite::params;

use crate::apply::has_lives;
use crate::capture::{Batch, ChangeEvidence, Frames, Touched};
use crate::database::rows::Rows;
use crate::database::table::Table;
use crate::database::{Database, Result, triggers, values};
use crate::model::cbor;
use crate::model::key::key_bytes;
use crate::model::value::{OwnedValue, Value};

/// Kind of a mark in `___waiting`, beside the kinds of the change log.
pub(crate) const MARK: i64 = -1;

/// With births, the kind of an entry is its kind in the change log, and this many times the number
/// of entries of its row before it.
pub(crate) const KINDS: i64 = 8;

/// Entries that one step takes back.
const STEP: usize = 128;

impl Database {
    /// Keeps an entry of the change log. False if its table is not known, or its key contains NULL.
    pub(super) fn keep_entry<'v>(
        &self,
        id: i64,
        key: impl Iterator<Item = Value<'v>>,
        kind: i64,
        time_ms: i64,
    ) -> Result<bool> {
        let Some(collations) = self.catalog.away.get(&id) else {
            return Ok(false);
        };
        let key: Vec<Value<'v>> = key.take(collations.len()).collect();
        if key.iter().any(Value::is_null) {
            return Ok(false);
        }
        let key = key_bytes(key.into_iter(), collations.iter().map(String::as_str));
        let kind = match self.catalog.births {
            true => kind + KINDS * self.kept_entries(id, &key)?,
            false => kind,
        };
        self.conn
            .prepare_cached(
                "INSERT INTO __harmonylite___waiting(table_id, key, kind, time_ms)
                 VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO UPDATE SET time_ms = max(time_ms, excluded.time_ms)",
            )?
            .execute(params![id, key, kind, time_ms])?;
        Ok(true)
    }

    /// Number of kept entries of one row.
    fn kept_entries(&self, id: i64, key: &[u8]) -> Result<i64> {
        let mut last = self.conn.prepare_cached(
            "SELECT 1 + max(kind) / ?3 FROM __harmonylite___waiting
             WHERE table_id = ?1 AND key = ?2 AND kind >= 0",
        )?;
        let last: Option<i64> = last.query_row(params![id, key, KINDS], |r| r.get(0))?;
        Ok(last.unwrap_or(0))
    }

    /// Keeps the marks of tables that are not here. The next acknowledgement would otherwise clear
    /// them, although the rows were not sent.
    pub(crate) fn keep_marks(&self) -> Result<()> {
        for id in self.catalog.away.keys() {
            let has_lives = self.catalog.births && has_lives(&self.conn, *id)?;
            let mut marks = self
                .conn
                .prepare_cached("SELECT key, at FROM __harmonylite___unsent WHERE table_id = ?1")?;
            let mut put = self.conn.prepare_cached(
                "INSERT OR IGNORE INTO __harmonylite___waiting(table_id, key, kind, time_ms)
                 VALUES (?1, ?2, ?3, 0)",
            )?;
            let mut marks = marks.query([id])?;
            let mut kept = 0;
            while let Some(mark) = marks.next()? {
                let (mut key, at): (Vec<u8>, i64) = (mark.get(0)?, mark.get(1)?);
                if has_lives {
                    key.extend(at.to_be_bytes()); // lives of one number are marked one by one
                }
                put.execute(params![id, key, MARK])?;
                kept += 1;
            }
            drop(marks);
            if kept > 0 {
                self.conn
                    .prepare_cached("DELETE FROM __harmonylite___unsent WHERE table_id = ?1")?
                    .execute([id])?;
            }
        }
        Ok(())
    }

    /// Takes back some of the entries of tables that are here again. Returns change log entries as
    /// a batch and puts marks back. None if nothing is left.
    pub(super) fn take_back(&mut self, frames: &mut Frames) -> Result<Option<Batch>> {
        while let Some(id) = self.catalog.back.first().copied() {
            let kept = self.kept_of(id)?;
            let table = self.catalog.by_id.get(&id).cloned();
            let (Some(table), false) = (table, kept.is_empty()) else {
                self.catalog.back.remove(&id);
                continue;
            };
            let mut touched: Vec<Touched> = Vec::new();
            for (key, kind, time_ms) in kept {
                self.conn
                    .prepare_cached(
                        "DELETE FROM __harmonylite___waiting
                         WHERE table_id = ?1 AND key = ?2 AND kind = ?3",
                    )?
                    .execute(params![id, key, kind])?;
                if kind == MARK {
                    self.take_back_mark(&table, &key, frames)?;
                    continue;
                }
                let kind = kind % KINDS;
                let why = match kind {
                    triggers::MAYBE => ChangeEvidence::Maybe,
                    _ => ChangeEvidence::Real,
                };
                let time_ms = self.stamp_kept(time_ms)?;
                if touched.last().is_none_or(|last| last.key != key) {
                    let fate = self.catalog.fates.take(&(id, key.clone()));
                    touched.push(Touched {
                        key,
                        why,
                        time_ms,
                        fate,
                    });
                }
                let last = touched.last_mut().expect("pushed");
                (last.why, last.time_ms) = (last.why.max(why), last.time_ms.max(time_ms));
                last.fate.add(kind);
            }
            self.carry_fates(&table, &touched);
            return Ok(Some(vec![(table, touched)]));
        }
        Ok(None)
    }

    /// Puts a mark back: for the row itself, or, with the transaction that had marked a number, for
    /// each of its lives that were learnt then.
    fn take_back_mark(&mut self, table: &Table, kept: &[u8], frames: &mut Frames) -> Result<()> {
        let (key, at) = cbor::key_and_rest(kept)?;
        let Ok(at) = at.try_into().map(i64::from_be_bytes) else {
            return self.mark_republished(table, kept, frames);
        };
        let key_bytes = &kept[..kept.len() - size_of::<i64>()];
        let key: Vec<Value<'_>> = key.iter().map(OwnedValue::borrow).collect();
        let shown = Rows::new(&self.conn, table)?.version(&self.sites, &key)?;
        if shown.is_some_and(|s| s.local_tx == at) {
            self.mark_republished(table, key_bytes, frames)?;
        }
        let mut all = Vec::new();
        self.lives(table)
            .each_learnt_by(&self.sites, (key_bytes, at), |life| {
                all.push(life.stored.birth);
                Ok(())
            })?;
        for birth in all {
            if let Some(life) = self.lives(table).get(&self.sites, key_bytes, birth)? {
                self.mark_life(table, key_bytes, &life, frames)?;
            }
        }
        Ok(())
    }

    /// Key, kind and time of some kept entries of one table, in the order of keys and kinds: first
    /// a mark, then the entries of the change log. Without births, these are a real write, then a
    /// possible eviction; with births, they are in their order.
    fn kept_of(&self, id: i64) -> Result<Vec<(Vec<u8>, i64, i64)>> {
        let mut kept = self.conn.prepare_cached(
            "SELECT key, kind, time_ms FROM __harmonylite___waiting WHERE table_id = ?1
             ORDER BY key, kind LIMIT ?2",
        )?;
        let kept = kept.query_map(params![id, STEP], |r| {
            let key = match values::column(r, 0) {
                Value::Blob(bytes) => bytes.to_vec(),
                _ => Vec::new(),
            };
            Ok((key, r.get(1)?, r.get(2)?))
        })?;
        Ok(kept.collect::<rusqlite::Result<_>>()?)
    }
}
