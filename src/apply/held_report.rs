//! Lists held changes and the reasons, for people. The connection only reads, so the report works
//! beside a running daemon and changes nothing.

use std::collections::BTreeSet;
use std::path::Path;

use rusqlite::{Connection, OptionalExtension, params};

use crate::apply::conflicts::open;
use crate::apply::held::{FOR_COLUMN, shape_of_known, shape_of_table};
use crate::apply::held_size::ENTRY_BYTES;
use crate::apply::let_go::{LetGo, held_tables};
use crate::database::selection;
use crate::database::table::Table;
use crate::database::{DatabaseError, Former, Result};
use crate::model::merge::FLOOR;
use crate::model::version::milliseconds;

/// Bound of the reasons, and of the columns, that are listed per table.
const LISTED: usize = 20;

/// The held rows of one table.
#[derive(Debug, PartialEq, Eq)]
pub struct HeldTable {
    /// Name of the table in lower case.
    pub table: String,
    /// Whether this database has the table, and it can be replicated.
    pub is_here: bool,
    /// Rows of which something is held.
    pub rows: u64,
    /// Bytes of the held entries.
    pub bytes: u64,
    /// When the oldest held version was written, in unix milliseconds.
    pub oldest_ms: i64,
    /// When the newest held version was written, in unix milliseconds.
    pub newest_ms: i64,
    /// Reasons with the number of rows of each, the most frequent first; at most 20.
    pub reasons: Vec<(String, u64)>,
    /// Columns that the table lacks here, with the storage class of a held value; at most 20.
    pub columns: Vec<(String, String)>,
    /// Shapes of the held rows' keys that differ from the table's key here; at most 20, and empty
    /// if the table is not here.
    pub keys: Vec<String>,
    /// Shape of the table's key here; none if the table is not here.
    pub key_here: Option<String>,
    /// Former keys of the table among `keys`: the rows come from nodes that have not migrated.
    pub former_keys: Vec<String>,
}

/// Everything that is held in a database.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct HeldReport {
    /// Tables with held rows, sorted by name.
    pub tables: Vec<HeldTable>,
    /// Names of tables that were let go: a snapshot brings their rows once the tables are here.
    pub let_go: Vec<String>,
    /// Names of tables for which a snapshot is awaited.
    pub awaited: Vec<String>,
    /// Names of tables that are here, and whose changes that do not fit them are let go.
    pub unfit: Vec<String>,
}

/// Reads what is held, as of one moment. Fails if the file cannot be read, or if HarmonyLite was
/// never started on it.
pub fn held_report(path: &Path) -> Result<HeldReport> {
    let conn = open(path)?;
    conn.execute_batch("BEGIN")?;
    let ours = "SELECT 1 FROM sqlite_schema WHERE name = '__harmonylite___held'";
    if !conn.prepare(ours)?.exists([])? {
        return Err(DatabaseError::Unusable(
            "HarmonyLite was never started on it: its tables are missing".into(),
        ));
    }
    let schemas = selection::read(&conn, &selection::all, true)?;
    let here: Vec<Table> = schemas
        .replicated
        .into_iter()
        .map(|schema| {
            let born = vec![0; schema.columns.len()];
            Table::new(0, schema, born)
        })
        .collect();
    let tables = held_tables(&conn)?.into_iter();
    let tables: Result<Vec<_>> = tables.map(|name| held_table(&conn, name, &here)).collect();
    let [let_go, awaited, unfit] = LetGo::load(&conn)?.into_names();
    Ok(HeldReport {
        tables: tables?,
        let_go,
        awaited,
        unfit,
    })
}

fn held_table(conn: &Connection, table: String, here: &[Table]) -> Result<HeldTable> {
    let local = here.iter().find(|t| t.name().eq_ignore_ascii_case(&table));
    let rows = conn.query_row(
        "SELECT count(*) FROM (SELECT DISTINCT shape, key FROM __harmonylite___held
                               WHERE table_name = ?1)",
        [&table],
        |r| r.get(0),
    )?;
    let (bytes, oldest, newest) = conn.query_row(
        "SELECT sum(?2 + length(shape) + length(key) + length(column) + length(reason)
                    + ifnull(octet_length(value), 0)), min(hlc), max(hlc)
         FROM __harmonylite___held WHERE table_name = ?1",
        params![table, (ENTRY_BYTES + table.len() as u64) as i64],
        |r| Ok((r.get::<_, i64>(0)?, r.get(1)?, r.get(2)?)),
    )?;
    let reasons = "SELECT reason, count(*)
                   FROM (SELECT DISTINCT reason, shape, key FROM __harmonylite___held
                         WHERE table_name = ?1)
                   GROUP BY reason ORDER BY 2 DESC, 1 LIMIT ?2";
    let mut reasons = conn.prepare(reasons)?;
    let reasons = reasons.query_map(params![table, LISTED as i64], |r| {
        Ok((r.get(0)?, r.get(1)?))
    })?;
    let key_here = local.map(shape_of_table);
    let keys = match &key_here {
        Some(key) => other_keys(conn, &table, key)?,
        None => Vec::new(),
    };
    let before = former_keys(conn)?;
    let is_former = |key: &&String| before.contains(*key);
    Ok(HeldTable {
        is_here: local.is_some(),
        rows,
        bytes: bytes as u64,
        oldest_ms: milliseconds(oldest),
        newest_ms: milliseconds(newest),
        reasons: reasons.collect::<rusqlite::Result<_>>()?,
        columns: missing_columns(conn, &table)?,
        former_keys: keys.iter().filter(is_former).cloned().collect(),
        keys,
        key_here,
        table,
    })
}

fn other_keys(conn: &Connection, table: &str, here: &str) -> Result<Vec<String>> {
    let mut list = conn.prepare(
        "SELECT DISTINCT shape FROM __harmonylite___held WHERE table_name = ?1 AND shape <> ?2
         LIMIT ?3",
    )?;
    let keys = list.query_map(params![table, here, LISTED as i64], |r| r.get(0))?;
    Ok(keys.collect::<rusqlite::Result<_>>()?)
}

/// Shapes of the keys that tables had before, as far as the database remembers them.
fn former_keys(conn: &Connection) -> Result<BTreeSet<String>> {
    let Ok(mut list) = conn.prepare("SELECT shape FROM __harmonylite___former") else {
        return Ok(BTreeSet::new()); // of an earlier release
    };
    let shapes = list.query_map([], |r| r.get::<_, Vec<u8>>(0))?;
    let shapes = shapes.collect::<rusqlite::Result<Vec<_>>>()?;
    let known = shapes
        .iter()
        .filter_map(|shape| ciborium::from_reader::<Former, _>(&shape[..]).ok());
    Ok(known.map(|former| shape_of_known(&former.shape)).collect())
}

fn missing_columns(conn: &Connection, table: &str) -> Result<Vec<(String, String)>> {
    let mut list = conn.prepare(
        "SELECT DISTINCT column FROM __harmonylite___held
         WHERE table_name = ?1 AND reason = ?2 AND column <> ?3 LIMIT ?4",
    )?;
    let columns = list.query_map(params![table, FOR_COLUMN, FLOOR, LISTED as i64], |r| {
        r.get(0)
    })?;
    let columns: Vec<String> = columns.collect::<rusqlite::Result<_>>()?;
    let class = "SELECT typeof(value) FROM __harmonylite___held
                 WHERE table_name = ?1 AND column = ?2 AND value NOT NULL LIMIT 1";
    let mut class = conn.prepare(class)?;
    let mut all = Vec::new();
    for column in columns {
        let of: Option<String> = class.query_row([table, &column], |r| r.get(0)).optional()?;
        all.push((column, of.unwrap_or_else(|| "null".into())));
    }
    Ok(all)
}
