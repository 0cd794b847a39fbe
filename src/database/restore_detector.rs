//! Notices that a backup was put back into the file (as SQLite's backup API does, and the shell's
//! `.restore`), under our open connection.
//!
//! Positions, sites and numbers in memory are those of the file that was lost: nothing may be
//! written by them into one that was put back. Such a file lacks the last reservation of time.
//! Within the same reservation, a minute, the schema's version tells: it moves when a backup is put
//! back, and seldom otherwise. Then the file must have the positions that were stored last, and
//! what was captured last.

use std::time::Duration;

use rusqlite::{OptionalExtension, params_from_iter};

use super::table::Table;
use super::{Database, DatabaseError, Result};
use crate::model::value::OwnedValue;

/// What the file must have.
#[derive(Debug, Default)]
pub(crate) struct RestoreDetector {
    /// `PRAGMA schema_version` when the catalog was read last.
    schema_version: Option<i64>,
    captured: Option<LastCapture>,
    /// When tables of ours were made again, by [`crate::clock::Clock::uptime`].
    pub(super) remade: Option<Duration>,
}

/// The number of the transaction by which a row was captured: its version has that or a later one.
#[derive(Debug)]
struct LastCapture {
    get_version: String,
    key: Vec<OwnedValue>,
    at: i64,
}

impl RestoreDetector {
    /// Versions were removed, or what was captured was undone.
    pub(crate) fn forget(&mut self) {
        self.captured = None;
    }

    /// The catalog was read anew; with it the versions of a table may have gone.
    pub(crate) fn note_schema(&mut self, version: i64) {
        self.schema_version = Some(version);
        self.forget();
    }
}

impl Database {
    pub(super) fn check_not_put_back(&self) -> Result<()> {
        if self.has_dropped_tables(self.restore_detector.schema_version)? {
            return Err(DatabaseError::Dropped);
        }
        let is_put_back =
            self.reservation.is_put_back(&self.conn)? || self.lacks_what_is_known()?;
        match is_put_back {
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
        let at: Option<i64> = statement
            .query_row(params_from_iter(&captured.key), |r| r.get("at"))
            .optional()?;
        Ok(at.is_none_or(|at| at < captured.at))
    }

    /// Of a row that was captured just now.
    pub(crate) fn note_captured(&mut self, table: &Table, key: &[OwnedValue]) -> Result<()> {
        let at: Option<i64> = self
            .conn
            .prepare_cached(&table.sql.get_version)?
            .query_row(params_from_iter(key), |r| r.get("at"))
            .optional()?;
        if let Some(at) = at {
            self.restore_detector.captured = Some(LastCapture {
                get_version: table.sql.get_version.clone(),
                key: key.to_vec(),
                at,
            });
        }
        Ok(())
    }
}
