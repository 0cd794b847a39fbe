//! Tables whose key changes, in cases that the simulation found to fail.

use std::time::Duration;

use super::support::{Node, cluster, converge, exchange};

const BEFORE: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)";

const STEPS: [&str; 4] = [
    "CREATE TABLE new_t(id TEXT NOT NULL PRIMARY KEY, v)",
    "INSERT INTO new_t SELECT id, v FROM t",
    "DROP TABLE t",
    "ALTER TABLE new_t RENAME TO t",
];

fn rebuild(node: &Node) {
    node.run(&format!("BEGIN; {}; COMMIT", STEPS.join(";")));
}

/// A node itself deleted a row under the old key: its tombstone under the new key is its own.
#[test]
fn a_row_of_the_old_key_is_nobody_elses_write() {
    let mut n = cluster(2, BEFORE);
    n[0].run("INSERT INTO t VALUES (1, 'a'), (2, 'b')");
    converge(&mut n);
    let id = n[0].db.node();
    n[0].run("DELETE FROM t WHERE id = 1");
    n[0].capture();
    n.iter().for_each(rebuild);
    exchange(&mut n);
    converge(&mut n);
    assert_eq!(n[0].db.node(), id, "it has no duplicate");
    assert_eq!(n[1].rows("SELECT id, v FROM t"), "t'2' t'b'");
}

/// No row of the table had a version at the rebuild: each write counts by its own time.
#[test]
fn rows_from_before_the_first_capture_count_as_written_then() {
    let mut n = cluster(2, BEFORE);
    n[0].capture();
    n[0].run("INSERT INTO t VALUES (1, 'early')");
    n[1].clock.advance(Duration::from_secs(5));
    n[1].run("INSERT INTO t VALUES (1, 'late')");
    n[1].capture();
    n.iter().for_each(rebuild);
    n.iter()
        .for_each(|node| node.clock.advance(Duration::from_secs(10)));
    converge(&mut n);
    assert_eq!(n[0].rows("SELECT v FROM t"), "t'late'");
}

/// The only table of the database is gone for a moment, and all our triggers with it.
#[test]
fn a_start_between_two_steps_is_no_first_one() {
    let mut node = Node::new(1, BEFORE);
    node.be_quiet();
    node.run("INSERT INTO t VALUES (1, 'a')");
    node.capture();
    for step in &STEPS[..3] {
        node.run(step);
        node.capture();
    }
    node.restart();
    node.be_quiet();
    node.capture();
    assert!(!node.db.tables().contains_key("new_t"));
    node.run(STEPS[3]);
    node.capture();
    node.clock.advance(Duration::from_secs(3));
    node.capture();
    assert!(node.db.tables().contains_key("t"));
}
