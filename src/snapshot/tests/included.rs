//! Tables that were excluded and are replicated now: a snapshot brings the changes that were passed
//! over.

use super::{BOOKS, at, merge, snapshot};
use crate::apply::tests::support::{Node, exchange};
use crate::database::Settings;

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
    merge(&mut n[1], &taken);
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
