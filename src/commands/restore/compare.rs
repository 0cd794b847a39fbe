//! `restore -dry-run`: what a snapshot lacks of the rows that are here, by table. Nothing is
//! written.

use std::path::Path;

use crossbeam_channel::Receiver;
use rusqlite::{Connection, OpenFlags, params};

use super::is_told;
use crate::database::schema::{PREFIX, quote};

/// A table that both databases have, and the snapshot replicates.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LackedRows {
    pub table: String,
    /// Rows in the snapshot, and here.
    pub there: u64,
    pub here: u64,
    /// Rows here whose key the snapshot lacks; none if the key is a different one there.
    pub lacking: Option<u64>,
}

impl LackedRows {
    /// Whether more than a tenth of the rows would be gone.
    pub(super) fn is_many(&self) -> bool {
        self.lacking.is_some_and(|lacking| lacking * 10 > self.here)
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
    let mut both = conn.prepare(&format!(
        "SELECT here.name FROM main.sqlite_schema AS here
         JOIN snapshot.sqlite_schema AS there ON there.name = here.name COLLATE NOCASE
         WHERE here.type = 'table' AND there.type = 'table' AND here.rootpage > 0
           AND there.rootpage > 0 AND here.name NOT GLOB '__harmonylite__*'
           AND here.name NOT GLOB 'sqlite_*' AND EXISTS
             (SELECT 1 FROM snapshot.sqlite_schema AS own
              WHERE own.name = '{PREFIX}' || there.name || '_versions' COLLATE NOCASE)
         ORDER BY here.name"
    ))?;
    let both = both.query_map([], |r| r.get(0))?;
    let both: Vec<String> = both.collect::<rusqlite::Result<_>>()?;
    both.into_iter()
        .map(|table| compare_one(&conn, table))
        .collect()
}

fn compare_one(conn: &Connection, table: String) -> rusqlite::Result<LackedRows> {
    let (key, key_there) = (key(conn, &table, "main")?, key(conn, &table, "snapshot")?);
    let name = quote(&table);
    let count = |schema: &str| {
        let text = format!("SELECT count(*) FROM {schema}.{name}");
        conn.query_row(&text, [], |r| r.get(0))
    };
    let (there, here) = (count("snapshot")?, count("main")?);
    let mut lacking = None;
    if key == key_there {
        let same = key.iter().map(|k| format!("there.{k} IS here.{k}"));
        let same: Vec<String> = same.collect();
        let text = format!(
            "SELECT count(*) FROM main.{name} AS here WHERE NOT EXISTS
             (SELECT 1 FROM snapshot.{name} AS there WHERE {})",
            same.join(" AND ")
        );
        lacking = Some(conn.query_row(&text, [], |r| r.get(0))?);
    }
    Ok(LackedRows {
        table,
        there,
        here,
        lacking,
    })
}

/// Names of the key's columns as SQL has them, in lower case; "rowid" where there is no key.
fn key(conn: &Connection, table: &str, schema: &str) -> rusqlite::Result<Vec<String>> {
    let text = "SELECT lower(name) FROM pragma_table_info(?1, ?2) WHERE pk > 0 ORDER BY pk";
    let mut names = conn.prepare_cached(text)?;
    let names = names.query_map(params![table, schema], |r| r.get::<_, String>(0))?;
    let names = names.map(|name| Ok(quote(&name?)));
    let mut names: Vec<String> = names.collect::<rusqlite::Result<_>>()?;
    if names.is_empty() {
        names.push("rowid".to_owned());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::never;
    use rusqlite::Connection;

    use super::{LackedRows, compare};

    /// The snapshot's table w has a different key, and its table x is not replicated.
    #[test]
    fn tables_are_compared_that_the_snapshot_replicates_under_the_same_key() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            Connection::open(&path)
                .unwrap()
                .execute_batch(text)
                .unwrap();
            path
        };
        let versions = "CREATE TABLE __harmonylite__t_versions(k1);
             CREATE TABLE __harmonylite__w_versions(k1)";
        let tables = "CREATE TABLE T(id INTEGER PRIMARY KEY); CREATE TABLE x(id);
             INSERT INTO t VALUES (1), (2)";
        let here =
            format!("{tables}, (3); CREATE TABLE w(a PRIMARY KEY); INSERT INTO x VALUES (1)");
        let there = format!("{versions}; {tables}; CREATE TABLE w(b PRIMARY KEY) WITHOUT ROWID");
        let found = compare(&file("there", &there), &file("here", &here), &never()).unwrap();
        let of = |table: &str, there, here, lacking| LackedRows {
            table: table.into(),
            there,
            here,
            lacking,
        };
        assert_eq!(found, [of("T", 2, 3, Some(1)), of("w", 0, 0, None)]);
        assert!(found[0].is_many() && !found[1].is_many());
    }
}
