//! Tables that were excluded and are replicated now: a snapshot brings the changes that were passed
//! over. And changes that do not fit a table, and were let go for want of space.

use std::collections::BTreeMap;

use super::{BOOKS, at, merge, snapshot};
use crate::apply::tests::support::{Node, assert_equal, exchange};
use crate::apply::{Incoming, Place};
use crate::database::Settings;
use crate::model::manifest::SnapshotEntry;
use crate::model::value::{OwnedValue, Value};
use crate::model::version::Version;

const SCHEMA: &str = "CREATE TABLE Books(id INTEGER PRIMARY KEY, title, isbn TEXT UNIQUE);
                      CREATE TABLE logs(id INTEGER PRIMARY KEY, m)";

fn without_logs(settings: &mut Settings) {
    settings.tables.exclude = vec!["logs".into()];
    settings.joins_by_snapshot = true;
}

fn with_logs(settings: &mut Settings) {
    settings.joins_by_snapshot = true;
}

/// Two nodes that have read all messages of each other, the second without the table `logs`.
fn met(schema: &str) -> [Node; 2] {
    let mut n = [Node::new(1, SCHEMA), Node::with(2, schema, without_logs)];
    n[1].db.become_founder().unwrap();
    n[0].run("INSERT INTO logs VALUES (1, 'goes'), (2, 'stays')");
    n[0].run("INSERT INTO Books VALUES (1, 'Emma', 'x')");
    exchange(&mut n);
    n.iter_mut().for_each(|node| at(node, 20));
    n
}

fn logs(node: &Node) -> String {
    node.rows("SELECT * FROM logs ORDER BY id")
}

#[test]
fn a_table_that_is_included_later_comes_with_a_snapshot() {
    let mut n = met(SCHEMA);
    let early = snapshot(&mut n[0]);
    at(&mut n[0], 30);
    at(&mut n[1], 30);
    n[1].restart_with(with_logs);
    assert!(n[1].db.has_gap() && n[1].db.awaits_snapshot());
    assert!(!n[1].db.is_helped_by(&early.1), "it is from before");
    let taken = snapshot(&mut n[0]);
    assert!(n[1].db.is_helped_by(&taken.1));
    merge(&mut n[1], &taken);
    assert!(!n[1].db.has_gap() && n[1].db.awaited().is_empty());
    assert_eq!(logs(&n[1]), "i1 t'goes'\ni2 t'stays'");
    n[1].restart_with(with_logs);
    assert!(!n[1].db.has_gap(), "once");
}

/// The table is not here yet, and the configuration no longer excludes it.
#[test]
fn a_table_that_is_made_later_comes_with_a_snapshot() {
    let mut n = met(BOOKS);
    n[1].restart_with(with_logs);
    assert!(!n[1].db.has_gap());
    n[0].run("INSERT INTO logs VALUES (3, 'later')");
    exchange(&mut n);
    n[1].run("CREATE TABLE logs(id INTEGER PRIMARY KEY, m)");
    n[1].capture();
    assert!(n[1].db.has_gap() && n[1].db.has_news());
    at(&mut n[0], 40);
    let taken = snapshot(&mut n[0]);
    merge(&mut n[1], &taken);
    assert!(!n[1].db.has_gap());
    assert_eq!(logs(&n[1]), "i1 t'goes'\ni2 t'stays'\ni3 t'later'");
}

/// The table was replicated here, excluded for a while, and is replicated again.
#[test]
fn a_delete_that_was_passed_over_is_done() {
    let mut n = [Node::new(1, SCHEMA), Node::with(2, SCHEMA, with_logs)];
    n[1].db.become_founder().unwrap();
    n[0].run("INSERT INTO logs VALUES (1, 'goes'), (2, 'stays')");
    exchange(&mut n);
    at(&mut n[1], 20);
    n[1].restart_with(without_logs);
    n[1].capture();
    n[0].run("DELETE FROM logs WHERE id = 1");
    exchange(&mut n);
    n[1].restart_with(with_logs);
    n[1].capture();
    at(&mut n[0], 40);
    super::forget_all(&mut n[0], 1);
    let taken = snapshot(&mut n[0]);
    let rows = merge(&mut n[1], &taken);
    assert_eq!(rows.by_table(), " (logs 1)");
    assert_eq!(rows.many_deleted().collect::<Vec<_>>(), [("logs", 1, 2)]);
    n[1].capture();
    assert_eq!(logs(&n[1]), "i2 t'stays'");
    exchange(&mut n);
    assert_eq!(logs(&n[0]), "i2 t'stays'");
}

/// The snapshot's maker let go of the same table, so it has no more of it than this node.
#[test]
fn a_snapshot_that_lacks_the_table_does_not_make_up_for_it() {
    let mut n = met(SCHEMA);
    let mut third = Node::with(3, BOOKS, without_logs);
    third.db.become_founder().unwrap();
    n[0].run("INSERT INTO logs VALUES (4, 'more')");
    let more = n[0].publish();
    third.apply(&more);
    n[1].apply(&more);
    at(&mut third, 40);
    at(&mut n[1], 30);
    let lacking = snapshot(&mut third);
    assert_eq!(lacking.1.lacks, ["logs"]);
    n[1].restart_with(with_logs);
    merge(&mut n[1], &lacking);
    assert!(n[1].db.has_gap());
    assert!(!n[1].db.awaited().is_empty());
    at(&mut n[0], 40);
    let taken = snapshot(&mut n[0]);
    assert!(n[1].db.is_helped_by(&taken.1));
    merge(&mut n[1], &taken);
    assert!(!n[1].db.has_gap());
    // A node that begins with such a snapshot lacks the table as well.
    let mut fourth = Node::unmet(4, SCHEMA);
    merge(&mut fourth, &lacking);
    assert!(fourth.db.has_gap());
    merge(&mut fourth, &taken);
    assert!(!fourth.db.has_gap());
    assert_eq!(logs(&fourth), logs(&n[0]));
}

/// Three nodes: the first has the tables and their rows, the second read them, dropped `logs` and
/// made a snapshot. Messages of before it are not read by the third.
fn dropped() -> ([Node; 2], (std::path::PathBuf, SnapshotEntry)) {
    let mut n = [Node::unmet(1, SCHEMA), Node::unmet(2, SCHEMA)];
    n.iter_mut()
        .for_each(|node| node.db.become_founder().unwrap());
    n[0].run("INSERT INTO logs VALUES (1, 'old'), (2, 'old'); DELETE FROM logs WHERE id = 2");
    n[0].run("INSERT INTO Books VALUES (1, 'Emma', 'x')");
    exchange(&mut n);
    n[1].run("DROP TABLE logs");
    n[1].capture();
    n[0].run("INSERT INTO logs VALUES (3, 'new')");
    exchange(&mut n);
    n.iter_mut().for_each(|node| at(node, 20));
    let lacking = snapshot(&mut n[1]);
    assert_eq!(lacking.1.lacks, ["logs"]);
    (n, lacking)
}

/// Its maker dropped the table, so the rows come with the snapshot of a node that has it.
fn comes_with_another(n: &mut [Node; 2], third: &mut Node) {
    assert!(third.db.has_gap() && third.db.awaits_snapshot());
    let taken = snapshot(&mut n[0]);
    assert!(taken.1.lacks.is_empty() && third.db.is_helped_by(&taken.1));
    merge(third, &taken);
    assert!(!third.db.has_gap());
    assert_eq!(logs(third), "i1 t'old'\ni3 t'new'");
    assert_eq!(third.db.held().unwrap(), 0);
    third.restart_with(with_logs);
    assert!(!third.db.has_gap(), "once");
}

#[test]
fn a_table_that_the_maker_of_a_snapshot_dropped_comes_with_another_one() {
    let (mut n, lacking) = dropped();
    let mut third = Node::unmet(3, SCHEMA);
    merge(&mut third, &lacking);
    comes_with_another(&mut n, &mut third);
}

#[test]
fn so_it_does_for_a_node_that_begins_with_such_a_snapshot_and_makes_the_table_later() {
    let (mut n, lacking) = dropped();
    let mut third = Node::linked(3, &lacking.0, with_logs);
    assert!(!third.db.has_gap());
    at(&mut third, 20);
    third.run("CREATE TABLE logs(id INTEGER PRIMARY KEY, m)");
    third.capture();
    comes_with_another(&mut n, &mut third);
    // The maker itself made it again. It had the rows before, and holds what came since.
    let mut fourth = Node::linked(4, &lacking.0, with_logs);
    at(&mut fourth, 20);
    let lacking = snapshot(&mut fourth);
    assert_eq!(lacking.1.lacks, ["logs"], "it is no better");
}

/// A node that holds at most 20,000 bytes, and has read 200 rows that do not fit its table.
fn with_little_room(theirs: &str, insert: &str) -> [Node; 2] {
    let schema = "CREATE TABLE t(id INTEGER PRIMARY KEY, a, b)";
    let mut n = [Node::new(1, schema), Node::unmet(2, theirs)];
    n[1].db.become_founder().unwrap();
    n[1].db.hold_at_most(20_000);
    for id in 0..200 {
        n[0].run(&insert.replace("?1", &id.to_string()));
        exchange(&mut n);
    }
    n[1].capture();
    let stored = "SELECT total(length(value)) < 20000 FROM __harmonylite___held";
    assert_eq!(n[1].rows(stored), "i1");
    assert!(n[1].db.held_bytes() <= 20_000);
    assert!(n[1].db.counts().let_go > 100);
    n.iter_mut().for_each(|node| at(node, 20));
    n[1].restart_with(with_logs);
    assert!(!n[1].db.has_gap(), "nothing fits that did not fit before");
    n
}

/// The table is changed, so the node lacks what it let go until a snapshot of the other comes.
fn gets_all(n: &mut [Node; 2], change: &str) {
    n[1].run(change);
    n[1].capture();
    assert!(n[1].db.has_gap() && n[1].db.has_news());
    let lacking = snapshot(&mut n[1]);
    assert_eq!(lacking.1.lacks, ["t"]);
    at(&mut n[0], 40);
    let taken = snapshot(&mut n[0]);
    assert!(n[1].db.is_helped_by(&taken.1));
    merge(&mut n[1], &taken);
    assert!(!n[1].db.has_gap());
    assert_equal(n, "SELECT id, a, b FROM t ORDER BY id");
    assert_eq!(n[1].rows("SELECT count(b) FROM t"), "i200");
    assert_eq!(n[1].db.held().unwrap(), 0);
}

#[test]
fn columns_beyond_the_bound_come_with_a_snapshot() {
    let mut n = with_little_room(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, a)",
        "INSERT INTO t VALUES (?1, ?1, hex(zeroblob(200)))",
    );
    assert_eq!(n[1].rows("SELECT count(a) FROM t"), "i200");
    gets_all(&mut n, "ALTER TABLE t ADD COLUMN b");
}

#[test]
fn rows_that_break_a_constraint_beyond_the_bound_come_with_a_snapshot() {
    let mut n = with_little_room(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, a, b CHECK(length(b) < 9))",
        "INSERT INTO t VALUES (?1, ?1, hex(zeroblob(200)))",
    );
    assert_eq!(n[1].rows("SELECT count(*) FROM t"), "i0");
    gets_all(
        &mut n,
        "BEGIN; CREATE TABLE new(id INTEGER PRIMARY KEY, a, b); INSERT INTO new SELECT * FROM t;
         DROP TABLE t; ALTER TABLE new RENAME TO t; COMMIT",
    );
}

/// A later write of such a row has all of it.
#[test]
fn a_row_that_was_let_go_comes_with_its_next_write() {
    let mut n = with_little_room(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, a, b CHECK(length(b) < 9))",
        "INSERT INTO t VALUES (?1, ?1, hex(zeroblob(200)))",
    );
    n[0].run("UPDATE t SET b = 'fits' WHERE id = 7; DELETE FROM t WHERE id = 8");
    exchange(&mut n);
    assert_eq!(n[1].rows("SELECT * FROM t"), "i7 i7 t'fits'");
}

/// This node may be the last that has such a row.
#[test]
fn a_held_row_that_is_to_be_sent_is_not_let_go() {
    let mut n = with_little_room(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, a)",
        "INSERT INTO t VALUES (?1, ?1, hex(zeroblob(200)))",
    );
    let version = Version {
        hlc: 1 << 60,
        node: 1,
    };
    let value = OwnedValue::Text(vec![b'x'; 30_000]);
    let unsent = Incoming {
        row: Some(version),
        unsent: Some(version),
        columns: BTreeMap::from([("b".to_owned(), (version, value))]),
        ..Incoming::default()
    };
    n[1].db.hold_at_most(20_000);
    let table = n[1].db.catalog.by_name["t"].clone();
    let place = Place::of(&table, &table.key_bytes([Value::Integer(500)].into_iter()));
    n[1].db.write(|db| db.hold(&place, &unsent, "")).unwrap();
    n[0].run("INSERT INTO t VALUES (501, 1, 'more')");
    exchange(&mut n);
    n[1].capture();
    assert_eq!(n[1].db.held().unwrap(), 1);
    n[1].restart_with(with_logs);
    n[1].capture();
    assert_eq!(n[1].db.held().unwrap(), 1);
}
