//! A copy of the marks in memory: if a tool of the application drops our tables, only this copy
//! tells which rows other nodes do not have yet ([`crate::database`], `dropped`).
//!
//! It is kept only while captures are not live. Otherwise the outbox holds the frames under way.

use std::collections::BTreeMap;

use rusqlite::params;

use crate::database::rows::Rows;
use crate::database::{Database, Result};
use crate::model::cbor;
use crate::model::value::{OwnedValue, Value};
use crate::model::version::Version;

/// Bounds of the copy: rows, and bytes of their keys.
const MOST_ROWS: usize = 10_000;
const MOST_BYTES: usize = 1 << 20;

/// Rows that one call looks up: a few milliseconds of work. The next call continues.
const STEP: usize = 1_000;

/// A row whose version is unsent. `key` is encoded as in the mark.
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
    /// The last mark that was read: transaction, table, key.
    up_to: (i64, i64, Vec<u8>),
    rows: usize,
    bytes: usize,
}

impl UnsentCopy {
    /// Records that every frame of the transactions up to `local_tx` is acknowledged.
    pub(crate) fn acknowledged(&mut self, local_tx: i64) {
        let left = self.by_number.split_off(&(local_tx + 1));
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

    fn add(&mut self, local_tx: i64, row: Unsent) {
        (self.rows, self.bytes) = (self.rows + 1, self.bytes + row.key.len());
        self.by_number.entry(local_tx).or_default().push(row);
    }

    /// A copy in which transaction `local_tx` marked all of these rows.
    pub(crate) fn marked_by(local_tx: i64, rows: Vec<Unsent>) -> UnsentCopy {
        let mut copy = UnsentCopy {
            up_to: (local_tx, i64::MAX, Vec::new()),
            ..UnsentCopy::default()
        };
        rows.into_iter().for_each(|row| copy.add(local_tx, row));
        copy
    }

    /// The rows, oldest mark first. A row may be listed more than once, with its newest version
    /// last.
    pub(crate) fn rows(&self) -> Vec<Unsent> {
        self.by_number.values().flatten().cloned().collect()
    }
}

impl Database {
    /// Copies the marks that were added since the last call, as many as fit.
    pub(crate) fn copy_unsent(&mut self) -> Result<()> {
        if self.marks.live {
            self.marks.copy = UnsentCopy::default();
            return Ok(());
        }
        let copy = &mut self.marks.copy;
        if !copy.has_room() {
            return Ok(());
        }
        // One read transaction for all look-ups, which would lock the file one by one otherwise.
        let _snapshot = self.conn.unchecked_transaction()?;
        let mut marks = self.conn.prepare_cached(
            "SELECT at, table_id, key FROM __harmonylite___unsent
             WHERE (at, table_id, key) > (?1, ?2, ?3) ORDER BY at, table_id, key LIMIT ?4",
        )?;
        let (local_tx, table, key) = &copy.up_to;
        let room = STEP.min(MOST_ROWS - copy.rows);
        let mut found = marks.query(params![local_tx, table, key, room])?;
        while let Some(mark) = found.next()? {
            let (local_tx, id, key): (i64, i64, Vec<u8>) =
                (mark.get(0)?, mark.get(1)?, mark.get(2)?);
            copy.up_to = (local_tx, id, key.clone());
            let Some(table) = self.catalog.by_id.get(&id) else {
                continue;
            };
            let values = cbor::key_values(&key)?;
            let values: Vec<Value<'_>> = values.iter().map(OwnedValue::borrow).collect();
            let stored = Rows::new(&self.conn, table)?.version(&self.sites, &values)?;
            if let Some(stored) = stored {
                let (table, version) = (table.name().to_owned(), stored.state.version);
                copy.add(
                    local_tx,
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

#[cfg(test)]
mod tests {
    use super::{MOST_ROWS, STEP};
    use crate::apply::tests::support::Node;

    const SCHEMA: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)";

    fn insert(node: &Node, from: usize, to: usize) {
        node.run(&format!(
            "WITH n(i) AS (SELECT {from} UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {to})
             INSERT INTO t(id) SELECT i FROM n"
        ));
    }

    fn copied(node: &Node) -> usize {
        assert_eq!(node.db.marks.copy.rows().len(), node.db.marks.copy.rows);
        node.db.marks.copy.rows
    }

    #[test]
    fn marks_are_followed_up_to_what_fits() {
        let mut node = Node::with(1, SCHEMA, |s| s.scan_max_changes = 100_000);
        insert(&node, 0, 3 * STEP);
        node.capture();
        node.db.copy_unsent().unwrap();
        node.db.copy_unsent().unwrap();
        assert_eq!(copied(&node), 3 * STEP, "those of one transaction, too");
        node.db.copy_unsent().unwrap();
        assert_eq!(copied(&node), 3 * STEP);
        node.db.acknowledged(node.db.reservation.peek_number());
        assert_eq!(copied(&node), 0);
        node.capture();
        insert(&node, 3 * STEP, 3 * STEP + 2 * MOST_ROWS);
        node.capture();
        (0..2 * MOST_ROWS / STEP).for_each(|_| node.db.copy_unsent().unwrap());
        assert_eq!(copied(&node), MOST_ROWS);
    }
}
