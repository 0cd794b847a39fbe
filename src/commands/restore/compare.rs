//! `restore -dry-run`: what a snapshot lacks of the rows that are here, by table. Nothing is
//! written.

use std::path::Path;

use crossbeam_channel::Receiver;
use rusqlite::{Connection, OpenFlags, params};

use super::is_told;
use crate::database::schema::quote;

/// A table that both databases have.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LackedRows {
    pub table: String,
    /// Rows in the snapshot, and here.
    pub there: u64,
    pub here: u64,
    /// Rows here whose key the snapshot lacks.
    pub lacking: u64,
}

impl LackedRows {
    /// Whether more than a tenth of the rows would be gone.
    pub(super) fn is_many(&self) -> bool {
        self.lacking * 10 > self.here
    }
}

/// Compares the keys of the snapshot's file with those of the database. A signal ends it.
pub(super) fn compare(
    snapshot: &Path,
    database: &Path,
    stop: &Receiver<()>,
) -> rusqlite::Result<Vec<LackedRows>> {
    // What is attached to a connection that only reads is only read, too.
    let mut conn = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    conn.execute_batch("PRAGMA trusted_schema = OFF; PRAGMA query_only = ON")?;
    conn.execute("ATTACH ?1 AS snapshot", [snapshot.to_string_lossy()])?;
    let stop = stop.clone();
    conn.progress_handler(10_000, Some(move || is_told(&stop)))?;
    let mut both = conn.prepare(
        "SELECT here.name FROM main.sqlite_schema AS here
         JOIN snapshot.sqlite_schema AS there ON there.name = here.name COLLATE NOCASE
         WHERE here.type = 'table' AND there.type = 'table' AND here.rootpage > 0
           AND there.rootpage > 0 AND here.name NOT GLOB '__harmonylite__*'
           AND here.name NOT GLOB 'sqlite_*' ORDER BY here.name",
    )?;
    let both = both.query_map([], |r| r.get(0))?;
    let both: Vec<String> = both.collect::<rusqlite::Result<_>>()?;
    both.into_iter()
        .map(|table| compare_one(&conn, table))
        .collect()
}

fn compare_one(conn: &Connection, table: String) -> rusqlite::Result<LackedRows> {
    let mut key = conn.prepare_cached(
        "SELECT name FROM pragma_table_info(?1, 'main') WHERE pk > 0 ORDER BY pk",
    )?;
    let key = key.query_map(params![table], |r| r.get::<_, String>(0))?;
    let mut key: Vec<String> = key
        .map(|name| Ok(quote(&name?)))
        .collect::<rusqlite::Result<_>>()?;
    if key.is_empty() {
        key.push("rowid".to_owned());
    }
    let same: Vec<String> = key
        .iter()
        .map(|k| format!("there.{k} IS here.{k}"))
        .collect();
    let name = quote(&table);
    let text = format!(
        "SELECT (SELECT count(*) FROM snapshot.{name}), (SELECT count(*) FROM main.{name}),
                (SELECT count(*) FROM main.{name} AS here WHERE NOT EXISTS
                 (SELECT 1 FROM snapshot.{name} AS there WHERE {}))",
        same.join(" AND ")
    );
    let counts = |r: &rusqlite::Row<'_>| Ok((r.get(0)?, r.get(1)?, r.get(2)?));
    let (there, here, lacking) = conn.query_row(&text, [], counts)?;
    Ok(LackedRows {
        table,
        there,
        here,
        lacking,
    })
}
