//! Notices that a backup was restored into the file under our open connection, as SQLite's backup
//! API and the shell's `.restore` do.
//!
//! Positions, sites and numbers in memory belong to the file that was lost: they must not be
//! written into a restored file. Such a file lacks the last reservation of time. Within one
//! reservation, a minute, the schema's version shows the restore: it changes with one, and seldom
//! otherwise. After a change the file must have the positions that were stored last, and the row
//! that was captured last.

use std::time::Duration;

use rusqlite::{OptionalExtension, params, params_from_iter};

use super::table::Table;
use super::{Database, DatabaseError, Result};
use crate::model::key::key_bytes;
use crate::model::value::OwnedValue;

/// The facts that the file must agree with.
#[derive(Debug, Default)]
pub(crate) struct RestoreDetector {
    /// `PRAGMA schema_version` when the catalog was read last.
    schema_version: Option<i64>,
    captured: Option<LastCapture>,
    /// When tables of ours were created again, by [`crate::clock::Clock::uptime`].
    pub(super) remade: Option<Duration>,
}

/// The row that was captured last. The file must have a version of it from transaction `local_tx`
/// or a later one.
#[derive(Debug)]
struct LastCapture {
    get_version: String,
    key: Vec<OwnedValue>,
    /// Number of the table, if other rows may have got the row's key since.
    numbered: Option<i64>,
    local_tx: i64,
}

impl RestoreDetector {
    /// Must be called when versions were removed, or a capture was undone.
    pub(crate) fn forget(&mut self) {
        self.captured = None;
    }

    /// Must be called when the catalog was read anew: the versions of a table may be gone with it.
    pub(crate) fn note_schema(&mut self, version: i64) {
        self.schema_version = Some(version);
        self.forget();
    }
}

impl Database {
    pub(super) fn check_not_restored(&self) -> Result<()> {
        if self.has_dropped_tables(self.restore_detector.schema_version)? {
            return Err(DatabaseError::Dropped);
        }
        let is_restored =
            self.reservation.is_restored(&self.conn)? || self.lacks_what_is_known()?;
        match is_restored {
            true => Err(DatabaseError::RestoredInPlace(self.settings.path.clone())),
            false => Ok(()),
        }
    }

    fn lacks_what_is_known(&self) -> Result<bool> {
        match self.restore_detector.schema_version {
            Some(known) if known != self.schema_version()? => {}
            _ => return Ok(false),
        }
        if !self.has_stored_positions()? {
            return Ok(true);
        }
        let Some(captured) = &self.restore_detector.captured else {
            return Ok(false);
        };
        // The application may have dropped a table of ours.
        let Ok(mut statement) = self.conn.prepare(&captured.get_version) else {
            return Ok(false);
        };
        let local_tx: Option<i64> = statement
            .query_row(params_from_iter(&captured.key), |r| r.get("at"))
            .optional()?;
        let is_later = |at: Option<i64>| at.is_some_and(|at| at >= captured.local_tx);
        Ok(!is_later(local_tx) && !is_later(self.last_aside(captured)?))
    }

    /// The last transaction of the lives that do not have the number of the captured row.
    fn last_aside(&self, captured: &LastCapture) -> Result<Option<i64>> {
        let text = "SELECT max(at) FROM __harmonylite___lives WHERE table_id = ?1 AND key = ?2";
        let (Some(table), Ok(mut last)) = (captured.numbered, self.conn.prepare(text)) else {
            return Ok(None);
        };
        let key = key_bytes(
            captured.key.iter().map(OwnedValue::borrow),
            std::iter::once("BINARY"),
        );
        Ok(last.query_row(params![table, key], |r| r.get(0))?)
    }

    /// Remembers a row that was captured just now.
    pub(crate) fn note_captured(&mut self, table: &Table, key: &[OwnedValue]) -> Result<()> {
        let local_tx: Option<i64> = self
            .conn
            .prepare_cached(&table.sql.get_version)?
            .query_row(params_from_iter(key), |r| r.get("at"))
            .optional()?;
        if let Some(local_tx) = local_tx {
            self.restore_detector.captured = Some(LastCapture {
                get_version: table.sql.get_version.clone(),
                key: key.to_vec(),
                numbered: table.has_births.then_some(table.id),
                local_tx,
            });
        }
        Ok(())
    }
}
