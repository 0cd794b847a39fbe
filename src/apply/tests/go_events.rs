//! Tests of changes that nodes of the Go version published.

use super::support::{Node, converge, exchange};
use crate::apply::{Arrived, Content};
use crate::clock::Clock;
use crate::database::made_by_go::{Cell, event, go_log};
use crate::model::frame::unpack;

const TABLES: &str = "
    CREATE TABLE books(id INTEGER PRIMARY KEY, title TEXT, at DATETIME, lent BOOLEAN);
    CREATE TABLE word(a TEXT COLLATE NOCASE, b BLOB, v, PRIMARY KEY(a, b));
    CREATE TABLE plain(x);";

const ROWS: &str = "INSERT INTO books(id, title) VALUES (1, 'Dune'), (2, 'Solaris');
    INSERT INTO word VALUES ('A', x'00', 1); INSERT INTO plain VALUES (1)";

/// Reads one message, stored by the broker at `time_ms`.
fn read(node: &mut Node, (seq, time_ms): (u64, i64), data: &[u8]) {
    let raw = unpack(data).unwrap();
    let arrived = [Arrived {
        seq,
        id: "",
        time_ms,
        content: Content::decode(&raw, data),
    }];
    let done = (0..1000).any(|_| node.db.apply("go", &arrived).unwrap().messages == 1);
    assert!(done);
}

fn book<'a>(id: i64, title: &'a str) -> [(&'a str, Cell<'a>); 4] {
    [
        ("id", Cell::Integer(id)),
        ("title", Cell::Text(title)),
        ("at", Cell::Time(1_700_000_000)),
        ("lent", Cell::Bool(true)),
    ]
}

/// Packs like Go's compressor: small frames come without their size.
fn packed(raw: &[u8]) -> Vec<u8> {
    let mut zstd = zstd::bulk::Compressor::new(3).unwrap();
    zstd.include_contentsize(raw.len() >= 256).unwrap();
    zstd.compress(raw).unwrap()
}

#[test]
fn they_become_rows_on_every_node_alike() {
    let mut nodes = [
        Node::new(1, &format!("{TABLES}{ROWS}")),
        Node::new(2, &format!("{TABLES}{ROWS}")),
    ];
    let words = [
        ("a", Cell::Text("a")),
        ("b", Cell::Bytes(&[0])),
        ("v", Cell::Null),
    ];
    let long = "x".repeat(300);
    let messages = [
        event(2, "insert", "books", &book(3, "Emma")),
        event(2, "update", "Books", &book(1, "Dune 2")),
        event(3, "delete", "books", &[("id", Cell::Integer(2))]),
        event(3, "update", "word", &words),
        event(
            3,
            "insert",
            "plain",
            &[("x", Cell::Text(&long)), ("rowid", Cell::Integer(9))],
        ),
        event(3, "update", "books", &book(3, "Emma, later")),
    ];
    for node in &mut nodes {
        for (seq, message) in (1..).zip(&messages) {
            // All messages are of one millisecond: the order of the stream decides.
            read(node, (seq, 1_690_000_000_000), &packed(message));
        }
        assert_eq!(node.db.go_events(), 6);
        assert_eq!(node.db.quarantined().unwrap(), 0);
        let books = node.rows("SELECT id, title, at, lent FROM books");
        let at = "t'2023-11-14 22:13:20+00:00'";
        assert_eq!(
            books,
            format!("i1 t'Dune 2' {at} i1\ni3 t'Emma, later' {at} i1")
        );
        assert_eq!(node.rows("SELECT a, v FROM word"), "t'a' null");
        assert_eq!(
            node.rows("SELECT rowid, length(x) FROM plain ORDER BY 1"),
            "i1 i1\ni9 i300"
        );
    }
    converge(&mut nodes);
}

#[test]
fn the_newer_row_wins_wherever_it_comes_from() {
    let mut nodes = [
        Node::new(1, &format!("{TABLES}{ROWS}")),
        Node::new(2, &format!("{TABLES}{ROWS}")),
    ];
    nodes[0].run("UPDATE books SET title = 'ours' WHERE id = 1; DELETE FROM books WHERE id = 2");
    nodes[0].capture();
    let now = nodes[0].clock.now_ms();
    for node in &mut nodes {
        let older = event(3, "update", "books", &book(1, "older"));
        let newer = event(3, "update", "books", &book(2, "newer"));
        read(node, (1, now - 1000), &older);
        read(node, (2, now + 1000), &newer);
    }
    converge(&mut nodes);
    let titles = nodes[1].rows("SELECT title FROM books ORDER BY id");
    assert_eq!(titles, "t'ours'\nt'newer'");
}

/// A change that Go had not published here meets changes that Go published elsewhere: the later
/// write wins.
#[test]
fn they_meet_what_go_had_not_published() {
    let made = 1_690_000_000_000_i64;
    let columns = [
        ("id", "INTEGER"),
        ("title", "TEXT"),
        ("at", ""),
        ("lent", ""),
    ];
    let log = go_log("books", &columns, &made.to_string());
    let change = "UPDATE books SET title = 'unpublished'; ";
    let mut nodes = [
        Node::new(1, &format!("{TABLES}{ROWS};{log}{change}")),
        Node::new(2, &format!("{TABLES}{ROWS}")),
    ];
    for node in &mut nodes {
        read(
            node,
            (1, made - 5),
            &event(2, "update", "books", &book(1, "before")),
        );
        read(
            node,
            (2, made + 5),
            &event(2, "update", "books", &book(2, "after")),
        );
    }
    exchange(&mut nodes);
    converge(&mut nodes);
    assert_eq!(
        nodes[1].rows("SELECT title FROM books"),
        "t'unpublished'\nt'after'"
    );
}

#[test]
fn events_that_do_not_fit_are_kept_or_passed_over() {
    let mut node = Node::with(
        1,
        &format!("{TABLES}{ROWS}; CREATE TABLE out(id PRIMARY KEY)"),
        |s| s.tables.exclude = vec!["out".into()],
    );
    let id = || [("id", Cell::Integer(1))];
    read(&mut node, (1, 1000), &event(2, "insert", "nowhere", &id()));
    read(&mut node, (2, 1000), &event(2, "insert", "word", &id()));
    read(
        &mut node,
        (3, 1000),
        &event(2, "delete", "books", &[("id", Cell::Null)]),
    );
    assert_eq!(node.db.quarantined().unwrap(), 1);
    let reasons = node.rows("SELECT reason FROM __harmonylite___quarantine");
    assert!(reasons.contains("is NULL"), "{reasons}");
    let held = node.rows("SELECT DISTINCT table_name, reason FROM __harmonylite___held ORDER BY 1");
    assert_eq!(
        held,
        "t'nowhere' t'there is no such table here'\nt'word' t'the table has a different key here'"
    );
    // One table is excluded by the configuration, one event has a column that is not here yet.
    read(&mut node, (4, 1000), &event(2, "insert", "out", &id()));
    let more = [
        ("x", Cell::Integer(2)),
        ("y", Cell::Integer(3)),
        ("rowid", Cell::Integer(5)),
    ];
    read(&mut node, (5, 1000), &event(2, "insert", "plain", &more));
    assert_eq!(node.db.quarantined().unwrap(), 1);
    node.run("ALTER TABLE plain ADD COLUMN y");
    node.capture();
    assert_eq!(node.rows("SELECT x, y FROM plain WHERE rowid = 5"), "i2 i3");
}

#[test]
fn nodes_that_still_run_go_are_named_for_a_while() {
    let mut node = Node::new(1, &format!("{TABLES}{ROWS}"));
    let now = node.clock.now_ms();
    let message = |from| event(from, "delete", "books", &[("id", Cell::Integer(9))]);
    read(&mut node, (1, now - 100_000), &message(4));
    assert!(node.db.nodes_with_go().is_empty());
    read(&mut node, (2, now + 100_000), &message(1)); // this node's own, before
    read(&mut node, (3, now + 100_000), &message(5));
    assert_eq!(node.db.nodes_with_go(), [5]);
    node.clock.advance(std::time::Duration::from_secs(601));
    assert!(node.db.nodes_with_go().is_empty());
}

/// Events for a table that a migration may be changing are held, as its own changes wait.
#[test]
fn a_table_that_is_left_alone_for_a_moment_gets_them_afterwards() {
    let mut node = Node::new(1, &format!("{TABLES}{ROWS}"));
    node.be_quiet();
    node.run("CREATE TABLE fresh(id INTEGER PRIMARY KEY, v); INSERT INTO fresh VALUES (1, 'x')");
    node.capture();
    let row = [("id", Cell::Integer(2)), ("v", Cell::Text("by Go"))];
    read(&mut node, (1, 1000), &event(2, "insert", "Fresh", &row));
    assert_eq!(node.db.quarantined().unwrap(), 0);
    assert_eq!(node.rows("SELECT id FROM fresh"), "i1");
    node.clock.advance(std::time::Duration::from_secs(5));
    for _ in 0..3 {
        node.capture();
        node.clock.advance(std::time::Duration::from_secs(5));
    }
    assert_eq!(node.rows("SELECT v FROM fresh"), "t'x'\nt'by Go'");
}

/// Creating the table shows which columns are the key; a later write wins as usual.
#[test]
fn a_table_that_is_made_later_has_them() {
    let pair = |a, b, v| {
        [
            ("A", Cell::Integer(a)),
            ("b", Cell::Integer(b)),
            ("v", Cell::Text(v)),
        ]
    };
    let row = |rowid, x| [("rowid", Cell::Integer(rowid)), ("x", Cell::Text(x))];
    let messages = [
        event(2, "insert", "Pair", &pair(1, 1, "first")),
        event(2, "insert", "pair", &pair(1, 2, "goes")),
        event(2, "insert", "pair", &pair(2, 1, "and comes back")),
        event(3, "update", "pair", &pair(1, 1, "second")),
        event(3, "update", "pair", &pair(1, 1, "first")),
        event(3, "update", "pair", &pair(1, 1, "third")),
        event(2, "delete", "pair", &pair(1, 2, "goes")),
        event(2, "delete", "pair", &pair(2, 1, "and comes back")),
        event(2, "insert", "pair", &pair(2, 1, "and comes back")),
        event(2, "insert", "keyless", &row(7, "seven")),
        event(2, "delete", "keyless", &row(8, "eight")),
    ];
    let mut nodes = [Node::new(1, TABLES), Node::new(2, TABLES)];
    for node in &mut nodes {
        for (seq, message) in (1..).zip(&messages) {
            read(node, (seq, 1_690_000_000_000), message);
        }
        assert_eq!(node.db.quarantined().unwrap(), 0);
        assert!(node.db.holds_rows().unwrap());
    }
    for node in &mut nodes {
        node.run(
            "CREATE TABLE pair(v TEXT, a INTEGER, b INTEGER, PRIMARY KEY(b, a));
                  CREATE TABLE keyless(x)",
        );
        node.capture();
        let pairs = node.rows("SELECT a, b, v FROM pair ORDER BY a, b");
        assert_eq!(pairs, "i1 i1 t'third'\ni2 i1 t'and comes back'");
        assert_eq!(node.rows("SELECT rowid, x FROM keyless"), "i7 t'seven'");
        assert!(!node.db.holds_rows().unwrap());
        assert_eq!(node.db.held().unwrap(), 0);
    }
    nodes[0].run("UPDATE pair SET v = 'by us' WHERE b = 1 AND a = 1");
    converge(&mut nodes);
    assert_eq!(nodes[1].rows("SELECT v FROM pair WHERE a = 1"), "t'by us'");
}

/// A key that the event lacks may come with a migration, as the other way round.
#[test]
fn a_key_that_is_another_one_here_waits_for_the_migration() {
    let mut node = Node::new(
        1,
        "CREATE TABLE t(id INTEGER, part INTEGER, v, PRIMARY KEY(id, part))",
    );
    let row = [("id", Cell::Integer(1)), ("v", Cell::Text("by Go"))];
    read(&mut node, (1, 1000), &event(2, "insert", "t", &row));
    assert_eq!(node.db.held().unwrap(), 1);
    node.run("DROP TABLE t; CREATE TABLE t(id INTEGER PRIMARY KEY, v)");
    node.capture();
    assert_eq!(node.rows("SELECT id, v FROM t"), "i1 t'by Go'");
    assert_eq!(node.db.held().unwrap(), 0);
}
