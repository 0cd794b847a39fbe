//! Rows that a snapshot lacks whose maker has forgotten deletes: which of them were deleted?

use std::path::PathBuf;
use std::time::Duration;

use super::{BOOKS, RETENTION, at, at_in, forget_all, meet, merge, note, snapshot, sweep};
use crate::apply::Position;
use crate::apply::tests::support::{Node, cluster, exchange};
use crate::capture::Outgoing;
use crate::model::manifest::SnapshotEntry;
use crate::model::shard::shard;
use crate::model::value::Value;

const STRICT: &str = "CREATE TABLE Books(id INTEGER PRIMARY KEY, title TEXT CHECK(title <> 'odd'),
    isbn TEXT UNIQUE)";

/// The first node deletes row 1 and forgets the delete; the second did `write` before.
fn forgetful(mut n: Vec<Node>, write: &str) -> Vec<Node> {
    n[0].run("INSERT INTO Books VALUES (1, 'goes', 'x'), (2, 'stays', 'y')");
    exchange(&mut n);
    n[1].run(write);
    n[1].clock.advance(Duration::from_secs(1));
    n[0].clock.advance(Duration::from_secs(5));
    n[0].run("DELETE FROM Books WHERE id = 1");
    n
}

fn forget(node: &mut Node) {
    forget_all(node, 1);
}

/// A snapshot of the first node, which read up to message 20 and forgot its delete.
fn forgotten(node: &mut Node) -> (PathBuf, SnapshotEntry) {
    node.publish();
    at(node, 20);
    forget(node);
    snapshot(node)
}

/// The frames of a node that inserts a row, and of its later delete.
fn come_and_gone(node: &mut Node) -> [Vec<Outgoing>; 2] {
    node.run("INSERT INTO Books VALUES (1, 'goes', 'x')");
    let inserted = node.publish();
    node.clock.advance(Duration::from_secs(5));
    node.run("DELETE FROM Books");
    [inserted, node.publish()]
}

#[test]
fn rows_that_the_maker_holds_are_not_taken_for_deleted() {
    let n = vec![Node::new(1, STRICT), Node::new(2, BOOKS)];
    let mut n = forgetful(n, "INSERT INTO Books VALUES (5, 'odd', 'z')");
    exchange(&mut n);
    assert_eq!(n[0].db.held().unwrap(), 1);
    n.iter_mut().for_each(|node| at(node, 20));
    forget(&mut n[0]);
    let (first, rest) = n.split_at_mut(1);
    merge(&mut rest[0], &snapshot(&mut first[0]));
    assert_eq!(n[1].rows("SELECT id FROM Books"), "i2\ni5");
}

#[test]
fn rows_acknowledged_behind_the_snapshot_are_not_taken_for_deleted() {
    let mut n = forgetful(
        cluster(2, BOOKS),
        "INSERT INTO Books VALUES (5, 'slow clock', 'z')",
    );
    let taken = forgotten(&mut n[0]);
    // The broker stored them, and the node has not read them back yet.
    let under_way = n[1].publish();
    at(&mut n[1], 10);
    let position = n[1].db.position("s");
    let acked_seq = 30;
    n[1].db.move_position(
        "s",
        Position {
            acked_seq,
            ..position
        },
    );
    merge(&mut n[1], &taken);
    assert_eq!(n[1].rows("SELECT id FROM Books WHERE id = 5"), "i5");
    n[0].apply(&under_way);
    assert!(meet(&mut n).contains("slow clock"));
}

/// A node that was away for long has a row that is old enough for all others to have forgotten it.
#[test]
fn rows_acknowledged_beside_a_gap_are_not_taken_for_deleted() {
    let mut n = forgetful(
        cluster(2, BOOKS),
        "INSERT INTO Books VALUES (5, 'written long ago', 'z')",
    );
    let taken = forgotten(&mut n[0]);
    n[1].capture();
    at(&mut n[1], 10);
    n[1].db.note_gap("s", 16);
    let under_way = n[1].publish();
    n[1].db.note_acknowledged("s", 30, "id".into());
    merge(&mut n[1], &taken);
    assert_eq!(n[1].rows("SELECT id FROM Books WHERE id = 5"), "i5");
    n[0].apply(&under_way);
    assert!(meet(&mut n).contains("written long ago"));
}

/// Simulation, seed 907543: a node with a gap was away again before a snapshot helped it.
#[test]
fn messages_between_two_gaps_are_from_before_the_second() {
    let mut n = cluster(2, BOOKS);
    at(&mut n[1], 3);
    n[1].db.note_gap("s", 6);
    let mut n = forgetful(n, "");
    n[1].publish();
    n[1].db.read_up_to("s", 10, "id");
    n[1].db.note_gap("s", 16);
    n[1].db.read_up_to("s", 30, "id");
    let taken = forgotten(&mut n[0]);
    merge(&mut n[1], &taken);
    assert_eq!(n[1].rows("SELECT id FROM Books"), "i2");
}

/// The row was deleted elsewhere, long ago, so this node cannot refuse that.
#[test]
fn a_trigger_does_not_keep_a_row_that_is_lacking() {
    let refuses = format!(
        "{BOOKS}; CREATE TRIGGER refuses BEFORE DELETE ON Books WHEN old.id = 1
         BEGIN SELECT RAISE(ABORT, 'no'); END"
    );
    let guarded = Node::with(2, &refuses, |s| s.apply_triggers = vec!["refuses".into()]);
    let mut n = forgetful(vec![Node::new(1, BOOKS), guarded], "");
    n[0].publish();
    n.iter_mut().for_each(|node| at(node, 20));
    forget(&mut n[0]);
    let (first, rest) = n.split_at_mut(1);
    merge(&mut rest[0], &snapshot(&mut first[0]));
    assert_eq!(n[1].rows("SELECT id FROM Books"), "i2");
    n[1].check();
}

/// The power fails between the removal of the row and the end of the merge.
#[test]
fn a_node_that_removed_a_row_says_so_at_once() {
    let mut n = forgetful(cluster(2, BOOKS), "");
    n[0].publish();
    n.iter_mut().for_each(|node| at(node, 20));
    forget(&mut n[0]);
    let taken = snapshot(&mut n[0]);
    let mut merge = super::Merge::open(&taken.0, &taken.1).unwrap();
    let mut steps = 0;
    while n[1].rows("SELECT count(*) FROM Books") == "i2" && steps < 1000 {
        merge.step(&mut n[1].db).unwrap();
        steps += 1;
    }
    drop(merge);
    n[1].restart();
    assert_eq!(n[1].rows("SELECT id FROM Books"), "i2");
    assert_eq!(n[1].db.dropped().unwrap(), n[0].db.dropped().unwrap());
}

/// No other node ever heard of the rows of a node that does not publish.
#[test]
fn rows_that_are_never_published_are_not_taken_for_deleted() {
    let quiet = Node::with(2, BOOKS, |s| s.publish = false);
    let n = vec![Node::new(1, BOOKS), quiet];
    let mut n = forgetful(n, "INSERT INTO Books VALUES (5, 'only here', 'z')");
    exchange(&mut n);
    n.iter_mut().for_each(|node| at(node, 20));
    forget(&mut n[0]);
    let (first, rest) = n.split_at_mut(1);
    merge(&mut rest[0], &snapshot(&mut first[0]));
    assert_eq!(n[1].rows("SELECT id FROM Books ORDER BY 1"), "i2\ni5");
}

/// The second node heard of the delete late, so its tombstone outlives that of the first.
#[test]
fn a_tombstone_that_arrived_late_is_told_again_as_well() {
    let mut n = cluster(3, BOOKS);
    n[0].run("INSERT INTO Books VALUES (1, 'goes', 'x')");
    exchange(&mut n);
    n[2].clock.advance(Duration::from_secs(1));
    n[2].run("UPDATE Books SET title = 'not sent'");
    let mut away = n.pop().unwrap();
    let late = away.publish();
    n[0].clock.advance(Duration::from_secs(5));
    n[0].run("DELETE FROM Books");
    n[0].publish();
    sweep(&mut n[0]);
    n.iter_mut().for_each(|node| node.clock.advance(RETENTION));
    let (first, rest) = n.split_at_mut(1);
    let taken = snapshot(&mut first[0]);
    sweep(&mut rest[0]);
    merge(&mut rest[0], &taken);
    assert_eq!(sweep(&mut n[0]), 1);
    n.iter_mut().for_each(|node| node.apply(&late));
    n.push(away);
    meet(&mut n);
}

/// The others have forgotten the newer delete when they hear of the older one.
#[test]
fn an_older_tombstone_does_not_make_a_newer_one_young() {
    let mut n = cluster(4, BOOKS);
    n[0].run("INSERT INTO Books VALUES (1, 'goes', 'x')");
    exchange(&mut n);
    n[3].run("DELETE FROM Books");
    let older = n[3].publish();
    n[2].clock.advance(Duration::from_secs(1));
    n[2].run("UPDATE Books SET title = 'not sent'");
    let between = n[2].publish();
    n[0].clock.advance(Duration::from_secs(5));
    n[0].run("DELETE FROM Books");
    let newer = n[0].publish();
    n[1].apply(&newer);
    sweep(&mut n[1]);
    n.iter_mut().for_each(|node| node.clock.advance(RETENTION));
    assert_eq!(sweep(&mut n[1]), 1);
    note(&mut n[0]);
    for message in [older, between] {
        n[0].apply(&message);
        n[1].apply(&message);
    }
    assert_eq!(n[1].rows("SELECT id FROM Books"), "i1");
    let again = n[0].publish();
    n[1].apply(&again);
    assert_eq!(n[1].rows("SELECT id FROM Books"), "");
}

/// The second node had no such table until the first had forgotten the delete.
#[test]
fn a_delete_that_was_held_for_long_is_not_young() {
    let mut n = [Node::new(1, BOOKS), Node::new(2, "CREATE TABLE other(x)")];
    let [inserted, deleted] = come_and_gone(&mut n[0]);
    n[1].apply(&deleted);
    forget(&mut n[0]);
    n[1].clock.advance(RETENTION);
    note(&mut n[1]);
    n[1].run(BOOKS);
    n[1].capture();
    n.iter_mut().for_each(|node| node.apply(&inserted));
    assert_eq!(n[0].rows("SELECT id FROM Books"), "i1");
    let again = n[1].publish();
    n[0].apply(&again);
    assert_eq!(n[0].rows("SELECT id FROM Books"), "");
}

/// The first node received the row once more when it had forgotten its delete.
#[test]
fn a_delete_that_only_a_snapshot_remembers_is_told_again() {
    let mut n = cluster(2, BOOKS);
    let [inserted, _] = come_and_gone(&mut n[0]);
    n[1].apply(&inserted);
    let taken = snapshot(&mut n[0]);
    forget(&mut n[0]);
    n[0].apply(&inserted);
    assert_eq!(n[0].rows("SELECT id FROM Books"), "i1");
    n[1].clock.advance(RETENTION);
    merge(&mut n[1], &taken);
    let again = n[1].publish();
    n[0].apply(&again);
    assert_eq!(n[0].rows("SELECT id FROM Books"), "");
    assert_eq!(n[1].rows("SELECT id FROM Books"), "");
}

/// The usual return: the node reads on behind the gap while the snapshot is still on its way.
#[test]
fn a_node_that_comes_back_late_brings_no_deleted_row_back() {
    let mut n = cluster(3, BOOKS);
    n[0].run("INSERT INTO Books VALUES (1, 'goes', 'x'), (2, 'stays', 'y')");
    exchange(&mut n);
    n.iter_mut().for_each(|node| at(node, 10));
    let mut away = n.pop().unwrap();
    n[1].run("INSERT INTO Books VALUES (7, 'by a slow clock', 'z')");
    let later = n[1].publish();
    n[0].clock.advance(Duration::from_secs(5));
    n[0].run("DELETE FROM Books WHERE id = 1");
    let said = n[0].publish();
    n[1].apply(&said);
    n.iter_mut().for_each(|node| at(node, 20));
    forget(&mut n[0]);
    let taken = snapshot(&mut n[0]);
    // Messages 11 to 15 are gone, 16 to 25 are read.
    away.db.note_gap("s", 16);
    away.db.flush().unwrap();
    away.apply(&later);
    let gap = away.db.position("s").gap;
    at(&mut away, 25);
    let position = away.db.position("s");
    away.db.move_position("s", Position { gap, ..position });
    merge(&mut away, &taken);
    assert_eq!(away.rows("SELECT id FROM Books ORDER BY 1"), "i2\ni7");
    assert!(!away.db.has_gap());
    assert_eq!(away.db.tombstones("Books").unwrap(), 0);
}

/// A broker that lost messages and gave their numbers out again looks like one that dropped the
/// oldest. But then a snapshot that reaches as far as this node lacks rows that were read here.
#[test]
fn rows_that_broker_and_snapshot_lack_are_told_again() {
    let mut n = after_the_broker_lost();
    let again = n[1].publish();
    n[2].apply(&again);
    assert_eq!(n[2].rows("SELECT title FROM Books"), "t'new'\nt'lost'");
    // Republishing once is enough.
    let taken = snapshot(&mut n[2]);
    merge(&mut n[1], &taken);
    assert_eq!(n[1].db.unsent().unwrap(), 0);
}

/// The second node has two rows to publish again, because the third does not have them.
fn after_the_broker_lost() -> Vec<Node> {
    let mut n = cluster(3, BOOKS);
    n[0].run("INSERT INTO Books VALUES (1, 'old', 'x')");
    exchange(&mut n);
    n[0].clock.advance(Duration::from_secs(5));
    n[0].run("UPDATE Books SET title = 'new'; INSERT INTO Books VALUES (2, 'lost', 'y')");
    let lost = n[0].publish();
    n[1].apply(&lost);
    n.iter_mut().for_each(|node| at(node, 30));
    at(&mut n[2], 40);
    n[1].db.note_gap("s", 38);
    let taken = snapshot(&mut n[2]);
    merge(&mut n[1], &taken);
    assert_eq!(n[1].db.unsent().unwrap(), 2);
    n
}

/// Then the next snapshot that lacks the row does not count it as deleted.
#[test]
fn rows_told_again_count_as_unsent() {
    let mut n = after_the_broker_lost();
    n[2].clock.advance(Duration::from_secs(60));
    n[2].run("INSERT INTO Books VALUES (3, 'goes', 'z')");
    n[2].publish();
    n[2].run("DELETE FROM Books WHERE id = 3");
    n[2].publish();
    at(&mut n[2], 50);
    forget(&mut n[2]);
    let taken = snapshot(&mut n[2]);
    merge(&mut n[1], &taken);
    assert_eq!(n[1].rows("SELECT id FROM Books"), "i1\ni2");
}

/// An operator has the streams read from their start again, and the snapshot merged first.
#[test]
fn messages_behind_the_snapshot_count_after_the_positions_are_forgotten() {
    let mut n = forgetful(
        cluster(2, BOOKS),
        "INSERT INTO Books VALUES (5, 'slow clock', 'z')",
    );
    let taken = forgotten(&mut n[0]);
    n[1].publish();
    at(&mut n[1], 30);
    n[1].db.forget_positions().unwrap();
    merge(&mut n[1], &taken);
    assert_eq!(n[1].rows("SELECT id FROM Books WHERE id = 5"), "i5");
}

/// The store could not be reached for long, and the snapshot is from before.
#[test]
fn a_snapshot_older_than_what_is_forgotten_brings_nothing_back() {
    let mut n = cluster(2, BOOKS);
    n[0].run("INSERT INTO Books VALUES (1, 'goes', 'x'), (2, 'stays', 'y'), (3, 'goes', 'z')");
    exchange(&mut n);
    let at_both = |node: &mut Node, seq| {
        at_in(node, "c-1", seq);
        at_in(node, "c-2", seq);
    };
    n.iter_mut().for_each(|node| at_both(node, 10));
    let taken = snapshot(&mut n[0]);
    n[1].clock.advance(Duration::from_secs(5));
    n[1].run("DELETE FROM Books WHERE id <> 2");
    n[1].publish();
    at_both(&mut n[1], 20);
    sweep(&mut n[1]);
    n[1].clock.advance(RETENTION);
    assert_eq!(sweep(&mut n[1]), 2);
    merge(&mut n[1], &taken);
    assert_eq!(n[1].rows("SELECT id FROM Books"), "i2");
    // If the snapshot's maker has read further, a row that is unknown here is new.
    at_both(&mut n[0], 30);
    let taken = snapshot(&mut n[0]);
    merge(&mut n[1], &taken);
    assert_eq!(n[1].rows("SELECT count(*) FROM Books"), "i3");
}

/// Each row comes by one stream: a further position in a different stream says nothing about it.
#[test]
fn a_snapshot_tells_stream_by_stream_how_far_it_goes() {
    let mut n = cluster(2, BOOKS);
    n[0].run(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20)
         INSERT INTO Books SELECT i, 'goes', i FROM n",
    );
    exchange(&mut n);
    n[0].clock.advance(Duration::from_secs(5));
    n[0].run("DELETE FROM Books");
    n[0].publish();
    forget_all(&mut n[0], 20);
    at_in(&mut n[0], "c-1", 20);
    at_in(&mut n[0], "c-2", 20);
    at_in(&mut n[1], "c-1", 10);
    at_in(&mut n[1], "c-2", 30);
    let taken = snapshot(&mut n[0]);
    merge(&mut n[1], &taken);
    let table = n[1].db.tables()["books"].clone();
    let key = |id| table.key_bytes([Value::Integer(id)].into_iter());
    let stays: Vec<String> = (1..=20)
        .filter(|id| shard("Books", &key(*id), 2) == 2)
        .map(|id| format!("i{id}"))
        .collect();
    assert!(stays.len() > 1 && stays.len() < 19);
    assert_eq!(
        n[1].rows("SELECT id FROM Books ORDER BY id"),
        stays.join("\n")
    );
    assert_eq!(n[1].db.unsent().unwrap(), stays.len() as u64);
}

/// The streams have different names since `compress` was changed. All nodes know the old ones.
#[test]
fn streams_of_before_cover_nothing() {
    let mut n = forgetful(
        cluster(2, BOOKS),
        "INSERT INTO Books VALUES (5, 'slow clock', 'z')",
    );
    n[0].publish();
    let old = |node: &mut Node| ["c-1", "c-2"].map(|s| at_in(node, s, 20));
    let new = |node: &mut Node, seq| ["c-c-1", "c-c-2"].map(|s| at_in(node, s, seq));
    old(&mut n[0]);
    new(&mut n[0], 20);
    forget(&mut n[0]);
    let taken = snapshot(&mut n[0]);
    let under_way = n[1].publish(); // as message 25
    old(&mut n[1]);
    new(&mut n[1], 30);
    merge(&mut n[1], &taken);
    n[0].apply(&under_way);
    assert_eq!(n[1].rows("SELECT id FROM Books WHERE id = 5"), "i5");
}
