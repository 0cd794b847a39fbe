//! The status of a database without a running daemon, from the file alone.

use std::path::Path;

use rusqlite::Connection;

use super::entry::NodeEntry;
use super::local::{COUNTED, NodeFacts};
use super::peers;
use super::report::Status;
use crate::database::meta::{Meta, get_meta};
use crate::database::read_only::ReadOnly;
use crate::database::{DatabaseError, Result};

/// Reads the status on a connection that changes nothing. Fails if the file cannot be read, or if
/// HarmonyLite was never started on it.
pub fn status(path: &Path, name: &str) -> Result<Status> {
    let file = ReadOnly::open(path)?;
    let conn = &file.conn;
    conn.execute_batch("BEGIN")?;
    let ours = "SELECT 1 FROM sqlite_schema WHERE name = '__harmonylite___seq_map'";
    if !conn.prepare(ours)?.exists([])? {
        return Err(DatabaseError::Unusable(
            "HarmonyLite was never started on it: its tables are missing".into(),
        ));
    }
    let (facts, streams) = facts(conn, name)?;
    let why = "no daemon runs on this database".to_owned();
    Ok(Status {
        fine: false,
        running: false,
        ..peers::status(&facts, &streams, Err(why))
    })
}

fn facts(conn: &Connection, name: &str) -> Result<(NodeFacts, Vec<String>)> {
    let mut places =
        conn.prepare("SELECT stream, seq, gap IS NOT NULL FROM __harmonylite___seq_map")?;
    let places = places.query_map([], |r| Ok((r.get(0)?, r.get::<_, i64>(1)?, r.get(2)?)))?;
    let places: Vec<(String, i64, bool)> = places.collect::<rusqlite::Result<_>>()?;
    let count = |what: &str| {
        let text = format!("SELECT count(*) FROM (SELECT {what} LIMIT {COUNTED})");
        conn.query_row(&text, [], |r| r.get::<_, u64>(0))
    };
    let entry = NodeEntry {
        name: name.to_owned(),
        release: env!("CARGO_PKG_VERSION").to_owned(),
        schema: get_meta(conn, Meta::SchemaSha256)?.unwrap_or_default(),
        previous: get_meta(conn, Meta::SchemaSha256Before)?.unwrap_or_default(),
        positions: places.iter().map(|(_, seq, _)| *seq as u64).collect(),
        gaps: places.iter().map(|(.., gap)| *gap).collect(),
        unsent: count("1 FROM __harmonylite___unsent")?
            + count("1 FROM __harmonylite___change_log_global")?,
        held: count("DISTINCT table_name, shape, key FROM __harmonylite___held")?,
        displaced: count("1 FROM __harmonylite___displaced")?,
        quarantined: count("1 FROM __harmonylite___quarantine")?,
        snapshot: get_meta(conn, Meta::MergedSnapshot)?,
        ..NodeEntry::default()
    };
    let node: Option<i64> = get_meta(conn, Meta::NodeId)?;
    let facts = NodeFacts {
        node: node.unwrap_or_default() as u64,
        entry,
        ..NodeFacts::default()
    };
    let streams = places.into_iter().map(|(stream, ..)| stream).collect();
    Ok((facts, streams))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::tests::support::Node;

    #[test]
    fn the_file_alone_says_what_waits() {
        let mut node = Node::new(7, "CREATE TABLE t(id INTEGER PRIMARY KEY)");
        node.run("INSERT INTO t VALUES (1), (2)");
        node.capture();
        node.run("INSERT INTO t VALUES (3)");
        node.db.read_up_to("s-1", 5, "a");
        node.db.flush().unwrap();
        let path = node.dir.path().join("app.db");
        let status = status(&path, "box").unwrap();
        assert!(!status.running && !status.fine);
        assert_eq!((&*status.this.node, &*status.this.name), ("7", "box"));
        assert_eq!(status.this.unsent, Some(3));
        assert_eq!(status.this.streams[0].position, 5);
        assert!(status.this.schema.hash.is_some());
    }

    #[test]
    fn a_database_that_we_never_saw() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db");
        Connection::open(&path)
            .unwrap()
            .execute_batch("CREATE TABLE t(x)")
            .unwrap();
        let e = status(&path, "").unwrap_err().to_string();
        assert!(e.contains("never started on it"), "{e}");
    }
}
