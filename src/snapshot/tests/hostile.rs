//! Snapshots and manifests that are malicious, and some that only look so.

use rusqlite::Connection;

use super::{BOOKS, merge, snapshot};
use crate::apply::tests::support::Node;
use crate::snapshot::Merge;
use crate::snapshot::transfer::{self, Unchecked};
use crate::snapshot::watch::{self, Nobody, Watch};

/// A snapshot of a few books, changed by SQL.
fn forged(sql: &str) -> (Node, (std::path::PathBuf, super::SnapshotEntry)) {
    let mut a = Node::new(1, BOOKS);
    a.run("INSERT INTO Books VALUES (1, 'Dune', 'x')");
    let taken = snapshot(&mut a);
    let conn = Connection::open(&taken.0).unwrap();
    conn.execute_batch(sql).unwrap();
    conn.close().unwrap();
    (a, taken)
}

fn check(path: &std::path::Path) -> Result<(), String> {
    transfer::check(path, &mut Nobody).map_err(|e| match e {
        Unchecked::Damaged(cause) => cause,
        Unchecked::Stopped => unreachable!("nobody stops it"),
    })
}

/// SQLite itself reports the damage.
#[test]
fn a_schema_of_more_than_one_statement_is_refused() {
    let (_a, taken) = forged(
        "PRAGMA writable_schema = ON;
         UPDATE sqlite_schema SET sql = sql || '; CREATE TABLE evil(x)' WHERE name = 'Books'",
    );
    assert!(Merge::open(&taken.0, &taken.1).is_err());
}

#[test]
fn views_in_place_of_our_tables_are_refused() {
    let (_a, taken) = forged(
        "DROP TABLE __harmonylite___unsent;
         CREATE VIEW __harmonylite___unsent AS
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
         SELECT i AS at, i AS table_id, x'00' AS key FROM n WHERE i < 0",
    );
    assert!(Merge::open(&taken.0, &taken.1).is_err());
}

/// Waiting for the tables to come back, as in the database here, would be in vain.
#[test]
fn a_snapshot_without_our_tables_is_damaged() {
    for table in ["meta", "sites", "tables"] {
        let (_a, taken) = forged(&format!("DROP TABLE __harmonylite___{table}"));
        let Err(refused) = Merge::open(&taken.0, &taken.1) else {
            panic!("{table} is not missed");
        };
        let text = refused.to_string();
        assert!(text.contains("the snapshot: it lacks tables"), "{text}");
    }
}

/// A node whose triggers do not run for changes that arrive has such indexes all the time.
#[test]
fn an_index_that_lags_or_needs_the_application_is_no_damage() {
    let (_a, taken) = forged(
        "CREATE VIRTUAL TABLE four USING fts4(content='Books', title);
         CREATE VIRTUAL TABLE five USING fts5(title, content='Books', content_rowid='id');
         CREATE VIRTUAL TABLE own USING fts5(x); INSERT INTO own VALUES ('a');
         CREATE VIRTUAL TABLE old USING fts4(x); INSERT INTO old VALUES ('a');
         CREATE VIRTUAL TABLE box USING rtree(id, x0, x1);
         INSERT INTO box VALUES (1, 0, 1); DELETE FROM box_rowid;
         DELETE FROM own_docsize; DELETE FROM old_segdir;
         PRAGMA writable_schema = ON;
         UPDATE sqlite_schema SET sql = replace(sql, '(x)', '(x, tokenize=of_the_app)')
         WHERE name IN ('own', 'old')",
    );
    check(&taken.0).unwrap();
    let mut b = Node::new(2, BOOKS);
    merge(&mut b, &taken);
    assert_eq!(b.rows("SELECT id FROM Books"), "i1");
}

/// SQLite lacks the function here. Such a table is left unchecked, and is no reason to refuse the
/// others.
#[test]
fn functions_of_the_application_are_no_damage() {
    let (_a, taken) = forged(
        "PRAGMA writable_schema = ON;
         CREATE TABLE own(x CHECK(abs(x) > 0), y TEXT); INSERT INTO own VALUES (1, 'y');
         CREATE TABLE sorted(z TEXT COLLATE NOCASE PRIMARY KEY) WITHOUT ROWID;
         INSERT INTO sorted VALUES ('a'), ('b');
         UPDATE sqlite_schema SET sql = replace(sql, 'abs(', 'app(') WHERE name = 'own';
         UPDATE sqlite_schema SET sql = replace(sql, 'NOCASE', 'APPS') WHERE name = 'sorted'",
    );
    check(&taken.0).unwrap();
}

#[test]
fn a_table_that_is_not_what_it_was_is_still_damage() {
    let (_a, taken) = forged("");
    let mut bytes = std::fs::read(&taken.0).unwrap();
    let conn = Connection::open(&taken.0).unwrap();
    let root: usize = conn
        .query_row(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'Books'",
            [],
            |r| r.get(0),
        )
        .unwrap();
    let start = (root - 1) * 4096;
    bytes[start..start + 512].fill(0xff);
    std::fs::write(&taken.0, bytes).unwrap();
    assert!(check(&taken.0).is_err());
}

/// Rows that no frame can carry are named, counted and left out, without being read.
#[test]
fn rows_larger_than_can_be_sent_are_rejected() {
    let extra = "CREATE TABLE extra(k TEXT PRIMARY KEY, v)";
    let mut a = Node::new(1, &format!("{BOOKS}; {extra}"));
    a.run("INSERT INTO Books VALUES (1, 'Dune', 'x'), (2, hex(zeroblob(600)), 'y')");
    a.run("INSERT INTO extra VALUES ('small', 1), ('large', zeroblob(1200))");
    let taken = snapshot(&mut a);
    // In the first case the row is plain, in the second it joins another, in the third it is held.
    let full = format!("{BOOKS}; {extra}; INSERT INTO Books VALUES (2, 'before', 'z')");
    for (schema, rows) in [("", "i1"), (&full[..], "i1\ni2"), (BOOKS, "i1")] {
        let mut b = Node::new(2, schema);
        b.db.limits.row_bytes = 1000;
        merge(&mut b, &taken);
        assert_eq!(b.rows("SELECT id FROM Books ORDER BY 1"), rows);
        assert_eq!(b.db.rejected(), 2);
        match schema {
            BOOKS => assert_eq!(b.db.held().unwrap(), 1),
            _ => assert_eq!(b.rows("SELECT k FROM extra"), "t'small'"),
        }
    }
}

#[test]
fn held_changes_of_a_row_are_bounded_as_well() {
    let (_a, taken) = forged(
        "INSERT INTO __harmonylite___held
         SELECT 'other', 'id INTEGER BINARY', x'8101', 'c' || value, 1, 1, zeroblob(400), ''
         FROM json_each('[1, 2, 3]')",
    );
    let mut b = Node::new(2, BOOKS);
    b.db.limits.row_bytes = 1000;
    merge(&mut b, &taken);
    assert_eq!((b.db.held().unwrap(), b.db.rejected()), (0, 1));
    assert_eq!(b.rows("SELECT id FROM Books"), "i1");
}

/// Long keys are read in small numbers.
#[test]
fn long_keys_take_their_turns() {
    let schema = "CREATE TABLE long(k BLOB PRIMARY KEY) WITHOUT ROWID";
    let mut a = Node::new(1, schema);
    a.run(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 7)
         INSERT INTO long SELECT randomblob(700000) FROM n",
    );
    let taken = snapshot(&mut a);
    for schema in ["", schema, BOOKS] {
        let mut b = Node::new(2, schema);
        merge(&mut b, &taken);
        if schema == BOOKS {
            assert_eq!(b.db.held().unwrap(), 7);
            b.run("CREATE TABLE long(k BLOB PRIMARY KEY) WITHOUT ROWID");
            b.capture();
        }
        assert_eq!(b.rows("SELECT count(*) FROM long"), "i7");
    }
}

/// Reading a large file from a card takes minutes; the process does not wait for that when it ends.
#[test]
fn a_check_can_be_ended() {
    struct Ended;
    impl Watch for Ended {
        fn progress(&mut self, _: &'static str, _: u64, _: u64) -> std::io::Result<()> {
            Err(watch::stop())
        }

        fn pause(&mut self, _: std::time::Duration) -> std::io::Result<()> {
            Err(watch::stop())
        }
    }
    let (_a, taken) = forged("");
    let ended = transfer::check(&taken.0, &mut Ended);
    assert!(matches!(ended, Err(Unchecked::Stopped)), "{ended:?}");
}

/// A node without tables takes over a snapshot's schema, statement by statement.
#[test]
fn a_schema_may_create_and_no_more() {
    let (_a, taken) = forged(
        "CREATE TABLE Fine(id INTEGER PRIMARY KEY, v);
         CREATE VIRTUAL TABLE docs USING fts5(body);
         CREATE VIEW Titles AS SELECT title FROM Books;
         CREATE TRIGGER planted AFTER INSERT ON Fine BEGIN DELETE FROM Books; END;
         PRAGMA writable_schema = ON;
         CREATE TABLE odd(x);
         UPDATE sqlite_schema SET sql = 'CREATE TABLE odd AS SELECT * FROM Books'
         WHERE name = 'odd'",
    );
    for takes_code in [true, false] {
        let mut b = Node::unmet(2, "");
        b.db.takes_code = takes_code;
        let Ok(mut merging) = Merge::open(&taken.0, &taken.1) else {
            continue; // SQLite reads no such schema
        };
        while !merging.step(&mut b.db).unwrap().0 {}
        let names = "SELECT group_concat(name) FROM (SELECT name FROM sqlite_schema
            WHERE type IN ('view', 'trigger') AND name NOT GLOB '__harmonylite__*' ORDER BY 1)";
        let code = match takes_code {
            true => "t'Titles,planted'",
            false => "n",
        };
        assert_eq!(b.rows(names).to_lowercase(), code.to_lowercase());
        assert_eq!(b.rows("SELECT title FROM Books"), "t'Dune'");
    }
}

/// Each statement does what the schema of a peer may not.
#[test]
fn statements_that_a_schema_may_not_have() {
    let mut conn = Connection::open_in_memory().unwrap();
    conn.execute_batch("CREATE TABLE t(v)").unwrap();
    for text in [
        "DROP TABLE t",
        "ATTACH '/tmp/x' AS x",
        "CREATE TABLE u AS SELECT * FROM t",
        "CREATE TABLE u(x); DROP TABLE t",
        "PRAGMA writable_schema = ON",
        "INSERT INTO t VALUES (1)",
    ] {
        assert!(
            crate::snapshot::merge::create(&mut conn, text).is_err(),
            "{text}"
        );
    }
    let fine = [
        "CREATE TABLE u(id INTEGER PRIMARY KEY AUTOINCREMENT, v CHECK (length(v) < 9) UNIQUE)",
        "CREATE INDEX i ON u(lower(v))",
        "CREATE VIRTUAL TABLE f USING fts5(body)",
        "CREATE VIRTUAL TABLE r USING rtree(id, a, b)",
        "CREATE VIEW w AS SELECT * FROM u",
        "CREATE TRIGGER g AFTER INSERT ON u BEGIN INSERT INTO t VALUES (new.v); END",
    ];
    for text in fine {
        crate::snapshot::merge::create(&mut conn, text).unwrap_or_else(|e| panic!("{e}: {text}"));
    }
    conn.execute_batch("INSERT INTO u(v) VALUES ('a'); INSERT INTO f VALUES ('b')")
        .unwrap();
}
