//! An operator gives up what is held of a table. The command asks, by a note in `___meta`; the
//! daemon does it, in its own short transactions, since it knows in memory what is held. Where none
//! runs, the command does it by itself.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior, params};

use super::let_go::{DELETE_SOME, LetGo, held_tables};
use crate::database::meta::{Meta, delete_meta, get_meta, set_meta};
use crate::database::selection;
use crate::database::{Database, DatabaseError, Result};

/// Entries that are removed in one transaction where no daemon runs.
const STEP: usize = 512;

fn asked(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    let text: Option<String> = get_meta(conn, Meta::DropHeld)?;
    let tables = text.and_then(|text| serde_json::from_str(&text).ok());
    Ok(tables.unwrap_or_default())
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
    /// Begins with what an operator asked for. Inside a transaction, with the catalog read.
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

    /// Whether an operator asks for something to be dropped.
    pub(crate) fn is_asked_to_drop(&self) -> Result<bool> {
        Ok(get_meta::<String>(&self.conn, Meta::DropHeld)?.is_some())
    }

    /// Nothing is held of a table any more. Inside a transaction.
    pub(crate) fn drop_request_is_done(&mut self, table: &str) -> Result<()> {
        self.catalog.held.remove(table);
        let mut tables = asked(&self.conn)?;
        if tables.iter().any(|t| t == table) {
            tables.retain(|t| t != table);
            store_asked(&self.conn, &tables)?;
        }
        Ok(())
    }
}

/// Asks for the rows that are held of a table (lower case) to be dropped. False if there are none.
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

/// Whether a request is still to be carried out.
pub fn is_asked_to_drop_held(path: &Path, table: &str) -> Result<bool> {
    let conn = super::conflicts::open(path)?;
    Ok(asked(&conn)?.iter().any(|t| t == table))
}

/// Carries out what was asked for, where no daemon runs: the caller holds its lock.
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
