//! Files and manifests that were made to do harm, and such that merely look so.

use rusqlite::Connection;

use super::{BOOKS, snapshot};
use crate::apply::tests::support::Node;
use crate::snapshot::Merge;
use crate::snapshot::transfer::check;

/// A snapshot of a few books, changed by SQL.
fn forged(sql: &str) -> (Node, (std::path::PathBuf, super::Entry)) {
    let mut a = Node::new(1, BOOKS);
    a.run("INSERT INTO Books VALUES (1, 'Dune', 'x')");
    let taken = snapshot(&mut a);
    let conn = Connection::open(&taken.0).unwrap();
    conn.execute_batch(sql).unwrap();
    conn.close().unwrap();
    (a, taken)
}

/// SQLite itself says so.
#[test]
fn a_schema_of_more_than_one_statement_is_refused() {
    let (_a, taken) = forged(
        "PRAGMA writable_schema = ON;
         UPDATE sqlite_schema SET sql = sql || '; CREATE TABLE evil(x)' WHERE name = 'Books'",
    );
    assert!(Merge::open(&taken.0, &taken.1).is_err());
}

#[test]
fn views_in_place_of_our_tables_are_refused() {
    let (_a, taken) = forged(
        "DROP TABLE __harmonylite___unsent;
         CREATE VIEW __harmonylite___unsent AS
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
         SELECT i AS at, i AS table_id, x'00' AS key FROM n WHERE i < 0",
    );
    assert!(Merge::open(&taken.0, &taken.1).is_err());
}

/// SQLite as it is here lacks the function: such a table is left alone, and no reason to refuse
/// the others.
#[test]
fn functions_of_the_application_are_no_damage() {
    let (_a, taken) = forged(
        "PRAGMA writable_schema = ON;
         CREATE TABLE own(x CHECK(abs(x) > 0), y TEXT); INSERT INTO own VALUES (1, 'y');
         CREATE TABLE sorted(z TEXT COLLATE NOCASE PRIMARY KEY) WITHOUT ROWID;
         INSERT INTO sorted VALUES ('a'), ('b');
         UPDATE sqlite_schema SET sql = replace(sql, 'abs(', 'app(') WHERE name = 'own';
         UPDATE sqlite_schema SET sql = replace(sql, 'NOCASE', 'APPS') WHERE name = 'sorted'",
    );
    check(&taken.0).unwrap();
}

#[test]
fn a_table_that_is_not_what_it_was_is_still_damage() {
    let (_a, taken) = forged("");
    let mut bytes = std::fs::read(&taken.0).unwrap();
    let conn = Connection::open(&taken.0).unwrap();
    let root: usize = conn
        .query_row(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'Books'",
            [],
            |r| r.get(0),
        )
        .unwrap();
    let start = (root - 1) * 4096;
    bytes[start..start + 512].fill(0xff);
    std::fs::write(&taken.0, bytes).unwrap();
    assert!(check(&taken.0).is_err());
}
