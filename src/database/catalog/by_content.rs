//! Finds the former row of a new row by content, where the new row does not tell the old key.
//!
//! The old rows are gone with the old table. Of each old row only the hash of its content is left,
//! which is a sum over the columns. The values of the old key are known, so their part can be
//! subtracted. The remainder, called the rest, is compared with the same columns of the new row.
//! Columns of the old key that still exist are compared as values. If two equal old rows have the
//! same rest, it does no harm to confuse them. Hashes have a key ([`crate::model::content`]), so
//! nobody can choose different rows with one hash. Rows that an earlier release wrote have a hash
//! without a key, and are looked for by that, too.
//!
//! The rests are computed in short steps, before a row of the table is compared or written.

use rusqlite::params_from_iter;

use super::former::{FormerRow, former_table};
use crate::database::schema::{PREFIX, quote};
use crate::database::table::{Shape, Table, exactly, key_names, parameters};
use crate::database::{Database, Result, values};
use crate::model::cbor;
use crate::model::content::{ColumnHash, ContentKey};
use crate::model::value::{OwnedValue, Value};
use crate::model::version::Version;

/// Number of rests computed in one step.
const STEP: usize = 128;

/// Name of the table of rests for table number `id`. It has the version and key of each row.
pub(super) fn contents_name(id: i64) -> String {
    format!("{PREFIX}_former_{id}_contents")
}

/// The name of that table, quoted for SQL.
pub(super) fn contents_table(id: i64) -> String {
    quote(&contents_name(id))
}

impl Shape {
    /// The part of a column in the hash of a row's content.
    fn part(&self, key: Option<&ContentKey>, column: &str, value: Value<'_>) -> u64 {
        match self.defaults.get(column) == Some(&exactly(value)) {
            true => 0,
            false => ColumnHash::new(key, column).part(value),
        }
    }

    /// Positions of the key columns that `table` lacks.
    pub(crate) fn key_gone(&self, table: &Table) -> Vec<usize> {
        let columns = &table.schema.columns;
        let is_gone = |i: &usize| !columns.iter().any(|c| c.lower == self.columns[*i].0);
        (0..self.key.len()).filter(is_gone).collect()
    }
}

impl Database {
    /// Creates the table of rests.
    pub(super) fn begin_contents(&self, id: i64, known: &Shape) -> Result<()> {
        self.conn.execute_batch(&format!(
            "CREATE TABLE {}(content INTEGER, hlc INTEGER, {}, PRIMARY KEY(content, hlc, {}))
             WITHOUT ROWID",
            contents_table(id),
            known.key_definitions(),
            key_names(known.key.len()).join(", ")
        ))?;
        Ok(())
    }

    /// Computes some rests, beginning after the old key `after`. Returns the last key; `None` if
    /// all are done.
    pub(crate) fn fill_contents(
        &self,
        table: &Table,
        after: Option<&[u8]>,
    ) -> Result<Option<Vec<u8>>> {
        let Some(former) = self.catalog.former.get(&table.id) else {
            return Ok(None);
        };
        let shape = &former.shape;
        let n = shape.key.len();
        let names = key_names(n);
        let from = match after {
            Some(_) => format!("AND ({}) > ({})", names.join(", "), parameters(1, n)),
            None => String::new(),
        };
        let mut next = self.conn.prepare_cached(&format!(
            "SELECT {0}, hlc, hash, at FROM {1} WHERE deleted = 0 {from} ORDER BY {0} LIMIT {STEP}",
            names.join(", "),
            former_table(table.id)
        ))?;
        let mut put = self.conn.prepare_cached(&format!(
            "INSERT OR IGNORE INTO {} VALUES (?1, ?2, {})",
            contents_table(table.id),
            parameters(3, n)
        ))?;
        let gone = shape.key_gone(table);
        let after = after.map(cbor::key_values).transpose()?.unwrap_or_default();
        let mut rows = next.query(params_from_iter(after))?;
        let (mut count, mut last) = (0, None);
        while let Some(row) = rows.next()? {
            let key: Vec<OwnedValue> = (0..n).map(|i| values::column(row, i).to_owned()).collect();
            let hash_key = self.key_of_hash(row.get(n + 2)?);
            let parts = gone
                .iter()
                .map(|i| shape.part(hash_key, &shape.columns[*i].0, key[*i].borrow()));
            let hash = row.get::<_, i64>(n + 1)? as u64;
            let content = parts.fold(hash, u64::wrapping_sub) as i64;
            let version = [
                OwnedValue::Integer(content),
                OwnedValue::Integer(row.get(n)?),
            ];
            put.execute(params_from_iter(version.iter().chain(&key)))?;
            count += 1;
            last = Some(key);
        }
        let key = |last: Vec<OwnedValue>| {
            let collations = shape.key.iter().map(|(_, collation)| collation.as_str());
            crate::model::key::key_bytes(last.iter().map(OwnedValue::borrow), collations)
        };
        Ok(last.filter(|_| count == STEP).map(key))
    }

    /// The old row that is not matched yet and had the content of the new row whose values `value`
    /// returns. Of several such rows it is the oldest, or the one with the given `version`.
    pub(super) fn former_by_content<'v>(
        &self,
        table: &Table,
        shape: &Shape,
        value: impl Fn(&str) -> Option<Value<'v>>,
        version: Option<Version>,
    ) -> Result<Option<FormerRow>> {
        let (n, gone) = (shape.key.len(), shape.key_gone(table));
        let key = &self.content_key;
        let (mut content, mut unkeyed, mut conditions) = (0u64, 0u64, String::new());
        let mut given = Vec::new();
        for (i, (name, _)) in shape.columns.iter().enumerate() {
            if gone.contains(&i) {
                continue;
            }
            let Some(value) = value(name) else {
                return Ok(None);
            };
            content = content.wrapping_add(shape.part(Some(key), name, value));
            unkeyed = unkeyed.wrapping_add(shape.part(None, name, value));
            if i < n {
                given.push(value.to_owned());
                conditions += &format!(" AND k{} = ?{}", i + 1, given.len());
            }
        }
        given.extend([content, unkeyed].map(|c| OwnedValue::Integer(c as i64)));
        conditions += &format!(" AND content IN (?{}, ?{})", given.len() - 1, given.len());
        if let Some(version) = version {
            given.push(OwnedValue::Integer(version.hlc));
            conditions += &format!(" AND hlc = ?{}", given.len());
        }
        let names = key_names(n);
        let mut found = self.conn.prepare_cached(&format!(
            "SELECT {}, content FROM {} WHERE 1 {conditions} ORDER BY hlc",
            names.join(", "),
            contents_table(table.id)
        ))?;
        let mut rows = found.query(params_from_iter(given))?;
        while let Some(row) = rows.next()? {
            let key: Vec<OwnedValue> = (0..n).map(|i| values::column(row, i).to_owned()).collect();
            let (rest, former) = (row.get::<_, i64>(n)?, self.former_by_key(table.id, &key)?);
            let is_that = |f: &FormerRow| {
                let hashed = match self.key_of_hash(f.stored.local_tx) {
                    Some(_) => content,
                    None => unkeyed,
                };
                rest == hashed as i64 && version.is_none_or(|v| f.stored.state.version == v)
            };
            if let Some(former) = former.filter(is_that) {
                return Ok(Some(FormerRow {
                    content: Some(rest),
                    ..former
                }));
            }
        }
        Ok(None)
    }

    /// The key under which the hash of a row was computed that was learnt in transaction
    /// `local_tx`; none if an earlier release did.
    fn key_of_hash(&self, local_tx: i64) -> Option<&ContentKey> {
        (local_tx >= self.content_key.since).then_some(&self.content_key)
    }

    /// The former key of a different row with the same content as a row that was found by its
    /// content.
    pub(crate) fn former_like(
        &self,
        table: &Table,
        former: &FormerRow,
    ) -> Result<Option<Vec<OwnedValue>>> {
        let Some(content) = former.content else {
            return Ok(None);
        };
        let n = former.key.len();
        let names = key_names(n);
        let mut found = self.conn.prepare_cached(&format!(
            "SELECT {} FROM {} WHERE content = ?1 ORDER BY hlc LIMIT 1",
            names.join(", "),
            contents_table(table.id)
        ))?;
        let mut rows = found.query([content])?;
        let row = rows.next()?;
        Ok(row.map(|row| {
            let key = (0..n).map(|i| values::column(row, i).to_owned());
            key.collect()
        }))
    }

    /// Makes sure that no other new row is matched with this old row.
    pub(crate) fn claim(&self, table: &Table, former: &FormerRow) -> Result<()> {
        let Some(content) = former.content else {
            return Ok(());
        };
        let is_key = (1..=former.key.len()).map(|i| format!("k{i} = ?{}", i + 2));
        let text = format!(
            "DELETE FROM {} WHERE content = ?1 AND hlc = ?2 AND {}",
            contents_table(table.id),
            is_key.collect::<Vec<_>>().join(" AND ")
        );
        let hlc = OwnedValue::Integer(former.stored.state.version.hlc);
        let of = [OwnedValue::Integer(content), hlc];
        let of = of.iter().chain(&former.key);
        self.conn
            .prepare_cached(&text)?
            .execute(params_from_iter(of))?;
        Ok(())
    }
}
