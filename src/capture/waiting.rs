//! Keeps change log entries and marks of known tables that are not here just now.
//!
//! Between two steps of a migration a table is gone for a moment, or is not adopted yet. Its change
//! log entries and marks move to a table of their own, so that capture can go on with the rest;
//! they come back with the table. An entry keeps the time that it counts as.

use rusqlite::params;

use crate::capture::{Batch, ChangeEvidence, Fate, Frames, Touched};
use crate::database::{Database, Result, triggers, values};
use crate::model::key::key_bytes;
use crate::model::value::Value;

/// Kind of a mark in `___waiting`, beside the kinds of the change log.
pub(crate) const MARK: i64 = -1;

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
        self.conn
            .prepare_cached(
                "INSERT INTO __harmonylite___waiting(table_id, key, kind, time_ms)
                 VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO UPDATE SET time_ms = max(time_ms, excluded.time_ms)",
            )?
            .execute(params![id, key, kind, time_ms])?;
        Ok(true)
    }

    /// Keeps the marks of tables that are not here. The next acknowledgement would otherwise clear
    /// them, although the rows were not sent.
    pub(crate) fn keep_marks(&self) -> Result<()> {
        for id in self.catalog.away.keys() {
            let kept = self
                .conn
                .prepare_cached(
                    "INSERT OR IGNORE INTO __harmonylite___waiting(table_id, key, kind, time_ms)
                     SELECT table_id, key, ?2, 0 FROM __harmonylite___unsent WHERE table_id = ?1",
                )?
                .execute(params![id, MARK])?;
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
            let mut touched = Vec::new();
            for (key, kind, time_ms) in kept {
                self.conn
                    .prepare_cached(
                        "DELETE FROM __harmonylite___waiting
                         WHERE table_id = ?1 AND key = ?2 AND kind = ?3",
                    )?
                    .execute(params![id, key, kind])?;
                let why = match kind {
                    MARK => {
                        self.mark_republished(&table, &key, frames)?;
                        continue;
                    }
                    triggers::MAYBE => ChangeEvidence::Maybe,
                    _ => ChangeEvidence::Real,
                };
                let time_ms = self.stamp_kept(time_ms)?;
                touched.push(Touched {
                    key,
                    why,
                    time_ms,
                    fate: Fate::default(),
                });
            }
            return Ok(Some(vec![(table, touched)]));
        }
        Ok(None)
    }

    /// Key, kind and time of some kept entries of one table, in the order of keys and kinds: first
    /// a mark, then a real write, then a possible eviction.
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
