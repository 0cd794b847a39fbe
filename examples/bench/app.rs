//! The application: its writes would be the same without HarmonyLite.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::Result;

/// An own connection to one database, with WAL and `synchronous = NORMAL`.
pub struct App {
    pub conn: Connection,
    /// Letters of a row that is inserted.
    pub letters: usize,
    wal: PathBuf,
    random: u64,
}

impl App {
    /// Opens the database, creating it with its one table.
    pub fn open(path: &Path) -> Result<App> {
        let conn = Connection::open(path)?;
        conn.busy_timeout(Duration::from_secs(5))?;
        conn.pragma_update(None, "journal_mode", "WAL")?;
        conn.pragma_update(None, "synchronous", "NORMAL")?;
        conn.execute_batch(
            "CREATE TABLE IF NOT EXISTS items(id INTEGER PRIMARY KEY, data TEXT NOT NULL)",
        )?;
        let mut wal = path.as_os_str().to_owned();
        wal.push("-wal");
        Ok(App {
            conn,
            letters: 100,
            wal: wal.into(),
            random: 0x9E37_79B9_7F4A_7C15,
        })
    }

    /// Inserts rows `first..first + count` in one transaction. Returns when they were written,
    /// before the commit.
    pub fn insert(&mut self, first: i64, count: i64) -> Result<Instant> {
        let transaction = self.conn.transaction()?;
        let mut statement =
            transaction.prepare_cached("INSERT INTO items(id, data) VALUES (?1, ?2)")?;
        for id in first..first + count {
            statement.execute(rusqlite::params![id, text(&mut self.random, self.letters)])?;
        }
        drop(statement);
        let written = Instant::now();
        transaction.commit()?;
        Ok(written)
    }

    /// The next id that is free.
    pub fn next_id(&self) -> Result<i64> {
        let sql = "SELECT ifnull(max(id), 0) + 1 FROM items";
        Ok(self.conn.query_row(sql, [], |r| r.get(0))?)
    }

    /// Waits until a row is visible. It looks all the time, with pauses that leave a machine of two
    /// cores to the measurement.
    pub fn wait_for(&self, id: i64) -> Result<Instant> {
        let began = Instant::now();
        let mut statement = self
            .conn
            .prepare_cached("SELECT 1 FROM items WHERE id = ?1")?;
        while !statement.exists([id])? {
            if began.elapsed() > Duration::from_secs(60) {
                return Err(format!("row {id} did not arrive within 60 s").into());
            }
            std::thread::sleep(Duration::from_micros(20));
        }
        Ok(Instant::now())
    }

    /// Keeps the WAL from being overwritten as long as the result lives: SQLite starts the WAL anew
    /// only when no reader needs it. With an open read transaction the file grows by exactly the
    /// bytes that all processes write, frames and their headers.
    pub fn pin_wal(&self, path: &Path) -> Result<PinnedWal> {
        let conn = Connection::open(path)?;
        conn.execute_batch("BEGIN; SELECT count(*) FROM items")?;
        let before = std::fs::metadata(&self.wal)?.len();
        Ok(PinnedWal {
            _reader: conn,
            wal: self.wal.clone(),
            before,
        })
    }
}

/// The WAL while [`App::pin_wal`] keeps it.
pub struct PinnedWal {
    _reader: Connection,
    wal: PathBuf,
    before: u64,
}

impl PinnedWal {
    /// Bytes written to the WAL since.
    pub fn written(&self) -> Result<f64> {
        Ok((std::fs::metadata(&self.wal)?.len() - self.before) as f64)
    }
}

/// Letters and digits without pattern, so that compression has little to gain.
fn text(random: &mut u64, letters: usize) -> String {
    const LETTERS: &[u8; 64] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_";
    let mut out = String::with_capacity(letters + 10);
    while out.len() < letters {
        *random ^= *random << 13;
        *random ^= *random >> 7;
        *random ^= *random << 17;
        for i in 0..10 {
            out.push(LETTERS[(*random >> (6 * i)) as usize & 63] as char);
        }
    }
    out
}
