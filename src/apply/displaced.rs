//! Storage of displaced rows: their values, the row that hides each, and the tuples they wait for.

use rusqlite::{Connection, OptionalExtension, params};

use crate::apply::tuples::tuples;
use crate::database::Result;
use crate::database::table::Table;
use crate::model::cbor::{self, Cursor};
use crate::model::value::OwnedValue;
use crate::mutation::{self, Mutation};

/// The rows of one table in `___displaced` and `___displaced_by_tuple`.
pub(super) struct DisplacedRows<'c> {
    pub conn: &'c Connection,
    pub table: &'c Table,
}

impl DisplacedRows<'_> {
    pub(super) fn row(&self, key: &[u8]) -> Result<Option<Vec<OwnedValue>>> {
        let row: Option<Vec<u8>> = self
            .conn
            .prepare_cached(
                "SELECT row FROM __harmonylite___displaced WHERE table_id = ?1 AND key = ?2",
            )?
            .query_row(params![self.table.id, key], |r| r.get(0))
            .optional()?;
        row.map(|bytes| decode(self.table, key, &bytes)).transpose()
    }

    /// Stores a row as displaced; `by` is the key of the row that hides it.
    pub(super) fn put(&self, key: &[u8], values: &[OwnedValue], by: &[u8]) -> Result<()> {
        self.forget(key)?;
        if mutation::is(Mutation::DisplacedDropped) && !by.is_empty() {
            return Ok(());
        }
        self.conn
            .prepare_cached(
                "INSERT INTO __harmonylite___displaced(table_id, key, by, row) VALUES (?1, ?2, ?3, \
                 ?4)",
            )?
            .execute(params![self.table.id, key, by, encode(self.table, values)])?;
        let mut put = self.conn.prepare_cached(
            "REPLACE INTO __harmonylite___displaced_by_tuple(table_id, tuple, key) VALUES (?1, ?2, \
             ?3)",
        )?;
        for tuple in tuples(self.conn, self.table, values)? {
            put.execute(params![self.table.id, tuple.hash, key])?;
        }
        Ok(())
    }

    /// Removes a row that is not displaced any more.
    pub(super) fn forget(&self, key: &[u8]) -> Result<()> {
        let Some(values) = self.row(key)? else {
            return Ok(());
        };
        let mut drop = self.conn.prepare_cached(
            "DELETE FROM __harmonylite___displaced_by_tuple
             WHERE table_id = ?1 AND tuple = ?2 AND key = ?3",
        )?;
        for tuple in tuples(self.conn, self.table, &values)? {
            drop.execute(params![self.table.id, tuple.hash, key])?;
        }
        self.conn
            .prepare_cached(
                "DELETE FROM __harmonylite___displaced WHERE table_id = ?1 AND key = ?2",
            )?
            .execute(params![self.table.id, key])?;
        Ok(())
    }

    /// Removes and returns all rows, after the UNIQUE indexes changed: the old tuples are unknown.
    pub(super) fn take_all(&self) -> Result<Vec<(Vec<u8>, Vec<OwnedValue>)>> {
        let mut statement = self
            .conn
            .prepare_cached("SELECT key, row FROM __harmonylite___displaced WHERE table_id = ?1")?;
        let mut rows = statement.query([self.table.id])?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            let key: Vec<u8> = row.get(0)?;
            let bytes = row.get_ref(1)?.as_blob().unwrap_or_default();
            let values = decode(self.table, &key, bytes)?;
            all.push((key, values));
        }
        for table in ["displaced", "displaced_by_tuple"] {
            let text = format!("DELETE FROM __harmonylite___{table} WHERE table_id = ?1");
            self.conn.prepare_cached(&text)?.execute([self.table.id])?;
        }
        Ok(all)
    }

    /// Keys of displaced rows that share a tuple with a row of these values.
    pub(super) fn waiting_on(&self, values: &[OwnedValue]) -> Result<Vec<Vec<u8>>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT key FROM __harmonylite___displaced_by_tuple WHERE table_id = ?1 AND tuple = ?2",
        )?;
        let mut keys = Vec::new();
        for tuple in tuples(self.conn, self.table, values)? {
            let rows = statement.query_map(params![self.table.id, tuple.hash], |r| r.get(0))?;
            for key in rows {
                keys.push(key?);
            }
        }
        Ok(keys)
    }

    /// Keys of the displaced rows that row `key` hides.
    pub(super) fn hidden_by(&self, key: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT key FROM __harmonylite___displaced WHERE table_id = ?1 AND by = ?2",
        )?;
        let rows = statement.query_map(params![self.table.id, key], |r| r.get(0))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    pub(super) fn is_empty(&self) -> Result<bool> {
        let some = self
            .conn
            .prepare_cached("SELECT 1 FROM __harmonylite___displaced WHERE table_id = ?1 LIMIT 1")?
            .exists([self.table.id])?;
        Ok(!some)
    }
}

/// By column name, because the schema may change while the row is displaced.
pub(super) fn encode(table: &Table, values: &[OwnedValue]) -> Vec<u8> {
    let mut out = Vec::new();
    cbor::write_array(&mut out, 2 * values.len());
    for (column, value) in table.schema.columns.iter().zip(values) {
        cbor::write_text(&mut out, &column.lower);
        cbor::write_value(&mut out, value.borrow());
    }
    out
}

pub(super) fn decode(table: &Table, key: &[u8], bytes: &[u8]) -> Result<Vec<OwnedValue>> {
    let columns = &table.schema.columns;
    let mut values = cbor::key_values(key)?; // the table may have been made anew, with other names
    let others = columns.iter().skip(values.len());
    values.extend(others.map(|c| c.default.clone()));
    let mut cursor = Cursor::new(bytes);
    for _ in 0..cursor.array()? / 2 {
        let (name, value) = (cursor.text()?, cursor.value()?);
        if let Some(i) = columns.iter().position(|c| c.is_or_was(name)) {
            values[i] = value.to_owned();
        }
    }
    Ok(values)
}
