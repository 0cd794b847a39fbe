//! Cuts the WAL file when no application works on the database.
//!
//! SQLite reuses a WAL file once its content is checkpointed, but never shrinks it: the file keeps
//! the size of the largest transaction, or of the longest reader. Without us the last connection to
//! close removes the file; with us no application's connection is the last. An empty WAL, besides,
//! cannot be mixed with a backup that is copied over the database.

use rusqlite::Connection;

use super::error::is_busy;
use super::{Database, Result};

/// When our connection starts the WAL anew, it cuts the file to this many bytes: those of 1000
/// pages of 4 KiB, after which SQLite checkpoints.
pub(super) const JOURNAL_SIZE_LIMIT: &str = "PRAGMA journal_size_limit = 4194304";

impl Database {
    /// Frees the memory of pages and statements. The next call reads the pages again.
    pub fn release_memory(&self) -> Result<()> {
        self.conn.flush_prepared_statement_cache();
        Ok(self.conn.execute_batch("PRAGMA shrink_memory")?)
    }

    /// Bytes of the WAL file; 0 if there is none.
    pub fn wal_bytes(&self) -> u64 {
        self.files.wal_bytes()
    }

    /// Checkpoints the WAL and cuts it to nothing. Waits for no application: returns false if one
    /// reads or writes just now. No application waits while the content is written to the database
    /// and synced, and a writer waits only as long as it takes to cut a file.
    pub fn cut_wal(&mut self) -> Result<bool> {
        self.check_files(false)?;
        if !checkpoint(&self.conn, "PASSIVE")? || !self.fence.try_gap() {
            return Ok(false);
        }
        // As after a commit of ours, a transaction that reads now could not write afterwards.
        let cut = checkpoint(&self.conn, "TRUNCATE");
        self.fence.let_go();
        cut
    }
}

/// Whether the checkpoint was complete.
fn checkpoint(conn: &Connection, mode: &str) -> Result<bool> {
    let counts = |r: &rusqlite::Row<'_>| {
        let [busy, frames, taken_in] = [r.get::<_, i64>(0)?, r.get(1)?, r.get(2)?];
        Ok(busy == 0 && frames == taken_in)
    };
    let text = format!("PRAGMA wal_checkpoint({mode})");
    match conn.query_row(&text, [], counts) {
        Err(e) if is_busy(&e) => Ok(false),
        done => Ok(done?),
    }
}

#[cfg(test)]
mod tests {
    use crate::apply::tests::support::Node;

    const SCHEMA: &str = "PRAGMA journal_mode = WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, v)";

    #[test]
    fn a_wal_is_cut_unless_somebody_reads_or_writes() {
        let mut node = Node::new(1, SCHEMA);
        node.run("INSERT INTO t VALUES (1, 'a')");
        node.capture();
        assert!(node.db.wal_bytes() > 0);
        node.app.execute_batch("BEGIN; SELECT * FROM t").unwrap();
        node.app
            .query_row("SELECT v FROM t", [], |_| Ok(()))
            .unwrap();
        assert!(!node.db.cut_wal().unwrap(), "somebody reads");
        node.app.execute_batch("COMMIT; BEGIN IMMEDIATE").unwrap();
        assert!(!node.db.cut_wal().unwrap(), "somebody writes");
        node.app.execute_batch("COMMIT").unwrap();
        assert!(node.db.cut_wal().unwrap());
        assert_eq!(node.db.wal_bytes(), 0);
        node.run("INSERT INTO t VALUES (2, 'b')");
        assert_eq!(node.capture(), 1);
    }

    #[test]
    fn without_a_wal_there_is_nothing_to_cut() {
        let mut node = Node::new(1, "");
        node.app
            .execute_batch("PRAGMA locking_mode = NORMAL")
            .unwrap();
        assert!(node.db.cut_wal().is_ok());
    }
}
