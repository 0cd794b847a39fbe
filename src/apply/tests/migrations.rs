//! Schemas that change on one node after the other, with writes in between.

use std::time::Duration;

use super::support::{Node, cluster, converge, exchange};

const HOUR: Duration = Duration::from_secs(3600);

const AWAY: &str = "a node that was away has nothing new to say";

/// The first node migrates, and a user writes there. The second node, where nobody wrote since,
/// comes back a day later and migrates as well.
fn migrate_one_by_one(schema: &str, insert: &str, migration: &str) {
    let mut n = cluster(2, schema);
    n[0].run(insert);
    converge(&mut n);
    n[0].run(migration);
    n[0].capture();
    n[0].clock.advance(HOUR);
    n[0].run("UPDATE t SET v = 'written by a user' WHERE id = 1");
    n[0].capture();
    n[1].clock.advance(24 * HOUR);
    n[1].run(migration);
    let all = converge(&mut n);
    assert!(all.contains("written by a user"), "{AWAY}: {all}");
}

#[test]
fn a_unique_column_is_renamed() {
    let rename = "ALTER TABLE t RENAME COLUMN a TO z";
    for schema in [
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v, a UNIQUE)",
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v, a UNIQUE, b UNIQUE)",
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v, a); CREATE UNIQUE INDEX i ON t(lower(a))",
    ] {
        migrate_one_by_one(
            schema,
            "INSERT INTO t(id, v, a) VALUES (1, 'old', 'a')",
            rename,
        );
    }
}

/// Several statements at once may have included a VACUUM, which renumbers the rows of a table
/// without a key.
#[test]
fn columns_of_a_table_without_a_key_are_renamed() {
    let schema = "CREATE TABLE t(id INTEGER, v, a, b)";
    let rename = "ALTER TABLE t RENAME COLUMN a TO x; ALTER TABLE t RENAME COLUMN b TO y";
    migrate_one_by_one(schema, "INSERT INTO t VALUES (1, 'old', 'a', 'b')", rename);
}

#[test]
fn a_column_is_dropped() {
    let (schema, insert) = (
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v, d)",
        "INSERT INTO t VALUES (1, 'old', 'd')",
    );
    migrate_one_by_one(schema, insert, "ALTER TABLE t DROP COLUMN d");
    let by_rebuild = "BEGIN; CREATE TABLE new(id INTEGER PRIMARY KEY, v);
        INSERT INTO new SELECT id, v FROM t; DROP TABLE t; ALTER TABLE new RENAME TO t; COMMIT";
    migrate_one_by_one(schema, insert, by_rebuild);
}

/// The new column takes the position of the dropped one. It has a DEFAULT of its own, and the other
/// node learns of it late.
#[test]
fn a_column_in_the_place_of_a_dropped_one_is_not_that_one_renamed() {
    let migration =
        "ALTER TABLE t DROP COLUMN w; ALTER TABLE t ADD COLUMN active INTEGER NOT NULL DEFAULT 1";
    for (migration, v) in [
        (migration.to_owned(), "v"),
        (format!("BEGIN; {migration}; COMMIT"), "v"),
        (
            format!("BEGIN; ALTER TABLE t RENAME COLUMN v TO x; {migration}; COMMIT"),
            "x",
        ),
        (
            format!("{migration}; ALTER TABLE t RENAME TO u; ALTER TABLE u RENAME TO t"),
            "v",
        ),
    ] {
        let mut n = cluster(2, "CREATE TABLE t(id INTEGER PRIMARY KEY, v, w)");
        n[0].run("INSERT INTO t VALUES (1, 'a', 'b')");
        converge(&mut n);
        n[0].run(&migration);
        n[0].capture();
        n[0].run("UPDATE t SET active = 0");
        exchange(&mut n);
        n[1].clock.advance(HOUR);
        n[1].run("UPDATE t SET v = 'later'");
        exchange(&mut n);
        n[1].run(&migration);
        converge(&mut n);
        let rows = n[0].rows(&format!("SELECT {v}, active FROM t"));
        assert_eq!(rows, "t'later' i0", "{migration}");
    }
}

/// The same in a table that is renamed as well, and in one without a key.
#[test]
fn a_column_in_the_place_of_a_dropped_one_in_a_table_that_is_renamed() {
    let migration = "BEGIN; ALTER TABLE t DROP COLUMN w; ALTER TABLE t RENAME TO u;
        ALTER TABLE u ADD COLUMN active INTEGER NOT NULL DEFAULT 1; COMMIT";
    for key in ["id INTEGER PRIMARY KEY", "id"] {
        let mut n = cluster(2, &format!("CREATE TABLE t({key}, v, w)"));
        n[0].run("INSERT INTO t VALUES (1, 'a', 'b')");
        converge(&mut n);
        n[0].run(migration);
        n[0].capture();
        n[0].run("UPDATE u SET active = 0");
        exchange(&mut n);
        n[1].clock.advance(HOUR);
        n[1].run("UPDATE t SET v = 'later'");
        exchange(&mut n);
        n[1].run(migration);
        converge(&mut n);
        assert_eq!(n[0].rows("SELECT v, active FROM u"), "t'later' i0");
    }
}

/// Columns that swap their names are no new columns.
#[test]
fn two_columns_swap_their_names() {
    let mut n = cluster(
        2,
        "CREATE TABLE t(id INTEGER PRIMARY KEY, a, b, c DEFAULT 5)",
    );
    n[0].run("INSERT INTO t(id, a, b) VALUES (1, 'x', 'y')");
    converge(&mut n);
    let swap = "ALTER TABLE t RENAME COLUMN a TO tmp; ALTER TABLE t RENAME COLUMN b TO a;
        ALTER TABLE t RENAME COLUMN tmp TO b";
    for node in &mut n {
        node.run(swap);
        node.capture();
    }
    n[0].clock.advance(HOUR);
    n[0].run("UPDATE t SET a = 'y again'");
    converge(&mut n);
    n.iter()
        .for_each(|node| node.run("ALTER TABLE t RENAME COLUMN a TO d"));
    n[0].run("UPDATE t SET d = 'z'");
    converge(&mut n);
    assert_eq!(n[1].rows("SELECT d, b, c FROM t"), "t'z' t'x' i5");
}

#[test]
fn the_key_is_of_another_type() {
    let by_rebuild = "BEGIN; CREATE TABLE new(id TEXT PRIMARY KEY, v);
        INSERT INTO new SELECT id, v FROM t; DROP TABLE t; ALTER TABLE new RENAME TO t; COMMIT";
    let schema = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)";
    migrate_one_by_one(schema, "INSERT INTO t VALUES (1, 'old')", by_rebuild);
}

#[test]
fn the_key_is_another_one_of_the_same_type() {
    for (before, after) in [
        (
            "id TEXT, b TEXT, v, PRIMARY KEY(id)",
            "id TEXT, b TEXT, v, PRIMARY KEY(b)",
        ),
        (
            "id TEXT, b TEXT, v, PRIMARY KEY(id, b)",
            "id TEXT, b TEXT, v, PRIMARY KEY(b, id)",
        ),
    ] {
        let by_rebuild = format!(
            "BEGIN; CREATE TABLE new({after}); INSERT INTO new SELECT * FROM t; DROP TABLE t;
             ALTER TABLE new RENAME TO t; COMMIT"
        );
        let schema = format!("CREATE TABLE t({before})");
        migrate_one_by_one(&schema, "INSERT INTO t VALUES (1, 'b', 'old')", &by_rebuild);
    }
}

/// The row itself came from the faster node; the new column is held until this node has it.
#[test]
fn values_that_a_rebuild_adds_are_no_newer_than_rows_from_before() {
    let schema = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)";
    let rebuild = "BEGIN; CREATE TABLE new(id INTEGER PRIMARY KEY, v, c);
        INSERT INTO new SELECT id, v, 'z ' || v FROM t; DROP TABLE t; ALTER TABLE new RENAME TO t; \
        COMMIT";
    for before in ["", "DELETE FROM t; INSERT INTO t VALUES (1, 'again')"] {
        let mut n = cluster(3, schema);
        n[0].run("INSERT INTO t VALUES (1, 'a'), (2, 'b')");
        converge(&mut n);
        n[0].run(before);
        converge(&mut n);
        n[0].run(rebuild);
        n[0].capture();
        n[0].clock.advance(HOUR);
        n[0].run("UPDATE t SET c = 'by a user' WHERE id = 1");
        exchange(&mut n);
        n[1].clock.advance(24 * HOUR);
        n[1].run(rebuild);
        n[1].capture();
        n[2].clock.advance(48 * HOUR);
        n[2].run(rebuild);
        converge(&mut n);
        assert_eq!(n[2].rows("SELECT c FROM t WHERE id = 1"), "t'by a user'");
    }
}

/// A renamed column whose old value is the larger one.
#[test]
fn values_of_a_renamed_column_are_no_newer_than_rows_from_before() {
    let mut n = cluster(2, "CREATE TABLE t(id INTEGER PRIMARY KEY, v, a)");
    n[0].run("INSERT INTO t VALUES (1, 'v', 'z old')");
    converge(&mut n);
    let rename = "ALTER TABLE t RENAME COLUMN a TO c";
    n[0].run(rename);
    n[0].capture();
    n[0].clock.advance(HOUR);
    n[0].run("UPDATE t SET c = 'by a user'");
    exchange(&mut n);
    n[1].run(rename);
    converge(&mut n);
    assert_eq!(n[1].rows("SELECT c FROM t"), "t'by a user'");
}

/// Changes of rows in the rebuild count, too; its new rows and its deletes are as of now.
#[test]
fn a_rebuild_that_also_writes() {
    let mut n = cluster(2, "CREATE TABLE t(id INTEGER PRIMARY KEY, v, d)");
    n[0].run("INSERT INTO t VALUES (1, 'a', 'd'), (2, 'b', 'd')");
    converge(&mut n);
    let rebuild = "BEGIN; CREATE TABLE new(id INTEGER PRIMARY KEY, v);
        INSERT INTO new SELECT id, upper(v) FROM t WHERE id = 1; INSERT INTO new VALUES (3, 'new');
        DROP TABLE t; ALTER TABLE new RENAME TO t; COMMIT";
    n[0].run(rebuild);
    n[0].capture();
    n[1].run("ALTER TABLE t DROP COLUMN d");
    converge(&mut n);
    assert_eq!(n[1].rows("SELECT * FROM t"), "i1 t'A'\ni3 t'new'");
}

/// SQLite changes the case of a table's name only by way of a different name.
#[test]
fn a_table_is_renamed_to_another_case() {
    let mut n = cluster(2, "CREATE TABLE Books(id INTEGER PRIMARY KEY, v)");
    n[0].run("INSERT INTO Books VALUES (1, 'a')");
    converge(&mut n);
    n[0].run("BEGIN; ALTER TABLE Books RENAME TO x; ALTER TABLE x RENAME TO books; COMMIT");
    n[0].capture();
    n[0].run("INSERT INTO books VALUES (2, 'b')");
    exchange(&mut n);
    n[1].run("INSERT INTO books VALUES (3, 'c')");
    exchange(&mut n);
    for node in &n {
        assert_eq!(node.rows("SELECT count(*) FROM books"), "i3");
    }
}

/// A UNIQUE index follows its renamed column, and evictions by REPLACE are noticed afterwards.
#[test]
fn evictions_are_seen_after_a_rename() {
    let mut n = cluster(
        2,
        "CREATE TABLE t(id INTEGER PRIMARY KEY, a UNIQUE, b UNIQUE)",
    );
    n[0].run("INSERT INTO t VALUES (1, 'x', 'y')");
    converge(&mut n);
    for node in &n {
        node.run("ALTER TABLE t RENAME COLUMN a TO z");
    }
    n[0].run("REPLACE INTO t VALUES (2, 'x', 'w')");
    converge(&mut n);
    assert_eq!(n[1].rows("SELECT * FROM t"), "i2 t'x' t'w'");
}

fn after_replace(schema: &str, insert: &str, replace: &str) -> Vec<Node> {
    let mut n = cluster(2, schema);
    n[0].run(insert);
    converge(&mut n);
    n[0].run(replace);
    converge(&mut n);
    n
}

/// A given rowid also evicts in a table where the rowid is not the key.
#[test]
fn a_rowid_that_is_given_evicts() {
    let (schema, insert) = (
        "CREATE TABLE t(p TEXT PRIMARY KEY, b)",
        "INSERT INTO t(rowid, p) VALUES (5, 'y'), (6, 'x')",
    );
    let replace = "INSERT OR REPLACE INTO t(rowid, p) VALUES (5, 'z')";
    let n = after_replace(schema, insert, replace);
    assert_eq!(n[1].rows("SELECT p FROM t ORDER BY 1"), "t'x'\nt'z'");
    let n = after_replace(
        schema,
        insert,
        "UPDATE OR REPLACE t SET rowid = 5 WHERE p = 'x'",
    );
    assert_eq!(n[1].rows("SELECT p FROM t"), "t'x'");
}

/// REPLACE puts the default in place of NULL after the BEFORE trigger has run.
#[test]
fn a_default_in_the_place_of_null_evicts() {
    let schema = "CREATE TABLE t(id INTEGER PRIMARY KEY, e TEXT NOT NULL DEFAULT 'it''s' UNIQUE)";
    let mut n = after_replace(
        schema,
        "INSERT INTO t VALUES (1, 'it''s')",
        "INSERT OR REPLACE INTO t VALUES (2, NULL)",
    );
    n[1].clock.advance(HOUR);
    n[1].run("UPDATE t SET e = 'other' WHERE id = 2");
    converge(&mut n);
    assert_eq!(n[0].rows("SELECT id FROM t"), "i2");
}

#[test]
fn a_table_may_be_called_excluded() {
    let mut n = cluster(2, "CREATE TABLE excluded(id INTEGER PRIMARY KEY, v)");
    n[0].run("INSERT INTO excluded VALUES (1, 'a')");
    converge(&mut n);
    n[0].clock.advance(HOUR);
    n[0].run("UPDATE excluded SET v = 'b'");
    converge(&mut n);
    assert_eq!(n[1].rows("SELECT v FROM excluded"), "t'b'");
}

/// The index excludes rows that are not JSON: the trigger must not fail on them.
#[test]
fn an_expression_is_not_worked_out_for_what_its_index_leaves_out() {
    let mut n = cluster(
        2,
        "CREATE TABLE t(id INTEGER PRIMARY KEY, data TEXT);
         CREATE UNIQUE INDEX i ON t(json_extract(data, '$.id')) WHERE json_valid(data)",
    );
    n[0].run("INSERT INTO t VALUES (1, '{\"id\": 5}')");
    converge(&mut n);
    n[0].run("INSERT INTO t VALUES (2, 'no JSON')");
    n[0].run("INSERT OR REPLACE INTO t VALUES (3, '{\"id\": 5}')");
    converge(&mut n);
    assert_eq!(n[1].rows("SELECT id FROM t ORDER BY 1"), "i2\ni3");
}
