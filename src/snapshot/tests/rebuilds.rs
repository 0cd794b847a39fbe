//! Snapshots beside migrations that rebuild a table.

use std::time::Duration;

use super::{BOOKS, snapshot};
use crate::apply::tests::support::Node;

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
