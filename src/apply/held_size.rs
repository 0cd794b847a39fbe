//! Size of the held rows, and the time when the last one came of a table that is not here.
//!
//! Tables and columns may belong to another application, or be invented, so the amount held is
//! bounded: in all, and by half of that for each table. Beyond the bound the largest tables are let
//! go ([`super::let_go`]): if the table is here one day, or changed, a snapshot brings its rows.
//! That is why the bound holds only where snapshots are kept; elsewhere health names the excess.
//!
//! Of a table that is here stay the rows that this node is to send: it may be the last to have
//! them. A row that waits for the end of a migration stays until it was tried again.
//!
//! Sizes are added up as rows come, in the transactions that hold them. An entry that replaces
//! another one counts twice until the sum exceeds the bound. Then the entries are counted, which
//! takes no lock that an application waits for.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, params};

use super::held::DAMAGED;
use super::let_go::{SENDS, held_tables};
use crate::database::{Database, Result};

/// Bytes that an entry of `___held` takes besides its texts and its value.
pub(super) const ENTRY_BYTES: u64 = 32;

/// Bytes that are held; see the module's head.
#[derive(Debug, Default)]
pub(crate) struct HeldSize {
    /// Upper bound of the stored bytes of tables that are not here, and of the largest of them.
    away: u64,
    largest_away: u64,
    /// Upper bound of the stored bytes of each table that is here, by name (lower case); none is
    /// known before the entries were counted.
    here: BTreeMap<String, u64>,
    /// Bytes by table (lower case) that the transaction under way added.
    grown: BTreeMap<String, u64>,
    /// The sum when the entries were counted last.
    counted: Option<u64>,
}

impl HeldSize {
    pub(crate) fn load(conn: &Connection) -> rusqlite::Result<HeldSize> {
        let text = "SELECT total(bytes), ifnull(max(bytes), 0) FROM __harmonylite___held_tables";
        let (total, largest) =
            conn.query_row(text, [], |r| Ok((r.get::<_, f64>(0)?, r.get(1)?)))?;
        Ok(HeldSize {
            away: total as u64,
            largest_away: largest,
            ..HeldSize::default()
        })
    }

    /// Upper bound of the stored bytes.
    fn total(&self) -> u64 {
        self.away + self.here.values().sum::<u64>()
    }

    /// Whether the entries must be counted, because more may be held than `most`. If nothing could
    /// be let go, they are counted again when the sum has grown by a part of that.
    fn is_to_be_counted(&self, most: u64, holds_here: bool) -> bool {
        let Some(counted) = self.counted else {
            return holds_here || self.away > most || self.largest_away > most / 2;
        };
        let largest = self.here.values().copied().max().unwrap_or_default();
        let is_over = self.total() > most || largest.max(self.largest_away) > most / 2;
        is_over && self.total() > counted + most / 16
    }
}

impl Database {
    /// Adds a new entry of `___held`; `bytes` are those of its texts and its value.
    pub(super) fn note_held_entry(&mut self, table: &str, bytes: usize) {
        let grown = self.held_size.grown.entry(table.to_owned()).or_default();
        *grown += bytes as u64 + ENTRY_BYTES;
    }

    /// Has the entries counted at the next opportunity, since more of them may go now.
    pub(super) fn count_held_anew(&mut self) {
        self.held_size.counted = None;
    }

    /// Upper bound of the bytes that are held.
    pub fn held_bytes(&self) -> u64 {
        self.held_size.total()
    }

    /// Says that more is held than allowed, and that nothing can be let go.
    pub(crate) fn held_problem(&self) -> Option<String> {
        let (held, most) = (self.held_bytes(), self.limits.held_bytes);
        (held > most && !self.settings.joins_by_snapshot).then(|| {
            format!(
                "changes that do not fit the tables here take {held} bytes (max_held_bytes is \
                 {most}), and without snapshots none is let go: see `harmonylite held`"
            )
        })
    }

    /// Whether held rows of a table (lower case) may be let go for want of space.
    fn may_let_go(&self, table: &str) -> bool {
        let is_here = self.catalog.by_name.contains_key(table);
        let is_tried = self.catalog.retry_held.is_none() && self.judges(table);
        self.settings.joins_by_snapshot && (!is_here || is_tried)
    }

    /// Lets a table go if the transaction under way alone brings more than half of the bound. True
    /// if it did.
    pub(crate) fn let_go_if_too_much(&mut self, table: &str) -> Result<bool> {
        let grown = self.held_size.grown.get(table);
        let is_too_much = grown.is_some_and(|bytes| *bytes > self.limits.held_bytes / 2);
        let goes = is_too_much && self.may_let_go(table);
        if goes {
            self.let_go_large(table)?;
        }
        Ok(goes)
    }

    fn let_go_large(&mut self, table: &str) -> Result<()> {
        if self.catalog.by_name.contains_key(table) {
            return self.let_unfit_go(table);
        }
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
            if self.catalog.by_name.contains_key(&table) {
                *self.held_size.here.entry(table).or_default() += bytes;
                continue;
            }
            let text = "INSERT INTO __harmonylite___held_tables(table_name, at, bytes)
                        VALUES (?1, ?2, ?3)
                        ON CONFLICT DO UPDATE SET at = ?2, bytes = bytes + ?3 RETURNING bytes";
            let mut add = self.conn.prepare_cached(text)?;
            let of_table = add.query_row(params![table, local_tx, bytes as i64], |r| r.get(0))?;
            self.held_size.away += bytes;
            self.held_size.largest_away = self.held_size.largest_away.max(of_table);
        }
        Ok(())
    }

    /// Lets the largest tables go if more is held than allowed. Outside a transaction.
    pub(crate) fn bound_held(&mut self) -> Result<()> {
        let most = self.limits.held_bytes;
        let holds_here = !self.catalog.held.is_empty();
        if !self.held_size.is_to_be_counted(most, holds_here) {
            return Ok(());
        }
        let mut sizes = self.count_held()?;
        sizes.sort_unstable();
        let mut total: u64 = sizes.iter().map(|(bytes, _)| bytes).sum();
        // Goes down to 7/8 of the bound: counting at every new entry would cost more than it saves.
        let most_left = if total > most { most / 8 * 7 } else { most };
        let mut go = Vec::new();
        for (bytes, table) in sizes.iter_mut().rev() {
            if *bytes > 0 && (*bytes > most / 2 || total > most_left) && self.may_let_go(table) {
                total -= std::mem::take(bytes);
                go.push(table.clone());
            }
        }
        let is_here = |(_, table): &(u64, String)| self.catalog.by_name.contains_key(table);
        let (here, away): (Vec<_>, Vec<_>) = sizes.into_iter().partition(is_here);
        let real: u64 = away.iter().map(|(bytes, _)| bytes).sum();
        if !go.is_empty() || self.held_size.away > real + most / 16 {
            self.write(|db| {
                for table in &go {
                    db.let_go_large(table)?;
                }
                let text =
                    "UPDATE __harmonylite___held_tables SET bytes = ?2 WHERE table_name = ?1";
                let mut set = db.conn.prepare_cached(text)?;
                for (bytes, table) in &away {
                    set.execute(params![table, *bytes as i64])?;
                }
                Ok(())
            })?;
        }
        self.held_size = HeldSize {
            here: here
                .into_iter()
                .map(|(bytes, table)| (table, bytes))
                .collect(),
            ..HeldSize::load(&self.conn)?
        };
        self.held_size.counted = Some(self.held_size.total());
        Ok(())
    }

    /// Bytes held of each table, without those that cannot be let go.
    fn count_held(&self) -> Result<Vec<(u64, String)>> {
        let text = format!(
            "SELECT sum(?2 + length(shape) + length(key) + length(column) + length(reason)
                        + ifnull(octet_length(value), 0))
             FROM __harmonylite___held AS held
             WHERE table_name = ?1 AND (NOT ?3 OR reason <> ?4 AND NOT {SENDS})"
        );
        let mut count = self.conn.prepare_cached(&text)?;
        let mut sizes = Vec::new();
        for table in held_tables(&self.conn)? {
            if !self.catalog.ending.contains(&table) {
                let is_here = self.catalog.by_name.contains_key(&table);
                let each = (ENTRY_BYTES + table.len() as u64) as i64;
                let of = params![table, each, is_here, DAMAGED];
                let bytes: Option<i64> = count.query_row(of, |r| r.get(0))?;
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
        let HeldSize {
            away, largest_away, ..
        } = HeldSize::load(&self.conn)?;
        (self.held_size.away, self.held_size.largest_away) = (away, largest_away);
        let here = |name: &String, _: &mut u64| by_name.contains_key(name);
        self.held_size.here.retain(here);
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
