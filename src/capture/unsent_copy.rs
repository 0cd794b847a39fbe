//! What is unsent, in memory too: should a tool of the application drop our tables, nothing else says
//! which rows others have yet to learn of ([`crate::database`], `dropped`).
//!
//! Only while rows do not go out directly: what is under way then is in the outbox.

use std::collections::BTreeMap;

use rusqlite::params;

use crate::database::rows::Rows;
use crate::database::{Database, Result};
use crate::model::cbor;
use crate::model::value::{OwnedValue, Value};
use crate::model::version::Version;

/// Rows that are remembered, and bytes of their keys.
const MOST_ROWS: usize = 10_000;
const MOST_BYTES: usize = 1 << 20;

/// A row whose version is unsent.
#[derive(Debug, Clone)]
pub(crate) struct Unsent {
    pub table: String,
    pub key: Vec<u8>,
    pub version: Version,
}

#[derive(Debug, Default)]
pub(crate) struct UnsentCopy {
    /// By the number of the transaction that marked them.
    by_number: BTreeMap<i64, Vec<Unsent>>,
    /// Marks of later transactions are not copied yet.
    up_to: i64,
    rows: usize,
    bytes: usize,
}

impl UnsentCopy {
    /// Every frame of the transactions up to `at` is acknowledged.
    pub fn acknowledged(&mut self, at: i64) {
        let left = self.by_number.split_off(&(at + 1));
        for row in std::mem::replace(&mut self.by_number, left)
            .values()
            .flatten()
        {
            (self.rows, self.bytes) = (self.rows - 1, self.bytes - row.key.len());
        }
    }

    fn has_room(&self) -> bool {
        self.rows < MOST_ROWS && self.bytes < MOST_BYTES
    }

    fn add(&mut self, at: i64, row: Unsent) {
        (self.rows, self.bytes) = (self.rows + 1, self.bytes + row.key.len());
        self.by_number.entry(at).or_default().push(row);
    }

    /// All of them, marked by transaction `at`.
    pub fn marked_by(at: i64, rows: Vec<Unsent>) -> UnsentCopy {
        let mut copy = UnsentCopy {
            up_to: at,
            ..UnsentCopy::default()
        };
        rows.into_iter().for_each(|row| copy.add(at, row));
        copy
    }

    /// The oldest first: a row may be there more than once, its newest version last.
    pub fn rows(&self) -> Vec<Unsent> {
        self.by_number.values().flatten().cloned().collect()
    }
}

impl Database {
    /// Copies the marks that came since, up to what fits.
    pub(crate) fn copy_unsent(&mut self) -> Result<()> {
        if self.marks.live {
            self.marks.copy = UnsentCopy::default();
            return Ok(());
        }
        let copy = &mut self.marks.copy;
        if !copy.has_room() {
            return Ok(());
        }
        let mut marks = self.conn.prepare_cached(
            "SELECT at, table_id, key FROM __harmonylite___unsent WHERE at > ?1 ORDER BY at LIMIT ?2",
        )?;
        let mut found = marks.query(params![copy.up_to, MOST_ROWS - copy.rows])?;
        while let Some(mark) = found.next()? {
            let (at, id, key): (i64, i64, Vec<u8>) = (mark.get(0)?, mark.get(1)?, mark.get(2)?);
            copy.up_to = at;
            let Some(table) = self.catalog.by_id.get(&id) else {
                continue;
            };
            let values = cbor::key_values(&key)?;
            let values: Vec<Value<'_>> = values.iter().map(OwnedValue::borrow).collect();
            let stored = Rows::new(&self.conn, table)?.version(&self.sites, &values)?;
            if let Some(stored) = stored {
                let (table, version) = (table.name().to_owned(), stored.state.version);
                copy.add(
                    at,
                    Unsent {
                        table,
                        key,
                        version,
                    },
                );
            }
        }
        Ok(())
    }
}
