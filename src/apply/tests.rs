//! Tests of nodes that exchange frames by hand.

use std::time::Duration;

use crate::capture::Outgoing;

mod again;
mod changes;
mod check;
mod clocks;
mod dangling;
mod defaults;
pub(crate) mod equality;
mod eviction;
mod former_key;
mod go_events;
mod hostile;
mod key_change;
mod keys;
mod let_go;
mod limits;
mod local;
mod migrations;
mod nonsense;
mod old_key;
mod oracle;
mod pages;
mod random;
mod rebuilds;
mod renames;
mod schema_moves;
mod shown;
mod steps;
mod storage;
pub(crate) mod support;
mod transactions;
mod triggers;
mod unfit;
mod values;

use support::{Node, assert_equal, cluster, exchange};

const BOOKS: &str = "CREATE TABLE Books(id INTEGER PRIMARY KEY, title TEXT NOT NULL, year INTEGER)";
const ALL: &str = "SELECT * FROM Books ORDER BY 1";

#[test]
fn a_row_arrives_changes_and_goes() {
    let mut n = cluster(2, BOOKS);
    n[0].run("INSERT INTO Books VALUES (1, 'Dune', 1965), (2, 'Emma', 1815)");
    exchange(&mut n);
    assert_equal(&n, ALL);
    assert_eq!(n[1].rows("SELECT count(*) FROM Books"), "i2");
    n[1].run("UPDATE Books SET year = 1966 WHERE id = 1; DELETE FROM Books WHERE id = 2");
    exchange(&mut n);
    assert_eq!(assert_equal(&n, "SELECT id, year FROM Books"), "i1 i1966");
}

#[test]
fn rows_from_before_are_joined() {
    let with = |rows: &str| format!("{BOOKS}; INSERT INTO Books VALUES {rows}");
    let mut n = vec![
        Node::new(1, &with("(1, 'Dune', 1), (2, 'only on 1', 1)")),
        Node::new(2, &with("(1, 'Dune', 2), (3, 'only on 2', 1)")),
    ];
    // A write wins over rows that were there before HarmonyLite, whichever node id is higher.
    n[0].run("UPDATE Books SET year = 9 WHERE id = 1");
    exchange(&mut n);
    let all = assert_equal(&n, ALL);
    assert_eq!(all.lines().count(), 3);
    assert_eq!(n[1].rows("SELECT year FROM Books WHERE id = 1"), "i9");
}

#[test]
fn concurrent_writes_end_equal() {
    let mut n = cluster(3, BOOKS);
    for round in 0..20 {
        for node in &n {
            let id = node.db.node();
            node.run(&format!(
                "INSERT INTO Books VALUES (1, 'a{id}', {round}) ON CONFLICT DO UPDATE SET title = \
                 excluded.title;
                 INSERT OR REPLACE INTO Books VALUES (2 + {round} % 3, 'b{id}', {round});
                 DELETE FROM Books WHERE id = 2 + {} % 3",
                round + id
            ));
            node.clock.advance(Duration::from_millis(id * 7 % 5));
        }
        if round % 3 == 0 {
            exchange(&mut n);
            assert_equal(&n, ALL);
        }
    }
    exchange(&mut n);
    assert_equal(&n, ALL);
}

#[test]
fn unknown_columns_and_tables_are_held_until_they_are_known() {
    let mut n = vec![
        Node::new(
            1,
            "CREATE TABLE t(id INTEGER PRIMARY KEY, a, b DEFAULT 'x'); CREATE TABLE u(k TEXT \
             PRIMARY KEY)",
        ),
        Node::new(2, "CREATE TABLE t(id INTEGER PRIMARY KEY, a)"),
    ];
    n[0].run(
        "INSERT INTO t VALUES (1, 'one', 'B'); INSERT INTO u VALUES ('k'), ('gone'); DELETE \
        FROM u WHERE k = 'gone'",
    );
    exchange(&mut n);
    assert_eq!(n[1].rows("SELECT a FROM t"), n[0].rows("SELECT a FROM t"));
    assert!(n[1].db.held().unwrap() > 0);
    // The node without the column writes the row; the other node's column must survive that.
    n[1].run("UPDATE t SET a = 'two'");
    exchange(&mut n);
    assert_eq!(n[0].rows("SELECT a, b FROM t"), "t'two' t'B'");
    n[1].run("ALTER TABLE t ADD COLUMN b DEFAULT 'x'; CREATE TABLE u(k TEXT PRIMARY KEY)");
    exchange(&mut n);
    assert_equal(&n, "SELECT * FROM t");
    assert_equal(&n, "SELECT * FROM u");
    assert_eq!(n[1].db.held().unwrap(), 0);
}

#[test]
fn unique_collisions_end_equal_and_come_back() {
    let mut n = cluster(
        2,
        "CREATE TABLE u(id INTEGER PRIMARY KEY, email TEXT COLLATE NOCASE UNIQUE, n)",
    );
    n[0].run("INSERT INTO u VALUES (1, 'a@x', 'first')");
    n[1].clock.advance(Duration::from_millis(5));
    n[1].run("INSERT INTO u VALUES (2, 'A@X', 'second')");
    exchange(&mut n);
    let all = "SELECT id, email, n FROM u ORDER BY id";
    assert_equal(&n, all);
    assert_eq!(n[0].rows("SELECT count(*) FROM u"), "i1");
    assert_eq!(
        (n[0].db.displaced().unwrap(), n[1].db.displaced().unwrap()),
        (1, 1)
    );
    let winner = n[0].rows("SELECT id FROM u");
    n[0].clock.advance(Duration::from_millis(50));
    n[0].run("UPDATE u SET email = 'b@x'");
    exchange(&mut n);
    assert_equal(&n, all);
    assert_eq!(
        n[1].rows("SELECT count(*) FROM u"),
        "i2",
        "the hidden row is back"
    );
    assert_eq!(
        (n[0].db.displaced().unwrap(), n[1].db.displaced().unwrap()),
        (0, 0)
    );
    assert!(!winner.is_empty());
}

#[test]
fn replace_that_evicts_is_seen() {
    let mut n = cluster(
        2,
        "CREATE TABLE u(id INTEGER PRIMARY KEY, email TEXT UNIQUE)",
    );
    n[0].run("INSERT INTO u VALUES (1, 'a'), (2, 'b')");
    exchange(&mut n);
    n[0].run("REPLACE INTO u VALUES (3, 'a'); INSERT OR IGNORE INTO u VALUES (4, 'b')");
    exchange(&mut n);
    let all = assert_equal(&n, "SELECT id, email FROM u ORDER BY id");
    assert_eq!(all, "i2 t'b'\ni3 t'a'");
}

#[test]
fn a_row_in_parts_is_put_together() {
    let mut n = cluster(2, "CREATE TABLE b(id INTEGER PRIMARY KEY, data BLOB)");
    n[0].run("INSERT INTO b VALUES (1, randomblob(3000000))");
    let frames = n[0].publish();
    let packed = crate::model::frame::pack(frames[0].raw.clone(), None);
    let mut parts: Vec<Outgoing> = packed
        .messages(0, 500_000)
        .map(|raw| Outgoing {
            raw,
            ..frames[0].clone()
        })
        .collect();
    parts.reverse();
    assert!(parts.len() > 5);
    n[1].apply(&parts);
    assert_equal(&n, "SELECT * FROM b");
    assert_eq!(
        n[1].rows("SELECT count(*) FROM __harmonylite___parts"),
        "i0"
    );
}

#[test]
fn garbage_is_put_in_quarantine_and_the_rest_goes_on() {
    let mut n = cluster(2, BOOKS);
    n[0].run("INSERT INTO Books VALUES (1, 'Dune', 1965)");
    let good = n[0].publish();
    let bad = Outgoing {
        raw: b"garbage".to_vec(),
        ..good[0].clone()
    };
    n[1].apply(&[bad, good[0].clone()]);
    assert_equal(&n, ALL);
    assert_eq!(n[1].db.quarantined().unwrap(), 1);
}
