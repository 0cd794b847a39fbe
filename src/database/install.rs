//! Opening the file, our tables in it, and their removal.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::config::DbConfig;

use super::wal::JOURNAL_SIZE_LIMIT;
use super::write::retry_while_busy;
use super::{DatabaseError, Result, Settings, own_tables};

pub(super) fn connect(path: &Path) -> Result<Connection> {
    let open = || {
        let conn = Connection::open(path)?;
        conn.busy_timeout(Duration::from_secs(5))?;
        conn.set_prepared_statement_cache_capacity(256);
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, false)?;
        let mode: String = conn.query_row("PRAGMA journal_mode", [], |r| r.get(0))?;
        if mode != "wal" {
            // Fails while the application is inside a transaction: works without, only slower.
            let set: rusqlite::Result<String> =
                conn.query_row("PRAGMA journal_mode = WAL", [], |r| r.get(0));
            if set.as_deref() != Ok("wal") {
                log::warn!(
                    "{} stays in journal mode {mode}; WAL is better",
                    path.display()
                );
            }
        }
        conn.execute_batch("PRAGMA synchronous = NORMAL; PRAGMA temp_store = MEMORY")?;
        conn.execute_batch(JOURNAL_SIZE_LIMIT)?;
        // Tables of ours are renamed whatever is wrong with the application's views.
        conn.execute_batch("PRAGMA legacy_alter_table = ON")?;
        conn.busy_timeout(Duration::ZERO)?; // from here on `retry_while_busy` waits
        Ok(conn)
    };
    open().map_err(|source| DatabaseError::Open {
        path: path.to_owned(),
        source,
    })
}

/// Creates our tables. True if HarmonyLite was never here before.
pub(super) fn install(conn: &Connection, settings: &Settings) -> Result<bool> {
    conn.execute_batch(own_tables::CREATE)?;
    let format: Option<i64> = own_tables::get_meta(conn, "format")?;
    match format {
        Some(format) if format > own_tables::FORMAT => {
            Err(DatabaseError::LaterFormat(settings.path.clone(), format))
        }
        Some(_) => Ok(own_tables::get_meta::<i64>(conn, "installed")?.is_none()),
        None => {
            own_tables::set_meta(conn, "format", own_tables::FORMAT)?;
            Ok(true)
        }
    }
}

/// The configured id unless another node has it, else the one kept in the database, else a random one from now on.
pub(super) fn node_id(conn: &Connection, configured: Option<u64>) -> Result<u64> {
    let kept: Option<i64> = own_tables::get_meta(conn, "node_id")?;
    let taken: Option<i64> = own_tables::get_meta(conn, "node_id_taken")?;
    let configured = configured.filter(|id| taken != Some(*id as i64));
    let node = match (configured, kept) {
        (Some(id), _) => id,
        (None, Some(id)) => id as u64,
        (None, None) => {
            conn.query_row("SELECT abs(random()) | 1", [], |r| r.get::<_, i64>(0))? as u64
        }
    };
    if kept != Some(node as i64) {
        own_tables::set_meta(conn, "node_id", node as i64)?;
    }
    Ok(node)
}

/// Removes all that is ours from a database, also while an application has it open. Returns how
/// many tables and triggers there were.
pub fn clean_up(path: &Path, stop: &AtomicBool) -> Result<usize> {
    let conn = connect(path)?;
    retry_while_busy(stop, || conn.execute_batch("BEGIN IMMEDIATE"))?;
    let removed = own_tables::drop_all(&conn)?;
    retry_while_busy(stop, || conn.execute_batch("COMMIT"))?;
    Ok(removed)
}
