//! Lists displaced rows and the rows that displace them, for people. The connection only reads, so
//! it works beside a running daemon and changes nothing.

use std::path::Path;

use rusqlite::{Connection, params};

use crate::apply::Lives;
use crate::apply::displaced::DisplacedRows;
use crate::apply::tuples::{create_probe, rows_with, tuples};
use crate::database::own_tables;
use crate::database::read_only::ReadOnly;
use crate::database::rows::Rows;
use crate::database::schema::Schema;
use crate::database::selection;
use crate::database::sites::Sites;
use crate::database::table::Table;
use crate::database::{DatabaseError, Result};
use crate::model::cbor;
use crate::model::value::{OwnedValue, Value};
use crate::model::version::Version;

/// A displaced row.
#[derive(Debug, PartialEq)]
pub struct Conflict {
    /// Name of the table.
    pub table: String,
    /// Names and values of all columns, the key's first.
    pub row: Vec<(String, OwnedValue)>,
    /// Number of key columns at the head of `row`.
    pub key_len: usize,
    /// The row's version; none if it is gone.
    pub version: Option<Version>,
    /// One per UNIQUE index and row of the table with which this row collides. Empty for a moment
    /// after the other row went, and while another constraint keeps this row out.
    pub collisions: Vec<Collision>,
}

/// A row of the table that keeps a displaced row out.
#[derive(Debug, PartialEq)]
pub struct Collision {
    /// Name of the UNIQUE index.
    pub index: String,
    /// Columns or expressions of the index, and the values that both rows have there.
    pub tuple: Vec<(String, OwnedValue)>,
    /// Names and values of the key of the row that is in the table.
    pub winner_key: Vec<(String, OwnedValue)>,
    /// Version of that row; none if it was written just now and has no version yet.
    pub winner_version: Option<Version>,
}

impl Conflict {
    /// Names and values of the displaced row's key columns.
    pub fn key(&self) -> &[(String, OwnedValue)] {
        &self.row[..self.key_len]
    }
}

/// Gives every displaced row of the database to `show`, by table and key, as of one moment. Fails
/// if the file cannot be read, or if HarmonyLite was never started on it.
pub fn conflicts(path: &Path, show: &mut dyn FnMut(Conflict)) -> Result<()> {
    let conn = ReadOnly::open(path)?.conn;
    conn.execute_batch("BEGIN")?;
    let ours = "SELECT 1 FROM sqlite_schema WHERE name = '__harmonylite___displaced'";
    if !conn.prepare(ours)?.exists([])? {
        return Err(DatabaseError::Unusable(
            "HarmonyLite was never started on it: its tables are missing".into(),
        ));
    }
    let sites = Sites::load(&conn)?;
    let has_lives = own_tables::has_lives(&conn)?;
    let waits = match has_lives {
        true => {
            "EXISTS (SELECT 1 FROM __harmonylite___lives WHERE table_id = t.id AND deleted = 0)"
        }
        false => "0",
    };
    let find = format!(
        "SELECT t.id FROM __harmonylite___tables t WHERE t.name = ?1
         AND (t.id IN (SELECT table_id FROM __harmonylite___displaced) OR {waits})"
    );
    for schema in selection::read(&conn, &selection::all, true)?.replicated {
        let id: i64 = match conn.query_row(&find, [&schema.name], |r| r.get(0)) {
            Ok(id) => id,
            Err(rusqlite::Error::QueryReturnedNoRows) => continue,
            Err(e) => return Err(e.into()),
        };
        conflicts_of_table(&conn, &sites, (id, has_lives), schema, show)?;
    }
    Ok(())
}

pub(super) fn open(path: &Path) -> Result<Connection> {
    Ok(ReadOnly::open(path)?.conn)
}

fn conflicts_of_table(
    conn: &Connection,
    sites: &Sites,
    (id, has_lives): (i64, bool),
    schema: Schema,
    show: &mut dyn FnMut(Conflict),
) -> Result<()> {
    create_probe(conn, &schema)?;
    let born = vec![0; schema.columns.len()];
    let table = Table::new(id, schema, born);
    let mut rows = Rows::new(conn, &table)?;
    let mut keys =
        conn.prepare("SELECT key FROM __harmonylite___displaced WHERE table_id = ?1 ORDER BY key")?;
    let mut keys = keys.query(params![id])?;
    let displaced = DisplacedRows {
        conn,
        table: &table,
    };
    while let Some(row) = keys.next()? {
        let key_bytes: Vec<u8> = row.get(0)?;
        let values = displaced.row(&key_bytes)?.unwrap_or_default();
        let mut collisions = Vec::new();
        for tuple in tuples(conn, &table, &values)? {
            for winner in rows_with(conn, &table, &tuple)? {
                let key = &winner[..table.key_len()];
                let terms = tuple.index.terms.iter();
                let terms = terms.map(|(term, _)| unquoted(term));
                collisions.push(Collision {
                    index: tuple.index.name.clone(),
                    tuple: terms.zip(tuple.values.iter().cloned()).collect(),
                    winner_version: version(&mut rows, sites, key)?,
                    winner_key: named(&table, key),
                });
            }
        }
        show(Conflict {
            table: table.name().to_owned(),
            row: named(&table, &values),
            key_len: table.key_len(),
            version: version(&mut rows, sites, &cbor::key_values(&key_bytes)?)?,
            collisions,
        });
    }
    match has_lives {
        true => waiting(&mut rows, sites, show),
        false => Ok(()),
    }
}

/// Shows the rows of a table that wait for their number.
fn waiting(rows: &mut Rows<'_>, sites: &Sites, show: &mut dyn FnMut(Conflict)) -> Result<()> {
    let (conn, table) = (rows.conn, rows.table);
    let mut keys = conn.prepare(
        "SELECT DISTINCT key FROM __harmonylite___lives
         WHERE table_id = ?1 AND deleted = 0 ORDER BY key",
    )?;
    let mut keys = keys.query([table.id])?;
    while let Some(row) = keys.next()? {
        let key_bytes: Vec<u8> = row.get(0)?;
        let key = cbor::key_values(&key_bytes)?;
        let lives = Lives { conn, table };
        lives.each_learnt_by(sites, (&key_bytes, i64::MAX), |life| {
            if life.values.is_empty() {
                return Ok(());
            }
            let collision = Collision {
                index: "PRIMARY KEY".to_owned(),
                tuple: named(table, &key),
                winner_version: version(rows, sites, &key)?,
                winner_key: named(table, &key),
            };
            show(Conflict {
                table: table.name().to_owned(),
                row: named(table, &life.values),
                key_len: table.key_len(),
                version: Some(life.stored.state.version),
                collisions: vec![collision],
            });
            Ok(())
        })?;
    }
    Ok(())
}

/// Values with the names of their columns, as the user writes them.
pub(super) fn named(table: &Table, values: &[OwnedValue]) -> Vec<(String, OwnedValue)> {
    let name = |(i, value): (usize, &OwnedValue)| {
        let name = match (i, table.schema.rowid) {
            (0, Some(rowid)) => rowid.to_owned(),
            _ => table.schema.columns[i].name.clone(),
        };
        (name, value.clone())
    };
    values.iter().enumerate().map(name).collect()
}

/// The version of a live row; none if the row has none or is deleted.
pub(super) fn version(
    rows: &mut Rows<'_>,
    sites: &Sites,
    key: &[OwnedValue],
) -> Result<Option<Version>> {
    let key: Vec<Value<'_>> = key.iter().map(OwnedValue::borrow).collect();
    let stored = rows.version(sites, &key)?.filter(|s| !s.state.deleted);
    Ok(stored.map(|s| s.state.version))
}

/// The plain name of a quoted column, or an expression without its outer parentheses.
fn unquoted(term: &str) -> String {
    let between = |a: char, b: char| term.strip_prefix(a).and_then(|t| t.strip_suffix(b));
    match (between('"', '"'), between('(', ')')) {
        (Some(name), _) => name.replace("\"\"", "\""),
        (None, Some(expression)) => expression.to_owned(),
        (None, None) => term.to_owned(),
    }
}
