//! One bad table, row or frame never stops the others.

use proptest::prelude::*;
use rusqlite::Connection;
use rusqlite::functions::FunctionFlags;

use super::support::{Node, cases, cluster, converge, exchange};
use crate::capture::Outgoing;

const GOOD: &str = "CREATE TABLE good(id INTEGER PRIMARY KEY, v)";

/// Gives the application a function and a collation that no other connection has.
fn teach(app: &Connection) {
    let flags = FunctionFlags::SQLITE_DETERMINISTIC | FunctionFlags::SQLITE_UTF8;
    app.create_scalar_function("mine", 1, flags, |c| c.get::<i64>(0).map(|i| -i))
        .unwrap();
    app.create_collation("ODD", |a, b| a.len().cmp(&b.len()))
        .unwrap();
}

#[test]
fn tables_that_need_the_application_are_left_alone() {
    let mut n = cluster(2, GOOD);
    for node in &n {
        teach(&node.app);
        node.run(
            "PRAGMA trusted_schema = ON; CREATE TABLE key_odd(k TEXT COLLATE ODD PRIMARY KEY, v);
             CREATE TABLE unique_odd(id INTEGER PRIMARY KEY, v TEXT COLLATE ODD UNIQUE);
             CREATE TABLE index_odd(id INTEGER PRIMARY KEY, v); CREATE INDEX io ON index_odd(v \
             COLLATE ODD);
             CREATE TABLE by_function(id INTEGER PRIMARY KEY, v); CREATE UNIQUE INDEX bf ON \
             by_function(mine(v));
             CREATE TABLE plain_function(id INTEGER PRIMARY KEY, v); CREATE INDEX pf ON \
             plain_function(mine(v));
             CREATE TABLE partial(id INTEGER PRIMARY KEY, v); CREATE UNIQUE INDEX pp ON partial(v) \
             WHERE mine(v) < 0;
             CREATE TABLE generated(id INTEGER PRIMARY KEY, v, g AS (mine(v)));
             CREATE TABLE stored(id INTEGER PRIMARY KEY, v, g AS (mine(v)) STORED UNIQUE);
             CREATE TABLE checked(id INTEGER PRIMARY KEY, v CHECK (mine(v) < 0))",
        );
    }
    n[0].run(
        "INSERT INTO key_odd VALUES ('a', 1); INSERT INTO unique_odd VALUES (1, 'x'); INSERT INTO \
         index_odd VALUES (1, 1);
         INSERT INTO by_function VALUES (1, 1); INSERT INTO plain_function VALUES (1, 1); INSERT \
         INTO partial VALUES (1, 1);
         INSERT INTO generated(id, v) VALUES (1, 1); INSERT INTO stored(id, v) VALUES (1, 1); \
         INSERT INTO checked VALUES (1, 1);
         INSERT INTO good VALUES (1, 'arrives')",
    );
    n[0].run(
        "UPDATE by_function SET v = 2; REPLACE INTO partial VALUES (2, 1); DELETE FROM stored",
    );
    exchange(&mut n);
    exchange(&mut n);
    assert_eq!(n[1].rows("SELECT v FROM good"), "t'arrives'");
    assert!(!n[0].db.tables().contains_key("by_function"));
}

#[test]
fn a_row_on_which_an_index_fails_is_held() {
    let mut n = vec![
        Node::new(1, "CREATE TABLE t(id INTEGER PRIMARY KEY, v, u)"),
        Node::new(
            2,
            "CREATE TABLE t(id INTEGER PRIMARY KEY, v, u); CREATE INDEX j ON t(json_extract(v, \
             '$.a'));
             CREATE UNIQUE INDEX u ON t(json_extract(u, '$.a')) WHERE json_extract(v, '$.b')",
        ),
    ];
    n[0].run(
        "INSERT INTO t VALUES (1, '{\"a\": 1}', '{}'), (2, 'not json', '{}'), (3, '{}', 'not \
        json'), (4, '{\"b\": 2}', 'nor this')",
    );
    exchange(&mut n);
    assert_eq!(n[1].rows("SELECT id FROM t ORDER BY id"), "i1\ni3");
    assert_eq!(n[1].db.held().unwrap(), 2);
    n[0].run("UPDATE t SET v = '{}' WHERE id = 4");
    exchange(&mut n);
    assert_eq!(n[1].rows("SELECT id FROM t ORDER BY id"), "i1\ni3\ni4");
    n[1].run("DROP INDEX j; DROP INDEX u");
    converge(&mut n);
    assert_eq!(n[1].db.held().unwrap(), 0);
}

#[test]
fn constraints_of_one_node_hold_back_one_row() {
    let mut n = vec![
        Node::new(1, "CREATE TABLE t(id INTEGER PRIMARY KEY, v, w)"),
        Node::new(
            2,
            "CREATE TABLE t(id INTEGER PRIMARY KEY, v INT NOT NULL, w CHECK (w < 10)) STRICT;"
                .replace("w CHECK", "w ANY CHECK")
                .as_str(),
        ),
    ];
    n[0].run(
        "INSERT INTO t VALUES (1, 1, 1), (2, NULL, 1), (3, 'text', 1), (4, 1, 100), (5, '5', 5)",
    );
    exchange(&mut n);
    assert_eq!(n[1].rows("SELECT id FROM t ORDER BY id"), "i1\ni5");
    n[0].run(
        "DELETE FROM t WHERE id = 2; UPDATE t SET v = 3 WHERE id = 3; UPDATE t SET w = 1 \
        WHERE id = 4",
    );
    exchange(&mut n);
    assert_eq!(n[1].rows("SELECT id FROM t ORDER BY id"), "i1\ni3\ni4\ni5");
    assert_eq!(n[1].db.held().unwrap(), 0);
}

#[test]
fn a_damaged_row_is_rejected() {
    let mut n = cluster(2, GOOD);
    n[0].run(
        "INSERT INTO good VALUES (1, 'a'), (2, replace(hex(zeroblob(30000)), '00', 'M')), (3, 'c')",
    );
    n[0].run("PRAGMA wal_checkpoint(TRUNCATE)");
    let path = n[0].db.path().to_owned();
    let mut bytes = std::fs::read(&path).unwrap();
    let page = bytes
        .chunks(4096)
        .position(|p| p[4..].starts_with(b"MMMMMMMM"))
        .unwrap();
    bytes[page * 4096..page * 4096 + 4].fill(0xff); // an overflow page that points nowhere
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    n[0].restart();
    n[0].run("INSERT INTO good VALUES (4, 'd')");
    exchange(&mut n);
    assert!(n[0].db.rejected() > 0);
    assert_eq!(n[1].rows("SELECT id FROM good"), "i1\ni3\ni4");
    // A bad table does not stop incoming rows either.
    n[1].run("INSERT INTO good VALUES (2, 'whole'), (5, 'e')");
    exchange(&mut n);
    assert_eq!(n[0].rows("SELECT v FROM good WHERE id = 5"), "t'e'");
    assert_eq!(n[0].db.held().unwrap(), 1);
    n[0].restart(); // and is found again
    n[1].run("UPDATE good SET v = 'whole again' WHERE id = 2; INSERT INTO good VALUES (6, 'f')");
    exchange(&mut n);
    assert_eq!(n[0].rows("SELECT v FROM good WHERE id = 6"), "t'f'");
}

#[test]
fn lost_tables_of_ours_are_made_again() {
    let mut n = cluster(2, GOOD);
    n[0].run("INSERT INTO good VALUES (1, 'a')");
    converge(&mut n);
    n[0].run("DROP TABLE __harmonylite__good_versions; DROP TRIGGER __harmonylite__good_update");
    n[0].run("UPDATE good SET v = 'b'; INSERT INTO good VALUES (2, 'c')");
    n[0].run(
        "INSERT INTO __harmonylite___change_log_global(table_id, kind, created_at, k1) VALUES \
        (99, 0, 0, 1), (NULL, 'x', NULL, NULL), (1, NULL, 'now', 3)",
    );
    converge(&mut n);
    assert_eq!(n[1].rows("SELECT v FROM good"), "t'b'\nt'c'");
}

const FTS: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v);
    CREATE VIRTUAL TABLE f USING fts5(v, content = 't', content_rowid = 'id');
    CREATE VIRTUAL TABLE r USING rtree(id, a, b);
    CREATE TRIGGER ti AFTER INSERT ON t BEGIN INSERT INTO f(rowid, v) VALUES (NEW.id, NEW.v); END;
    CREATE TRIGGER tu AFTER UPDATE ON t BEGIN
      INSERT INTO f(f, rowid, v) VALUES ('delete', OLD.id, OLD.v); INSERT INTO f(rowid, v) VALUES \
      (NEW.id, NEW.v); END;
    CREATE TRIGGER td AFTER DELETE ON t BEGIN INSERT INTO f(f, rowid, v) VALUES ('delete', OLD.id, \
    OLD.v); END";

#[test]
fn an_index_for_search_is_fed_by_apply_triggers() {
    let with = |s: &mut crate::database::Settings| {
        s.apply_triggers = ["ti", "tu", "td"].map(Into::into).to_vec();
    };
    let mut n = vec![Node::with(1, FTS, with), Node::with(2, FTS, with)];
    n[0].run(
        "INSERT INTO t VALUES (1, 'red apple'), (2, 'green pear'); INSERT INTO r VALUES (1, 0, 1)",
    );
    exchange(&mut n);
    let found =
        |n: &Node, what: &str| n.rows(&format!("SELECT rowid FROM f WHERE f MATCH '{what}'"));
    assert_eq!(found(&n[1], "apple"), "i1");
    n[1].run("UPDATE t SET v = 'red cherry' WHERE id = 1; DELETE FROM t WHERE id = 2");
    exchange(&mut n);
    assert_eq!(found(&n[0], "cherry"), "i1");
    assert_eq!(found(&n[0], "pear") + &found(&n[0], "apple"), "");
    assert_eq!(
        n[1].rows("SELECT count(*) FROM r"),
        "i0",
        "rtree is left alone"
    );
    n[0].run("INSERT INTO f(f, rank) VALUES ('integrity-check', 1)");
    // After the index is dropped changes still arrive.
    n[1].run("DROP TABLE f");
    n[0].run("INSERT INTO t VALUES (3, 'plum')");
    exchange(&mut n);
    assert_eq!(n[1].rows("SELECT v FROM t WHERE id = 3"), "t'plum'");
    assert_eq!(n[1].db.apply_triggers.unsupported().len(), 3);
}

#[test]
fn a_row_with_null_in_its_key_blocks_others_without_harm() {
    let mut n = cluster(2, "CREATE TABLE t(k TEXT PRIMARY KEY, u UNIQUE)");
    n[0].run("INSERT INTO t VALUES (NULL, 'u')");
    n[1].run("INSERT INTO t VALUES ('k', 'u')");
    exchange(&mut n);
    exchange(&mut n);
    assert_eq!(n[0].rows("SELECT k FROM t"), "null");
    assert_eq!(n[0].db.displaced().unwrap(), 1);
    n[0].run("DELETE FROM t WHERE k IS NULL");
    converge(&mut n);
    assert_eq!(n[0].rows("SELECT k FROM t"), "t'k'");
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn damaged_frames_are_no_panic_and_no_error(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let schema = "CREATE TABLE t(id INTEGER PRIMARY KEY, a UNIQUE, b); CREATE TABLE u(k TEXT \
            PRIMARY KEY COLLATE NOCASE, v)";
        let mut n = cluster(2, schema);
        n[0].run("INSERT INTO t VALUES (1, 'x', 1.5), (2, x'00', NULL); DELETE FROM t WHERE id = \
            2; INSERT INTO t VALUES (2, 'again', 2);
                  INSERT INTO u VALUES ('k', 'v'); DELETE FROM u");
        let frames = n[0].publish();
        for frame in &frames {
            let mut raw = frame.raw.clone();
            for (at, byte) in &damage {
                let at = at.index(raw.len());
                raw[at] = *byte;
            }
            if let Some(cut) = &cut {
                raw.truncate(cut.index(raw.len()));
            }
            n[1].apply(&[Outgoing { raw, ..frame.clone() }]);
        }
        n[1].run("INSERT INTO u VALUES ('fine', 1)");
        n[1].capture();
        n[1].restart();
        n[1].apply(&frames);
    }
}
