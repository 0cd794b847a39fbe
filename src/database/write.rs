//! Write transactions. One begins when the lock is free, and is undone whole if it fails. If it
//! needs more time than is reserved, it is undone, and begins anew with a larger reservation.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::error::{is_busy, is_unfit};
use super::sites::Sites;
use super::{Database, DatabaseError, ReaderGap, Result, meta};

impl Database {
    /// Runs `f` in a write transaction, which is undone if `f` fails. Waits for as long as others
    /// hold the lock. `f` may run more than once.
    pub(crate) fn write<T>(&mut self, f: impl FnMut(&mut Self) -> Result<T>) -> Result<T> {
        self.transact(false, f)
    }

    /// As [`Self::write`], but synced: no power cut takes the commit back.
    pub(crate) fn write_synced<T>(&mut self, f: impl FnMut(&mut Self) -> Result<T>) -> Result<T> {
        self.transact(true, f)
    }

    fn transact<T>(&mut self, sync: bool, mut f: impl FnMut(&mut Self) -> Result<T>) -> Result<T> {
        let since = Instant::now();
        loop {
            self.check_files(false)?;
            self.reserve(self.clock.now_ms())?;
            let sync = sync || self.reservation.offline_writes.waits();
            self.sync_commits(sync && !self.fence.syncs())?;
            let gap = self.begin(since)?;
            let in_time = self.fence.guard(gap);
            let result = self.check_not_restored().and_then(|()| f(self));
            let result = result.and_then(|value| {
                retry_while_busy(&self.stop, || self.conn.execute_batch("COMMIT"))?;
                Ok(value)
            });
            drop(in_time);
            self.end()?;
            match result {
                Err(DatabaseError::NotReserved(time_ms)) => {
                    self.roll_back()?;
                    self.reserve(time_ms)?;
                }
                Err(e @ DatabaseError::RestoredInPlace(_)) => return Err(e),
                // Our tables were dropped, so reading the state anew may fail. The publisher makes
                // the tables again.
                Err(e @ DatabaseError::Dropped) => {
                    let _ = self.roll_back();
                    return Err(e);
                }
                Err(e) => {
                    self.roll_back()?;
                    return Err(e);
                }
                Ok(value) => {
                    self.settle(sync)?;
                    self.catalog.fates.keep();
                    self.kept_counts = self.counts;
                    self.reservation.offline_writes.ended(true);
                    return Ok(value);
                }
            }
        }
    }

    /// Begins a write transaction, see [`super::fence`].
    pub(super) fn begin(&mut self, since: Instant) -> Result<ReaderGap> {
        if self.is_away {
            return Err(DatabaseError::Stopped);
        }
        self.fence.begin(&self.conn, self.gap.take(), since)
    }

    /// Undoes the transaction unless it is committed, and lets readers in.
    pub(super) fn end(&mut self) -> Result<()> {
        let undone = match self.conn.is_autocommit() {
            true => Ok(()),
            false => self.conn.execute_batch("ROLLBACK"),
        };
        self.fence.let_go();
        Ok(undone?)
    }

    /// Ends a commit. If the commit may not be on the disk, it counts as not made: the state in
    /// memory is read anew, and unsent changes are encoded from the marks.
    fn settle(&mut self, sync: bool) -> Result<()> {
        let settled = self.fence.settle(&self.conn, sync);
        if settled.is_err() {
            self.roll_back()?;
            self.stop_live();
        }
        settled
    }

    /// Sets whether a later COMMIT returns only when it is on the disk.
    pub(super) fn sync_commits(&mut self, sync: bool) -> Result<()> {
        if self.syncs_commits != sync {
            let level = if sync { "FULL" } else { "NORMAL" };
            let text = format!("PRAGMA synchronous = {level}");
            self.conn.execute_batch(&text)?;
            self.syncs_commits = sync;
        }
        Ok(())
    }

    /// Runs `f` in a savepoint. If one row or one table is at fault, undoes what `f` did and
    /// returns the reason as the inner error, so that the caller can go on with the rest.
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
            Err(DatabaseError::Sqlite(e)) if is_unfit(&e) && !self.conn.is_autocommit() => {
                run(self, "ROLLBACK TO guarded")?;
                run(self, "RELEASE guarded")?;
                self.sites = Sites::load(&self.conn)?;
                self.let_go = crate::apply::LetGo::load(&self.conn)?;
                self.find_displaced_and_held()?;
                Ok(Err(e.to_string()))
            }
            Err(e) => Err(e),
        }
    }

    /// Reads the state in memory anew: everything that the transaction put there is undone with it.
    fn roll_back(&mut self) -> Result<()> {
        self.counts = self.kept_counts;
        self.reservation.offline_writes.ended(false);
        self.restore_detector.forget();
        self.catalog.forget();
        self.catalog.fates.roll_back();
        self.sites = Sites::load(&self.conn)?;
        if let Some(node) = meta::get_meta::<i64>(&self.conn, meta::Meta::NodeId)? {
            self.node = node as u64;
        }
        self.positions = crate::apply::Positions::load(&self.conn)?;
        self.let_go = crate::apply::LetGo::load(&self.conn)?;
        self.held_size = crate::apply::HeldSize::load(&self.conn)?;
        self.tombstone_age.roll_back(&self.conn)?;
        self.marks.forget_acknowledged();
        self.parts_bytes = None;
        self.load_republish()?;
        self.seen_data_version = -1;
        Ok(())
    }
}

/// Runs `f` inside a transaction. Undoes its writes if it fails, or if this is only a `trial`.
pub(crate) fn savepoint<T>(
    conn: &Connection,
    trial: bool,
    f: impl FnOnce() -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    conn.execute_batch("SAVEPOINT attempt")?;
    let done = f();
    // On a full disk SQLite undoes the whole transaction by itself.
    if !conn.is_autocommit() {
        if trial || done.is_err() {
            conn.execute_batch("ROLLBACK TO attempt")?;
        }
        conn.execute_batch("RELEASE attempt")?;
    }
    done
}

/// Repeats `attempt` for as long as another connection holds the lock. SQLite's own busy handler
/// sleeps up to 100 ms between tries, which would be most of the latency.
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rusqlite::Connection;
    use rusqlite::backup::Backup;

    use super::DatabaseError;
    use crate::apply::tests::support::Node;

    /// The sqlite3 shell's `.restore`.
    fn restore(copy: &Connection, node: &mut Node) {
        let backup = Backup::new(copy, &mut node.app).unwrap();
        backup.run_to_completion(100, Duration::ZERO, None).unwrap();
    }

    fn backup(node: &Node) -> Connection {
        let mut copy = Connection::open_in_memory().unwrap();
        let backup = Backup::new(&node.app, &mut copy).unwrap();
        backup.run_to_completion(100, Duration::ZERO, None).unwrap();
        drop(backup);
        copy
    }

    fn assert_put_back(ends: &DatabaseError) {
        assert!(matches!(ends, DatabaseError::RestoredInPlace(_)), "{ends}");
        assert!(!ends.is_temporary());
    }

    const SCHEMA: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)";

    /// Cases: a copy with our tables and one from before; one of long ago and one of just now.
    #[test]
    fn a_backup_that_is_put_back_under_an_open_connection_ends_it_unwritten() {
        for (is_ours, age) in [(true, 600), (false, 600), (true, 0), (false, 0)] {
            let mut node = Node::new(1, SCHEMA);
            node.run("INSERT INTO t VALUES (1, 'a')");
            node.capture();
            let copy = match is_ours {
                true => backup(&node),
                false => Connection::open_in_memory().unwrap(),
            };
            if !is_ours {
                copy.execute_batch(SCHEMA).unwrap();
            }
            node.clock.advance(Duration::from_secs(age));
            node.run("INSERT INTO t VALUES (2, 'b')");
            node.capture();
            restore(&copy, &mut node);
            assert_put_back(&node.db.capture().unwrap_err());
            let count = "SELECT count(*) FROM sqlite_schema WHERE name GLOB '__harmonylite__*'";
            assert_eq!(node.rows(count) != "i0", is_ours);
        }
    }

    /// Without the check, messages that were read since the backup would never be read again.
    #[test]
    fn a_backup_from_before_the_last_message_is_noticed() {
        let mut node = Node::new(1, SCHEMA);
        node.db.read_up_to("s", 1, "a");
        node.db.flush().unwrap();
        let copy = backup(&node);
        node.db.read_up_to("s", 2, "b");
        node.db.flush().unwrap();
        restore(&copy, &mut node);
        assert_put_back(&node.db.capture().unwrap_err());
    }

    /// These statements change the schema's version, like a restored backup does.
    #[test]
    fn neither_vacuum_nor_other_changes_of_the_schema_count_as_put_back() {
        let mut node = Node::new(1, SCHEMA);
        for (table, text) in [
            ("t", "VACUUM"),
            ("t", "CREATE TABLE u(id INTEGER PRIMARY KEY, v)"),
            ("t", "DELETE FROM t; VACUUM"),
            ("t", "ALTER TABLE t RENAME TO w"),
            ("w", "ALTER TABLE w ADD COLUMN x"),
            ("w", "DROP TABLE w"),
            ("u", "DROP TABLE u"),
        ] {
            node.run(&format!("INSERT INTO {table}(v) VALUES ('a'), ('b')"));
            node.capture();
            node.db.read_up_to("s", node.db.position("s").seq + 1, "");
            node.run(text);
            node.capture();
            node.db.flush().unwrap();
            let copy = backup(&node);
            restore(&copy, &mut node);
            node.capture();
        }
    }
}
