//! Snapshots beside migrations that rebuild a table.

use std::time::Duration;

use super::{BOOKS, at, merge, snapshot};
use crate::apply::tests::support::{Node, cluster, converge, exchange};

const QUIET: Duration = Duration::from_secs(2);

/// Ways to rebuild `Books`, a transaction each step. The third tool is one that nobody knows.
const WAYS: [&[&str]; 4] = [
    &[
        "CREATE TABLE new_Books(id INTEGER PRIMARY KEY, title TEXT, isbn TEXT, n DEFAULT 7)",
        "INSERT INTO new_Books(id, title, isbn) SELECT id, title, isbn FROM Books",
        "DROP TABLE Books",
        "ALTER TABLE new_Books RENAME TO Books",
    ],
    &[
        "CREATE TABLE Books_backup(id INTEGER PRIMARY KEY, title TEXT, isbn TEXT)",
        "INSERT INTO Books_backup SELECT * FROM Books",
        "DROP TABLE Books",
        "CREATE TABLE Books(id TEXT PRIMARY KEY, title TEXT, isbn TEXT)",
        "INSERT INTO Books SELECT * FROM Books_backup",
        "DROP TABLE Books_backup",
    ],
    &[
        "CREATE TABLE neu(id INTEGER PRIMARY KEY, title TEXT, isbn TEXT)",
        "INSERT INTO neu SELECT * FROM Books",
        "DROP TABLE Books",
        "ALTER TABLE neu RENAME TO Books",
    ],
    &[
        "ALTER TABLE Books RENAME TO __old_push_Books",
        "CREATE TABLE Books(id INTEGER PRIMARY KEY, title TEXT, isbn TEXT)",
        "INSERT INTO Books SELECT * FROM __old_push_Books",
        "DROP TABLE __old_push_Books",
    ],
];

fn has_view(node: &mut Node) -> bool {
    (0..10).any(|_| node.db.view().unwrap().0.is_some())
}

/// In between, the table has not its rows, and the new node would have a half-made one.
#[test]
fn a_snapshot_waits_until_a_table_is_rebuilt() {
    for steps in WAYS {
        let mut node = Node::new(1, BOOKS);
        node.be_quiet();
        node.run("INSERT INTO Books VALUES (1, 'a', 'x'), (2, 'b', 'y')");
        node.capture();
        assert!(has_view(&mut node));
        for step in steps {
            node.run(step);
            assert!(!has_view(&mut node), "after {step}");
            node.clock.advance(Duration::from_millis(10));
        }
        for _ in 0..3 {
            node.clock.advance(QUIET);
            node.capture();
        }
        assert!(has_view(&mut node), "after {steps:?}");
        let taken = snapshot(&mut node);
        let fresh = Node::linked(2, &taken.0, |_| {});
        assert_eq!(
            fresh
                .rows("SELECT id FROM Books ORDER BY 1")
                .lines()
                .count(),
            2
        );
    }
}

/// The daemon sees nothing of a TEMP copy: a table that was dropped may be about to come back.
#[test]
fn a_snapshot_waits_for_a_table_that_comes_back_from_a_temp_copy() {
    for key in ["INTEGER", "TEXT"] {
        let mut node = Node::new(1, BOOKS);
        node.be_quiet();
        node.run("INSERT INTO Books VALUES (1, 'a', 'x'), (2, 'b', 'y')");
        node.capture();
        node.clock.advance(QUIET);
        node.run("CREATE TEMP TABLE saved AS SELECT * FROM Books");
        assert!(has_view(&mut node));
        for step in [
            "DROP TABLE Books".to_owned(),
            format!("CREATE TABLE Books(id {key} PRIMARY KEY, title TEXT, isbn TEXT)"),
            "INSERT INTO Books SELECT * FROM saved".to_owned(),
        ] {
            node.run(&step);
            assert!(!has_view(&mut node), "after {step}");
            assert!(node.db.next_check().is_some());
            node.clock.advance(QUIET / 2);
        }
        node.run("DROP TABLE saved");
        for _ in 0..3 {
            node.clock.advance(QUIET);
            node.capture();
        }
        assert!(has_view(&mut node));
        // A table that is dropped for good keeps a snapshot waiting for that time only.
        node.run("DROP TABLE Books");
        assert!(!has_view(&mut node));
        node.clock.advance(QUIET);
        assert!(has_view(&mut node));
        assert_eq!(node.db.next_check(), None);
    }
}

/// Its tool is about to make the table, and fails if it is there.
#[test]
fn a_snapshot_creates_no_table_that_a_migration_dropped() {
    let mut n = [Node::new(1, BOOKS), Node::new(2, BOOKS)];
    n[0].run("INSERT INTO Books VALUES (1, 'a', 'x')");
    exchange(&mut n);
    n[1].run("CREATE TEMP TABLE saved AS SELECT * FROM Books; DROP TABLE Books");
    n[1].capture();
    n[0].run("INSERT INTO Books VALUES (2, 'b', 'y')");
    n[0].capture();
    at(&mut n[0], 20);
    let taken = snapshot(&mut n[0]);
    merge(&mut n[1], &taken);
    n[1].run(BOOKS);
    n[1].run("INSERT INTO Books SELECT * FROM saved");
    n[1].capture();
    converge(&mut n);
    assert_eq!(n[1].rows("SELECT id FROM Books ORDER BY 1"), "i1\ni2");
    assert_eq!(n[1].db.held().unwrap(), 0);
}

/// A table that is new, and looks like no other one, does not keep a snapshot waiting.
#[test]
fn a_snapshot_does_not_wait_for_a_new_table() {
    let mut node = Node::new(1, BOOKS);
    node.be_quiet();
    node.run("INSERT INTO Books VALUES (1, 'a', 'x')");
    node.capture();
    node.run("CREATE TABLE logs(at PRIMARY KEY, text)");
    assert!(has_view(&mut node));
}

/// Nodes that were not there when the key changed remember the former one, and cannot find rows by
/// what these held.
#[test]
fn rows_arrive_where_a_former_key_without_its_columns_came_by_a_snapshot() {
    let before = "CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT NOT NULL, v)";
    let after = "t(a TEXT NOT NULL PRIMARY KEY, v)";
    let mut n = cluster(2, before);
    n[0].run("INSERT INTO t VALUES (1, 'a', 'x'), (2, 'b', 'y')");
    exchange(&mut n);
    n[0].run("DELETE FROM t WHERE id = 2");
    for node in &mut n {
        node.run(&format!(
            "BEGIN; CREATE TABLE new_{after}; INSERT INTO new_t SELECT a, v FROM t; DROP TABLE t;
             ALTER TABLE new_t RENAME TO t; COMMIT"
        ));
        node.capture();
        at(node, 10);
    }
    let mut fresh = Node::new(3, &format!("CREATE TABLE {after}"));
    fresh.capture();
    merge(&mut fresh, &snapshot(&mut n[0]));
    n[1].run("INSERT INTO t VALUES ('c', 'new'); UPDATE t SET v = 'changed' WHERE a = 'a'");
    n.push(fresh);
    converge(&mut n);
    n[2].restart();
    n[0].run("UPDATE t SET v = 'again' WHERE a = 'c'");
    converge(&mut n);
    assert_eq!(
        n[2].rows("SELECT * FROM t WHERE a <> 'b' ORDER BY 1"),
        "t'a' t'changed'\nt'c' t'again'"
    );
}
