//! Rows of a fetched snapshot that are not what was recorded with their versions: where it was made
//! a tool or a bad disk had changed them behind the triggers' back.
//!
//! The database that begins with the file has no triggers yet, so its first walk through the tables
//! would take such rows for writes of its application. They get the lowest version instead: any
//! version that arrives is above it, and `verify -repair` finds them.

use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, OpenFlags};

use super::source::{SnapshotSource, SourceRow};
use crate::apply::displaced_row;
use crate::database::rows::{Rows, Stored};
use crate::database::sites::Sites;
use crate::database::table::Table;
use crate::database::{DatabaseError, Result};
use crate::model::merge::{Exceptions, RowState};
use crate::model::value::{OwnedValue, Value};
use crate::model::version::{HLC_BEFORE, Version};
use crate::mutation::{self, Mutation};
use crate::snapshot::error::TransferError;
use crate::snapshot::scratch;
use crate::snapshot::watch::{Watch, share};

/// More rows than this are no damage, but something that concerns the whole file.
const MOST: usize = 10_000;

/// Rows read at a time, and between two looks at the watch.
const STEP: usize = 128;

/// Gives damaged rows of the file the lowest version. Returns their number. Fails if the file
/// cannot be a database of HarmonyLite, or if the watch ends the work; then the file is as it was.
pub(super) fn demote_damaged(
    file: &Path,
    watch: &mut dyn Watch,
) -> std::result::Result<usize, TransferError> {
    let source = SnapshotSource::open(file)?;
    let tables = source.tables.clone();
    let size = std::fs::metadata(file).map_or(0, |data| data.len());
    let (mut seen, total) = (0, source.count()?);
    let mut damaged = Vec::new();
    for (n, table) in tables.iter().enumerate() {
        let rows = Rows::new(&source.conn, table).map_err(DatabaseError::from);
        let (mut rows, mut after) = (rows?, None);
        loop {
            let some = source.rows(table, after.as_deref(), STEP)?;
            let Some(last) = some.last().map(|row| row.key.clone()) else {
                break;
            };
            seen += some.len() as u64;
            let told = watch.progress("comparing", share(size, seen, total), size);
            told.map_err(|_| TransferError::Stopped)?;
            for row in some {
                if let Some(now) = state_now(&source, table, &mut rows, &row)? {
                    damaged.push((n, row.key, now));
                }
            }
            if damaged.len() > MOST {
                return Ok(0);
            }
            after = Some(last);
        }
    }
    drop(source);
    if damaged.is_empty() || mutation::is(Mutation::DamageForgottenOnMerge) {
        return Ok(0);
    }
    let conn = scratch::connect(file, OpenFlags::SQLITE_OPEN_READ_WRITE);
    let conn = conn.map_err(DatabaseError::from)?;
    put(&conn, &tables, &damaged)?;
    Ok(damaged.len())
}

/// A damaged row: its table's place in the list, its key, and [`state_now`].
type Damaged = (usize, Vec<OwnedValue>, Option<Stored>);

fn put(conn: &Connection, tables: &[Arc<Table>], damaged: &[Damaged]) -> Result<()> {
    let mut sites = Sites::load(conn)?;
    conn.execute_batch("BEGIN")?;
    for (n, key, now) in damaged {
        let key: Vec<Value<'_>> = key.iter().map(OwnedValue::borrow).collect();
        let mut rows = Rows::new(conn, &tables[*n])?;
        match now {
            Some(now) => rows.put_version(&mut sites, &key, now)?,
            None => rows.forget_version(&key)?,
        }
    }
    Ok(conn.execute_batch("COMMIT")?)
}

/// The version that a row is to have; the inner option is none if it is to have none. The outer
/// one is none if the row is not damaged.
fn state_now(
    source: &SnapshotSource,
    table: &Table,
    rows: &mut Rows<'_>,
    row: &SourceRow,
) -> Result<Option<Option<Stored>>> {
    if row.is_aside {
        return Ok(None); // it is not in the table
    }
    let key: Vec<Value<'_>> = row.key.iter().map(OwnedValue::borrow).collect();
    let content = rows.owned_row(&key)?;
    let stored = &row.stored;
    let Some(content) = content else {
        let is_away = || displaced_row(&source.conn, table, &row.key_bytes);
        let is_gone = !stored.state.deleted && is_away()?.is_none();
        return Ok(is_gone.then_some(None));
    };
    let hash = table.content_hash(stored.local_tx, content.iter().map(OwnedValue::borrow));
    if !stored.state.deleted && hash == stored.hash {
        return Ok(None);
    }
    let state = match stored.state.deleted {
        true => RowState {
            version: Version {
                hlc: HLC_BEFORE,
                node: 0,
            },
            deleted: false,
            exceptions: Exceptions::new(),
        },
        false => stored.state.lowered(),
    };
    Ok(Some(Some(Stored {
        state,
        hash,
        local_tx: stored.local_tx,
        birth: stored.birth,
    })))
}
