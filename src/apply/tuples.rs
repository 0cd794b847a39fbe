//! A row's tuples under the UNIQUE indexes of its table, and the rows that share one.
//!
//! Under an index of stored columns the tuple is the columns' values. If the index has expressions,
//! a WHERE or generated columns, SQLite computes the tuple: the row is inserted into an empty
//! temporary copy of the table, the *probe*, so that affinities and generated columns count as they
//! do in the table itself.

use rusqlite::{Connection, params_from_iter};

use crate::database::schema::{PREFIX, Schema, UniqueIndex, quote};
use crate::database::sql_text;
use crate::database::table::{Table, parameters};
use crate::database::{Result, values};
use crate::model::key::fold;
use crate::model::value::{OwnedValue, Value};

/// A row's values under one index. A row with NULL there, or outside of a partial index, has none
/// and collides with no row.
pub(super) struct Tuple<'t> {
    pub index: &'t UniqueIndex,
    pub values: Vec<OwnedValue>,
    /// Equal tuples have equal hashes.
    pub hash: i64,
}

/// The tuples of a row with these values.
pub(super) fn tuples<'t>(
    conn: &Connection,
    table: &'t Table,
    row: &[OwnedValue],
) -> Result<Vec<Tuple<'t>>> {
    if table.schema.needs_probe() && !fill_probe(conn, table, row)? {
        return Ok(Vec::new());
    }
    let mut all = Vec::new();
    for index in &table.schema.unique {
        let values = match plain(table, index, row) {
            Some(values) => Some(values),
            None => probe(conn, table, index)?,
        };
        let Some(values) = values.filter(|v| !v.iter().any(|v| v.borrow().is_null())) else {
            continue;
        };
        let seed = xxhash_rust::xxh3::xxh3_64(index.name.as_bytes());
        let terms = values.iter().zip(&index.terms);
        let hash = terms.fold(seed, |hash, (value, (_, collation))| {
            fold(value.borrow(), collation, |v: Value<'_>| v.hash(hash))
        }) as i64;
        all.push(Tuple {
            index,
            values,
            hash,
        });
    }
    Ok(all)
}

/// Rows of the table, except row `key`, that share a tuple with `row`: (key, values).
pub(super) fn colliding(
    conn: &Connection,
    table: &Table,
    key: &[u8],
    row: &[OwnedValue],
) -> Result<Vec<(Vec<u8>, Vec<OwnedValue>)>> {
    let mut found: Vec<(Vec<u8>, Vec<OwnedValue>)> = Vec::new();
    for tuple in tuples(conn, table, row)? {
        for all in rows_with(conn, table, &tuple)? {
            let other = key_of(table, &all);
            if other != key && !found.iter().any(|(k, _)| *k == other) {
                found.push((other, all));
            }
        }
    }
    Ok(found)
}

/// Values of the rows of the table that have this tuple.
pub(super) fn rows_with(
    conn: &Connection,
    table: &Table,
    tuple: &Tuple<'_>,
) -> Result<Vec<Vec<OwnedValue>>> {
    let count = table.schema.columns.len();
    let mut statement = conn.prepare_cached(&colliding_sql(table, tuple.index))?;
    let mut rows = statement.query(params_from_iter(&tuple.values))?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let each = (0..count).map(|i| values::column(row, i).to_owned());
        found.push(each.collect());
    }
    Ok(found)
}

pub(super) fn key_of(table: &Table, values: &[OwnedValue]) -> Vec<u8> {
    table.key_bytes(values[..table.key_len()].iter().map(OwnedValue::borrow))
}

fn colliding_sql(table: &Table, index: &UniqueIndex) -> String {
    let columns: Vec<String> = (0..table.schema.columns.len())
        .map(|i| table.schema.column_sql(i))
        .collect();
    let mut conditions: Vec<String> = index
        .terms
        .iter()
        .enumerate()
        .map(|(i, (term, collation))| format!("{term} = ?{} COLLATE {}", i + 1, quote(collation)))
        .collect();
    conditions.extend(index.predicate.as_ref().map(|p| format!("({p})")));
    format!(
        "SELECT {} FROM {} WHERE {}",
        columns.join(", "),
        quote(table.name()),
        conditions.join(" AND "),
    )
}

/// The tuple under an index of stored columns; none for other indexes.
fn plain(table: &Table, index: &UniqueIndex, row: &[OwnedValue]) -> Option<Vec<OwnedValue>> {
    let columns = &table.schema.columns;
    let value = |name: &String| {
        let i = columns.iter().position(|c| c.name == *name)?;
        Some(row[i].clone())
    };
    index.columns.as_ref()?.iter().map(value).collect()
}

fn probe_name(table: &str) -> String {
    format!("temp.{}", quote(&format!("{PREFIX}probe_{table}")))
}

/// Creates the probe, an empty temporary copy of a table, if the table needs one.
pub(crate) fn create_probe(conn: &Connection, schema: &Schema) -> rusqlite::Result<()> {
    let name = probe_name(&schema.name);
    conn.execute_batch(&format!("DROP TABLE IF EXISTS {name}"))?;
    if !schema.needs_probe() {
        return Ok(());
    }
    let text: String = conn.query_row(
        "SELECT sql FROM main.sqlite_schema WHERE type = 'table' AND name = ?1",
        [&schema.name],
        |r| r.get(0),
    )?;
    let body = sql_text::after_table_name(&text).unwrap_or_default();
    let body = sql_text::unqualified(body, &schema.name);
    conn.execute_batch(&format!("CREATE TABLE {name}{body}"))
}

/// Inserts the row into the probe. False if the row breaks a constraint of the table.
fn fill_probe(conn: &Connection, table: &Table, row: &[OwnedValue]) -> Result<bool> {
    let name = probe_name(table.name());
    conn.prepare_cached(&format!("DELETE FROM {name}"))?
        .execute([])?;
    let count = table.schema.columns.len();
    let columns: Vec<String> = (0..count).map(|i| table.schema.column_sql(i)).collect();
    let text = format!(
        "INSERT OR IGNORE INTO {name}({}) VALUES ({})",
        columns.join(", "),
        parameters(1, count)
    );
    let filled = conn.prepare_cached(&text)?.execute(params_from_iter(row));
    match filled {
        Ok(rows) => Ok(rows == 1),
        Err(e) if crate::database::is_unfit(&e) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// The tuple of the row in the probe; none if a partial index leaves it out.
fn probe(conn: &Connection, table: &Table, index: &UniqueIndex) -> Result<Option<Vec<OwnedValue>>> {
    let terms: Vec<&str> = index.terms.iter().map(|(t, _)| t.as_str()).collect();
    let text = format!(
        "SELECT {} FROM {} WHERE {}",
        terms.join(", "),
        probe_name(table.name()),
        index.predicate.as_deref().unwrap_or("1"),
    );
    let mut statement = conn.prepare_cached(&text)?;
    let mut rows = statement.query([])?;
    let read = |row: &rusqlite::Row<'_>| {
        let each = (0..terms.len()).map(|i| values::column(row, i).to_owned());
        each.collect()
    };
    Ok(rows.next()?.map(read))
}
