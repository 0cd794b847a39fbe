//! The schema changes while nodes run.

use super::support::{Node, assert_equal, cluster, converge, exchange};

fn everywhere(n: &[Node], sql: &str) {
    n.iter().for_each(|n| n.run(sql));
}

#[test]
fn tables_are_created_renamed_and_dropped() {
    let mut n = cluster(2, "CREATE TABLE a(id INTEGER PRIMARY KEY, v)");
    everywhere(&n, "CREATE TABLE b(id INTEGER PRIMARY KEY, v)");
    n[0].run("INSERT INTO b VALUES (1, 'before the triggers'); INSERT INTO a VALUES (1, 'a')");
    converge(&mut n);
    everywhere(&n, "ALTER TABLE b RENAME TO c");
    n[1].run("INSERT INTO c VALUES (2, 'after'); UPDATE c SET v = 'changed' WHERE id = 1");
    converge(&mut n);
    assert_eq!(n[0].rows("SELECT v FROM c WHERE id = 1"), "t'changed'");
    // One node drops a table and creates it again later; the others keep theirs.
    n[0].run("DROP TABLE c");
    n[1].run("INSERT INTO c VALUES (3, 'meanwhile')");
    exchange(&mut n);
    assert_eq!(n[1].rows("SELECT count(*) FROM c"), "i3");
    everywhere(
        &n,
        "DROP TABLE IF EXISTS c; CREATE TABLE c(id INTEGER PRIMARY KEY, v)",
    );
    n[0].run("INSERT INTO c VALUES (9, 'new')");
    exchange(&mut n);
    assert_eq!(
        n[1].rows("SELECT * FROM c"),
        "",
        "its rows may be on their way"
    );
    n[1].clock.advance(std::time::Duration::from_secs(601));
    n[1].capture();
    n[0].db.republish_all().unwrap(); // as a snapshot of it would bring them
    converge(&mut n);
}

#[test]
fn columns_come_and_go() {
    let mut n = cluster(3, "CREATE TABLE t(id INTEGER PRIMARY KEY, v)");
    n[0].run("INSERT INTO t VALUES (1, 'one'), (2, 'two')");
    converge(&mut n);
    n[0].run(
        "ALTER TABLE t ADD COLUMN w DEFAULT 7; UPDATE t SET w = 'w' WHERE id = 1; INSERT INTO \
        t VALUES (3, 'x', 8)",
    );
    exchange(&mut n);
    assert!(n[1].db.held().unwrap() > 0);
    n[2].run("UPDATE t SET v = 'by the node without w'");
    exchange(&mut n);
    assert_eq!(n[0].rows("SELECT w FROM t ORDER BY id"), "t'w'\ni7\ni8");
    everywhere(&n[1..], "ALTER TABLE t ADD COLUMN w DEFAULT 7");
    converge(&mut n);
    assert_eq!(n[2].db.held().unwrap(), 0);
    everywhere(&n, "ALTER TABLE t DROP COLUMN v");
    n[1].run("UPDATE t SET w = w || '!'");
    converge(&mut n);
}

#[test]
fn a_column_is_renamed() {
    let mut n = cluster(2, "CREATE TABLE t(id INTEGER PRIMARY KEY, v, w)");
    n[0].run("INSERT INTO t VALUES (1, 'one', 'x'), (2, 'two', 'y')");
    converge(&mut n);
    everywhere(&n, "ALTER TABLE t RENAME COLUMN v TO name");
    converge(&mut n);
    n[1].run("UPDATE t SET name = 'zwei' WHERE id = 2");
    converge(&mut n);
    // Rows that were written under the old name are read under the new one.
    n[0].run("INSERT INTO t VALUES (3, 'three', 'z')");
    let frames = n[0].publish();
    n[1].run("ALTER TABLE t RENAME COLUMN w TO kind");
    n[1].apply(&frames);
    n[0].run("ALTER TABLE t RENAME COLUMN w TO kind");
    exchange(&mut n);
    converge(&mut n);
    assert_eq!(n[1].rows("SELECT kind FROM t WHERE id = 3"), "t'z'");
}

#[test]
fn a_key_column_is_renamed() {
    let mut n = cluster(2, "CREATE TABLE t(k TEXT PRIMARY KEY, v UNIQUE)");
    n[0].run("INSERT INTO t VALUES ('a', 1), ('b', 2)");
    converge(&mut n);
    n[0].run("INSERT INTO t VALUES ('c', 3)");
    let frames = n[0].publish();
    n[1].run("ALTER TABLE t RENAME COLUMN k TO name");
    n[1].apply(&frames);
    n[1].run("UPDATE t SET v = 20 WHERE name = 'b'; INSERT INTO t VALUES ('d', 4)");
    exchange(&mut n);
    n[0].run("ALTER TABLE t RENAME COLUMN k TO name");
    exchange(&mut n);
    converge(&mut n);
    assert_eq!(
        n[0].rows("SELECT v FROM t ORDER BY name"),
        "i1\ni20\ni3\ni4"
    );
}

#[test]
fn a_table_is_rebuilt_in_twelve_steps() {
    let mut n = cluster(2, "CREATE TABLE t(id INTEGER PRIMARY KEY, v, u UNIQUE)");
    n[0].run("INSERT INTO t VALUES (1, 'one', 1), (2, 'two', 2), (3, 'three', 3)");
    converge(&mut n);
    n[1].run("UPDATE t SET v = 'zwei' WHERE id = 2");
    everywhere(
        &n,
        "PRAGMA foreign_keys = OFF; BEGIN;
         CREATE TABLE new(id INTEGER PRIMARY KEY, u UNIQUE, v TEXT NOT NULL DEFAULT '', w AS (u + \
         1));
         INSERT INTO new(id, u, v) SELECT id, u, v FROM t; DROP TABLE t; ALTER TABLE new RENAME TO \
         t;
         DELETE FROM t WHERE id = 3; COMMIT",
    );
    n[0].run("INSERT INTO t(id, u) VALUES (4, 40)");
    exchange(&mut n);
    converge(&mut n);
    assert_eq!(n[0].rows("SELECT id FROM t ORDER BY id"), "i1\ni2\ni4");
    assert_eq!(n[0].rows("SELECT v FROM t WHERE id = 2"), "t'zwei'");
}

#[test]
fn vacuum_renumbers_tables_without_a_key() {
    let mut n = cluster(
        2,
        "CREATE TABLE r(a, b); CREATE TABLE k(id INTEGER PRIMARY KEY)",
    );
    n[0].run("INSERT INTO r VALUES (1, 'x'), (2, 'y'), (3, 'z'); DELETE FROM r WHERE a = 1");
    converge(&mut n);
    n[0].run("VACUUM");
    converge(&mut n);
    n[0].run("UPDATE r SET b = 'Y' WHERE a = 2; VACUUM; INSERT INTO k VALUES (5)");
    converge(&mut n);
    assert_eq!(n[1].rows("SELECT b FROM r ORDER BY a"), "t'Y'\nt'z'");
}

#[test]
fn unique_indexes_come_and_go() {
    let mut n = cluster(2, "CREATE TABLE t(id INTEGER PRIMARY KEY, a, b)");
    n[0].run("CREATE UNIQUE INDEX a ON t(a)");
    n[1].run("INSERT INTO t VALUES (1, 'x', 1), (2, 'x', 2)");
    exchange(&mut n);
    assert_eq!(n[0].rows("SELECT count(*) FROM t"), "i1");
    assert_eq!(n[0].db.displaced().unwrap(), 1);
    n[0].run("DROP INDEX a");
    converge(&mut n);
    n[0].run("UPDATE t SET a = id");
    converge(&mut n);
    // An eviction happens before the new index has its triggers.
    everywhere(&n, "CREATE UNIQUE INDEX b ON t(lower(b), a) WHERE b > 0");
    n[0].run("REPLACE INTO t VALUES (7, 1, 1)");
    converge(&mut n);
    assert_eq!(n[1].rows("SELECT id FROM t ORDER BY id"), "i2\ni7");
    everywhere(
        &n,
        "ALTER TABLE t ADD COLUMN unrelated; ALTER TABLE t DROP COLUMN unrelated; DROP INDEX b",
    );
    n[0].run("INSERT INTO t VALUES (8, 1, 1)");
    converge(&mut n);
}

#[test]
fn names_that_look_like_ours() {
    let tables = [
        "a",
        "a_before",
        "a_insert",
        "a_insert_before",
        "a_versions",
        "a_versions_versions",
        "_tables",
        "_meta",
        "_unsent",
        "sqlitetable",
        "sqlite-x",
        "x__harmonylite__",
        "__HARMONY",
        "_change_log_global",
        "A B",
        "probe_a",
    ];
    let schema: Vec<String> = tables
        .iter()
        .map(|t| format!("CREATE TABLE \"{t}\"(id INTEGER PRIMARY KEY, u UNIQUE, v)"))
        .collect();
    let mut n = cluster(2, &schema.join(";"));
    for table in tables {
        n[0].run(&format!(
            "INSERT INTO \"{table}\" VALUES (1, 1, 1); REPLACE INTO \"{table}\" VALUES (2, 1, 2)"
        ));
    }
    converge(&mut n);
    for table in tables {
        assert_equal(&n, &format!("SELECT id, v FROM \"{table}\""));
        assert_eq!(n[1].rows(&format!("SELECT v FROM \"{table}\"")), "i2");
    }
}

#[test]
fn views_and_temporary_tables_are_left_alone() {
    let mut n = cluster(
        2,
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE VIEW w AS SELECT * FROM t",
    );
    n[0].app
        .execute_batch(
            "CREATE TEMP TABLE x(a); INSERT INTO x VALUES (1); CREATE TEMP TABLE t(id); \
            INSERT INTO temp.t VALUES (5)",
        )
        .unwrap();
    n[0].run("INSERT INTO main.t VALUES (1, 'main')");
    exchange(&mut n);
    assert_eq!(n[1].rows("SELECT v FROM w"), "t'main'");
    n[0].run("DROP TABLE temp.t");
    everywhere(&n, "DROP VIEW w; CREATE VIEW w2 AS SELECT v FROM t");
    converge(&mut n);
}

#[test]
fn a_crash_in_the_first_start_does_not_make_old_rows_new() {
    let schema = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)";
    let mut n = vec![
        Node::new(1, schema),
        Node::new(
            2,
            &format!("{schema}; INSERT INTO t VALUES (1, 'from before')"),
        ),
    ];
    // The state after a kill right after our tables were created.
    n[1].run(
        "DELETE FROM __harmonylite___meta WHERE key = 'installed'; DELETE FROM \
        __harmonylite___tables;
              DROP TABLE __harmonylite__t_versions",
    );
    n[1].restart();
    n[0].run("INSERT INTO t VALUES (1, 'written since')");
    n[1].clock.advance(std::time::Duration::from_secs(60));
    converge(&mut n);
    assert_eq!(n[1].rows("SELECT v FROM t"), "t'written since'");
}

#[test]
fn a_vacuum_in_the_first_start_does_not_make_old_rows_new() {
    let schema = "CREATE TABLE t(a, v)";
    let before = format!("{schema}; INSERT INTO t VALUES (1, 'from before'), (2, 'from before')");
    let mut n = vec![Node::new(1, schema), Node::new(2, &before)];
    n[1].run("VACUUM");
    n[0].run("INSERT INTO t VALUES (1, 'written since')");
    n[1].clock.advance(std::time::Duration::from_secs(60));
    converge(&mut n);
    let all = n[1].rows("SELECT v FROM t ORDER BY a");
    assert_eq!(all, "t'written since'\nt'from before'");
}

const REBUILT: &str = "BEGIN; CREATE TABLE new(id INTEGER PRIMARY KEY, a UNIQUE, x); INSERT INTO \
    new(id, a) SELECT id, a FROM t;
    DROP TABLE t; ALTER TABLE new RENAME TO t;";

#[test]
fn a_row_that_a_rebuild_removed_gives_way_to_the_one_it_hid() {
    let mut n = cluster(2, "CREATE TABLE t(id INTEGER PRIMARY KEY, a UNIQUE)");
    n[0].run("INSERT INTO t VALUES (1, 'same')");
    n[1].run("INSERT INTO t VALUES (2, 'same'), (3, 'another')");
    converge(&mut n);
    assert_eq!(n[0].rows("SELECT id FROM t"), "i2\ni3");
    n[0].run(&format!("{REBUILT} DELETE FROM t WHERE id = 2; COMMIT"));
    n[1].run(&format!("{REBUILT} COMMIT"));
    converge(&mut n);
    assert_eq!(n[1].rows("SELECT id FROM t ORDER BY id"), "i1\ni3");
}

#[test]
fn a_row_that_a_rebuild_changed_comes_before_held_ones() {
    let mut n = vec![
        Node::new(1, "CREATE TABLE t(id INTEGER PRIMARY KEY, a UNIQUE, x)"),
        Node::new(2, "CREATE TABLE t(id INTEGER PRIMARY KEY, a UNIQUE)"),
    ];
    n[0].run("INSERT INTO t VALUES (1, 'a', 'X')");
    exchange(&mut n);
    n[1].clock.advance(std::time::Duration::from_secs(1));
    n[1].run(&format!("{REBUILT} UPDATE t SET a = 'changed'; COMMIT"));
    converge(&mut n);
    assert_eq!(n[0].rows("SELECT a, x FROM t"), "t'changed' t'X'");
}

/// SQLite fires the newest trigger first, and RAISE(IGNORE) in it skips the others.
#[test]
fn rows_that_a_newer_trigger_ignores_are_noted() {
    let mut n = cluster(2, "CREATE TABLE t(id INTEGER PRIMARY KEY, v)");
    n[0].run("INSERT INTO t VALUES (1, 'one'), (2, 'two')");
    converge(&mut n);
    n[0].run(
        "CREATE TRIGGER u AFTER UPDATE ON t BEGIN
             SELECT raise( /* nothing to do */ Ignore) WHERE NEW.v = 'x';
         END;
         CREATE TRIGGER d AFTER DELETE ON t BEGIN SELECT RAISE(IGNORE); END;
         UPDATE t SET v = 'x' WHERE id = 1",
    );
    converge(&mut n);
    assert_eq!(n[1].rows("SELECT v FROM t WHERE id = 1"), "t'x'");
    n[0].run("UPDATE t SET v = 'x' WHERE id = 2; DELETE FROM t WHERE id = 1");
    converge(&mut n);
    assert_eq!(n[1].rows("SELECT id, v FROM t"), "i2 t'x'");
    assert!(!n[0].db.is_comparing(), "once");
}
