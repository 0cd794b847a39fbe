//! A column's DEFAULT in rows that give no value for it.

use std::time::Duration;

use super::support::{Node, cluster, converge, exchange};

const HOUR: Duration = Duration::from_secs(3600);

/// One node adds a column, and a user writes it there. Another node writes the row and adds the
/// column later: the default that it then has there is no write.
fn a_column_comes_late(default: &str, options: &str) {
    let schema = format!("CREATE TABLE t(id INTEGER PRIMARY KEY, v ANY) {options}");
    let add = format!("ALTER TABLE t ADD COLUMN c ANY DEFAULT {default}");
    let mut n = cluster(2, &schema);
    n[0].run("INSERT INTO t VALUES (1, 'old')");
    converge(&mut n);
    n[0].run(&add);
    n[0].capture();
    n[0].run("UPDATE t SET c = 'written by a user'");
    n[0].capture();
    n[1].clock.advance(HOUR);
    n[1].run("UPDATE t SET v = 'new'");
    exchange(&mut n);
    n[1].run(&add);
    let all = converge(&mut n);
    assert!(all.contains("written by a user"), "{default}: {all}");
}

#[test]
fn every_constant_is_a_default() {
    for default in [
        "'n/a'",
        "'n/a (none)'",
        "'CURRENT_'",
        "\"quoted\"",
        "bare",
        "NULL",
        "TRUE",
        "x'00ff'",
        "-1",
        "(+1.50)",
        "(CAST('1' AS INTEGER))",
    ] {
        a_column_comes_late(default, "");
    }
    for default in ["'1'", "1.0", "'('"] {
        a_column_comes_late(default, "STRICT");
    }
}

/// SQLite stores 0 as 0.0 there.
#[test]
fn the_default_of_a_real_column_is_real() {
    let mut n = cluster(2, "CREATE TABLE t(id INTEGER PRIMARY KEY, v)");
    let add = "ALTER TABLE t ADD COLUMN price REAL NOT NULL DEFAULT 0";
    n[0].run("INSERT INTO t VALUES (1, 'old')");
    converge(&mut n);
    n[0].run(add);
    n[0].capture();
    n[0].run("UPDATE t SET price = 9.5");
    n[0].capture();
    n[1].clock.advance(HOUR);
    n[1].run("UPDATE t SET v = 'new'");
    exchange(&mut n);
    n[1].run(add);
    converge(&mut n);
    assert_eq!(
        n[1].rows("SELECT v, price FROM t"),
        "t'new' r4023000000000000(9.5)"
    );
}

#[test]
fn a_default_with_parentheses_evicts_in_the_place_of_null() {
    let mut n = cluster(
        2,
        "CREATE TABLE t(id INTEGER PRIMARY KEY, e TEXT NOT NULL DEFAULT '(none)' UNIQUE)",
    );
    n[0].run("INSERT INTO t VALUES (1, '(none)')");
    converge(&mut n);
    n[0].run("INSERT OR REPLACE INTO t VALUES (2, NULL)");
    converge(&mut n);
    assert_eq!(n[1].rows("SELECT * FROM t"), "i2 t'(none)'");
}

/// A default that SQLite computes for each row.
#[test]
fn a_default_that_is_no_constant_evicts_in_the_place_of_null() {
    for (class, default) in [
        ("TEXT", "CURRENT_DATE"),
        (
            "TEXT COLLATE NOCASE",
            "(strftime('%Y', 'now', '+400 days') || ' A.D.')",
        ),
        ("INTEGER", "(CAST(strftime('%Y', 'now') AS INTEGER))"),
    ] {
        let schema = format!(
            "CREATE TABLE t(id INTEGER PRIMARY KEY, e {class} NOT NULL DEFAULT {default}, v);
             CREATE UNIQUE INDEX i ON t(e, lower(v))"
        );
        let mut n = cluster(2, &schema);
        n[0].run("INSERT INTO t(id, v) VALUES (1, 'v'), (2, 'w')");
        converge(&mut n);
        n[0].run("INSERT OR REPLACE INTO t(id, v) VALUES (9, 'v')");
        n[0].run("INSERT OR REPLACE INTO t VALUES (3, NULL, 'V')");
        n[0].run("INSERT INTO t VALUES (4, 0, 'w'); UPDATE OR REPLACE t SET e = NULL WHERE id = 4");
        converge(&mut n);
        n[0].clock.advance(HOUR);
        n[0].run("UPDATE t SET v = id");
        converge(&mut n);
        assert_eq!(n[1].rows("SELECT id FROM t ORDER BY 1"), "i3\ni4");
    }
}

/// Each node would compute a different value, and no version would decide between them.
#[test]
fn a_default_that_is_no_constant_is_not_worked_out_for_what_arrives() {
    for default in ["(hex(randomblob(8)))", "CURRENT_TIMESTAMP"] {
        let new = format!("CREATE TABLE t(id INTEGER PRIMARY KEY, v, c DEFAULT {default})");
        let mut n = vec![
            Node::new(1, "CREATE TABLE t(id INTEGER PRIMARY KEY, v)"),
            Node::new(2, &new),
            Node::new(3, &new),
        ];
        n[0].run("INSERT INTO t VALUES (1, 'x')");
        exchange(&mut n);
        assert_eq!(n[1].rows("SELECT * FROM t"), "i1 t'x' null");
        n[0].run(&format!(
            "BEGIN; ALTER TABLE t RENAME TO old; {new}; INSERT INTO t SELECT id, v, NULL FROM old;
             DROP TABLE old; COMMIT"
        ));
        converge(&mut n);
        n[2].run("INSERT INTO t(id, v) VALUES (2, 'by the application')");
        converge(&mut n);
        assert_eq!(n[0].rows("SELECT c IS NULL FROM t WHERE id = 2"), "i0");
    }
}
