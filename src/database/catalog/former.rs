//! What is known of a table's rows from before its key became another one.
//!
//! A migration that changes the key leaves the rows what they were: each keeps the version that it had
//! under its old key, if the columns of that are all still there, or all others: then it is found by its
//! content. So the versions table of the old key
//! stays, as the *former* one, for as long as a deleted row is remembered: its tombstones are those of
//! rows that may still come under the new key.

use std::sync::Arc;

use rusqlite::{params, params_from_iter};

use super::by_content::contents_table;
use super::{from_cbor, to_cbor};
use crate::database::rows::{Stored, stored};
use crate::database::schema::{PREFIX, Schema, quote};
use crate::database::table::{Shape, Table, versions_table};
use crate::database::{Database, Result, triggers, values};
use crate::model::cbor;
use crate::model::value::{OwnedValue, Value};
use crate::model::version::Version;

/// A row as it was under its old key.
pub(crate) struct FormerRow {
    pub key: Vec<OwnedValue>,
    pub stored: Stored,
    /// Unix milliseconds: it was written then, after what is stored of it.
    pub written_ms: Option<i64>,
    /// Found by this, see [`super::by_content`].
    pub content: Option<i64>,
}

/// Whether what was known under the old key is kept.
pub(super) enum Kept {
    /// No: too little of the old rows is left.
    Nothing,
    ByKey,
    /// The old key is not in the new rows. With the time, in unix milliseconds, of the last write that
    /// was not captured.
    ByContent(Option<i64>),
}

/// Name of the versions that table number `id` had under its former key.
fn former_name(id: i64) -> String {
    format!("{PREFIX}_former_{id}")
}

/// The same as SQL.
pub(super) fn former_table(id: i64) -> String {
    quote(&former_name(id))
}

impl Database {
    /// Keeps the versions of a table under the number that it has from now on, with what the raw log and
    /// `___waiting` have of its rows.
    pub(super) fn keep_former(
        &mut self,
        (old, new): (i64, i64),
        schema: &Schema,
        known: &Shape,
    ) -> Result<Kept> {
        let n = known.key.len();
        let has = |name: &String| schema.columns.iter().any(|c| c.lower == *name);
        let has_all = |columns: &[(String, i64)]| columns.iter().all(|(name, _)| has(name));
        let (key, others) = known.columns.split_at(n);
        let is_by_key = has_all(key);
        if schema.rowid.is_some() {
            log::warn!(
                "table {} has no primary key any more and goes by rowid: where another node's copy has \
                 its rows in another order, rows take each other's place",
                schema.name
            );
        }
        if schema.rowid.is_some() || !is_by_key && !has_all(others) {
            return Ok(Kept::Nothing);
        }
        let former = former_table(new);
        self.conn.execute_batch(&format!(
            "ALTER TABLE {} RENAME TO {former}; ALTER TABLE {former} ADD COLUMN written_ms",
            versions_table(&schema.name)
        ))?;
        self.conn.execute(
            "INSERT INTO __harmonylite___former(table_id, at, shape) VALUES (?1, ?2, ?3)",
            params![new, self.reservation.peek_number(), to_cbor(known)],
        )?;
        let mut written_ms = None;
        for (key, time_ms) in self.uncaptured(old, n)? {
            written_ms = written_ms.max(Some(time_ms));
            self.note_written_before(&former, &key, time_ms)?;
        }
        let log = format!("DELETE FROM {} WHERE table_id = ?1", triggers::LOG);
        self.conn.execute(&log, [old])?;
        for own in ["waiting", "unsent"] {
            let text = format!("DELETE FROM __harmonylite___{own} WHERE table_id = ?1");
            self.conn.execute(&text, [old])?;
        }
        if is_by_key {
            return Ok(Kept::ByKey);
        }
        self.begin_contents(new, known)?;
        Ok(Kept::ByContent(written_ms))
    }

    /// Keys that were written and not captured yet, with the time that counts.
    fn uncaptured(&self, id: i64, keys: usize) -> Result<Vec<(Vec<OwnedValue>, i64)>> {
        let mut found = Vec::new();
        let mut waiting = self.conn.prepare_cached(
            "SELECT key, time_ms FROM __harmonylite___waiting WHERE table_id = ?1 AND kind = ?2",
        )?;
        let mut rows = waiting.query(params![id, triggers::REAL])?;
        while let Some(row) = rows.next()? {
            let key: Vec<u8> = row.get(0)?;
            found.push((cbor::key_values(&key)?, row.get(1)?));
        }
        let names: Vec<String> = (1..=keys).map(|i| format!("k{i}")).collect();
        let mut log = self.conn.prepare(&format!(
            "SELECT id, created_at, {} FROM {} WHERE table_id = ?1 AND kind = ?2",
            names.join(", "),
            triggers::LOG
        ))?;
        let mut rows = log.query(params![id, triggers::REAL])?;
        while let Some(row) = rows.next()? {
            let time_ms = self.entry_time(row.get(0)?, row.get(1).unwrap_or(0));
            let key = (0..keys).map(|i| values::column(row, 2 + i).to_owned());
            found.push((key.collect(), time_ms));
        }
        Ok(found)
    }

    /// A row without a version gets a tombstone that nothing is older than.
    fn note_written_before(
        &mut self,
        former: &str,
        key: &[OwnedValue],
        time_ms: i64,
    ) -> Result<()> {
        let site = self.sites.site(&self.conn, self.node)?;
        let n = key.len();
        let names: Vec<String> = (1..=n).map(|i| format!("k{i}")).collect();
        let marks: Vec<String> = (1..=n).map(|i| format!("?{i}")).collect();
        let text = format!(
            "INSERT INTO {former}({}, hlc, site, deleted, at, hash, written_ms)
             VALUES ({}, 0, {site}, 1, 0, 0, {time_ms})
             ON CONFLICT DO UPDATE SET written_ms = max(ifnull(written_ms, 0), excluded.written_ms)",
            names.join(", "),
            marks.join(", "),
        );
        self.conn.execute(&text, params_from_iter(key))?;
        Ok(())
    }

    /// Reads which tables have former versions.
    pub(super) fn find_former(&mut self) -> Result<()> {
        let mut all = self
            .conn
            .prepare_cached("SELECT table_id, shape FROM __harmonylite___former")?;
        let mut rows = all.query([])?;
        while let Some(row) = rows.next()? {
            let id = row.get(0)?;
            // Another program may have dropped it.
            if self.has_table(&former_name(id))? {
                let shape: Shape = from_cbor(&row.get::<_, Vec<u8>>(1)?)?;
                self.catalog.former.insert(id, Arc::new(shape));
            }
        }
        Ok(())
    }

    /// What is known of a row under its table's former key, by its values as `value` gives them for a
    /// column (lower case); where its old key is not among them, by its content, and `version` if given.
    pub(crate) fn former_row<'v>(
        &self,
        table: &Table,
        value: impl Fn(&str) -> Option<Value<'v>>,
        version: Option<Version>,
    ) -> Result<Option<FormerRow>> {
        let Some(shape) = self.catalog.former.get(&table.id) else {
            return Ok(None);
        };
        let n = shape.key.len();
        let has = |name: &String| table.schema.columns.iter().any(|c| c.lower == *name);
        if !shape.columns[..n].iter().all(|(name, _)| has(name)) {
            return self.former_by_content(table, shape, value, version);
        }
        let names = shape.columns.iter().take(n);
        let key = names.map(|(name, _)| value(name).map(Value::to_owned));
        match key.collect::<Option<Vec<_>>>() {
            Some(key) => self.former_by_key(table.id, &key),
            None => Ok(None),
        }
    }

    /// What is known of a row of table number `id` by its former key.
    pub(super) fn former_by_key(&self, id: i64, key: &[OwnedValue]) -> Result<Option<FormerRow>> {
        let n = key.len();
        let is_key: Vec<String> = (1..=n).map(|i| format!("k{i} = ?{i}")).collect();
        let columns: Vec<String> = (1..=n).map(|i| format!("k{i}")).collect();
        let text = format!(
            "SELECT hlc, site, deleted, at, hash, exc, written_ms, {} FROM {} WHERE {}",
            columns.join(", "),
            former_table(id),
            is_key.join(" AND ")
        );
        let mut row = self.conn.prepare_cached(&text)?;
        let mut rows = row.query(params_from_iter(key))?;
        let Some(row) = rows.next()? else {
            return Ok(None);
        };
        Ok(Some(FormerRow {
            key: (0..n)
                .map(|i| values::column(row, 7 + i).to_owned())
                .collect(),
            stored: stored(&self.sites, row)?,
            written_ms: row.get(6)?,
            content: None,
        }))
    }

    /// Whether the row is what it was, as far as the columns of before are concerned.
    pub(crate) fn is_as_before(
        &self,
        table: &Table,
        former: &FormerRow,
        values: &[OwnedValue],
    ) -> bool {
        let Some(shape) = self.catalog.former.get(&table.id) else {
            return false;
        };
        if former.content.is_some() {
            return true; // that is how it was found
        }
        let n = shape.key.len();
        let of = |i: usize| {
            let column = &table.schema.columns[i];
            match shape.columns.iter().position(|(c, _)| *c == column.lower) {
                Some(at) if at < n => former.key[at].borrow(),
                Some(_) => values[i].borrow(),
                None => column.default.borrow(),
            }
        };
        table.content_hash((0..values.len()).map(of)) == former.stored.hash
    }

    /// Forgets former versions that are older than transaction `bound`, and the tables that were dropped
    /// before that. Inside a transaction.
    pub(crate) fn forget_former(&mut self, bound: i64) -> Result<()> {
        let old: Vec<i64> = {
            let text = "SELECT table_id FROM __harmonylite___former WHERE at <= ?1";
            let mut old = self.conn.prepare(text)?;
            let old = old.query_map([bound], |r| r.get(0))?;
            old.collect::<rusqlite::Result<_>>()?
        };
        for id in &old {
            self.conn.execute_batch(&format!(
                "DROP TABLE IF EXISTS {}; DROP TABLE IF EXISTS {}",
                former_table(*id),
                contents_table(*id)
            ))?;
            let text = "DELETE FROM __harmonylite___former WHERE table_id = ?1";
            self.conn.execute(text, [id])?;
            self.catalog.former.remove(id);
        }
        match old.is_empty() {
            true => Ok(()),
            false => self.note_schema(),
        }
    }
}
