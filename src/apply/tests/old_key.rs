//! Rows say which key they had, where their new one does not tell that.

use std::time::Duration;

use super::support::{Node, cluster, converge};
use crate::capture::Outgoing;
use crate::model::frame::{Frame, Row, WAS};
use crate::model::version::Version;

const BEFORE: &str = "CREATE TABLE t(g TEXT PRIMARY KEY, a TEXT, v)";
const MINUTE: Duration = Duration::from_secs(60);

fn migrate(node: &mut Node) {
    node.run(
        "BEGIN; CREATE TABLE new_t(k INTEGER PRIMARY KEY, a TEXT, v);
         INSERT INTO new_t SELECT 1 + substr(a, 2), a, v FROM t;
         DROP TABLE t; ALTER TABLE new_t RENAME TO t; COMMIT",
    );
    node.capture();
}

/// Three nodes that have row `g1`.
fn nodes() -> Vec<Node> {
    let mut n = cluster(3, BEFORE);
    n[0].run("INSERT INTO t VALUES ('g1', 'a1', 'old')");
    converge(&mut n);
    n.iter().for_each(|node| node.clock.advance(MINUTE));
    n
}

/// The frames have the old keys in a column that earlier releases pass over.
fn assert_said(frames: &[Outgoing]) {
    for frame in frames {
        let Ok(Frame::Rows { nodes, tables, .. }) = Frame::decode(&frame.raw) else {
            panic!("no rows");
        };
        for table in &tables {
            let last = table.columns.len() - 1;
            assert_eq!(table.columns[last], WAS);
            let (mut rows, mut row) = (table.rows(&nodes), Row::default());
            while rows.next(&mut row).unwrap() {
                assert!(row.exceptions.contains(&(last, Version::NEVER)));
            }
        }
    }
}

const ROWS: &str = "SELECT k, a, v FROM t ORDER BY 1";

/// A node migrates before it hears of a row: nothing tells it the new key of what comes under the
/// old one.
#[test]
fn held_rows_under_the_old_key_end_when_a_row_says_that_it_had_it() {
    let mut n = nodes();
    n[1].run("INSERT INTO t VALUES ('g2', 'a2', 'new')");
    let inserted = n[1].publish();
    n[0].apply(&inserted);
    migrate(&mut n[2]);
    let early = n[2].publish();
    n[2].apply(&inserted);
    assert_eq!(n[2].db.held().unwrap(), 1);
    migrate(&mut n[0]);
    let late = n[0].publish();
    assert_said(&late);
    n[2].apply(&late);
    assert_eq!(n[2].rows(ROWS), "i2 t'a1' t'old'\ni3 t'a2' t'new'");
    assert_eq!(n[2].db.held().unwrap(), 0);
    n[2].restart();
    n[1].clock.advance(MINUTE);
    n[1].run("UPDATE t SET v = 'again' WHERE g = 'g2'; DELETE FROM t WHERE g = 'g1'");
    let again = n[1].publish();
    n[2].apply(&again);
    assert_eq!(n[2].rows(ROWS), "i3 t'a2' t'again'");
    n[0].apply(&early);
    n[0].apply(&again);
    n[1].apply(&early);
    n[1].apply(&late);
    migrate(&mut n[1]);
    converge(&mut n);
    assert_eq!(n[1].rows(ROWS), "i3 t'a2' t'again'");
    assert!(n.iter().all(|node| node.db.held().unwrap() == 0));
}

/// A migrated node changes a row that another one deleted later under the old key.
#[test]
fn a_row_that_was_deleted_under_the_old_key_stays_deleted_however_it_changed() {
    for is_held in [false, true] {
        let mut n = nodes();
        n[1].clock.advance(MINUTE);
        n[1].run("DELETE FROM t WHERE g = 'g1'");
        let deleted = n[1].publish();
        n[2].apply(&deleted);
        n[2].run("INSERT INTO t VALUES ('g3', 'a3', 'other')");
        migrate(&mut n[0]);
        n[0].run("UPDATE t SET v = 'changed'");
        let changed = n[0].publish();
        if is_held {
            n[2].apply(&changed);
            assert_eq!(n[2].db.held().unwrap(), 1);
            n[2].restart();
        }
        migrate(&mut n[2]);
        if !is_held {
            n[2].apply(&changed);
        }
        assert_eq!(n[2].rows(ROWS), "i4 t'a3' t'other'", "held: {is_held}");
        n[0].apply(&deleted);
        n[1].apply(&changed);
        migrate(&mut n[1]);
        converge(&mut n);
        assert_eq!(n[0].rows(ROWS), "i4 t'a3' t'other'", "held: {is_held}");
    }
}

/// The node is new, and the first it hears of the former key is what rows say of themselves.
#[test]
fn a_node_that_never_had_the_former_key_knows_rows_again_under_it() {
    let mut n = nodes();
    n[1].run("INSERT INTO t VALUES ('g2', 'a2', 'new'), ('g3', 'a3', 'new')");
    let inserted = n[1].publish();
    n[0].apply(&inserted);
    migrate(&mut n[0]);
    let said = n[0].publish();
    assert_said(&said);
    let mut fresh = Node::new(4, "CREATE TABLE t(k INTEGER PRIMARY KEY, a TEXT, v)");
    fresh.capture();
    fresh.apply(&said);
    fresh.apply(&inserted);
    assert_eq!(fresh.db.held().unwrap(), 0);
    fresh.restart();
    n[1].clock.advance(MINUTE);
    n[1].run("UPDATE t SET v = 'again' WHERE g = 'g2'; DELETE FROM t WHERE g = 'g3'");
    let again = n[1].publish();
    fresh.apply(&again);
    assert_eq!(fresh.rows("SELECT k, v FROM t WHERE k > 2"), "i3 t'again'");
    assert_eq!(fresh.db.held().unwrap(), 0);
    n[0].apply(&again);
    n.push(fresh);
    for node in &mut n[1..3] {
        node.apply(&inserted);
        migrate(node);
    }
    converge(&mut n);
    assert_eq!(n[3].rows(ROWS), "i2 t'a1' t'old'\ni3 t'a2' t'again'");
}

/// Rows say the last former key, not the one before it: a node that learnt the row after both
/// migrations hears of a delete under the first key from one that had the row during them.
#[test]
fn a_row_that_is_deleted_two_keys_ago_is_deleted_where_it_came_under_the_third() {
    let again = |node: &mut Node| {
        node.run(
            "BEGIN; CREATE TABLE new_t(a TEXT PRIMARY KEY, v); INSERT INTO new_t SELECT a, v FROM t;
             DROP TABLE t; ALTER TABLE new_t RENAME TO t; COMMIT",
        );
        node.capture();
    };
    let mut n = nodes();
    n[1].run("INSERT INTO t VALUES ('g2', 'a2', 'new')");
    let inserted = n[1].publish();
    n[0].apply(&inserted);
    for i in [0, 2] {
        migrate(&mut n[i]);
        again(&mut n[i]);
    }
    let early = n[0].publish();
    n[2].apply(&early);
    n[2].apply(&inserted);
    n[1].clock.advance(MINUTE);
    n[1].run("UPDATE t SET v = 'last' WHERE g = 'g1'; DELETE FROM t WHERE g = 'g2'");
    let deleted = n[1].publish();
    n[2].apply(&deleted);
    n[0].apply(&deleted);
    let late = n[0].publish();
    n[2].apply(&late);
    assert_eq!(n[2].rows("SELECT a, v FROM t"), "t'a1' t'last'");
    n[1].apply(&early);
    n[1].apply(&late);
    migrate(&mut n[1]);
    again(&mut n[1]);
    converge(&mut n);
    assert_eq!(n[1].rows("SELECT a, v FROM t"), "t'a1' t'last'");
}
