//! Snapshots between nodes that exchange frames by hand.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::merge::RowCount;
use super::{Merge, View};
use crate::apply::Position;
use crate::apply::tests::support::{Node, assert_equal, cluster, exchange};
use crate::model::manifest::{SnapshotEntry, StreamPosition};

mod births;
mod copying;
mod demoted;
mod dropped;
mod equality;
mod forgetting;
mod former;
mod hostile;
mod included;
#[cfg(feature = "store-file")]
mod keeping;
mod lacking;
mod local;
mod moved;
mod rebuilds;
mod triggers;

pub(super) const BOOKS: &str =
    "CREATE TABLE Books(id INTEGER PRIMARY KEY, title TEXT, isbn TEXT UNIQUE)";
const ALL: &str = "SELECT * FROM Books ORDER BY 1";

/// A view after everything that the application has written so far is captured.
fn view(node: &mut Node) -> View {
    for _ in 0..10_000 {
        if let (Some(view), _) = node.db.view().unwrap() {
            return view;
        }
    }
    panic!("there are always changes left");
}

/// A copy in a file beside the database, and its entry for the manifest.
fn snapshot(node: &mut Node) -> (PathBuf, SnapshotEntry) {
    let view = view(node);
    copy(node, view)
}

fn copy(node: &Node, view: View) -> (PathBuf, SnapshotEntry) {
    let file = node.dir.path().join(format!("copy-{}", rand(node)));
    let (streams, lacks) = (view.streams.clone(), view.lacks());
    view.copy(&file, &mut |_| Ok(())).unwrap();
    let dropped = node.db.dropped().unwrap();
    let entry = SnapshotEntry {
        name: "snapshot-1-1-0.db.zst".into(),
        size: 1,
        sha256: "0".repeat(64),
        database_size: 1,
        node: node.db.node(),
        time_ms: 1,
        schema: 0,
        streams,
        dropped: dropped.is_valid().then_some((dropped.hlc, dropped.node)),
        lacks,
    };
    (file, entry)
}

fn rand(node: &Node) -> usize {
    std::fs::read_dir(node.dir.path()).unwrap().count()
}

fn merge(node: &mut Node, (file, entry): &(PathBuf, SnapshotEntry)) -> RowCount {
    let mut merge = Merge::open(file, entry).unwrap();
    let ended = (0..100_000).any(|_| merge.step(&mut node.db).unwrap().0);
    assert!(ended, "the merge never ends");
    node.capture();
    merge.rows
}

fn at(node: &mut Node, seq: u64) {
    at_in(node, "s", seq);
}

fn at_in(node: &mut Node, stream: &str, seq: u64) {
    let created = "2026-01-01T00:00:00Z".to_owned();
    let position = Position {
        seq,
        created,
        ..Position::default()
    };
    node.db.move_position(stream, position);
    node.db.flush().unwrap();
}

/// Both nodes read all frames of the other; then they are equal.
fn meet(nodes: &mut [Node]) -> String {
    exchange(nodes);
    exchange(nodes);
    nodes.iter_mut().for_each(Node::check);
    assert_equal(nodes, ALL)
}

#[test]
fn a_database_without_tables_becomes_the_same() {
    let schema = format!(
        "{BOOKS}; CREATE INDEX by_title ON Books(title);
         CREATE VIEW titles AS SELECT title FROM Books;
         CREATE TABLE log(text); CREATE VIRTUAL TABLE search USING fts5(title);
         CREATE TRIGGER logged AFTER INSERT ON Books BEGIN INSERT INTO log VALUES (NEW.title); END;
         PRAGMA user_version = 7; PRAGMA application_id = 8"
    );
    let mut a = Node::new(1, &schema);
    a.run("INSERT INTO Books VALUES (1, 'Dune', 'x'), (2, 'Emma', 'y'), (3, x'00ff', NULL)");
    a.run("DELETE FROM Books WHERE id = 2");
    at(&mut a, 17);
    let mut b = Node::new(2, "");
    merge(&mut b, &snapshot(&mut a));
    let mut n = [a, b];
    assert_equal(&n, ALL);
    assert_equal(&n, "SELECT * FROM titles ORDER BY 1");
    assert_equal(&n, "SELECT count(*) FROM log");
    let theirs =
        "SELECT user_version, application_id FROM pragma_user_version, pragma_application_id";
    assert_eq!(n[1].rows(theirs), "i7 i8");
    assert_eq!(n[1].db.position("s").seq, 17);
    // The tombstone came along: an old copy of the row does not come back.
    assert_eq!(n[0].versions(), n[1].versions());
    n[1].run("INSERT INTO Books VALUES (4, 'new', 'y')");
    meet(&mut n);
}

#[test]
fn local_writes_survive_and_are_published() {
    let mut n = cluster(2, BOOKS);
    n[0].run("INSERT INTO Books VALUES (1, 'a', 'x'), (2, 'b', 'y'), (3, 'c', NULL)");
    exchange(&mut n);
    n.iter_mut()
        .for_each(|node| node.clock.advance(Duration::from_secs(1)));
    // The nodes are apart for long, and the streams no longer have the messages.
    n[0].run("UPDATE Books SET title = 'a0' WHERE id = 1; DELETE FROM Books WHERE id = 2");
    n[0].publish();
    n.iter_mut()
        .for_each(|node| node.clock.advance(Duration::from_secs(1)));
    n[1].run("UPDATE Books SET title = 'c1' WHERE id = 3; INSERT INTO Books VALUES (4, 'd', 'w')");
    let (first, rest) = n.split_at_mut(1);
    merge(&mut rest[0], &snapshot(&mut first[0]));
    assert_eq!(
        n[1].rows("SELECT title FROM Books ORDER BY id"),
        "t'a0'\nt'c1'\nt'd'"
    );
    assert_eq!(meet(&mut n).lines().count(), 3);
}

/// A row that was marked under a transaction which did not learn it is sent all the same, even if
/// something older joins it meanwhile.
#[test]
fn changes_that_a_snapshot_marks_again_are_sent() {
    let mut n = cluster(3, BOOKS);
    n[2].run("INSERT INTO Books VALUES (1, 'old', 'x')");
    n[2].capture();
    n[2].run("DELETE FROM Books");
    let older = n[2].publish();
    n[0].clock.advance(Duration::from_secs(5));
    n[0].run("INSERT INTO Books VALUES (1, 'new', 'x')");
    let taken = snapshot(&mut n[0]);
    let again = (taken.0.with_extension("2"), taken.1.clone());
    std::fs::copy(&taken.0, &again.0).unwrap();
    merge(&mut n[1], &taken);
    merge(&mut n[1], &again);
    n[1].apply(&older);
    let sent = n[1].publish();
    n[2].apply(&sent);
    assert_eq!(n[2].rows(ALL), "i1 t'new' t'x'");
    assert_eq!(n[1].db.unsent().unwrap(), 0);
}

#[test]
fn merging_twice_or_half_changes_nothing() {
    let mut n = cluster(2, BOOKS);
    for i in 0..40 {
        n[0].run(&format!("INSERT INTO Books VALUES ({i}, 'a', {i})"));
        n[1].run(&format!(
            "INSERT OR REPLACE INTO Books VALUES ({i} + 20, 'b', {i} + 10)"
        ));
    }
    let (first, rest) = n.split_at_mut(1);
    let taken = snapshot(&mut first[0]);
    let mut half = Merge::open(&taken.0, &taken.1).unwrap();
    half.step(&mut rest[0].db).unwrap();
    drop(half); // the process is killed
    rest[0].restart();
    merge(&mut rest[0], &taken);
    let once = rest[0].dump();
    merge(&mut rest[0], &taken);
    assert_eq!(rest[0].dump(), once);
    meet(&mut n);
}

#[test]
fn a_row_written_during_the_copy_is_not_in_it() {
    let mut a = Node::new(1, BOOKS);
    a.run("INSERT INTO Books VALUES (1, 'before', 'x')");
    let seen = view(&mut a);
    a.run("UPDATE Books SET title = 'after'; INSERT INTO Books VALUES (2, 'after', 'y')");
    a.capture();
    let taken = copy(&a, seen);
    let mut b = Node::new(2, BOOKS);
    merge(&mut b, &taken);
    assert_eq!(b.rows("SELECT id, title FROM Books"), "i1 t'before'");
    let mut n = [a, b];
    meet(&mut n);
}

#[test]
fn displaced_held_and_unsent_rows_come_along() {
    let mut n = cluster(2, BOOKS);
    n[0].run("INSERT INTO Books VALUES (1, 'a', 'same')");
    n[1].run("INSERT INTO Books VALUES (2, 'b', 'same')");
    exchange(&mut n);
    assert_eq!(n[0].db.displaced().unwrap(), 1);
    // The other node holds the rows of a table that only one has.
    n[1].run("CREATE TABLE extra(k TEXT PRIMARY KEY, v); INSERT INTO extra VALUES ('k', 7)");
    exchange(&mut n);
    n[0].run("INSERT INTO Books VALUES (9, 'not sent', 'z')");
    let mut c = Node::new(
        3,
        &format!("{BOOKS}; CREATE TABLE extra(k TEXT PRIMARY KEY, v)"),
    );
    merge(&mut c, &snapshot(&mut n[0]));
    assert_eq!(c.rows("SELECT v FROM extra"), "i7");
    assert_eq!(c.db.displaced().unwrap(), 1);
    // The maker is lost for ever. The node that merged its snapshot sends the rows that it had not
    // sent.
    let mut left = [n.pop().unwrap(), c];
    meet(&mut left);
    assert_eq!(
        left[0].rows("SELECT title FROM Books WHERE id = 9"),
        "t'not sent'"
    );
    // The winner goes, and the displaced row comes back on both nodes.
    left[0].run("UPDATE Books SET isbn = 'other' WHERE isbn = 'same'");
    assert!(meet(&mut left).contains("same"));
}

/// The maker is lost, and the node that merged its snapshot learns the table or the column later.
#[test]
fn unsent_rows_of_the_maker_are_sent_once_they_fit() {
    let full = "CREATE TABLE t(k INTEGER PRIMARY KEY, v, w)";
    for before in ["", "CREATE TABLE t(k INTEGER PRIMARY KEY, v)"] {
        let mut lost = Node::new(1, full);
        lost.run("INSERT INTO t VALUES (1, 'a', 'b')");
        let taken = snapshot(&mut lost);
        let mut n = [
            Node::new(2, &format!("{BOOKS}; {before}")),
            Node::new(3, full),
        ];
        merge(&mut n[0], &taken);
        exchange(&mut n);
        n[0].run(match before {
            "" => full,
            _ => "ALTER TABLE t ADD COLUMN w",
        });
        n[0].capture();
        exchange(&mut n);
        assert_eq!(assert_equal(&n, "SELECT * FROM t"), "i1 t'a' t'b'");
        assert_eq!(n[0].db.held().unwrap(), 0);
        assert_eq!(n[0].db.unsent().unwrap(), 0, "it is said once");
    }
}

#[test]
fn rows_from_before_give_way_to_the_founders() {
    let with = |rows: &str| format!("{BOOKS}; INSERT INTO Books VALUES {rows}");
    for (founder, joining) in [(1, 2), (2, 1)] {
        let mut a = Node::unmet(
            founder,
            &with("(1, 'founder', 'x'), (2, 'only there', 'y')"),
        );
        let mut b = Node::unmet(joining, &with("(1, 'joining', 'x'), (3, 'only here', 'z')"));
        a.db.become_founder().unwrap();
        a.capture();
        b.capture();
        merge(&mut b, &snapshot(&mut a));
        let mut n = [a, b];
        assert_eq!(meet(&mut n).lines().count(), 3);
        assert_eq!(
            n[1].rows("SELECT title FROM Books WHERE id = 1"),
            "t'founder'"
        );
    }
}

#[test]
fn rows_from_before_give_way_to_what_a_stream_brings_before_the_snapshot_comes() {
    let with = |title: &str| format!("{BOOKS}; INSERT INTO Books VALUES (1, '{title}', 'x')");
    let mut a = Node::unmet(1, &with("founder"));
    let mut b = Node::unmet(2, &with("joined without"));
    let mut c = Node::unmet(3, &with("joining"));
    for joined in [&mut a, &mut b] {
        joined.db.become_founder().unwrap();
        joined.capture();
    }
    let old = snapshot(&mut a);
    let published = b.publish();
    a.apply(&published);
    c.apply(&published);
    merge(&mut c, &old);
    let mut n = [a, b, c];
    meet(&mut n);
    assert_eq!(n[2].rows("SELECT title FROM Books"), "t'joined without'");
}

/// The time after which tombstones are dropped, with some to spare.
const RETENTION: Duration = Duration::from_secs(31 * 24 * 3600);

/// The node hears and notes the broker's time, and drops tombstones that are due.
fn sweep(node: &mut Node) -> u64 {
    note(node);
    let Some(mut sweep) = node.db.sweep().unwrap() else {
        return 0;
    };
    while !node.db.sweep_step(&mut sweep).unwrap() {}
    node.check();
    sweep.dropped
}

fn forget_all(node: &mut Node, count: u64) {
    sweep(node);
    node.clock.advance(RETENTION);
    assert_eq!(sweep(node), count);
}

#[test]
fn a_delete_is_forgotten_and_still_reaches_who_comes_back() {
    let mut n = cluster(3, BOOKS);
    n[0].run("INSERT INTO Books VALUES (1, 'goes', 'x'), (2, 'stays', 'y'), (3, 'goes', 'z')");
    exchange(&mut n);
    n.iter_mut().for_each(|node| at(node, 10));
    n[2].run("UPDATE Books SET title = 'not sent' WHERE id = 3");
    n[2].capture();
    let mut away = n.pop().unwrap();
    n[0].clock.advance(Duration::from_secs(5));
    n[0].run("DELETE FROM Books WHERE id IN (1, 3)");
    exchange(&mut n);
    n.iter_mut().for_each(|node| at(node, 20));
    for node in &mut n {
        assert_eq!(sweep(node), 0, "too early");
        node.clock.advance(RETENTION);
        assert_eq!(sweep(node), 2);
        assert_eq!(node.db.tombstones("Books").unwrap(), 0);
    }
    // Row 1 was deleted while the node was away. No other node knows its write of row 3.
    merge(&mut away, &snapshot(&mut n[0]));
    assert_eq!(away.rows("SELECT id FROM Books ORDER BY 1"), "i2\ni3");
    n.push(away);
    assert_eq!(meet(&mut n).lines().count(), 2);
    // No node remembers anything of row 1, so it may be inserted again.
    n[1].run("INSERT INTO Books VALUES (1, 'again', 'x')");
    assert_eq!(meet(&mut n).lines().count(), 3);
}

#[test]
fn rows_new_to_the_others_are_not_taken_for_deleted() {
    let mut n = cluster(2, BOOKS);
    n[0].run("INSERT INTO Books VALUES (1, 'goes', 'x'), (2, 'stays', 'y')");
    exchange(&mut n);
    n.iter_mut().for_each(|node| at(node, 10));
    // Written after the snapshot's position in the stream, and read here already.
    n[1].run("INSERT INTO Books VALUES (5, 'newer', 'n')");
    n[0].clock.advance(Duration::from_secs(5));
    n[0].run("DELETE FROM Books WHERE id = 1");
    exchange(&mut n);
    n[0].clock.advance(RETENTION);
    sweep(&mut n[0]);
    n[0].clock.advance(RETENTION);
    sweep(&mut n[0]);
    let (first, rest) = n.split_at_mut(1);
    let mut taken = snapshot(&mut first[0]);
    taken.1.streams = BTreeMap::from([(
        "s".to_owned(),
        StreamPosition {
            seq: 9,
            id: String::new(),
            created: "2026-01-01T00:00:00Z".into(),
            gap: None,
        },
    )]);
    merge(&mut rest[0], &taken);
    assert_eq!(rest[0].rows("SELECT count(*) FROM Books"), "i2");
    meet(&mut n);
}

/// The node hears and notes the broker's time.
fn note(node: &mut Node) {
    let now_ms = crate::clock::Clock::now_ms(&*node.clock);
    node.db.heard_broker_time(now_ms);
    node.db.note_age().unwrap();
}

#[test]
fn an_old_tombstone_that_wins_is_told_again() {
    let mut n = cluster(2, BOOKS);
    n[0].run("INSERT INTO Books VALUES (1, 'goes', 'x')");
    let said = n[0].publish();
    n[1].apply(&said);
    n[1].clock.advance(Duration::from_secs(5));
    note(&mut n[1]);
    n[1].run("DELETE FROM Books");
    n[1].publish();
    n[1].apply(&said);
    assert_eq!(
        n[1].db.unsent().unwrap(),
        0,
        "everybody was told a moment ago"
    );
    n[1].clock.advance(RETENTION / 3);
    note(&mut n[1]);
    n[1].apply(&said);
    assert_eq!(n[1].db.unsent().unwrap(), 1);
    let again = n[1].publish();
    n[0].apply(&again);
    assert_eq!(n[0].rows("SELECT count(*) FROM Books"), "i0");
}

/// The row wins over the tombstone. The column that was added later does not: it has the version
/// from before the delete.
#[test]
fn an_old_tombstone_that_wins_over_a_column_is_told_again() {
    let mut n = cluster(3, BOOKS);
    let adds = "ALTER TABLE Books ADD COLUMN pages DEFAULT 7";
    n[1].run(adds);
    n[2].run(adds);
    n[1].run("INSERT INTO Books VALUES (1, 'goes', 'x', 3)");
    exchange(&mut n);
    n[1].clock.advance(Duration::from_secs(5));
    n[1].run("DELETE FROM Books");
    let deleted = n[1].publish();
    n[2].apply(&deleted);
    forget_all(&mut n[2], 1);
    note(&mut n[1]);
    n[0].clock.advance(Duration::from_secs(9));
    n[0].run("UPDATE Books SET title = 'is back'");
    n[0].run(adds);
    assert_eq!(meet(&mut n), "i1 t'is back' t'x' i7");
}

/// Tombstones that came with a snapshot may be old, whenever that was.
#[test]
fn a_merged_tombstone_that_wins_is_told_again() {
    let mut n = cluster(3, BOOKS);
    n[0].run("INSERT INTO Books VALUES (1, 'goes', 'x')");
    let said = n[0].publish();
    n[1].apply(&said);
    n[1].clock.advance(Duration::from_secs(5));
    n[1].run("DELETE FROM Books");
    n[1].publish();
    let taken = snapshot(&mut n[1]);
    note(&mut n[2]);
    merge(&mut n[2], &taken);
    n[2].apply(&said);
    let again = n[2].publish();
    n[0].apply(&again);
    assert_eq!(n[0].rows("SELECT count(*) FROM Books"), "i0");
}

/// A node that hears an old tombstone again keeps it as long as nodes that hear of it now.
#[test]
fn a_tombstone_told_again_is_kept_longer() {
    let mut n = cluster(2, BOOKS);
    n[0].run("INSERT INTO Books VALUES (1, 'goes', 'x')");
    let said = n[0].publish();
    n[1].apply(&said);
    n[0].clock.advance(Duration::from_secs(5));
    n[0].run("DELETE FROM Books");
    let deleted = n[0].publish();
    n[1].apply(&deleted);
    sweep(&mut n[1]);
    n[1].clock.advance(RETENTION / 2);
    sweep(&mut n[1]);
    n[1].apply(&deleted);
    n[1].clock.advance(RETENTION / 50);
    note(&mut n[1]);
    n[1].clock.advance(RETENTION / 2);
    assert_eq!(sweep(&mut n[1]), 0);
    n[1].clock.advance(RETENTION / 2);
    assert_eq!(sweep(&mut n[1]), 1);
}

#[test]
fn a_copy_can_be_ended() {
    let mut a = Node::new(1, BOOKS);
    a.run(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)
         INSERT INTO Books SELECT i, hex(randomblob(2000)), i FROM n",
    );
    let seen = view(&mut a);
    let file = a.dir.path().join("copy");
    let ended = seen.copy(&file, &mut |_| Err(io::Error::other("stopped")));
    assert_eq!(ended.unwrap_err().to_string(), "stopped");
}

/// SQLite accepts 2000 columns, and expressions of 1000 terms.
#[test]
fn a_table_of_many_columns_is_merged() {
    let columns: String = (0..1500).map(|i| format!(", c{i}")).collect();
    let mut a = Node::new(
        1,
        &format!("CREATE TABLE wide(id INTEGER PRIMARY KEY{columns})"),
    );
    a.run("INSERT INTO wide(id, c7, c1499) VALUES (1, 'x', 'y')");
    let mut b = Node::new(2, "");
    merge(&mut b, &snapshot(&mut a));
    assert_eq!(b.rows("SELECT id, c7, c1499 FROM wide"), "i1 t'x' t'y'");
}
