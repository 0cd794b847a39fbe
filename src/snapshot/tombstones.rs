//! Forgetting deletes, when everybody has had the time to hear of them.
//!
//! A tombstone is dropped `tombstone_retention` after it *arrived* here, or the broker acknowledged it
//! if it is ours, by the broker's clock. So that the age of a transaction number can be told, numbers
//! are noted now and then with the time: the last up to which nothing waits to be sent.
//! A node that comes back later than that learns of the delete from a snapshot, see
//! [`crate::snapshot::Merge`].

use std::time::Duration;

use rusqlite::{Connection, params};

use crate::apply::Place;
use crate::database::own_tables::{get_meta, set_meta};
use crate::database::rows::{Rows, Stored, keys};
use crate::database::table::{Table, versions_table};
use crate::database::{Database, Result, TIME_BOX};
use crate::model::value::{OwnedValue, Value};
use crate::model::version::{Version, stamp};
use crate::mutation::{self, Mutation};

/// Numbers are noted this often, or a thousand times per retention if that is less often.
const NOTE_EVERY: Duration = Duration::from_secs(60);

/// Versions looked at in one step.
const STEP: usize = 512;

/// What is known of the age of tombstones.
#[derive(Debug, Default)]
pub struct Ages {
    /// Broker's time of the last note.
    noted_ms: Option<i64>,
    /// Tombstones learnt up to here are older than half of the retention.
    half_aged: i64,
    /// The highest hlc that this node may have given to a row that is forgotten by now: with a clock
    /// that stands still the row would get it again, for something else.
    forgotten: i64,
}

impl Ages {
    pub(crate) fn load(conn: &Connection) -> rusqlite::Result<Ages> {
        let forgotten = get_meta(conn, FORGOTTEN)?.unwrap_or_default();
        Ok(Ages {
            forgotten,
            ..Ages::default()
        })
    }

    pub(crate) fn forgotten(&self) -> i64 {
        self.forgotten
    }
}

/// In `___meta`: [`Ages::forgotten`].
const FORGOTTEN: &str = "forgotten";

/// In `___meta`: all tombstones learnt up to here were dropped.
const SWEPT: &str = "swept";

/// A walk over all versions.
#[derive(Debug, Default)]
pub struct Sweep {
    /// Tombstones learnt up to here are dropped.
    bound: i64,
    table: i64,
    after: Option<Vec<OwnedValue>>,
    pub dropped: u64,
}

impl Database {
    /// Notes how old transaction numbers are. Called now and then.
    pub fn note_age(&mut self) -> Result<()> {
        let Some(now_ms) = self.broker_time_ms() else {
            return Ok(());
        };
        let retention = self.settings.tombstone_retention;
        let every = NOTE_EVERY.max(retention / 1000).min(retention / 4);
        let noted = self.ages.noted_ms;
        if noted.is_some_and(|n| now_ms - n < every.as_millis() as i64) {
            return Ok(());
        }
        self.ages.noted_ms = Some(now_ms);
        if self.publishes_again() {
            return Ok(());
        }
        let unsent: Option<i64> =
            self.conn
                .query_row("SELECT min(at) FROM __harmonylite___unsent", [], |r| {
                    r.get(0)
                })?;
        let next = self.reservation.peek_number();
        // What waits here was told to nobody, however long it waits.
        let at = match mutation::is(Mutation::MarkedTombstonesDropped) {
            true => next - 1,
            false => unsent.unwrap_or(next) - 1,
        };
        let last: Option<i64> =
            self.conn
                .query_row("SELECT max(at) FROM __harmonylite___ages", [], |r| r.get(0))?;
        if last.is_none_or(|last| last < at) {
            let retention_ms = retention.as_millis() as i64;
            self.write(|db| {
                // One note is kept that is older than the retention: the bound of the next sweep.
                db.conn.execute(
                    "DELETE FROM __harmonylite___ages WHERE at < (
                         SELECT max(at) FROM __harmonylite___ages WHERE ms <= ?1)",
                    [now_ms - retention_ms],
                )?;
                db.conn.execute(
                    "REPLACE INTO __harmonylite___ages(at, ms) VALUES (?1, ?2)",
                    [at, now_ms],
                )?;
                Ok(())
            })?;
        }
        self.ages.half_aged = self.learnt_before(now_ms - retention.as_millis() as i64 / 2)?;
        Ok(())
    }

    /// Whether others may have dropped a tombstone that is still here. One that was learnt lately
    /// may be old all the same: it may have come with a snapshot, or been read late.
    pub(crate) fn is_half_aged(&self, tombstone: &Stored) -> bool {
        let half = self.settings.tombstone_retention.as_millis() as i64 / 2;
        let time_ms = tombstone.state.version.time_ms();
        tombstone.at <= self.ages.half_aged
            || self
                .broker_time_ms()
                .is_some_and(|now| time_ms <= now - half)
    }

    /// What the broker was told counts as told from now on. Inside a transaction.
    pub(crate) fn forget_ages(&mut self) -> Result<()> {
        self.ages.noted_ms = None;
        self.conn.execute("DELETE FROM __harmonylite___ages", [])?;
        Ok(())
    }

    /// The last transaction number that was given out by `time_ms`, as far as noted; else 0.
    fn learnt_before(&self, time_ms: i64) -> Result<i64> {
        let at: Option<i64> = self
            .conn
            .prepare_cached("SELECT max(at) FROM __harmonylite___ages WHERE ms <= ?1")?
            .query_row([time_ms], |r| r.get(0))?;
        Ok(at.unwrap_or(0))
    }

    /// A walk that drops tombstones past their time; none if there cannot be any. To be asked for
    /// only when all streams were read to their end: what is in them may be older.
    pub fn sweep(&self) -> Result<Option<Sweep>> {
        let Some(now_ms) = self.broker_time_ms() else {
            return Ok(None);
        };
        let retention_ms = self.settings.tombstone_retention.as_millis() as i64;
        let aged_ms = match mutation::is(Mutation::TombstonesDroppedEarly) {
            true => retention_ms / 2,
            false => retention_ms,
        };
        let bound = self.learnt_before(now_ms - aged_ms)?;
        let swept = get_meta::<i64>(&self.conn, SWEPT)?.unwrap_or(0);
        let is_due = bound > swept && !self.has_gap() && !self.publishes_again();
        Ok(is_due.then(|| Sweep {
            bound,
            ..Sweep::default()
        }))
    }

    /// One short step of it. True when it is done.
    pub fn sweep_step(&mut self, sweep: &mut Sweep) -> Result<bool> {
        let began = self.clock.uptime();
        loop {
            let tables = self.catalog.by_id.values();
            let next = tables.filter(|t| t.id >= sweep.table).min_by_key(|t| t.id);
            let Some(table) = next.cloned() else {
                self.write(|db| Ok(set_meta(&db.conn, SWEPT, sweep.bound)?))?;
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
                None => (sweep.table, sweep.after) = (table.id + 1, None),
            }
            if self.clock.uptime() - began >= TIME_BOX {
                return Ok(false);
            }
        }
    }

    /// Keys among the next versions that are tombstones of that age, and the last key looked at.
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
            if stored.is_some_and(|s| s.state.deleted && s.at <= sweep.bound) {
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
                && self.is_marked(table, &key_bytes, stored.at)?;
            if rows.exists(&key)? || is_unsent {
                continue;
            }
            drop(rows);
            let at = Place::of(table, &key_bytes);
            if !self.drop_held(&at, stored.state.version)? {
                continue;
            }
            Rows::new(&self.conn, table)?.forget_version(&key)?;
            self.note_forgotten(stored.state.version)?;
            highest = highest.max(stored.state.version);
            dropped += 1;
        }
        self.note_dropped(highest)?;
        Ok(dropped)
    }

    /// The version of a row is not known any more; an earlier one may have been ours. Inside a
    /// transaction; if that is undone, stamps are higher than they need to be.
    pub(crate) fn note_forgotten(&mut self, version: Version) -> Result<()> {
        let by_clock = stamp(self.reservation.until_ms() + 1, self.ages.forgotten);
        let hlc = match version.node == self.node {
            true => version.hlc,
            false => version.hlc.min(by_clock),
        };
        if hlc > self.ages.forgotten {
            self.ages.forgotten = hlc;
            set_meta(&self.conn, FORGOTTEN, hlc)?;
        }
        Ok(())
    }

    /// Tombstones kept, for tests and operators.
    pub fn tombstones(&self, table: &str) -> Result<u64> {
        let text = format!(
            "SELECT count(*) FROM {} WHERE deleted = 1",
            versions_table(table)
        );
        Ok(self.conn.query_row(&text, params![], |r| r.get(0))?)
    }
}
