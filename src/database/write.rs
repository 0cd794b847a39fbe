//! Write transactions: begun when the lock is free, undone whole, and begun anew when more time must
//! be reserved first.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::error::{is_busy, is_unfit};
use super::sites::Sites;
use super::{Database, DatabaseError, Result, own_tables};

impl Database {
    /// Runs `f` in a write transaction; undone if it fails. Takes as long as others hold the lock.
    pub(crate) fn write<T>(&mut self, f: impl FnMut(&mut Self) -> Result<T>) -> Result<T> {
        self.transact(false, f)
    }

    /// The same, and no power cut takes it back.
    pub(crate) fn write_synced<T>(&mut self, f: impl FnMut(&mut Self) -> Result<T>) -> Result<T> {
        self.transact(true, f)
    }

    fn transact<T>(&mut self, sync: bool, mut f: impl FnMut(&mut Self) -> Result<T>) -> Result<T> {
        loop {
            self.reserve(self.clock.now_ms())?;
            self.sync_commits(sync || self.reservation.noted.waits())?;
            retry_while_busy(&self.stop, || self.conn.execute_batch("BEGIN IMMEDIATE"))?;
            let result = f(self).and_then(|value| {
                retry_while_busy(&self.stop, || self.conn.execute_batch("COMMIT"))?;
                Ok(value)
            });
            match result {
                Err(DatabaseError::NotReserved(time_ms)) => {
                    self.roll_back()?;
                    self.reserve(time_ms)?;
                }
                Err(e) => {
                    self.roll_back()?;
                    return Err(e);
                }
                Ok(value) => {
                    self.reservation.noted.ended(true);
                    return Ok(value);
                }
            }
        }
    }

    /// Whether what is committed from now on is on the disk when it is.
    pub(super) fn sync_commits(&mut self, sync: bool) -> Result<()> {
        if self.syncs_commits != sync {
            let level = if sync { "FULL" } else { "NORMAL" };
            let text = format!("PRAGMA synchronous = {level}");
            self.conn.execute_batch(&text)?;
            self.syncs_commits = sync;
        }
        Ok(())
    }

    /// Runs `f` inside a transaction; where one row or one table is at fault, undoes it and gives the
    /// reason, so that the rest can go on.
    pub(crate) fn guarded<T>(
        &mut self,
        f: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<std::result::Result<T, String>> {
        let run = |db: &Self, text: &str| db.conn.prepare_cached(text)?.execute([]);
        run(self, "SAVEPOINT guarded")?;
        match f(self) {
            Ok(value) => {
                run(self, "RELEASE guarded")?;
                Ok(Ok(value))
            }
            Err(DatabaseError::Sqlite(e)) if is_unfit(&e) => {
                run(self, "ROLLBACK TO guarded")?;
                run(self, "RELEASE guarded")?;
                self.sites = Sites::load(&self.conn)?;
                self.find_set_aside()?;
                Ok(Err(e.to_string()))
            }
            Err(e) => Err(e),
        }
    }

    /// What was learnt inside the transaction is forgotten with it.
    fn roll_back(&mut self) -> Result<()> {
        if !self.conn.is_autocommit() {
            self.conn.execute_batch("ROLLBACK")?;
        }
        self.reservation.noted.ended(false);
        self.catalog.forget();
        self.sites = Sites::load(&self.conn)?;
        if let Some(node) = own_tables::get_meta::<i64>(&self.conn, "node_id")? {
            self.node = node as u64;
        }
        self.positions = crate::apply::Positions::load(&self.conn)?;
        self.ages.roll_back(&self.conn)?;
        self.marks.forget_acknowledged();
        self.parts_bytes = None;
        self.load_again()?;
        self.seen_data_version = -1;
        Ok(())
    }
}

/// Tries again for as long as somebody else holds the lock. SQLite's own busy handler sleeps up to
/// 100 ms between tries, which would be most of the latency.
pub(super) fn retry_while_busy(
    stop: &AtomicBool,
    mut attempt: impl FnMut() -> rusqlite::Result<()>,
) -> Result<()> {
    let mut wait = Duration::from_micros(100);
    loop {
        match attempt() {
            Err(e) if is_busy(&e) => {
                if stop.load(Ordering::Relaxed) {
                    return Err(DatabaseError::Stopped);
                }
                std::thread::sleep(wait);
                wait = (wait * 2).min(Duration::from_millis(5));
            }
            other => return Ok(other?),
        }
    }
}
