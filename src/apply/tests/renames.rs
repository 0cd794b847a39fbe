//! Columns and tables that are renamed.

use std::time::Duration;

use super::support::{Node, cluster, converge, exchange};

const HOUR: Duration = Duration::from_secs(3600);

/// Two nodes on which row 2 displaces row 1.
fn one_is_displaced(schema: &str) -> Vec<Node> {
    let mut n = cluster(2, schema);
    n[0].run("INSERT INTO t(id, a, v) VALUES (1, 'same', 'first')");
    n[1].clock.advance(HOUR);
    n[1].run("INSERT INTO t(id, a, v) VALUES (2, 'same', 'second')");
    converge(&mut n);
    assert_eq!(n[0].db.displaced().unwrap(), 1);
    n[1].clock.advance(HOUR);
    n
}

fn migrate(n: &mut [Node], migration: &str) {
    n.iter().for_each(|node| node.run(migration));
    converge(n);
}

/// The values in `columns` of row 1 after it came back.
fn comes_back(n: &mut [Node], free: &str, columns: &str) -> String {
    assert_eq!(n[0].db.displaced().unwrap(), 1, "nothing let it come back");
    n[1].run(free);
    converge(n);
    n[0].rows(&format!("SELECT {columns} FROM t ORDER BY 1 LIMIT 1"))
}

#[test]
fn a_displaced_row_keeps_what_it_has_in_a_column_that_is_renamed() {
    for schema in [
        "CREATE TABLE t(id INTEGER PRIMARY KEY, a UNIQUE, v)",
        "CREATE TABLE t(id TEXT PRIMARY KEY, a, v); CREATE UNIQUE INDEX i ON t(lower(a)) WHERE a \
         <> ''",
    ] {
        for (old, new) in [
            ("id", ["k", "a", "v"]),
            ("a", ["id", "k", "v"]),
            ("v", ["id", "a", "k"]),
        ] {
            let mut n = one_is_displaced(schema);
            migrate(&mut n, &format!("ALTER TABLE t RENAME COLUMN {old} TO k"));
            let free = format!("UPDATE t SET {} = 'other'", new[1]);
            let row = comes_back(
                &mut n,
                &free,
                &format!("CAST({} AS TEXT), {}, {}", new[0], new[1], new[2]),
            );
            assert_eq!(row, "t'1' t'same' t'first'", "{old} of {schema}");
        }
    }
}

#[test]
fn a_displaced_row_has_nothing_in_a_column_that_came_after_another_had_gone() {
    let migration = "ALTER TABLE t DROP COLUMN v; ALTER TABLE t ADD COLUMN k";
    for migration in [migration.to_owned(), format!("BEGIN; {migration}; COMMIT")] {
        let mut n = one_is_displaced("CREATE TABLE t(id INTEGER PRIMARY KEY, a UNIQUE, v)");
        migrate(&mut n, &migration);
        let row = comes_back(&mut n, "UPDATE t SET a = 'other'", "k IS NULL");
        assert_eq!(row, "i1", "{migration}");
    }
}

/// Several changes at once, under both kinds of ALTER TABLE, in tables of every kind.
#[test]
fn a_displaced_row_keeps_what_it_has_whatever_else_is_renamed_dropped_and_added() {
    for schema in [
        "CREATE TABLE t(id INTEGER PRIMARY KEY, \"q\"\"d\", a UNIQUE, v, g AS (a || v))",
        "CREATE TABLE t(id INTEGER PRIMARY KEY, \"q\"\"d\", a, v, UNIQUE(a)) WITHOUT ROWID",
    ] {
        let migration = "BEGIN; ALTER TABLE t RENAME COLUMN v TO \"the v\";
            ALTER TABLE t DROP COLUMN \"q\"\"d\"; ALTER TABLE t ADD COLUMN x DEFAULT 7;
            ALTER TABLE t RENAME COLUMN id TO \"on\"; ALTER TABLE t RENAME COLUMN x TO y; COMMIT";
        for legacy in ["OFF", "ON"] {
            let mut n = one_is_displaced(schema);
            migrate(
                &mut n,
                &format!("PRAGMA legacy_alter_table = {legacy}; {migration}"),
            );
            let columns = "\"on\", a, \"the v\", y";
            let row = comes_back(&mut n, "UPDATE t SET a = 'other'", columns);
            assert_eq!(row, "i1 t'same' t'first' i7", "{schema}");
        }
    }
}

/// An earlier HarmonyLite left no such trigger: columns are identified by their positions, and are
/// listed from then on.
#[test]
fn a_column_is_renamed_while_no_trigger_lists_it() {
    let mut n = one_is_displaced("CREATE TABLE t(id INTEGER PRIMARY KEY, a UNIQUE, v)");
    migrate(
        &mut n,
        "DROP TRIGGER __harmonylite__t_columns; ALTER TABLE t RENAME COLUMN v TO k",
    );
    migrate(&mut n, "ALTER TABLE t RENAME COLUMN k TO w");
    let row = comes_back(&mut n, "UPDATE t SET a = 'other'", "*");
    assert_eq!(row, "i1 t'same' t'first'");
}

/// With other schema changes at once, and published to a node that did not know the row.
#[test]
fn a_displaced_row_is_told_under_the_new_name() {
    let schema = "CREATE TABLE t(id INTEGER PRIMARY KEY, a UNIQUE, v)";
    let rename = "ALTER TABLE t RENAME COLUMN v TO k; ALTER TABLE t ADD COLUMN x DEFAULT 7";
    let mut n = one_is_displaced(schema);
    n.push(Node::new(3, schema));
    n[2].run(rename);
    n[2].capture();
    migrate(&mut n[..2], rename);
    n[0].db.republish_all().unwrap();
    converge(&mut n);
    let row = comes_back(&mut n[1..], "UPDATE t SET a = 'other'", "*");
    assert_eq!(row, "i1 t'same' t'first' i7");
}

#[test]
fn a_displaced_row_outlives_columns_that_are_dropped() {
    let rebuild = "BEGIN; CREATE TABLE new(id INTEGER PRIMARY KEY, a UNIQUE, x DEFAULT 7);
        INSERT INTO new(id, a) SELECT id, a FROM t; DROP TABLE t; ALTER TABLE new RENAME TO t; \
        COMMIT";
    for (migration, expected) in [
        ("ALTER TABLE t DROP COLUMN v", "i1 t'same'"),
        (rebuild, "i1 t'same' i7"),
    ] {
        let mut n = one_is_displaced("CREATE TABLE t(id INTEGER PRIMARY KEY, a UNIQUE, v)");
        migrate(&mut n, migration);
        let row = comes_back(&mut n, "UPDATE t SET a = 'other'", "*");
        assert_eq!(row, expected);
    }
}

/// After a rebuild in which the key has a different name and the same type, a displaced row has
/// that key, and no row with a NULL key appears.
#[test]
fn a_displaced_row_has_its_key_whatever_that_is_called() {
    let mut n = one_is_displaced("CREATE TABLE t(id TEXT PRIMARY KEY, a UNIQUE, v)");
    migrate(
        &mut n,
        "DROP TABLE t; CREATE TABLE t(k TEXT PRIMARY KEY, a UNIQUE, v)",
    );
    assert_eq!(n[0].rows("SELECT count(*) FROM t WHERE k IS NULL"), "i0");
}

/// A column has the row's version or its own one, and keeps it when it is renamed. The second node
/// did not know the column when it wrote the row.
#[test]
fn a_column_that_is_renamed_keeps_its_version() {
    let mut n = cluster(3, "CREATE TABLE t(id INTEGER PRIMARY KEY, v)");
    n[0].run("INSERT INTO t VALUES (1, 'a')");
    converge(&mut n);
    for i in [0, 2] {
        n[i].run("ALTER TABLE t ADD COLUMN c");
        n[i].capture();
    }
    n[0].clock.advance(HOUR);
    n[0].run("UPDATE t SET c = 'written first'");
    exchange(&mut n);
    n[2].clock.advance(2 * HOUR);
    n[2].run("UPDATE t SET c = 'last'");
    n[2].capture();
    n[1].clock.advance(3 * HOUR);
    n[1].run("UPDATE t SET v = 'b'");
    let row = n[1].publish();
    n[0].apply(&row);
    n[2].apply(&row);
    n[1].run("ALTER TABLE t ADD COLUMN c");
    for name in ["d", "e"] {
        let rename = format!(
            "ALTER TABLE t RENAME COLUMN {} TO {name}",
            if name == "d" { "c" } else { "d" }
        );
        n.iter().for_each(|node| node.run(&rename));
        n[0].capture();
        n[2].restart();
        n[2].capture();
    }
    converge(&mut n);
    assert_eq!(n[0].rows("SELECT v, e FROM t"), "t'b' t'last'");
}

/// This holds for writes under either name, whichever node renames first.
#[test]
fn a_table_is_renamed_on_one_node_after_the_other() {
    let mut n = cluster(
        3,
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE VIEW w AS SELECT * FROM missing",
    );
    let rename = "ALTER TABLE t RENAME TO books";
    n.iter()
        .for_each(|node| node.run("PRAGMA legacy_alter_table = ON"));
    n[0].run("INSERT INTO t VALUES (1, 'old'), (2, 'old'), (3, 'old'), (4, 'old'), (5, 'old')");
    converge(&mut n);
    n[0].run(&format!(
        "UPDATE t SET v = 'just before' WHERE id = 1; {rename}"
    ));
    n[0].capture();
    n[0].clock.advance(HOUR);
    n[0].run("UPDATE books SET v = 'after' WHERE id = 2; DELETE FROM books WHERE id = 3");
    n[1].clock.advance(2 * HOUR);
    n[1].run(
        "UPDATE t SET v = 'before' WHERE id = 4; DELETE FROM t WHERE id = 5; INSERT INTO t \
        VALUES (6, 'before')",
    );
    exchange(&mut n);
    for node in &n[1..] {
        node.clock.advance(24 * HOUR);
        node.run(rename);
    }
    n[1].restart();
    converge(&mut n);
    let all = n[2].rows("SELECT id, v FROM books ORDER BY id");
    let expected = "i1 t'just before'\ni2 t'after'\ni4 t'before'\ni6 t'before'";
    assert_eq!(all, expected);
}

#[test]
fn a_table_is_renamed_to_and_fro_with_rows_displaced_and_unsent() {
    let mut n = one_is_displaced("CREATE TABLE t(id INTEGER PRIMARY KEY, a UNIQUE, v)");
    n[0].run("INSERT INTO t VALUES (3, 'x', 'unsent')");
    n[0].capture();
    n[0].run("INSERT INTO t VALUES (4, 'y', 'not seen'); DELETE FROM t WHERE id = 3");
    migrate(&mut n, "ALTER TABLE t RENAME TO u");
    n[1].run("INSERT INTO u VALUES (5, 'z', 'new')");
    migrate(
        &mut n,
        "ALTER TABLE u ADD COLUMN n DEFAULT 0; ALTER TABLE u RENAME TO t",
    );
    let row = comes_back(&mut n, "UPDATE t SET a = 'other' WHERE id = 2", "*");
    assert_eq!(row, "i1 t'same' t'first' i0");
    assert_eq!(n[0].rows("SELECT id FROM t ORDER BY 1"), "i1\ni2\ni4\ni5");
}

/// The displaced row is not in the table during the rebuild. It gets its new key in the way of rows
/// that arrive under the old one.
#[test]
fn a_displaced_row_outlives_a_key_of_another_kind() {
    let schema = "CREATE TABLE t(id INTEGER PRIMARY KEY, a UNIQUE, v)";
    let rebuild = |schema: &str| {
        let new = schema.replace("TABLE t(", "TABLE new(");
        format!(
            "BEGIN; {new}; INSERT INTO new SELECT id, a, w FROM t; DROP TABLE t;
             ALTER TABLE new RENAME TO t; COMMIT"
        )
    };
    let mut n = one_is_displaced(schema);
    migrate(&mut n, "ALTER TABLE t RENAME COLUMN v TO w");
    let schema = "CREATE TABLE t(id INTEGER PRIMARY KEY, a UNIQUE, w)";
    migrate(&mut n, &rebuild(&schema.replace("INTEGER", "TEXT")));
    for node in &n {
        assert_eq!(
            (node.db.displaced().unwrap(), node.db.held().unwrap()),
            (1, 0)
        );
    }
    n[1].run("UPDATE t SET w = 'written meanwhile'");
    converge(&mut n);
    migrate(&mut n, &rebuild(schema));
    assert_eq!(n[0].db.held().unwrap(), 0);
    let row = comes_back(&mut n, "UPDATE t SET a = 'other'", "*");
    assert_eq!(row, "i1 t'same' t'first'");
    assert_eq!(
        n[0].rows("SELECT w FROM t WHERE id = 2"),
        "t'written meanwhile'"
    );
}
