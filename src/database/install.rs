//! Opens the file, creates the own tables in it, and removes them.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::config::DbConfig;

use super::meta::{Meta, get_meta, set_meta};
use super::read_only::ReadOnly;
use super::wal::JOURNAL_SIZE_LIMIT;
use super::write::retry_while_busy;
use super::{DatabaseError, GoVersion, Result, Settings, journal, own_shape, own_tables};
use crate::config::CACHE_SIZE;
use crate::db_file::access::FileAccess;

/// The table that shows that HarmonyLite manages a database.
const META: &str = "__harmonylite___meta";

pub(super) fn connect(path: &Path, cache_size: u32) -> Result<Connection> {
    let open = || {
        let made = FileAccess::of_database(path).create(path);
        if made.is_ok() {
            let path = path.display();
            log::info!(
                "{path} is new, and only its owner can open it: run the application as that"
            );
        }
        let conn = Connection::open(path)?;
        conn.busy_timeout(Duration::from_secs(5))?;
        conn.set_prepared_statement_cache_capacity(256);
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, false)?;
        journal::set_wal(&conn, path)?;
        conn.execute_batch("PRAGMA synchronous = NORMAL; PRAGMA temp_store = MEMORY")?;
        conn.execute_batch(JOURNAL_SIZE_LIMIT)?;
        conn.pragma_update(None, "cache_size", -i64::from(cache_size))?;
        // Own tables can be renamed even if views of the application are broken.
        conn.execute_batch("PRAGMA legacy_alter_table = ON")?;
        conn.busy_timeout(Duration::ZERO)?; // from here on `retry_while_busy` waits
        Ok(conn)
    };
    open().map_err(|source| DatabaseError::Open {
        path: path.to_owned(),
        source,
    })
}

/// Creates the own tables. Returns true if HarmonyLite was never here before. Foreign tables with
/// such names are dropped if they are empty; otherwise the database is refused, unchanged.
pub(super) fn install(conn: &Connection, settings: &Settings) -> Result<bool> {
    let names = own_shape::classify(conn)?;
    let is_here = |table: &str| names.ours.iter().any(|n| n.eq_ignore_ascii_case(table));
    let format: Option<i64> = match is_here(META) {
        true => get_meta(conn, Meta::Format)?,
        false => None,
    };
    if let Some(format) = format.filter(|f| *f > own_tables::FORMAT) {
        return Err(DatabaseError::LaterFormat(settings.path.clone(), format));
    }
    for name in &names.others {
        if own_shape::has_rows(conn, name)? {
            let path = settings.path.clone();
            return Err(DatabaseError::ForeignTable(path, name.clone()));
        }
    }
    own_shape::drop_tables(conn, &names.others)?;
    if format.is_none() {
        // Own tables may come from a schema file: their table numbers are those of a different
        // database.
        own_shape::drop_tables(conn, &names.ours)?;
    }
    conn.execute_batch(own_tables::CREATE)?;
    match format {
        Some(_) => Ok(get_meta::<i64>(conn, Meta::Installed)?.is_none()),
        None => {
            set_meta(conn, Meta::Format, own_tables::FORMAT)?;
            Ok(true)
        }
    }
}

/// The configured id unless another node has it; otherwise the id stored in the database; otherwise
/// a random id, which is stored.
pub(super) fn node_id(conn: &Connection, configured: Option<u64>) -> Result<u64> {
    let kept: Option<i64> = get_meta(conn, Meta::NodeId)?;
    let taken: Option<i64> = get_meta(conn, Meta::NodeIdTaken)?;
    let configured = configured.filter(|id| taken != Some(*id as i64));
    let node = match (configured, kept) {
        (Some(id), _) => id,
        (None, Some(id)) => id as u64,
        (None, None) => {
            conn.query_row("SELECT abs(random()) | 1", [], |r| r.get::<_, i64>(0))? as u64
        }
    };
    if kept != Some(node as i64) {
        set_meta(conn, Meta::NodeId, node as i64)?;
    }
    Ok(node)
}

/// Result of [`clean_up`].
#[derive(Debug)]
pub struct Removed {
    /// Number of tables and triggers removed.
    pub count: usize,
    /// Number of changes that the Go version had not published: the rows are in the tables, but no
    /// other node gets them.
    pub unpublished_by_go: u64,
}

/// Removes all objects of HarmonyLite from a database, and all of the Go version, even while an
/// application has it open. Waits for the write lock until `stop` is set.
pub fn clean_up(path: &Path, stop: &AtomicBool) -> Result<Removed> {
    let conn = connect(path, CACHE_SIZE)?;
    retry_while_busy(stop, || conn.execute_batch("BEGIN IMMEDIATE"))?;
    let go = GoVersion::find(&conn)?;
    let unpublished_by_go = go.map_or(Ok(0), |go| go.unpublished(&conn))?;
    let count = own_tables::drop_all(&conn)?;
    retry_while_busy(stop, || conn.execute_batch("COMMIT"))?;
    Ok(Removed {
        count,
        unpublished_by_go,
    })
}

/// Checks a database before it is taken over, and changes nothing. Returns a text for people if the
/// Go version managed it. Fails if a start would refuse it.
pub fn examine(path: &Path) -> Result<Option<String>> {
    let open = |source| DatabaseError::Open {
        path: path.to_owned(),
        source,
    };
    let conn = ReadOnly::open(path)?.conn;
    let go = GoVersion::find(&conn).map_err(open)?;
    let of_go = go.as_ref().map(|go| go.unpublished(&conn)).transpose();
    let names = own_shape::classify(&conn).map_err(open)?;
    let is_go = |name: &String| go.as_ref().is_some_and(|go| go.has_table(name));
    for name in names.others.iter().filter(|name| !is_go(name)) {
        if own_shape::has_rows(&conn, name).map_err(open)? {
            return Err(DatabaseError::ForeignTable(path.to_owned(), name.clone()));
        }
    }
    Ok(of_go.map_err(open)?.map(|count| {
        format!(
            "{} is managed by the Go version: the first start removes its triggers and tables, and \
             publishes the {count} change(s) that it has not published",
            path.display()
        )
    }))
}
