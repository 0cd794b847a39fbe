//! Drops what is held of a table because an operator gives it up. The command leaves a request in
//! `___meta`. The daemon carries it out in its own short transactions, since it knows in memory
//! what is held. If no daemon runs, the command does it itself.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior, params};

use super::let_go::{DELETE_SOME, LetGo, held_tables};
use crate::database::meta::{Meta, delete_meta, get_meta, set_meta};
use crate::database::selection;
use crate::database::{Database, DatabaseError, Result};

/// Entries that one transaction removes if no daemon runs.
const STEP: usize = 512;

fn asked(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    let text: Option<String> = get_meta(conn, Meta::DropHeld)?;
    let tables = text.and_then(|text| serde_json::from_str(&text).ok());
    Ok(tables.unwrap_or_default())
}

/// Whether an operator gives up what is held of a table.
pub(super) fn is_asked_for(conn: &Connection, table: &str) -> rusqlite::Result<bool> {
    Ok(asked(conn)?.iter().any(|t| t == table))
}

fn store_asked(conn: &Connection, tables: &[String]) -> rusqlite::Result<()> {
    match tables.is_empty() {
        true => delete_meta(conn, Meta::DropHeld),
        false => {
            let text = serde_json::to_string(tables).expect("names are JSON");
            set_meta(conn, Meta::DropHeld, text)
        }
    }
}

impl Database {
    /// Starts to carry out the requests of operators. Inside a transaction, with the catalog read.
    pub(crate) fn take_drop_requests(&mut self) -> Result<()> {
        for table in asked(&self.conn)? {
            if self.catalog.ending.contains(&table) {
                continue;
            }
            log::info!("held rows of table {table:?} are dropped: an operator asked for it");
            if !self.catalog.by_name.contains_key(&table) {
                self.note_let_go(&table)?;
            }
            self.catalog.ending.insert(table);
        }
        Ok(())
    }

    /// Whether a request of an operator is stored.
    pub(crate) fn is_asked_to_drop(&self) -> Result<bool> {
        Ok(get_meta::<String>(&self.conn, Meta::DropHeld)?.is_some())
    }

    /// Ends the request for a table of which nothing is held any more. Inside a transaction.
    pub(crate) fn drop_request_is_done(&mut self, table: &str) -> Result<()> {
        if !held_tables(&self.conn)?.iter().any(|t| t == table) {
            self.catalog.held.remove(table);
        }
        let mut tables = asked(&self.conn)?;
        if tables.iter().any(|t| t == table) {
            tables.retain(|t| t != table);
            store_asked(&self.conn, &tables)?;
        }
        Ok(())
    }
}

/// Asks the daemon to drop the held rows of a table (lower case). False if there are none. Fails if
/// the file cannot be opened or stays locked for 5 s.
pub fn ask_to_drop_held(path: &Path, table: &str) -> Result<bool> {
    let conn = open(path)?;
    let conn = Transaction::new_unchecked(&conn, TransactionBehavior::Immediate)?;
    let is_held = held_tables(&conn)?.iter().any(|t| t == table);
    let mut tables = asked(&conn)?;
    if is_held && !tables.iter().any(|t| t == table) {
        tables.push(table.to_owned());
        store_asked(&conn, &tables)?;
    }
    conn.commit()?;
    Ok(is_held)
}

/// Whether the request for a table is still to be carried out.
pub fn is_asked_to_drop_held(path: &Path, table: &str) -> Result<bool> {
    let conn = super::conflicts::open(path)?;
    Ok(asked(&conn)?.iter().any(|t| t == table))
}

/// Drops the held rows of a table itself, if no daemon runs: the caller holds the daemon's lock.
/// Fails if the file cannot be opened or stays locked for 5 s.
pub fn drop_held(path: &Path, table: &str) -> Result<()> {
    let conn = open(path)?;
    while !drop_some(&conn, table)? {
        std::thread::sleep(Duration::from_millis(5)); // for the application
    }
    Ok(())
}

/// One short transaction. True when nothing is left.
fn drop_some(conn: &Connection, table: &str) -> Result<bool> {
    let conn = Transaction::new_unchecked(conn, TransactionBehavior::Immediate)?;
    let is_done = conn.execute(DELETE_SOME, params![table, STEP])? < STEP;
    if is_done {
        let here = selection::read(&conn, &selection::all, true)?.replicated;
        if !here.iter().any(|t| t.name.eq_ignore_ascii_case(table)) {
            LetGo::note(&conn, table)?;
        }
        let mut tables = asked(&conn)?;
        tables.retain(|t| t != table);
        store_asked(&conn, &tables)?;
    }
    conn.commit()?;
    Ok(is_done)
}

fn open(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || {
        let conn = Connection::open_with_flags(path, flags)?;
        conn.busy_timeout(Duration::from_secs(5))?;
        Ok(conn)
    };
    open().map_err(|source| DatabaseError::Open {
        path: path.to_owned(),
        source,
    })
}
