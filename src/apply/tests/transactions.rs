//! Sizes, crashes, repetitions.

use rusqlite::Connection;

use super::support::{Node, cluster, converge, exchange};
use crate::capture::Outgoing;

const T: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)";

fn thousand(from: u32) -> String {
    format!(
        "WITH RECURSIVE s(i) AS (VALUES({from}) UNION ALL SELECT i + 1 FROM s WHERE i < {from} + \
         999)
         INSERT INTO t SELECT i, 'row ' || i FROM s"
    )
}

#[test]
fn a_transaction_arrives_whole_in_one_frame() {
    let mut n = cluster(1, T);
    n.push(Node::with(2, T, |s| s.shards = 1));
    n[1].run(&thousand(1));
    n[1].db.capture().unwrap();
    let frames = n[1].send();
    assert_eq!(frames.len(), 1);
    n[0].apply(&frames);
    n[0].run("DELETE FROM t WHERE id % 2; UPDATE t SET v = 'x'");
    assert!(converge(&mut n).contains("t'x'"));
}

#[test]
fn large_transactions_are_cut() {
    for (changes, bytes, shards) in [
        (10, 1 << 20, 1),
        (5000, 300, 4),
        (1, 1, 2),
        (5000, 1 << 20, 4),
    ] {
        let node = |id| {
            Node::with(id, T, |s| {
                (s.scan_max_changes, s.max_transaction_bytes, s.shards) = (changes, bytes, shards);
            })
        };
        let mut n = vec![node(1), node(2)];
        n[0].run(&thousand(1));
        let frames = n[0].publish();
        assert!(frames.iter().all(|f| f.shard <= shards));
        n[1].apply(&frames);
        n[1].run("UPDATE t SET v = 'x' WHERE id < 100");
        converge(&mut n);
    }
}

#[test]
fn live_frames_are_the_same_as_those_of_the_backlog() {
    let mut n = cluster(2, T);
    assert!(n[0].db.backlog(1 << 20).unwrap().is_empty() && n[0].db.is_live());
    n[0].run("INSERT INTO t VALUES (1, 'a'), (2, 'b'); DELETE FROM t WHERE id = 2");
    let live = n[0].db.capture().unwrap().frames;
    n[1].apply(&live);
    assert_eq!(n[1].dump(), n[0].dump());
    let again = n[0].send(); // never acknowledged
    assert!(!again.is_empty());
    n[1].apply(&again);
    converge(&mut n);
}

#[test]
fn changes_undone_or_never_seen_are_not_sent() {
    let mut n = cluster(2, T);
    n[0].capture(); // until the first comparison is over, a deleted row may be one from before
    n[0].run("INSERT INTO t VALUES (1, 'a'); DELETE FROM t");
    assert!(n[0].publish().is_empty());
    n[0].run("INSERT INTO t VALUES (1, 'a')");
    converge(&mut n);
    n[0].run("UPDATE t SET v = 'b'; UPDATE t SET v = 'a'");
    converge(&mut n);
    n[0].run("DELETE FROM t; INSERT INTO t VALUES (1, 'again')");
    converge(&mut n);
}

#[test]
fn marks_and_log_survive_a_crash() {
    let mut n = cluster(2, T);
    n[0].run("INSERT INTO t VALUES (1, 'logged')");
    n[0].restart(); // between the write and the capture
    n[0].capture();
    n[0].run("INSERT INTO t VALUES (2, 'captured')");
    n[0].capture();
    n[0].restart(); // between capture and backlog
    n[0].clock.reboot();
    let sent = n[0].db.backlog(1 << 20).unwrap();
    assert!(!sent.is_empty());
    n[0].restart(); // after it was sent, before the acknowledgement was stored
    n[0].run("UPDATE t SET v = 'later' WHERE id = 1");
    converge(&mut n);
    n[1].apply(&sent);
    converge(&mut n);
    assert_eq!(n[1].rows("SELECT count(*) FROM t"), "i2");
}

/// Simulation, seed 1701: marks were encoded while a later change waited in the change log. Its
/// values were published under the earlier version, without the rest of their transaction.
#[test]
fn a_row_goes_out_with_the_values_of_its_version() {
    let mut n = cluster(2, T);
    n[0].run("INSERT INTO t VALUES (1, 'earlier')");
    n[0].capture();
    n[0].run("BEGIN; UPDATE t SET v = 'later'; INSERT INTO t VALUES (2, 'later'); COMMIT");
    let sent = n[0].db.backlog(1 << 20).unwrap();
    n[1].apply(&sent);
    assert_eq!(n[1].rows("SELECT count(*) FROM t WHERE v = 'later'"), "i2");
}

#[test]
fn old_frames_in_any_order_change_nothing() {
    let mut n = cluster(3, T);
    let mut all: Vec<Outgoing> = Vec::new();
    for round in 0..6 {
        for (i, node) in n.iter_mut().enumerate() {
            node.run(&format!(
                "REPLACE INTO t VALUES ({round} % 3, 'n{i} r{round}'); DELETE FROM t WHERE id = \
                 ({round} + {i}) % 4"
            ));
            node.clock
                .advance(std::time::Duration::from_millis(3 + i as u64));
            all.append(&mut node.publish());
        }
    }
    for (i, node) in n.iter_mut().enumerate() {
        let mut mine = all.clone();
        mine.rotate_left(5 * i);
        node.apply(&mine);
        mine.reverse();
        node.apply(&mine);
    }
    let before = converge(&mut n);
    n[1].apply(&all);
    assert_eq!(converge(&mut n), before);
}

#[test]
fn nothing_is_published_with_publish_off() {
    let mut n = vec![Node::new(1, T), Node::with(2, T, |s| s.publish = false)];
    n[1].run("INSERT INTO t VALUES (1, 'here only'), (2, 'here')");
    n[0].run("INSERT INTO t VALUES (3, 'from 1')");
    exchange(&mut n);
    assert_eq!(n[0].rows("SELECT id FROM t"), "i3");
    assert_eq!(n[1].rows("SELECT count(*) FROM t"), "i3");
    // After publishing is switched on, later writes are published.
    n[1].restart();
    n[1].run("UPDATE t SET v = 'out' WHERE id = 2");
    exchange(&mut n);
    assert_eq!(n[0].rows("SELECT id FROM t"), "i2\ni3");
}

#[test]
fn the_applications_open_write_is_waited_for() {
    let mut n = cluster(2, T);
    n[0].run("INSERT INTO t VALUES (1, 'one')");
    let frames = n[0].publish();
    n[1].app
        .execute_batch("BEGIN IMMEDIATE; INSERT INTO t VALUES (1, 'mine')")
        .unwrap();
    std::thread::scope(|s| {
        let node = &mut n[1];
        let (db, app) = (&mut node.db, &node.app);
        let (began, begin) = std::sync::mpsc::channel();
        let frame = crate::model::frame::Frame::decode(&frames[0].raw).unwrap();
        let applier = s.spawn(move || {
            began.send(()).unwrap();
            let content = crate::apply::Content::Frame(frame);
            let arrived = crate::apply::Arrived {
                seq: 1,
                id: "x",
                time_ms: 0,
                content,
            };
            db.apply("s", &[arrived]).unwrap().messages
        });
        begin.recv().unwrap();
        app.execute_batch("INSERT INTO t VALUES (2, 'two'); COMMIT")
            .unwrap();
        assert_eq!(applier.join().unwrap(), 1);
    });
    n[0].apply(&frames);
    converge(&mut n);
    assert_eq!(n[0].rows("SELECT count(*) FROM t"), "i2");
}

#[test]
fn any_journal_mode_will_do() {
    for mode in ["DELETE", "TRUNCATE", "WAL"] {
        let mut n = cluster(2, &format!("PRAGMA journal_mode = {mode}; {T}"));
        let ours = &n[0].db.conn;
        let mode: String = ours
            .query_row("PRAGMA journal_mode", [], |r| r.get(0))
            .unwrap();
        assert_eq!(mode, "wal");
        n[0].run("INSERT INTO t VALUES (1, 'a')");
        converge(&mut n);
    }
}

#[test]
fn writes_through_attach_are_seen() {
    let mut n = cluster(2, T);
    let path = n[0].db.path().to_str().unwrap().to_owned();
    let other = Connection::open_in_memory().unwrap();
    other
        .execute_batch(&format!(
            "ATTACH '{path}' AS a; CREATE TABLE t(id, v); INSERT INTO t VALUES (9, 'not this one');
             INSERT INTO a.t VALUES (1, 'attached')"
        ))
        .unwrap();
    other
        .execute_batch("CREATE TEMP TABLE s AS SELECT * FROM a.t; INSERT INTO s VALUES (7, 'temp')")
        .unwrap();
    converge(&mut n);
    assert_eq!(n[1].rows("SELECT v FROM t"), "t'attached'");
}

#[test]
fn an_older_tombstone_takes_no_mark_away() {
    let mut n = cluster(2, T);
    n[0].run("INSERT INTO t VALUES (1, 'old')");
    converge(&mut n);
    n[1].run("DELETE FROM t");
    n[0].clock.advance(std::time::Duration::from_millis(5));
    n[0].run("UPDATE t SET v = 'newer'");
    n[0].capture();
    let tombstone = n[1].publish();
    n[0].apply(&tombstone); // before the update was sent
    n[0].restart();
    converge(&mut n);
    assert_eq!(n[1].rows("SELECT v FROM t"), "t'newer'");
}

/// The entry by which capture finds the row gone is not the entry of the delete.
#[test]
fn a_delete_has_its_own_time_where_the_log_is_taken_in_parts() {
    for (changes, is_restarted) in [(1, false), (2, false), (512, false), (1, true)] {
        let mut n = cluster(1, T);
        n.push(Node::with(2, T, |s| s.scan_max_changes = changes));
        n[1].run("INSERT INTO t VALUES (1, 'first'), (2, 'b')");
        converge(&mut n);
        let a_while = std::time::Duration::from_secs(10);
        n.iter().for_each(|node| node.clock.advance(a_while));
        n[1].run("UPDATE t SET v = 'x' WHERE id = 1; UPDATE t SET v = 'x' WHERE id = 2");
        n.iter().for_each(|node| node.clock.advance(a_while));
        n[0].run("UPDATE t SET v = 'between' WHERE id = 1");
        n.iter().for_each(|node| node.clock.advance(a_while));
        n[1].run("DELETE FROM t WHERE id = 1");
        if is_restarted {
            let _ = n[1].db.capture().unwrap();
            n[1].restart_with(|s| s.scan_max_changes = changes);
        }
        let rows = converge(&mut n);
        assert!(!rows.contains("between"), "{changes}: {rows}");
    }
}
