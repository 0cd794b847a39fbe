//! A broker lost messages that it had acknowledged: every row is published once more.

use super::support::{Node, cluster};
use crate::apply::Position;
use crate::capture::Outgoing;
use crate::clock::Clock;
use crate::database::Settings;

const SCHEMA: &str = "CREATE TABLE t(k TEXT COLLATE NOCASE PRIMARY KEY, v);
    CREATE TABLE u(a, b, PRIMARY KEY(a, b)) WITHOUT ROWID";

/// One call of the publisher, with all its frames acknowledged.
fn chunk(node: &mut Node) -> Vec<Outgoing> {
    let frames = node.db.backlog(2000).unwrap();
    if let Some(last) = frames.last() {
        node.db.acknowledged(last.local_tx);
    }
    frames
}

fn filled() -> Vec<Node> {
    let mut nodes = cluster(2, SCHEMA);
    nodes[0].run(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 700)
         INSERT INTO t SELECT 'Key' || i, i FROM n;
         INSERT INTO u VALUES (1, x'00'), (1, 'b'), (2.5, 'c')",
    );
    nodes[0].publish();
    nodes[0].run("DELETE FROM t WHERE v % 7 = 0");
    nodes[0].publish(); // all of it acknowledged, and nobody ever reads it
    nodes
}

#[test]
fn all_rows_and_tombstones_go_out_again_in_chunks() {
    let mut n = filled();
    n[1].run("INSERT INTO t VALUES ('KEY7', 'older, and deleted elsewhere')");
    n[0].db.republish_all().unwrap();
    n[0].run("INSERT INTO t VALUES ('new', 'while it goes on')");
    n[0].capture();
    let mut chunks = 0;
    while !n[0].db.is_live() {
        let frames = chunk(&mut n[0]);
        assert!(frames.iter().map(|f| f.raw.len()).sum::<usize>() < 20_000);
        chunks += usize::from(!frames.is_empty());
        n[1].apply(&frames);
    }
    assert!(chunks > 3, "{chunks}");
    let missing = n[1].rows("SELECT count(*) FROM t WHERE v % 7 <> 0 OR k = 'new'");
    assert_eq!(missing, "i601");
    assert_eq!(n[0].rows("SELECT * FROM u"), n[1].rows("SELECT * FROM u"));
    let tombstones = "SELECT count(*) FROM __harmonylite__t_versions WHERE deleted";
    assert_eq!(n[1].rows(tombstones), n[0].rows(tombstones));
    assert_eq!(n[0].db.unsent().unwrap(), 0);
}

#[test]
fn a_lost_chunk_and_a_restart_repeat_but_never_skip() {
    let mut n = filled();
    n[0].db.republish_all().unwrap();
    let frames = chunk(&mut n[0]);
    n[1].apply(&frames);
    let lost = n[0].db.backlog(2000).unwrap(); // the connection breaks before it is acknowledged
    assert!(!lost.is_empty());
    n[0].db.stop_live();
    let again = chunk(&mut n[0]);
    assert_eq!(again.len(), lost.len());
    n[1].apply(&again);
    n[0].db.backlog(2000).unwrap(); // the daemon is killed before it is acknowledged
    n[0].restart();
    while !n[0].db.is_live() {
        let frames = chunk(&mut n[0]);
        n[1].apply(&frames);
    }
    assert_eq!(n[0].dump(), n[1].dump());
}

/// The writer lost the row as well: only nodes that hold it for want of a table or column have it.
#[test]
fn held_rows_go_out_again_when_they_are_taken_in() {
    let late = "ALTER TABLE t ADD COLUMN w; CREATE TABLE late(k PRIMARY KEY, v)";
    let mut n = cluster(3, SCHEMA);
    n[0].run(late);
    n[0].run("INSERT INTO t VALUES ('a', 1, 'x'); INSERT INTO late VALUES (1, 'y')");
    let lost = n[0].publish();
    n[1].apply(&lost);
    n[1].run("UPDATE t SET v = 2");
    n[1].publish();
    n[1].db.republish_all().unwrap();
    let again = n[1].send();
    n[1].restart();
    n[1].run(late);
    let taken_in = n[1].publish();
    n[2].apply(&again);
    n[2].run(late);
    n[2].capture();
    n[2].apply(&taken_in);
    assert_eq!(n[1].dump(), n[2].dump());
    assert_eq!(n[2].rows("SELECT * FROM t, late"), "t'a' i2 t'x' i1 t'y'");
    n[0].run("INSERT INTO late VALUES (2, 'z')");
    n[0].run("ALTER TABLE late ADD COLUMN w; UPDATE late SET w = 3 WHERE k = 2");
    let more = n[0].publish();
    n[1].apply(&more);
    n[1].run("ALTER TABLE late ADD COLUMN w");
    assert_eq!(n[1].publish().len(), 0, "that is said already");
}

/// Simulation, seed 5017559: other nodes deleted the row and forgot the tombstone before this node
/// heard of it. The row was back on this node alone.
#[test]
fn rows_held_beyond_the_retention_are_told_when_they_are_taken_in() {
    const DAY_MS: i64 = 24 * 3600 * 1000;
    let late = "CREATE TABLE late(k PRIMARY KEY, v)";
    for (days, frames) in [(1, 0), (20, 1)] {
        let mut n = cluster(2, SCHEMA);
        n[0].run(late);
        n[0].run("INSERT INTO late VALUES (1, 'y')");
        let sent = n[0].publish();
        n[1].apply(&sent);
        let now_ms = n[1].clock.now_ms();
        n[1].db.heard_broker_time(now_ms + days * DAY_MS);
        n[1].run(late);
        assert_eq!(n[1].publish().len(), frames, "after {days} days");
    }
}

/// An operator chose a different prefix or compression: rows of the old streams may not be
/// everywhere yet.
#[test]
fn streams_that_are_read_no_more_are_left_behind() {
    let mut n = filled();
    let node = &mut n[0];
    let place = |seq| Position {
        seq,
        created: "x".into(),
        ..Position::default()
    };
    node.db.move_position("old-1", place(5));
    node.db.move_position("new-1", place(3));
    node.db.flush().unwrap();
    let streams = |s: &mut Settings| s.streams = ["new-1".to_owned(), "new-2".to_owned()].into();
    node.restart_with(streams);
    assert!(node.db.leave_streams().unwrap());
    assert_eq!(node.db.sequences(), [("new-1".to_owned(), 3)]);
    assert!(node.db.is_republishing() && node.db.seeks_snapshot().unwrap());
    while !node.db.is_live() {
        chunk(node);
    }
    node.db.flush().unwrap();
    node.restart_with(streams);
    assert!(!node.db.leave_streams().unwrap() && !node.db.is_republishing());
}
