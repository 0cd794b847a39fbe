//! Databases in the state in which the Go version leaves them.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rusqlite::Connection;

use crate::apply::tests::support::{Node, converge, settings};
use crate::clock::{Clock, ManualClock};
use crate::database::made_by_go::go_log;
use crate::database::{Database, DatabaseError, clean_up, examine};

/// Time of the changes that Go had not published.
const MADE: i64 = 1_690_000_000_000;

/// Tables with keys of every kind, and rows that all nodes have.
const TABLES: &str = "
    CREATE TABLE books(id INTEGER PRIMARY KEY, title TEXT);
    CREATE TABLE \"of\"(a TEXT COLLATE NOCASE, \"b c\" BLOB, v, PRIMARY KEY(a, \"b c\"))
      WITHOUT ROWID;
    CREATE TABLE plain(x, y);
    INSERT INTO books VALUES (1, 'Dune'), (2, 'Solaris'), (3, 'Emma');
    INSERT INTO \"of\" VALUES ('A', x'00ff', 1), ('b', x'01', 2);
    INSERT INTO plain VALUES (1, 1), (2, 2);";

/// The state of these tables after Go managed them.
fn go() -> String {
    let made = MADE.to_string();
    [
        go_log("books", &[("id", "INTEGER"), ("title", "TEXT")], &made),
        go_log("of", &[("a", "TEXT"), ("b c", "BLOB"), ("v", "")], &made),
        go_log("plain", &[("x", ""), ("y", ""), ("rowid", "INT")], &made),
    ]
    .concat()
}

fn own(node: &Node, kind: &str) -> String {
    node.rows(&format!(
        "SELECT group_concat(name, ' ') FROM (SELECT name FROM sqlite_schema WHERE type = '{kind}'
         AND name GLOB '__harmonylite__*change_log*' ORDER BY name)"
    ))
}

#[test]
fn changes_that_go_had_not_published_are_published_with_their_time() {
    let unpublished = "
        UPDATE books SET title = 'Dune (2nd)' WHERE id = 1;
        DELETE FROM books WHERE id = 2;
        INSERT INTO books VALUES (4, 'Ulysses'); DELETE FROM books WHERE id = 4;
        INSERT INTO books VALUES (5, 'Ubik');
        DELETE FROM \"of\" WHERE a = 'a'; UPDATE \"of\" SET v = 3 WHERE a = 'b';
        DELETE FROM plain WHERE x = 1; INSERT INTO plain VALUES (3, 3);";
    let published = "UPDATE __harmonylite__books_change_log SET state = 1 WHERE val_id = 5;";
    let mut nodes = [
        Node::new(1, &format!("{TABLES}{}{unpublished}{published}", go())),
        Node::new(2, TABLES),
    ];
    assert_eq!(
        own(&nodes[0], "table"),
        "t'__harmonylite___change_log_global'"
    );
    assert_eq!(own(&nodes[0], "trigger"), "null");
    let seen = converge(&mut nodes);
    assert!(
        seen.contains("Dune (2nd)") && seen.contains("Ubik"),
        "{seen}"
    );
    assert!(
        !seen.contains("Solaris") && !seen.contains("Ulysses"),
        "{seen}"
    );
    for node in &nodes {
        assert_eq!(node.rows("SELECT v FROM \"of\""), "i3");
        assert_eq!(node.rows("SELECT x FROM plain ORDER BY x"), "i2\ni3");
        let hlc = |key| {
            let table = "__harmonylite__books_versions";
            node.rows(&format!("SELECT hlc FROM {table} WHERE k1 = {key}"))
        };
        let made = format!("i{}", MADE << 16);
        assert_eq!((hlc(1), hlc(2)), (made.clone(), made));
        assert_eq!(
            (hlc(3), hlc(5)),
            ("i1".into(), "i1".into()),
            "published before"
        );
    }
}

#[test]
fn a_later_write_elsewhere_wins_and_a_row_from_before_loses() {
    let change = "UPDATE books SET title = 'by Go'; DELETE FROM plain;";
    let mut nodes = [
        Node::new(1, &format!("{TABLES}{}{change}", go())),
        Node::new(2, TABLES),
    ];
    nodes[1].capture();
    nodes[1].run("UPDATE books SET title = 'later' WHERE id = 1");
    nodes[1].capture();
    converge(&mut nodes);
    let title = "SELECT title FROM books ORDER BY id";
    assert_eq!(nodes[0].rows(title), "t'later'\nt'by Go'\nt'by Go'");
}

/// The log takes more than one step, has published entries in between, and a crash interrupts:
/// nothing was captured before it.
#[test]
fn a_long_log_is_taken_over_in_steps() {
    let many = "WITH RECURSIVE n(i) AS (SELECT 10 UNION ALL SELECT i + 1 FROM n WHERE i < 1600)
        INSERT INTO books SELECT i, i FROM n; DELETE FROM books WHERE id % 3 = 0;
        UPDATE __harmonylite__books_change_log SET state = 1 WHERE val_id % 5 = 0;";
    let mut nodes = [
        Node::new(1, &format!("{TABLES}{}{many}", go())),
        Node::new(2, TABLES),
    ];
    assert_eq!(own(&nodes[0], "trigger"), "null");
    assert_eq!(
        nodes[0].rows("SELECT min(id) FROM __harmonylite___change_log_global"),
        "i1"
    );
    // Restores a state as if the work had ended early.
    let log = "SELECT created_at, table_id FROM __harmonylite___change_log_global LIMIT 1";
    assert!(nodes[0].rows(log).starts_with(&format!("i{MADE}")));
    let again = go_log("books", &[("id", "INTEGER"), ("title", "TEXT")], "0");
    let again = again.split("CREATE TRIGGER").next().unwrap();
    nodes[0].app.execute_batch(again).unwrap();
    let rest = format!(
        "INSERT INTO __harmonylite__books_change_log VALUES (9, 2, 'x', 'delete', {MADE}, 0);
         DELETE FROM books WHERE id = 2; DELETE FROM __harmonylite___change_log_global
         WHERE created_at > {MADE} + 1000"
    );
    nodes[0].app.execute_batch(&rest).unwrap();
    nodes[0].restart();
    assert_eq!(
        own(&nodes[0], "table"),
        "t'__harmonylite___change_log_global'"
    );
    let seen = converge(&mut nodes);
    assert!(!seen.contains("Solaris"), "{seen}");
    assert_eq!(
        nodes[1].rows("SELECT count(*) FROM books WHERE id > 9"),
        "i1061"
    );
    let hlc = nodes[1].rows("SELECT hlc FROM __harmonylite__books_versions WHERE k1 = 2");
    assert_eq!(hlc, format!("i{}", MADE << 16));
}

#[test]
fn a_clock_that_was_not_set_counts_as_now() {
    let sql = format!("{TABLES}{}DELETE FROM books WHERE id = 1;", go());
    let unset = "UPDATE __harmonylite__books_change_log SET created_at = 12345;";
    let mut node = Node::new(1, &format!("{sql}{unset}"));
    let now = node.clock.now_ms();
    node.capture();
    let hlc = node.rows("SELECT hlc >> 16 FROM __harmonylite__books_versions WHERE k1 = 1");
    assert_eq!(hlc, format!("i{now}"));
}

/// A table that Go had watched was dropped, has a different key, or is excluded here.
#[test]
fn changes_that_cannot_be_taken_over_are_left_out() {
    let change = "UPDATE books SET title = 'x'; DELETE FROM plain WHERE x = 1;
        DELETE FROM \"of\" WHERE a = 'b'; DROP TABLE \"of\"; DROP TABLE plain;
        CREATE TABLE plain(n PRIMARY KEY); ";
    let mut node = Node::with(1, &format!("{TABLES}{}{change}", go()), |s| {
        s.tables.exclude = vec!["books".into()];
    });
    node.capture();
    assert_eq!(own(&node, "trigger"), "null");
    assert_eq!(
        node.rows("SELECT count(*) FROM __harmonylite___change_log_global"),
        "i0"
    );
}

/// An earlier release made its triggers and failed at Go's log, to which it had added a column.
#[test]
fn a_take_over_that_failed_halfway_is_completed() {
    let mut node = Node::new(1, TABLES);
    node.capture();
    node.app
        .execute_batch(&format!(
            "DROP TABLE __harmonylite___change_log_global; {}
             ALTER TABLE __harmonylite___change_log_global ADD COLUMN k1;",
            go()
        ))
        .unwrap();
    let write = "UPDATE books SET title = 'now' WHERE id = 1";
    node.app.execute_batch(write).unwrap_err();
    node.restart();
    // SQLite compiles triggers by the schema that it read last, and checks it again when it reads.
    node.rows("SELECT count(*) FROM books");
    node.run(write);
    assert!(node.capture() > 0);
    assert_eq!(own(&node, "trigger"), "null");
}

/// Go's triggers write a column that this release's change log lacks: every write fails until they
/// are dropped.
#[test]
fn a_go_daemon_that_is_started_beside_us_is_undone() {
    let mut node = Node::new(1, TABLES);
    node.capture();
    node.app.execute_batch(&go()).unwrap();
    let write = "UPDATE books SET title = 'now' WHERE id = 1";
    node.app.execute_batch(write).unwrap_err();
    node.capture();
    node.rows("SELECT count(*) FROM books");
    node.run(write);
    assert_eq!(node.capture(), 1);
    node.restart();
    assert_eq!(own(&node, "table"), "t'__harmonylite___change_log_global'");
}

/// A framework's schema file, or a dump, has own names with other columns.
#[test]
fn tables_with_our_names_that_are_not_ours_go_if_they_are_empty() {
    for schema in [
        "CREATE TABLE __harmonylite___meta(key INTEGER PRIMARY KEY, data)",
        "CREATE TABLE __harmonylite___change_log_global(id INTEGER PRIMARY KEY, name)",
        "CREATE TABLE __harmonylite___change_log_global(id bigint PRIMARY KEY, table_id, kind,
           created_at, k1)",
        "CREATE TABLE \"__HARMONYLITE___Unsent\"(at INTEGER, table_id INTEGER, key BLOB)",
        "CREATE TABLE __harmonylite__t_versions(id INTEGER PRIMARY KEY, k1, hlc)",
        "CREATE TABLE __harmonylite__gone_versions(id INTEGER PRIMARY KEY, k1, hlc)",
    ] {
        let table = "CREATE TABLE t(id INTEGER PRIMARY KEY, v); INSERT INTO t VALUES (1, 1)";
        let mut node = Node::new(1, &format!("{schema};{table}"));
        node.run("INSERT INTO t VALUES (2, 2)");
        assert!(!node.publish().is_empty(), "{schema}");
        node.check();
    }
}

#[test]
fn with_rows_they_are_refused_and_nothing_is_changed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let app = Connection::open(&path).unwrap();
    app.execute_batch(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v);
         CREATE TABLE __harmonylite___held(name); CREATE TABLE __harmonylite___meta(x, y);
         INSERT INTO __harmonylite___held VALUES ('mine')",
    )
    .unwrap();
    let schema = || -> String {
        let text = "SELECT group_concat(name || ' ' || sql) FROM sqlite_schema";
        app.query_row(text, [], |r| r.get(0)).unwrap()
    };
    let before = schema();
    let mut wanted = settings();
    wanted.path = path.clone();
    let clock = Arc::new(ManualClock::at(1_700_000_000_000));
    let stop = || Arc::new(AtomicBool::new(false));
    let Err(refused) = Database::open(wanted, clock, stop()) else {
        panic!("it was taken over")
    };
    assert!(
        matches!(refused, DatabaseError::ForeignTable(..)),
        "{refused}"
    );
    let said = refused.to_string();
    for part in ["___held", "-cleanup", "nothing was changed"] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(examine(&path).unwrap_err().to_string(), said);
    assert_eq!(schema(), before);
    assert_eq!(clean_up(&path, &stop()).unwrap().count, 2);
    assert_eq!(examine(&path).unwrap(), None);
}

/// A schema file has own tables and triggers with the table numbers of a different database.
#[test]
fn entries_under_numbers_of_another_database_are_no_deletes() {
    let donated = "CREATE TABLE b(id INTEGER PRIMARY KEY, v);
        CREATE TABLE a(id INTEGER PRIMARY KEY, v)";
    let donor = Node::new(1, donated);
    let text = "SELECT group_concat(sql, ';') FROM (SELECT sql FROM sqlite_schema
                WHERE sql NOT NULL ORDER BY type = 'trigger')";
    let schema: String = donor.app.query_row(text, [], |r| r.get(0)).unwrap();
    // There, table a has number 1 and b has 2. Here, a new table comes before them.
    let aa = "CREATE TABLE aa(id INTEGER PRIMARY KEY, v)";
    let seed = format!("{aa}; INSERT INTO b VALUES (7, 7); INSERT INTO a VALUES (1, 1)");
    let rows = "INSERT INTO aa VALUES (7, 'x'), (1, 'y')";
    let mut nodes = [
        Node::new(1, &format!("{schema};{seed}")),
        Node::new(2, &format!("{aa}; {donated}; {rows}")),
    ];
    converge(&mut nodes);
    assert_eq!(nodes[0].rows("SELECT count(*) FROM aa"), "i2");
    assert_eq!(
        nodes[1].rows("SELECT v FROM b UNION ALL SELECT v FROM a"),
        "i7\ni1"
    );
}

#[test]
fn messages_that_go_had_read_are_no_gap() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("seq-map.cbor");
    // Go overwrites the old map in place: the bytes after the new map are a rest of it.
    std::fs::write(&path, b"\xa2\x61s\x0a\x61t\x18\x64\x18\x65").unwrap();
    let open = |id, of_go: &str| {
        let path = path.clone();
        Node::with(id, &format!("{TABLES}{of_go}"), move |s| {
            s.seq_map_path = Some(path)
        })
    };
    let mut node = open(1, &go());
    assert!(!node.db.miss("s", 11).unwrap());
    assert!(node.db.miss("t", 102).unwrap());
    assert!(node.db.miss("u", 2).unwrap());
    assert_eq!(node.db.position("s").seq, 10);
    // For a database that Go never managed, such a file means nothing.
    assert!(open(2, "").db.miss("s", 11).unwrap());
}

#[test]
fn examining_changes_nothing_and_says_what_waits() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let app = Connection::open(&path).unwrap();
    app.execute_batch(&format!("{TABLES}{}DELETE FROM books;", go()))
        .unwrap();
    let said = examine(&path).unwrap().unwrap();
    assert!(
        said.contains("Go version") && said.contains(" 3 change(s)"),
        "{said}"
    );
    let removed = clean_up(&path, &AtomicBool::new(false)).unwrap();
    assert_eq!(removed.unpublished_by_go, 3);
    assert_eq!(examine(&path).unwrap(), None);
}
