//! A snapshot tells of deletes under a key that its tables do not have any more.

use std::time::Duration;

use super::{at, cluster, merge, snapshot};
use crate::apply::tests::support::{Node, converge, exchange};

const BEFORE: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)";
const AFTER: &str = "CREATE TABLE t(id TEXT PRIMARY KEY, v)";
const ALL: &str = "SELECT CAST(id AS INTEGER), v FROM t ORDER BY 1";

fn rebuild(node: &mut Node) {
    let after = AFTER.replace("TABLE t", "TABLE new_t");
    node.run(&format!(
        "BEGIN; {after}; INSERT INTO new_t SELECT id, v FROM t; DROP TABLE t;
         ALTER TABLE new_t RENAME TO t; COMMIT"
    ));
    node.capture();
}

/// All nodes have three rows. The first node deletes one, captured, and a different one, not
/// captured, before it is migrated. The others hear nothing of that.
fn one_deletes() -> Vec<Node> {
    let mut n = cluster(3, BEFORE);
    n[0].run("INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c')");
    exchange(&mut n);
    for node in &mut n {
        node.clock.advance(Duration::from_secs(60));
        at(node, 10);
    }
    n[0].run("DELETE FROM t WHERE id = 1");
    n[0].publish();
    n[0].run("DELETE FROM t WHERE id = 2");
    rebuild(&mut n[0]);
    n[0].publish();
    at(&mut n[0], 20);
    n
}

#[test]
fn a_snapshot_brings_deletes_of_the_former_key() {
    for migrates_first in [true, false] {
        let mut n = one_deletes();
        if migrates_first {
            rebuild(&mut n[1]);
        }
        let taken = snapshot(&mut n[0]);
        merge(&mut n[1], &taken);
        merge(&mut n[1], &taken);
        assert_eq!(n[1].rows(ALL), "i3 t'c'", "{migrates_first}");
        if !migrates_first {
            rebuild(&mut n[1]);
        }
        rebuild(&mut n[2]);
        converge(&mut n);
        assert_eq!(n[2].rows(ALL), "i3 t'c'", "{migrates_first}");
        assert_eq!(n[1].db.held().unwrap(), 0);
    }
}

/// A node whose table never had a different key takes over the former key from the snapshot's
/// maker.
#[test]
fn a_node_that_had_no_other_key_learns_what_was_deleted_under_it() {
    let mut n = one_deletes();
    let mut fresh = Node::new(4, AFTER);
    fresh.capture();
    merge(&mut fresh, &snapshot(&mut n[0]));
    fresh.restart();
    fresh.capture();
    rebuild(&mut n[1]);
    let sent = n[1].publish();
    fresh.apply(&sent);
    assert_eq!(fresh.rows(ALL), "i3 t'c'");
    n.push(fresh);
    rebuild(&mut n[2]);
    converge(&mut n);
}

/// The node was created with the new key and never knew the row. The delete comes from a node that
/// is not migrated, before or after the snapshot that tells of the former key.
#[test]
fn a_delete_under_a_key_that_a_node_never_had_is_not_held_for_ever() {
    for is_before in [true, false] {
        let mut n = cluster(2, BEFORE);
        n[0].run("INSERT INTO t VALUES (1, 'a')");
        exchange(&mut n);
        n[1].run("INSERT INTO t VALUES (7, 'g')");
        let insert = n[1].publish();
        n[1].run("DELETE FROM t WHERE id = 7");
        let delete = n[1].publish();
        rebuild(&mut n[0]);
        at(&mut n[0], 10);
        let taken = snapshot(&mut n[0]);
        let mut fresh = Node::new(3, AFTER);
        fresh.capture();
        match is_before {
            true => {
                fresh.apply(&delete);
                assert_eq!(fresh.db.held().unwrap(), 1);
                merge(&mut fresh, &taken);
            }
            false => {
                merge(&mut fresh, &taken);
                fresh.apply(&delete);
            }
        }
        fresh.capture();
        assert_eq!(fresh.db.held().unwrap(), 0, "{is_before}");
        // The row comes late, under either key, and stays deleted.
        fresh.apply(&insert);
        let mut late = Node::new(4, BEFORE);
        late.apply(&insert);
        rebuild(&mut late);
        let sent = late.publish();
        fresh.apply(&sent);
        assert_eq!(fresh.rows(ALL), "i1 t'a'", "{is_before}");
        fresh.restart();
        n.push(fresh);
        rebuild(&mut n[1]);
        converge(&mut n);
        assert_eq!(n[2].rows(ALL), "i1 t'a'", "{is_before}");
        assert_eq!(n[2].db.held().unwrap(), 0);
    }
}

/// The snapshot's maker is not migrated, and this node is.
#[test]
fn rows_of_a_snapshot_are_taken_in_under_the_key_of_now() {
    let mut n = cluster(2, BEFORE);
    n[0].run("INSERT INTO t VALUES (1, 'a'), (2, 'b')");
    exchange(&mut n);
    n[1].clock.advance(Duration::from_secs(60));
    n[1].run("UPDATE t SET v = 'new' WHERE id = 1; DELETE FROM t WHERE id = 2");
    n[1].run("INSERT INTO t VALUES (3, 'c')");
    n[1].capture();
    rebuild(&mut n[0]);
    let taken = snapshot(&mut n[1]);
    merge(&mut n[0], &taken);
    assert_eq!(n[0].rows(ALL), "i1 t'new'\ni3 t'c'");
    assert_eq!(n[0].db.held().unwrap(), 0);
    rebuild(&mut n[1]);
    converge(&mut n);
}
