//! Rows that cannot be read because a page of the file is damaged.
//!
//! SQLite allows no further write in a transaction that met damage, so the row cannot be skipped
//! inside it. The transaction begins again instead: first *carefully*, noting which row is being
//! read, then without the row that was found in this way. The list of rows lives only as long as
//! the process.

use std::collections::HashSet;

use rusqlite::ErrorCode;

use crate::database::{Database, DatabaseError, Result};

/// With more damaged rows than this the file itself needs repair.
const MAX_ROWS: usize = 1_000;

/// Table id and key; an empty key stands for all rows of the table.
type DamagedRow = (i64, Vec<u8>);

#[derive(Debug, Default)]
pub(crate) struct Damage {
    known: HashSet<DamagedRow>,
    careful: bool,
    current: Option<DamagedRow>,
}

impl Damage {
    /// Whether no damaged row is known, and none is being searched for.
    pub(crate) fn is_clear(&self) -> bool {
        self.known.is_empty() && !self.careful
    }

    pub(crate) fn is_known(&self, table: i64, key: &[u8]) -> bool {
        !self.known.is_empty() && self.known.contains(&(table, key.to_vec()))
    }

    pub(crate) fn begin_row(&mut self, table: i64, key: &[u8]) {
        if self.careful {
            self.current = Some((table, key.to_vec()));
        }
    }

    pub(crate) fn end_row(&mut self) {
        self.current = None;
    }

    /// Notes that a transaction met damage. Returns whether to try again.
    fn learn(&mut self) -> bool {
        if !std::mem::replace(&mut self.careful, true) {
            return true;
        }
        let found = self.current.take();
        self.known.len() < MAX_ROWS && found.is_some_and(|place| self.known.insert(place))
    }
}

impl Database {
    /// Like [`Database::write`], but skips damaged rows.
    pub(crate) fn write_past_damage<T>(
        &mut self,
        mut f: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<T> {
        loop {
            let result = self.write(&mut f);
            let met_damage = matches!(&result, Err(DatabaseError::Sqlite(e))
                if e.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt));
            if met_damage && self.damage.learn() {
                continue;
            }
            self.damage.careful = false;
            return result;
        }
    }
}
