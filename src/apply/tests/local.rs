//! Local tables: each node has its own. Incoming changes of them are let go, and a node that once
//! replicated such a table forgets that.

use super::support::{Node, converge, exchange};
use crate::database::Settings;
use crate::database::selection::Kind;

const SCHEMA: &str = "
    CREATE TABLE django_migrations(id INTEGER PRIMARY KEY AUTOINCREMENT, app, name, applied);
    CREATE TABLE migrations(id INTEGER PRIMARY KEY, bird, route);
    CREATE TABLE t(id INTEGER PRIMARY KEY, v)";

const BOOK: &str = "SELECT id, app, name FROM django_migrations ORDER BY 1";

/// Settings under which a node replicates these tables, as an earlier release did.
fn replicates_all(settings: &mut Settings) {
    let plain = ["*", "django_migrations", "log"];
    settings.tables.include = plain.map(str::to_owned).into();
}

fn traces(node: &Node) -> String {
    node.rows(
        "SELECT (SELECT count(*) FROM sqlite_schema WHERE name GLOB '__harmonylite__django*'),
                (SELECT count(*) FROM __harmonylite___tables WHERE name = 'django_migrations'),
                (SELECT count(*) FROM __harmonylite___held),
                (SELECT count(*) FROM __harmonylite___unsent)",
    )
}

#[test]
fn books_are_each_nodes_own() {
    let mut n = [Node::new(1, SCHEMA), Node::new(2, SCHEMA)];
    n[0].run("INSERT INTO django_migrations VALUES (1, 'a', '0001', 'now')");
    n[1].run("INSERT INTO django_migrations VALUES (1, 'b', '0001', 'now')");
    n[0].run("INSERT INTO migrations VALUES (1, 'stork', 'south')");
    n[1].run("INSERT INTO t VALUES (7, 'x')");
    exchange(&mut n);
    for (node, book) in n.iter().zip(["i1 t'a' t'0001'", "i1 t'b' t'0001'"]) {
        assert_eq!(node.rows(BOOK), book);
        assert_eq!(
            node.rows("SELECT * FROM migrations"),
            "i1 t'stork' t'south'"
        );
        assert_eq!(node.rows("SELECT * FROM t"), "i7 t'x'");
        assert_eq!(traces(node), "i0 i0 i0 i0");
        let left = node.db.not_replicated();
        assert_eq!((left.len(), left[0].kind), (1, Kind::Local));
        assert!(left[0].reason.contains("Django"), "{}", left[0].reason);
    }
}

/// The triggers of an earlier release are dropped, and everything it knew of the rows goes.
#[test]
fn an_upgrade_leaves_nothing_behind() {
    let mut n = [
        Node::with(1, SCHEMA, replicates_all),
        Node::with(2, SCHEMA, replicates_all),
    ];
    n[0].run("INSERT INTO django_migrations VALUES (1, 'a', '0001', 'now')");
    exchange(&mut n);
    assert_eq!(n[1].rows(BOOK), "i1 t'a' t'0001'");
    // One row is unsent, one is in the change log, and one is held.
    n[0].run("INSERT INTO django_migrations VALUES (2, 'a', '0002', 'now')");
    n[0].capture();
    n[0].run("INSERT INTO django_migrations VALUES (3, 'a', '0003', 'now')");
    n[1].run("DROP TABLE django_migrations");
    n[1].capture();
    let frames = n[0].publish();
    n[1].apply(&frames);
    assert_ne!(n[1].rows("SELECT count(*) FROM __harmonylite___held"), "i0");
    n[1].run("CREATE TABLE django_migrations(id INTEGER PRIMARY KEY, app, name, applied)");
    n[0].run("UPDATE django_migrations SET name = '0004' WHERE id = 3");
    for node in &mut n {
        node.restart();
        node.capture();
        assert_eq!(traces(node), "i0 i0 i0 i0");
    }
    assert_eq!(n[0].rows("SELECT count(*) FROM django_migrations"), "i3");
    assert_eq!(n[1].rows("SELECT count(*) FROM django_migrations"), "i0");
}

/// Nodes need not be upgraded, nor configured, all at once.
#[test]
fn rows_of_others_are_left_out_and_read_again_when_wanted() {
    let mut n = [Node::with(1, SCHEMA, replicates_all), Node::new(2, SCHEMA)];
    n[1].run("DROP TABLE django_migrations");
    n[0].run(
        "INSERT INTO django_migrations VALUES (1, 'a', '0001', 'now'); INSERT INTO t VALUES (1, 2)",
    );
    let frames = n[0].publish();
    n[1].apply(&frames);
    // The change came before the table was there: its columns identify it nevertheless.
    assert_eq!(n[1].rows("SELECT * FROM t"), "i1 i2");
    assert_eq!(traces(&n[1]), "i0 i0 i0 i0");
    n[1].run(
        "CREATE TABLE django_migrations(id INTEGER PRIMARY KEY, app, name, applied);
              INSERT INTO django_migrations VALUES (1, 'own', '0001', 'now')",
    );
    n[1].capture();
    n[1].restart_with(replicates_all);
    assert_eq!(n[1].db.position("s").seq, 0);
    n[1].apply(&frames);
    converge(&mut n);
    // Another node's write is newer than the rows that were here when the table was excluded.
    assert_eq!(n[1].rows(BOOK), "i1 t'a' t'0001'");
    n[1].restart_with(replicates_all);
    assert_ne!(n[1].db.position("s").seq, 0, "it is read again once");
}

/// A table of that name with other columns is not the tool's.
#[test]
fn a_table_of_other_columns_is_held() {
    let mut n = [
        Node::new(1, "CREATE TABLE migrations(id INTEGER PRIMARY KEY, bird)"),
        Node::new(
            2,
            "CREATE TABLE migrations(id INTEGER PRIMARY KEY, migration, batch)",
        ),
    ];
    n[0].run("INSERT INTO migrations VALUES (1, 'stork')");
    let frames = n[0].publish();
    n[1].apply(&frames);
    assert_eq!(n[1].rows("SELECT count(*) FROM migrations"), "i0");
    assert_eq!(
        n[1].rows("SELECT DISTINCT table_name FROM __harmonylite___held"),
        "t'migrations'"
    );
}

#[test]
fn local_by_the_configuration() {
    let local = |s: &mut Settings| s.tables.local = vec!["lo?".into()];
    let schema = "CREATE TABLE log(id INTEGER PRIMARY KEY, v)";
    let mut n = [Node::with(1, schema, local), Node::new(2, schema)];
    n[0].run("INSERT INTO log VALUES (1, 'one')");
    n[1].run("INSERT INTO log VALUES (1, 'two')");
    exchange(&mut n);
    assert_eq!(n[0].rows("SELECT * FROM log"), "i1 t'one'");
    assert_eq!(n[1].rows("SELECT * FROM log"), "i1 t'two'");
}
