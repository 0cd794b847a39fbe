//! Size of the held rows of tables that are not here, and the time when the last one came.
//!
//! Such tables may belong to another application, or be invented, so the amount held is bounded.
//! Beyond the bound the largest table is let go ([`super::let_go`]): if it is here one day, a
//! snapshot brings it. That is why the bound holds only where snapshots are kept.
//!
//! Sizes are added up as rows come, in the transactions that hold them. An entry that replaces
//! another one counts twice until the sum exceeds the bound. Then the entries are counted, which
//! takes no lock that an application waits for.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, params};

use super::let_go::held_tables;
use crate::database::{Database, Result};

/// Bytes that an entry of `___held` takes besides its texts and its value.
pub(super) const ENTRY_BYTES: u64 = 32;

/// Bytes held of tables that are not here; see the module's head.
#[derive(Debug, Default)]
pub(crate) struct HeldSize {
    /// Upper bound of the stored bytes.
    stored: u64,
    /// Bytes by table (lower case) that the transaction under way added.
    grown: BTreeMap<String, u64>,
}

impl HeldSize {
    pub(crate) fn load(conn: &Connection) -> rusqlite::Result<HeldSize> {
        let text = "SELECT total(bytes) FROM __harmonylite___held_tables";
        let total: f64 = conn.query_row(text, [], |r| r.get(0))?;
        Ok(HeldSize {
            stored: total as u64,
            grown: BTreeMap::new(),
        })
    }
}

impl Database {
    /// Adds a new entry of `___held`; `bytes` are those of its texts and its value.
    pub(super) fn note_held_entry(&mut self, table: &str, bytes: usize) {
        if !self.catalog.by_name.contains_key(table) {
            let grown = self.held_size.grown.entry(table.to_owned()).or_default();
            *grown += bytes as u64 + ENTRY_BYTES;
        }
    }

    /// Lets a table that is not here go if the transaction under way alone brings more than half of
    /// the bound. True if it did.
    pub(crate) fn let_go_if_too_much(&mut self, table: &str) -> Result<bool> {
        let grown = self.held_size.grown.get(table);
        let is_too_much = grown.is_some_and(|bytes| *bytes > self.limits.held_bytes / 2);
        if is_too_much && self.settings.joins_by_snapshot {
            self.let_go_large(table)?;
        }
        Ok(is_too_much && self.settings.joins_by_snapshot)
    }

    fn let_go_large(&mut self, table: &str) -> Result<()> {
        log::warn!(
            "changes of table {table:?} take too much space (max_held_bytes), and there is no \
             such table here: this node lets them go; once the table is here, a snapshot brings \
             its rows"
        );
        self.catalog.ending.insert(table.to_owned());
        self.note_let_go(table)
    }

    /// Stores the added sizes. Inside the transaction that added them.
    pub(crate) fn store_held_size(&mut self) -> Result<()> {
        let local_tx = self.reservation.peek_number() - 1; // that of this transaction
        for (table, bytes) in std::mem::take(&mut self.held_size.grown) {
            self.held_size.stored += bytes;
            self.conn
                .prepare_cached(
                    "INSERT INTO __harmonylite___held_tables(table_name, at, bytes)
                     VALUES (?1, ?2, ?3)
                     ON CONFLICT DO UPDATE SET at = ?2, bytes = bytes + ?3",
                )?
                .execute(params![table, local_tx, bytes as i64])?;
        }
        Ok(())
    }

    /// Lets the largest tables go if more is held than allowed. Outside a transaction.
    pub(crate) fn bound_held(&mut self) -> Result<()> {
        if self.held_size.stored <= self.limits.held_bytes || !self.settings.joins_by_snapshot {
            return Ok(());
        }
        let mut sizes = self.count_held()?;
        let mut total: u64 = sizes.iter().map(|(bytes, _)| bytes).sum();
        sizes.sort_unstable();
        // Goes down to 7/8 of the bound: counting at every new entry would cost more than it saves.
        let mut go = Vec::new();
        while total > self.limits.held_bytes / 8 * 7
            && let Some((bytes, table)) = sizes.pop()
        {
            total -= bytes;
            go.push(table);
        }
        self.write(|db| {
            for table in &go {
                db.let_go_large(table)?;
            }
            let text = "UPDATE __harmonylite___held_tables SET bytes = ?2 WHERE table_name = ?1";
            let mut set = db.conn.prepare_cached(text)?;
            for (bytes, table) in &sizes {
                set.execute(params![table, *bytes as i64])?;
            }
            for table in &go {
                set.execute(params![table, 0])?;
            }
            Ok(())
        })?;
        self.held_size = HeldSize::load(&self.conn)?;
        Ok(())
    }

    /// Bytes held of each table that is not here.
    fn count_held(&self) -> Result<Vec<(u64, String)>> {
        let mut count = self.conn.prepare_cached(
            "SELECT sum(?2 + length(shape) + length(key) + length(column) + length(reason)
                        + ifnull(octet_length(value), 0))
             FROM __harmonylite___held WHERE table_name = ?1",
        )?;
        let mut sizes = Vec::new();
        for table in held_tables(&self.conn)? {
            let is_here = self.catalog.by_name.contains_key(&table);
            if !is_here && !self.catalog.ending.contains(&table) {
                let each = ENTRY_BYTES + table.len() as u64;
                let bytes: Option<i64> =
                    count.query_row(params![table, each as i64], |r| r.get(0))?;
                sizes.push((bytes.unwrap_or(0) as u64, table));
            }
        }
        Ok(sizes)
    }

    /// Makes `___held_tables` list exactly the tables that are not here and of which something is
    /// held: an earlier release listed none. `held` is sorted. Inside a transaction, with the
    /// catalog read.
    pub(crate) fn tidy_held_size(&mut self, held: &[String]) -> Result<()> {
        let mut list = self
            .conn
            .prepare_cached("SELECT table_name FROM __harmonylite___held_tables")?;
        let noted: Vec<String> = list
            .query_map([], |r| r.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        let by_name = &self.catalog.by_name;
        let is_noted = |name: &String| held.binary_search(name).is_ok();
        for name in noted
            .iter()
            .filter(|n| !is_noted(n) || by_name.contains_key(*n))
        {
            self.forget_held_size(name)?;
        }
        let (local_tx, unknown) = (self.reservation.peek_number(), self.limits.held_bytes + 1);
        for name in held.iter().filter(|n| !by_name.contains_key(*n)) {
            let text = "INSERT OR IGNORE INTO __harmonylite___held_tables VALUES (?1, ?2, ?3)";
            let mut put = self.conn.prepare_cached(text)?;
            put.execute(params![name, local_tx, unknown as i64])?; // so that it is counted
        }
        self.held_size.stored = HeldSize::load(&self.conn)?.stored;
        Ok(())
    }

    /// Removes the size of a table of which nothing is held any more. Inside a transaction.
    pub(crate) fn forget_held_size(&self, table: &str) -> Result<()> {
        let text = "DELETE FROM __harmonylite___held_tables WHERE table_name = ?1";
        self.conn.prepare_cached(text)?.execute([table])?;
        Ok(())
    }

    /// The last transaction that held something of a table; none if that is not noted.
    pub(crate) fn held_at(&self, table: &str) -> Result<Option<i64>> {
        let text = "SELECT at FROM __harmonylite___held_tables WHERE table_name = ?1";
        let mut statement = self.conn.prepare_cached(text)?;
        Ok(statement.query_row([table], |r| r.get(0)).optional()?)
    }
}
