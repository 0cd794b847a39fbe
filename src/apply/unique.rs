//! UNIQUE indexes: which of two rows that collide is in the table.
//!
//! Two nodes may insert rows of different keys that share a value under a UNIQUE index; no node can
//! hold both. Which one is in the table is a function of the set of versions alone, so that all
//! nodes agree: rows are admitted from the highest order down, (hlc, node, key), and a row that
//! collides with an admitted one is *displaced*: kept aside with its values, and back in the table
//! as soon as nothing hides it. Each step here keeps that true ("settles"), so that rows may come
//! one by one and in any order.

use std::collections::BTreeSet;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::database::rows::Rows;
use crate::database::schema::{UniqueIndex, quote};
use crate::database::sites::Sites;
use crate::database::table::Table;
use crate::database::{Database, Result, values};
use crate::model::cbor::{self, Cursor};
use crate::model::value::{OwnedValue, Value};
use crate::model::version::Version;

/// SQLITE_CONSTRAINT_UNIQUE, <https://www.sqlite.org/rescode.html>.
const UNIQUE_VIOLATION: i32 = 2067;

/// What decides between rows that collide: the larger is in the table.
type Order = (Version, Vec<u8>);

pub(super) fn is_unique_violation(e: &rusqlite::Error) -> bool {
    matches!(e, rusqlite::Error::SqliteFailure(f, _) if f.extended_code == UNIQUE_VIOLATION)
}

impl Database {
    /// The values of a displaced row.
    pub(crate) fn displaced_row(
        &self,
        table: &Table,
        key: &[u8],
    ) -> Result<Option<Vec<OwnedValue>>> {
        if !self.catalog.displaced.contains(&table.id) {
            return Ok(None);
        }
        displaced_row(&self.conn, table, key)
    }

    /// Rows that are displaced.
    pub fn displaced(&self) -> Result<u64> {
        Ok(self
            .conn
            .prepare_cached("SELECT count(*) FROM __harmonylite___displaced")?
            .query_row([], |r| r.get(0))?)
    }

    /// A row was joined, its version is stored: `in_table` is what the table still holds of it,
    /// `arrived` what it is now, none if deleted.
    pub(super) fn settle_joined(
        &mut self,
        table: &Arc<Table>,
        key: &[Value<'_>],
        key_bytes: &[u8],
        in_table: Option<Vec<OwnedValue>>,
        arrived: Option<Vec<OwnedValue>>,
    ) -> Result<()> {
        let mut settling = Settling::new(&self.conn, &self.sites, table)?;
        settling.rows.delete(key)?;
        settling.forget(key_bytes)?;
        if let Some(old) = in_table {
            settling.wake(&old)?;
        }
        if let Some(values) = arrived {
            settling.set_aside(key_bytes, &values, &[])?;
            settling.add(key_bytes.to_vec())?;
        }
        settling.run()?;
        self.note_displaced(table)
    }

    /// The application changed these rows; what they were before is not known.
    pub(crate) fn settle_local(&mut self, table: &Arc<Table>, keys: &[Vec<u8>]) -> Result<()> {
        let mut settling = Settling::new(&self.conn, &self.sites, table)?;
        for key in keys {
            settling.forget(key)?;
            for hidden in settling.hidden_by(key)? {
                settling.add(hidden)?;
            }
            settling.add(key.clone())?;
        }
        settling.run()?;
        self.note_displaced(table)
    }

    /// Displaced rows that nothing but the row `key`, which the application deleted, kept out of
    /// the table: the user meant them, too.
    pub(crate) fn hidden_only_by(&self, table: &Arc<Table>, key: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut settling = Settling::new(&self.conn, &self.sites, table)?;
        let mut only = Vec::new();
        for hidden in settling.hidden_by(key)? {
            let values = displaced_row(&self.conn, table, &hidden)?.unwrap_or_default();
            if settling.colliding(&hidden, &values)?.is_empty() {
                only.push(hidden);
            }
        }
        Ok(only)
    }

    /// All displaced rows of the table anew: its UNIQUE indexes are others now.
    pub(crate) fn resettle(&mut self, table: &Arc<Table>) -> Result<()> {
        let mut settling = Settling::new(&self.conn, &self.sites, table)?;
        let keys: Vec<Vec<u8>> = self
            .conn
            .prepare_cached("SELECT key FROM __harmonylite___displaced WHERE table_id = ?1")?
            .query_map([table.id], |r| r.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        for key in keys {
            let values = displaced_row(&self.conn, table, &key)?.unwrap_or_default();
            settling.set_aside(&key, &values, &[])?;
            settling.add(key)?;
        }
        settling.run()?;
        self.note_displaced(table)
    }

    fn note_displaced(&mut self, table: &Table) -> Result<()> {
        let some = self
            .conn
            .prepare_cached("SELECT 1 FROM __harmonylite___displaced WHERE table_id = ?1 LIMIT 1")?
            .exists([table.id])?;
        match some {
            true => self.catalog.displaced.insert(table.id),
            false => self.catalog.displaced.remove(&table.id),
        };
        Ok(())
    }
}

/// The highest hlc among the displaced rows that a row with these values collides with: a local
/// write of it must be above, or it would be displaced itself.
pub(crate) fn highest_displaced(
    rows: &mut Rows<'_>,
    sites: &Sites,
    own_values: &[OwnedValue],
    own_key: &[u8],
) -> Result<i64> {
    let (conn, table) = (rows.conn, rows.table);
    let mut highest = 0;
    for tuple in tuples(conn, table, own_values)? {
        for key in waiting_on(conn, table, tuple)?
            .into_iter()
            .filter(|k| k != own_key)
        {
            let values = cbor::key_values(&key)?;
            let values: Vec<Value<'_>> = values.iter().map(OwnedValue::borrow).collect();
            let stored = rows.version(sites, &values)?;
            highest = highest.max(stored.map_or(0, |s| s.state.version.hlc));
        }
    }
    Ok(highest)
}

/// One run of the algorithm over one table.
struct Settling<'c> {
    conn: &'c Connection,
    sites: &'c Sites,
    table: &'c Table,
    rows: Rows<'c>,
    /// Rows to look at, highest order first.
    todo: BTreeSet<Order>,
    done: BTreeSet<Order>,
}

impl<'c> Settling<'c> {
    fn new(conn: &'c Connection, sites: &'c Sites, table: &'c Table) -> Result<Self> {
        let rows = Rows::new(conn, table)?;
        Ok(Settling {
            conn,
            sites,
            table,
            rows,
            todo: BTreeSet::new(),
            done: BTreeSet::new(),
        })
    }

    /// Looks at every row of `todo`, from the highest order down.
    fn run(mut self) -> Result<()> {
        while let Some(next) = self.todo.pop_last() {
            if self.done.insert(next.clone()) {
                self.look(next)?;
            }
        }
        Ok(())
    }

    fn look(&mut self, order: Order) -> Result<()> {
        let key_bytes = order.1.clone();
        let key = cbor::key_values(&key_bytes)?;
        let key: Vec<Value<'_>> = key.iter().map(OwnedValue::borrow).collect();
        let in_table = self.rows.owned_row(&key)?;
        let is_in_table = in_table.is_some();
        let Some(values) = in_table.map_or_else(
            || displaced_row(self.conn, self.table, &key_bytes),
            |values| Ok(Some(values)),
        )?
        else {
            return Ok(());
        };
        let mut colliding = Vec::new();
        for (other, other_values) in self.colliding(&key_bytes, &values)? {
            colliding.push((
                self.order(&other)?.unwrap_or((Version::NEVER, other)),
                other_values,
            ));
        }
        if let Some((by, _)) = colliding
            .iter()
            .filter(|(o, _)| *o > order)
            .max_by_key(|(o, _)| o)
        {
            if is_in_table {
                self.rows.delete(&key)?;
                self.wake(&values)?;
            }
            return self.set_aside(&key_bytes, &values, &by.1);
        }
        for ((_, other), other_values) in colliding {
            let other_key = cbor::key_values(&other)?;
            let other_key: Vec<Value<'_>> = other_key.iter().map(OwnedValue::borrow).collect();
            self.rows.delete(&other_key)?;
            self.set_aside(&other, &other_values, &key_bytes)?;
            self.wake(&other_values)?;
        }
        if !is_in_table {
            let values: Vec<Value<'_>> = values.iter().map(OwnedValue::borrow).collect();
            match self.rows.upsert(&values) {
                Ok(()) => self.forget(&key_bytes)?,
                // Another constraint, newer than the row: it stays aside, and the reason is said.
                Err(e) if super::fast::is_constraint(&e) => {
                    log::warn!("a row of table {} stays aside: {e}", self.table.name());
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn order(&mut self, key_bytes: &[u8]) -> Result<Option<Order>> {
        let key = cbor::key_values(key_bytes)?;
        let key: Vec<Value<'_>> = key.iter().map(OwnedValue::borrow).collect();
        let stored = self
            .rows
            .version(self.sites, &key)?
            .filter(|s| !s.state.deleted);
        Ok(stored.map(|s| (s.state.version, key_bytes.to_vec())))
    }

    fn add(&mut self, key: Vec<u8>) -> Result<()> {
        if let Some(order) = self.order(&key)?.filter(|o| !self.done.contains(o)) {
            self.todo.insert(order);
        }
        Ok(())
    }

    /// Displaced rows that share a tuple with values which left the table are looked at.
    fn wake(&mut self, values: &[OwnedValue]) -> Result<()> {
        for tuple in tuples(self.conn, self.table, values)? {
            for key in waiting_on(self.conn, self.table, tuple)? {
                if let Some(order) = self.order(&key)? {
                    self.done.remove(&order);
                    self.todo.insert(order);
                }
            }
        }
        Ok(())
    }

    /// Rows of the table, other than `key`, that share a UNIQUE value with these values.
    fn colliding(
        &mut self,
        key: &[u8],
        own: &[OwnedValue],
    ) -> Result<Vec<(Vec<u8>, Vec<OwnedValue>)>> {
        let count = self.table.schema.columns.len();
        let mut found: Vec<(Vec<u8>, Vec<OwnedValue>)> = Vec::new();
        for index in &self.table.schema.unique {
            let mut statement = self
                .conn
                .prepare_cached(&colliding_sql(self.table, index))?;
            let mut rows = statement.query(rusqlite::params_from_iter(own))?;
            while let Some(row) = rows.next()? {
                let all: Vec<OwnedValue> = (0..count)
                    .map(|i| values::column(row, i).to_owned())
                    .collect();
                let other = key_of(self.table, &all);
                if other != key && !found.iter().any(|(k, _)| *k == other) {
                    found.push((other, all));
                }
            }
        }
        Ok(found)
    }

    fn hidden_by(&self, key: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT key FROM __harmonylite___displaced WHERE table_id = ?1 AND by = ?2",
        )?;
        let rows = statement.query_map(params![self.table.id, key], |r| r.get(0))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Keeps a row aside, hidden by `by`.
    fn set_aside(&self, key: &[u8], values: &[OwnedValue], by: &[u8]) -> Result<()> {
        self.forget(key)?;
        self.conn
            .prepare_cached(
                "INSERT INTO __harmonylite___displaced(table_id, key, by, row) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![self.table.id, key, by, encode_row(self.table, values)])?;
        let mut put = self.conn.prepare_cached(
            "REPLACE INTO __harmonylite___displaced_by_tuple(table_id, tuple, key) VALUES (?1, ?2, ?3)",
        )?;
        for tuple in tuples(self.conn, self.table, values)? {
            put.execute(params![self.table.id, tuple, key])?;
        }
        Ok(())
    }

    /// The row is not displaced any more.
    fn forget(&self, key: &[u8]) -> Result<()> {
        if let Some(values) = displaced_row(self.conn, self.table, key)? {
            let mut drop = self.conn.prepare_cached(
                "DELETE FROM __harmonylite___displaced_by_tuple
                 WHERE table_id = ?1 AND tuple = ?2 AND key = ?3",
            )?;
            for tuple in tuples(self.conn, self.table, &values)? {
                drop.execute(params![self.table.id, tuple, key])?;
            }
            self.conn
                .prepare_cached(
                    "DELETE FROM __harmonylite___displaced WHERE table_id = ?1 AND key = ?2",
                )?
                .execute(params![self.table.id, key])?;
        }
        Ok(())
    }
}

fn key_of(table: &Table, values: &[OwnedValue]) -> Vec<u8> {
    cbor::key_bytes(values[..table.key_len()].iter().map(OwnedValue::borrow))
}

fn waiting_on(conn: &Connection, table: &Table, tuple: i64) -> Result<Vec<Vec<u8>>> {
    let mut statement = conn.prepare_cached(
        "SELECT key FROM __harmonylite___displaced_by_tuple WHERE table_id = ?1 AND tuple = ?2",
    )?;
    let rows = statement.query_map(params![table.id, tuple], |r| r.get(0))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn displaced_row(conn: &Connection, table: &Table, key: &[u8]) -> Result<Option<Vec<OwnedValue>>> {
    let row: Option<Vec<u8>> = conn
        .prepare_cached(
            "SELECT row FROM __harmonylite___displaced WHERE table_id = ?1 AND key = ?2",
        )?
        .query_row(params![table.id, key], |r| r.get(0))
        .optional()?;
    row.map(|bytes| decode_row(table, &bytes)).transpose()
}

/// By column name, because the schema may change while the row is aside.
fn encode_row(table: &Table, values: &[OwnedValue]) -> Vec<u8> {
    let mut out = Vec::new();
    cbor::write_array(&mut out, 2 * values.len());
    for (column, value) in table.schema.columns.iter().zip(values) {
        cbor::write_text(&mut out, &column.lower);
        cbor::write_value(&mut out, value.borrow());
    }
    out
}

fn decode_row(table: &Table, bytes: &[u8]) -> Result<Vec<OwnedValue>> {
    let columns = &table.schema.columns;
    let mut values: Vec<OwnedValue> = columns.iter().map(|c| c.default.clone()).collect();
    let mut cursor = Cursor::new(bytes);
    for _ in 0..cursor.array()? / 2 {
        let (name, value) = (cursor.text()?, cursor.value()?);
        if let Some(i) = columns.iter().position(|c| c.lower == name) {
            values[i] = value.to_owned();
        }
    }
    Ok(values)
}

/// A row of the parameters, under the columns' names.
fn parameter_row(table: &Table) -> String {
    let skip = usize::from(table.schema.rowid.is_some());
    let columns = table.schema.columns.iter().enumerate().skip(skip);
    let each = columns.map(|(i, c)| format!("?{} AS {}", i + 1, quote(&c.name)));
    format!("(SELECT {})", each.collect::<Vec<_>>().join(", "))
}

fn colliding_sql(table: &Table, index: &UniqueIndex) -> String {
    let row = parameter_row(table);
    let columns: Vec<String> = (0..table.schema.columns.len())
        .map(|i| table.schema.column_sql(i))
        .collect();
    let mut conditions: Vec<String> = Vec::new();
    for (term, collation) in &index.terms {
        conditions.push(format!(
            "{term} = (SELECT {term} FROM {row}) COLLATE {}",
            quote(collation)
        ));
    }
    if let Some(predicate) = &index.predicate {
        conditions.push(format!(
            "({predicate}) AND (SELECT ({predicate}) FROM {row})"
        ));
    }
    // Every parameter is named, so that the number of them does not depend on the index.
    let all: Vec<String> = (1..=columns.len())
        .map(|i| format!("?{i} IS ?{i}"))
        .collect();
    format!(
        "SELECT {} FROM {} WHERE {} AND {}",
        columns.join(", "),
        quote(table.name()),
        conditions.join(" AND "),
        all.join(" AND ")
    )
}

/// Hashes of the row's values under each UNIQUE index: equal values have equal hashes. Rows with
/// NULL in an index, or outside of a partial one, collide with nobody there.
fn tuples(conn: &Connection, table: &Table, own: &[OwnedValue]) -> Result<Vec<i64>> {
    let mut all = Vec::new();
    for index in &table.schema.unique {
        let terms: Vec<&str> = index.terms.iter().map(|(t, _)| t.as_str()).collect();
        let count = table.schema.columns.len();
        let every: Vec<String> = (1..=count).map(|i| format!("?{i} IS ?{i}")).collect();
        let text = format!(
            "SELECT {} FROM {} WHERE ({}) AND {}",
            terms.join(", "),
            parameter_row(table),
            index.predicate.as_deref().unwrap_or("1"),
            every.join(" AND ")
        );
        let mut statement = conn.prepare_cached(&text)?;
        let mut rows = statement.query(rusqlite::params_from_iter(own))?;
        let Some(row) = rows.next()? else { continue };
        let values: Vec<Value<'_>> = (0..terms.len()).map(|i| values::column(row, i)).collect();
        if values.iter().any(Value::is_null) {
            continue;
        }
        let mut hash = xxh3_64_with_seed(index.name.as_bytes(), 0);
        for (value, (_, collation)) in values.iter().zip(&index.terms) {
            hash = folded(value, collation, hash);
        }
        all.push(hash as i64);
    }
    Ok(all)
}

/// A hash that is the same for values that the collation and SQLite's comparison hold equal.
fn folded(value: &Value<'_>, collation: &str, seed: u64) -> u64 {
    match (value, collation) {
        (Value::Text(t), "NOCASE") => Value::Text(&t.to_ascii_lowercase()).hash(seed),
        (Value::Text(t), "RTRIM") => Value::Text(t.trim_ascii_end()).hash(seed),
        (Value::Real(r), _) if r.fract() == 0.0 && r.abs() < 9e15 => {
            Value::Integer(*r as i64).hash(seed)
        }
        (value, _) => value.hash(seed),
    }
}
