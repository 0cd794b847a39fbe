//! Forgets deletes when every node has had the time to hear of them.
//!
//! A tombstone is dropped `tombstone_retention` after it *arrived* here, or, if it is our own,
//! after the broker acknowledged it. The time is that of the broker's clock
//! ([`crate::apply::tombstone_age`]). A node that comes back later than that learns of the delete
//! from a snapshot, see [`crate::snapshot::Merge`].

use rusqlite::params;

use crate::apply::Place;
use crate::database::meta::{Meta, get_meta, set_meta};
use crate::database::rows::{Rows, Stored, keys};
use crate::database::table::{Table, versions_table};
use crate::database::{Database, Result};
use crate::model::birth::Birth;
use crate::model::value::{OwnedValue, Value};
use crate::model::version::Version;
use crate::mutation::{self, Mutation};

/// Number of versions examined in one step.
const STEP: usize = 512;

/// A walk over all versions, which drops old tombstones.
#[derive(Debug, Default)]
pub struct Sweep {
    /// The walk drops tombstones learnt in local transactions up to this one.
    bound: i64,
    table: i64,
    after: Option<Vec<OwnedValue>>,
    /// Key and birth of the last life examined.
    life: (Vec<u8>, Birth),
    /// Number of tombstones dropped so far.
    pub dropped: u64,
}

impl Database {
    /// Begins a walk that drops tombstones past their time; `None` if there cannot be any. Call it
    /// only when all streams were read to their end: messages in them may be older.
    pub fn sweep(&self) -> Result<Option<Sweep>> {
        let Some(now_ms) = self.broker_time_ms() else {
            return Ok(None);
        };
        let retention_ms = self.settings.tombstone_retention.as_millis() as i64;
        let aged_ms = match mutation::is(Mutation::TombstonesDroppedEarly) {
            true => retention_ms / 2,
            false => retention_ms,
        };
        let bound = self.local_tx_before(now_ms - aged_ms)?;
        let swept = get_meta::<i64>(&self.conn, Meta::Swept)?.unwrap_or(0);
        let is_due = bound > swept && !self.has_gap() && !self.is_republishing();
        Ok(is_due.then(|| Sweep {
            bound,
            ..Sweep::default()
        }))
    }

    /// Runs one short step of the walk. Returns true when the walk is done.
    pub fn sweep_step(&mut self, sweep: &mut Sweep) -> Result<bool> {
        let began = self.clock.uptime();
        loop {
            let tables = self.catalog.by_id.values();
            let next = tables.filter(|t| t.id >= sweep.table).min_by_key(|t| t.id);
            let Some(table) = next.cloned() else {
                self.write(|db| {
                    db.forget_former(sweep.bound)?;
                    db.forget_gone(sweep.bound)?;
                    db.end_old_deletes()?;
                    Ok(set_meta(&db.conn, Meta::Swept, sweep.bound)?)
                })?;
                return Ok(true);
            };
            if table.id > sweep.table {
                (sweep.table, sweep.after) = (table.id, None);
            }
            let (old, last) = self.old_tombstones(&table, sweep)?;
            if !old.is_empty() {
                sweep.dropped += self.write(|db| db.drop_tombstones(&table, &old))?;
            }
            match last {
                Some(last) => sweep.after = Some(last),
                None => {
                    let lives = match self.has_lives(&table) {
                        true => self.dead_lives(&table, sweep.bound, &sweep.life, STEP)?,
                        false => Vec::new(),
                    };
                    if let Some(last) = lives.last() {
                        sweep.life = last.clone();
                        sweep.dropped +=
                            self.write(|db| db.drop_dead_lives(&table, &lives, sweep.bound))?;
                    } else {
                        (sweep.table, sweep.after) = (table.id + 1, None);
                        sweep.life = Default::default();
                    }
                }
            }
            if self.clock.uptime() - began >= self.time_box() {
                return Ok(false);
            }
        }
    }

    /// The keys among the next versions that are old tombstones, and the last key examined.
    #[allow(clippy::type_complexity)] // a list of keys and a key
    fn old_tombstones(
        &self,
        table: &Table,
        sweep: &Sweep,
    ) -> Result<(Vec<Vec<OwnedValue>>, Option<Vec<OwnedValue>>)> {
        let scan = table.scan_all_versions(sweep.after.is_none(), STEP);
        let mut rows = Rows::new(&self.conn, table)?;
        let (mut old, mut last) = (Vec::new(), None);
        for key in keys(&self.conn, table, &scan, sweep.after.as_deref())? {
            let borrowed: Vec<Value<'_>> = key.iter().map(OwnedValue::borrow).collect();
            let stored = rows.version(&self.sites, &borrowed)?;
            if stored.is_some_and(|s| s.state.deleted && s.local_tx <= sweep.bound) {
                old.push(key.clone());
            }
            last = Some(key);
        }
        Ok((old, last))
    }

    fn drop_tombstones(&mut self, table: &Table, keys: &[Vec<OwnedValue>]) -> Result<u64> {
        let (mut dropped, mut highest) = (0, Version::NEVER);
        for key in keys {
            let key: Vec<Value<'_>> = key.iter().map(OwnedValue::borrow).collect();
            let mut rows = Rows::new(&self.conn, table)?;
            // The application may have inserted the row again meanwhile.
            let stored = rows.version(&self.sites, &key)?;
            let Some(stored) = stored.filter(|s| s.state.deleted) else {
                continue;
            };
            let key_bytes = table.key_bytes(key.iter().copied());
            let is_unsent = !mutation::is(Mutation::MarkedTombstonesDropped)
                && self.is_marked(table, &key_bytes, stored.local_tx)?;
            if rows.exists(&key)? || is_unsent {
                continue;
            }
            drop(rows);
            let at = Place::of_life(table, &key_bytes, stored.birth);
            if !self.drop_held(&at, stored.state.version)? {
                continue;
            }
            Rows::new(&self.conn, table)?.forget_version(&key)?;
            self.restore_detector.forget();
            self.note_forgotten(stored.state.version)?;
            highest = highest.max(stored.state.version);
            dropped += 1;
        }
        self.note_dropped(highest)?;
        Ok(dropped)
    }

    /// Drops the old tombstones among lives that do not have their number.
    fn drop_dead_lives(
        &mut self,
        table: &Table,
        lives: &[(Vec<u8>, Birth)],
        bound: i64,
    ) -> Result<u64> {
        let (mut dropped, mut highest) = (0, Version::NEVER);
        for (key, birth) in lives {
            // An update may have brought the row back meanwhile.
            let life = self.lives(table).get(&self.sites, key, *birth)?;
            let stored = life.map(|life| life.stored);
            let is_old = |s: &Stored| s.state.deleted && s.local_tx <= bound;
            let Some(Stored {
                state, local_tx, ..
            }) = stored.filter(is_old)
            else {
                continue;
            };
            let at = Place::of_life(table, key, *birth);
            if self.is_marked(table, key, local_tx)? || !self.drop_held(&at, state.version)? {
                continue;
            }
            self.lives(table).remove(key, *birth)?;
            self.restore_detector.forget();
            self.note_forgotten(state.version)?;
            highest = highest.max(state.version);
            dropped += 1;
        }
        self.note_dropped(highest)?;
        Ok(dropped)
    }

    /// Number of tombstones of a table, for tests and operators.
    pub fn tombstones(&self, table: &str) -> Result<u64> {
        let text = format!(
            "SELECT count(*) FROM {} WHERE deleted = 1",
            versions_table(table)
        );
        Ok(self.conn.query_row(&text, params![], |r| r.get(0))?)
    }
}
