//! Closes the database for an application that needs it exclusively, until it is done.
//!
//! With `PRAGMA locking_mode = EXCLUSIVE` SQLite requires that no other connection exists, and
//! keeps the file locked until the connection is closed (Prisma's migrations use it). HarmonyLite's
//! connection would block it for as long as it tries. The triggers note the application's writes
//! meanwhile, as always.

use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::install::connect;
use super::{Database, DatabaseError, Result};

/// Time between two checks whether the database is free.
const POLL: Duration = Duration::from_millis(50);

/// Shortest time for which the database is lent. An application that found the database locked
/// tries again within 100 ms; on a busy machine later.
const AT_LEAST: Duration = Duration::from_millis(500);

/// After this time the log says that the database is lent, and the checks become rarer.
const LONG: Duration = Duration::from_secs(5);

/// Outcome of lending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lent {
    /// A process had the database exclusively; or there is nothing to lend, because the mode is not
    /// WAL or the files are lost.
    Taken,
    /// No process was seen to have it.
    Untaken,
    /// A second connection of this process is open at the moment.
    NotNow,
}

impl Database {
    /// Closes the connection, waits until no process has the database exclusively, and opens it
    /// again. Called under the lock: no other thread can use the database meanwhile. `is_over`
    /// sleeps for the time that it is given, and returns true if the daemon is to stop. If a
    /// process has the database then, this fails with [`DatabaseError::Stopped`], and nothing can
    /// be written any more.
    pub fn lend(&mut self, mut is_over: impl FnMut(Duration) -> bool) -> Result<Lent> {
        if self.fence.is_viewing() {
            return Ok(Lent::NotNow);
        }
        // With a rollback journal this connection is in nobody's way.
        let mode: String = self
            .conn
            .query_row("PRAGMA journal_mode", [], |r| r.get(0))?;
        if self.is_lost() || mode != "wal" {
            return Ok(Lent::Taken);
        }
        let began = Instant::now();
        // Transactions, statements and locks end with the old connection.
        self.conn = Connection::open_in_memory()?;
        self.is_away = true;
        self.fence.detach();
        self.files.forget_beside();
        let (mut lent, mut is_said) = (Lent::Untaken, false);
        loop {
            let is_long = began.elapsed() >= LONG;
            if is_over(if is_long { POLL * 10 } else { POLL }) {
                // The last rows of the application are still to be captured, if the file is free.
                let is_back = !self.is_taken()? && self.come_back()?;
                return is_back.then_some(lent).ok_or(DatabaseError::Stopped);
            }
            if self.is_taken()? {
                lent = Lent::Taken;
                if is_long && !is_said {
                    log::warn!(
                        "an application has the database for itself (locking_mode=EXCLUSIVE)"
                    );
                }
                is_said |= is_long;
            } else if began.elapsed() >= AT_LEAST && self.come_back()? {
                let ms = began.elapsed().as_millis();
                log::debug!("lent the database for {ms} ms: {lent:?}");
                return Ok(lent);
            }
        }
    }

    fn is_taken(&self) -> Result<bool> {
        let file = self.files.database()?;
        Ok(file.is_some_and(super::fence::is_written))
    }

    /// Opens the database again. Returns false if another process was faster.
    fn come_back(&mut self) -> Result<bool> {
        let conn = match connect(&self.settings.path, self.settings.cache_size) {
            Err(e) if e.is_temporary() => return Ok(false),
            conn => conn?,
        };
        match self.fence.attach(&conn) {
            Err(e) if e.is_temporary() => return Ok(false),
            attached => attached?,
        }
        self.conn = conn;
        self.is_away = false;
        // Resets what belonged to the connection, or may have changed.
        (self.syncs_commits, self.seen_data_version) = (false, -1);
        self.catalog.forget();
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use rusqlite::Connection;

    use crate::apply::tests::support::Node;
    use crate::database::{DatabaseError, Lent};

    const SCHEMA: &str = "PRAGMA journal_mode = WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, v)";

    /// Does what Prisma does: has the database exclusively until the connection is closed.
    fn migrate(path: &Path) -> rusqlite::Result<Connection> {
        let conn = Connection::open(path)?;
        conn.busy_timeout(Duration::ZERO)?;
        conn.execute_batch(
            "PRAGMA locking_mode = EXCLUSIVE; CREATE TABLE m(id INTEGER PRIMARY KEY);
             INSERT INTO t VALUES (2, 'by it')",
        )?;
        Ok(conn)
    }

    #[test]
    fn an_application_gets_the_database_for_itself_and_its_writes_count() {
        let mut node = Node::new(1, SCHEMA);
        node.run("INSERT INTO t VALUES (1, 'a')");
        node.capture();
        node.app = Connection::open_in_memory().unwrap();
        let path = node.dir.path().join("app.db");
        assert!(migrate(&path).is_err(), "we are there");
        let (mut has_it, mut polls) = (None, 0);
        let mut lend = |takes: bool| {
            node.db.lend(|time| {
                std::thread::sleep(time);
                polls += 1;
                match polls {
                    1 if takes => has_it = Some(migrate(&path).unwrap()),
                    3 => drop(has_it.take()),
                    _ => {}
                }
                false
            })
        };
        // A process does not see its own locks.
        assert_eq!(lend(true).unwrap(), Lent::Untaken);
        node.app = Connection::open(&path).unwrap();
        assert_eq!(node.capture(), 1);
        assert!(node.db.tables().contains_key("m"));
    }

    #[test]
    fn writes_before_an_end_are_captured() {
        let mut node = Node::new(1, SCHEMA);
        node.run("INSERT INTO t VALUES (1, 'a')");
        assert_eq!(node.db.lend(|_| true).unwrap(), Lent::Untaken);
        assert_eq!(node.capture(), 1);
    }

    #[test]
    fn nothing_is_written_after_an_end_while_an_application_has_it() {
        let mut node = Node::new(1, SCHEMA);
        node.app = Connection::open_in_memory().unwrap();
        let path = node.dir.path().join("app.db");
        let mut has_it = None;
        let ends = node.db.lend(|_| {
            has_it = Some(migrate(&path).unwrap());
            true
        });
        assert!(matches!(ends, Err(DatabaseError::Stopped)));
        assert!(matches!(node.db.capture(), Err(DatabaseError::Stopped)));
    }
}
