//! Rows that break a constraint of one node while others collide.

use std::time::Duration;

use super::support::{Node, assert_equal, cluster, converge, exchange};

const ALL: &str = "SELECT * FROM t ORDER BY 1";
const FREE: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, a UNIQUE, b UNIQUE, w)";
const CHECKED: &str =
    "CREATE TABLE t(id INTEGER PRIMARY KEY, a UNIQUE, b UNIQUE, w CHECK (w < 10))";

fn rebuild(schema: &str) -> String {
    let new = schema.replace("TABLE t(", "TABLE new(");
    format!(
        "BEGIN; {new}; INSERT INTO new SELECT * FROM t; DROP TABLE t;
         ALTER TABLE new RENAME TO t; COMMIT"
    )
}

/// Nodes with one schema have the same rows, whether or not another row was displaced when the row
/// came.
#[test]
fn a_row_that_does_not_fit_is_held_whatever_is_displaced() {
    let mut n = cluster(3, FREE);
    n.extend([4, 5].map(|id| Node::new(id, CHECKED)));
    n[0].run("INSERT INTO t VALUES (1, 'x', 'x', 1)");
    converge(&mut n);
    for (i, sql) in [
        "INSERT INTO t VALUES (2, 'same', 'hidden, and does not fit', 99)",
        "INSERT INTO t VALUES (3, 'same', 'hidden', 1)",
        "INSERT INTO t VALUES (4, 'same', 'seen', 1)",
    ]
    .iter()
    .enumerate()
    {
        n.iter()
            .for_each(|n| n.clock.advance(Duration::from_secs(1)));
        n[i].run(sql);
    }
    n[0].clock.advance(Duration::from_secs(9));
    n[0].run("UPDATE t SET w = 99 WHERE id = 1");
    let [unfit, hidden, seen] = [0, 1, 2].map(|i| n[i].publish());
    for frames in [&hidden, &seen, &unfit] {
        n[..4].iter_mut().for_each(|node| node.apply(frames));
    }
    for frames in [&unfit, &hidden, &seen] {
        n[4].apply(frames);
    }
    assert_eq!(
        assert_equal(&n[3..], ALL).lines().next(),
        Some("i1 t'x' t'x' i1")
    );
    for node in &n[3..] {
        assert_eq!(
            (node.db.held().unwrap(), node.db.displaced().unwrap()),
            (2, 1)
        );
    }
    n[3..].iter().for_each(|node| node.run(&rebuild(FREE)));
    let all = converge(&mut n);
    assert_eq!(n[3].rows("SELECT w FROM t WHERE id = 1"), "i99", "{all}");
}

/// The incoming change carries one column only; the row here has the others.
#[test]
fn a_column_that_arrives_alone_fits_a_row_that_is_there() {
    for key in [
        "id INTEGER PRIMARY KEY",
        "id TEXT COLLATE NOCASE PRIMARY KEY",
        "id",
    ] {
        let schema = format!("CREATE TABLE t({key}, title NOT NULL, n DEFAULT 0 CHECK (n > 0))");
        let mut n = cluster(2, &schema);
        n[0].run("INSERT INTO t VALUES ('1', 'x', 5)");
        converge(&mut n);
        let add = "ALTER TABLE t ADD COLUMN c";
        n[0].run(add);
        n[0].capture();
        n[0].run("UPDATE t SET c = 'written'");
        exchange(&mut n);
        n[1].run(add);
        converge(&mut n);
        assert_eq!(n[1].rows("SELECT c FROM t"), "t'written'", "{key}");
        assert_eq!(n[1].db.held().unwrap(), 0, "{key}");
    }
}

/// An application that writes its SQL in Latin-1: SQLite takes any bytes.
#[test]
fn a_schema_that_is_not_utf_8_leaves_that_table_alone() {
    let schema = "CREATE TABLE t(id INTEGER PRIMARY KEY, v);
                  CREATE TABLE named_X(id INTEGER PRIMARY KEY); CREATE TABLE c(id INTEGER PRIMARY \
                  KEY, column_X);
                  CREATE TABLE d(id INTEGER PRIMARY KEY, v DEFAULT 'caf_X');
                  CREATE TABLE e(id INTEGER PRIMARY KEY, v); CREATE UNIQUE INDEX i ON e(v) WHERE v \
                  <> 'caf_X';
                  CREATE TABLE f(id INTEGER PRIMARY KEY, v CHECK (v <> 'caf_X')); CREATE UNIQUE \
                  INDEX j ON f(lower(v))";
    let mut n = cluster(2, "CREATE TABLE other(id INTEGER PRIMARY KEY)");
    for node in &mut n {
        node.run(schema);
        node.app
            .execute_batch(
                "PRAGMA writable_schema = ON;
                 UPDATE sqlite_schema SET name = CAST(replace(CAST(name AS BLOB), x'5f58', x'e9') \
                 AS TEXT),
                     tbl_name = CAST(replace(CAST(tbl_name AS BLOB), x'5f58', x'e9') AS TEXT),
                     sql = CAST(replace(CAST(sql AS BLOB), x'5f58', x'e9') AS TEXT)
                 WHERE sql LIKE '%\\_X%' ESCAPE '\\'; PRAGMA writable_schema = RESET",
            )
            .unwrap();
    }
    n[0].run("INSERT INTO t VALUES (1, 'a'); INSERT INTO d(id) VALUES (1)");
    exchange(&mut n);
    n[1].restart();
    n[1].run("INSERT INTO t VALUES (2, 'b')");
    exchange(&mut n);
    assert_eq!(n[0].rows("SELECT id FROM t"), "i1\ni2");
    assert_eq!(n[1].rows("SELECT count(*) FROM d"), "i0");
}

/// Our triggers contain the column's new name, too; and the name may be gone at the next check.
#[test]
fn a_column_that_is_renamed_to_what_is_not_utf_8_leaves_its_table_alone() {
    let mut n = cluster(
        2,
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE TABLE c(id INTEGER PRIMARY KEY, _X);
         CREATE TABLE d(id INTEGER PRIMARY KEY, _X, v)",
    );
    n[0].run("INSERT INTO t VALUES (1, 'a')");
    converge(&mut n);
    for node in &mut n {
        node.run(
            "PRAGMA writable_schema = ON;
             UPDATE sqlite_schema SET sql = CAST(replace(CAST(sql AS BLOB), x'5f58', x'e9') AS TEXT)
             WHERE type = 'trigger' OR name = 'c'; PRAGMA writable_schema = RESET;
             ALTER TABLE d DROP COLUMN _X; ALTER TABLE d ADD COLUMN w",
        );
    }
    n[0].run("UPDATE t SET v = 'b'; INSERT INTO c VALUES (1, 'left alone')");
    n[0].run("INSERT INTO d VALUES (1, 'v', 'w')");
    exchange(&mut n);
    n[1].restart();
    exchange(&mut n);
    assert_eq!(n[1].rows("SELECT v, (SELECT w FROM d) FROM t"), "t'b' t'w'");
    assert_eq!(n[1].rows("SELECT count(*) FROM c"), "i0");
}
