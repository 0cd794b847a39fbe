//! Traces of a row whose delete was forgotten.

use super::{BOOKS, RETENTION, sweep};
use crate::apply::tests::support::{Node, cluster, exchange};

/// A delete that waited to be sent for longer than the retention is remembered from its sending on.
#[test]
fn waiting_changes_do_not_age() {
    let mut a = Node::new(1, BOOKS);
    a.run("INSERT INTO Books VALUES (1, 'goes', 'x')");
    a.publish();
    a.run("DELETE FROM Books");
    a.capture();
    a.db.heard_broker_time(1_700_000_000_000);
    for _ in 0..2 {
        sweep_by_broker(&mut a);
        a.clock.advance(RETENTION);
    }
    a.publish();
    assert_eq!(sweep(&mut a), 0, "told a moment ago");
    a.clock.advance(RETENTION);
    assert_eq!(sweep(&mut a), 1);
}

/// A delete that is published again to all streams counts as new.
#[test]
fn changes_published_again_do_not_age() {
    let mut a = Node::new(1, BOOKS);
    a.run("INSERT INTO Books VALUES (1, 'goes', 'x')");
    a.run("DELETE FROM Books");
    a.publish();
    assert_eq!(sweep(&mut a), 0);
    a.clock.advance(RETENTION);
    a.db.republish_all().unwrap();
    while !a.send().is_empty() {}
    assert_eq!(sweep(&mut a), 0);
    a.clock.advance(RETENTION);
    assert_eq!(sweep(&mut a), 1);
}

/// Columns that were not known when they came do not make a row by themselves.
#[test]
fn held_changes_of_a_row_go_with_its_tombstone() {
    let old = "CREATE TABLE t(k INTEGER PRIMARY KEY, v)";
    let mut n = [
        Node::new(1, "CREATE TABLE t(k INTEGER PRIMARY KEY, v, w)"),
        Node::new(2, old),
    ];
    n[0].run("INSERT INTO t VALUES (1, 'a', 'b'), (2, 'c', 'd')");
    exchange(&mut n);
    assert!(n[1].db.held().unwrap() > 0);
    n[1].run("DELETE FROM t WHERE k = 1");
    n[1].publish();
    assert_eq!(sweep(&mut n[1]), 0);
    n[1].clock.advance(RETENTION);
    assert_eq!(sweep(&mut n[1]), 1);
    n[1].run("ALTER TABLE t ADD COLUMN w");
    n[1].capture();
    assert_eq!(n[1].rows("SELECT * FROM t"), "i2 t'c' t'd'");
}

/// The clock stands still, like that of a box without a battery whose time was ahead before.
#[test]
fn a_version_is_not_given_again_to_a_row_that_is_forgotten() {
    let mut n = cluster(2, BOOKS);
    let stands = crate::clock::Clock::now_ms(&*n[0].clock);
    for last in ["DELETE FROM Books", "UPDATE Books SET title = 'z'"] {
        n[0].run("INSERT INTO Books VALUES (1, 'a', 'x')");
        exchange(&mut n);
        n[0].run(last);
        exchange(&mut n);
        n[1].run("DELETE FROM Books");
        exchange(&mut n);
        let before = newest(&n[0]);
        assert_new_after_forgetting(&mut n[0], stands, before);
        n[0].run("DELETE FROM Books");
        exchange(&mut n);
    }
}

/// A version that follows one of a node whose clock is ahead is beyond the time that the own clock
/// reserved.
#[test]
fn a_version_beyond_the_own_clock_is_not_given_again() {
    let mut n = cluster(2, BOOKS);
    let stands = crate::clock::Clock::now_ms(&*n[0].clock);
    n[1].clock.advance(RETENTION);
    n[1].run("INSERT INTO Books VALUES (1, 'a', 'x')");
    exchange(&mut n);
    n[0].run("UPDATE Books SET title = 'z'");
    n[0].capture();
    let before = newest(&n[0]);
    exchange(&mut n);
    n[1].run("DELETE FROM Books");
    exchange(&mut n);
    assert_new_after_forgetting(&mut n[0], stands, before);
}

/// The highest hlc of all rows.
fn newest(node: &Node) -> i64 {
    let text = "SELECT max(hlc) FROM __harmonylite__Books_versions";
    node.app.query_row(text, [], |r| r.get(0)).unwrap()
}

/// The deletes are forgotten while the machine's clock stands still, and a row of that key is new.
fn assert_new_after_forgetting(node: &mut Node, stands: i64, before: i64) {
    for _ in 0..2 {
        node.db.heard_broker_time(stands);
        sweep_by_broker(node);
        node.clock.advance(RETENTION);
        node.clock.set(stands);
    }
    assert_eq!(node.db.tombstones("Books").unwrap(), 0);
    node.run("INSERT INTO Books VALUES (1, 'again', 'x')");
    node.capture();
    assert!(newest(node) > before);
}

/// By the broker's clock, which goes on.
fn sweep_by_broker(node: &mut Node) {
    node.db.note_age().unwrap();
    if let Some(mut sweep) = node.db.sweep().unwrap() {
        while !node.db.sweep_step(&mut sweep).unwrap() {}
    }
    node.db.note_age().unwrap();
}
