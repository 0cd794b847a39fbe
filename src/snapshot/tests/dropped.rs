//! Tables that were dropped, and keys that tables had before, are forgotten with the deleted rows.

use std::time::Duration;

use super::{RETENTION, at, cluster, forget_all, snapshot, sweep};
use crate::apply::tests::support::{Node, converge, exchange};

const OURS: &str = "SELECT name FROM sqlite_schema WHERE type = 'table'
    AND name GLOB '__harmonylite__*_[0-9v]*' ORDER BY 1";

#[test]
fn tables_that_come_and_go_leave_nothing_behind() {
    let mut n = cluster(1, "CREATE TABLE t(id INTEGER PRIMARY KEY, v)");
    n[0].run("INSERT INTO t VALUES (1, 'stays')");
    for i in 0..5 {
        n[0].run(&format!(
            "CREATE TABLE import_{i}(id INTEGER PRIMARY KEY, v)"
        ));
        n[0].capture();
        let text = format!("INSERT INTO import_{i}(v) VALUES ('a'), ('b'); DROP TABLE import_{i}");
        n[0].run(&text);
        n[0].capture();
    }
    n[0].run("CREATE TABLE stays(id INTEGER PRIMARY KEY, v); INSERT INTO stays(v) VALUES (1)");
    at(&mut n[0], 10);
    n[0].publish();
    assert_eq!(n[0].rows(OURS).lines().count(), 7);
    forget_all(&mut n[0], 0);
    let left = "t'__harmonylite__stays_versions'\nt'__harmonylite__t_versions'";
    assert_eq!(n[0].rows(OURS), left);
    assert_eq!(
        n[0].rows("SELECT count(*) FROM __harmonylite___tables"),
        "i2"
    );
    assert_eq!(
        n[0].rows("SELECT count(*) FROM __harmonylite___waiting"),
        "i0"
    );
    assert_eq!(n[0].rows("SELECT count(*) FROM __harmonylite___gone"), "i0");
    snapshot(&mut n[0]);
    n[0].run(
        "CREATE TABLE import_0(id INTEGER PRIMARY KEY, v); INSERT INTO import_0 VALUES (1, 2)",
    );
    n[0].capture();
    assert_eq!(
        n[0].rows("SELECT count(*) FROM __harmonylite__import_0_versions"),
        "i1"
    );
}

/// A table that is created again in time has its versions.
#[test]
fn a_table_that_is_back_in_time_is_the_one_that_it_was() {
    let mut n = cluster(2, "CREATE TABLE t(id INTEGER PRIMARY KEY, v)");
    n[0].run("INSERT INTO t VALUES (1, 'a'), (2, 'b')");
    exchange(&mut n);
    n[0].run("CREATE TEMP TABLE copy AS SELECT * FROM t; DROP TABLE t");
    n[0].capture();
    at(&mut n[0], 10);
    forget_all(&mut n[1], 0);
    n[0].run("CREATE TABLE t(id INTEGER PRIMARY KEY, v); INSERT INTO t SELECT * FROM temp.copy");
    assert_eq!(n[0].capture(), 0, "nothing is new");
    assert_eq!(n[0].rows("SELECT count(*) FROM __harmonylite___gone"), "i0");
}

#[test]
fn the_key_of_before_is_forgotten() {
    let mut n = cluster(2, "CREATE TABLE t(id INTEGER PRIMARY KEY, v)");
    n[0].run("INSERT INTO t VALUES (1, 'a'), (2, 'b')");
    exchange(&mut n);
    for node in &mut n {
        node.run(
            "BEGIN; CREATE TABLE new(id TEXT PRIMARY KEY, v); INSERT INTO new SELECT * FROM t;
             DROP TABLE t; ALTER TABLE new RENAME TO t; COMMIT",
        );
        node.capture();
        at(node, 10);
    }
    converge(&mut n);
    assert_eq!(n[0].rows(OURS).lines().count(), 2);
    for node in &mut n {
        forget_all(node, 0);
        assert_eq!(node.rows(OURS), "t'__harmonylite__t_versions'");
        assert!(!node.db.is_comparing());
    }
    n[1].run("UPDATE t SET v = 'c' WHERE id = '2'");
    converge(&mut n);
}

/// The table was created with another key here, and nothing tells that it ever had the key of the
/// delete: that is held until deletes of its age are forgotten. One that a row here may need stays.
#[test]
fn a_delete_under_a_key_that_the_table_never_had_is_forgotten_in_time() {
    let mut n = cluster(2, "CREATE TABLE t(id INTEGER PRIMARY KEY, v)");
    n.push(Node::new(3, "CREATE TABLE t(id TEXT PRIMARY KEY, v)"));
    n[0].run("INSERT INTO t VALUES (1, 'a'), (2, 'b')");
    let inserts = n[0].publish();
    n[0].run("DELETE FROM t");
    let deletes = n[0].publish();
    n[2].run("INSERT INTO t VALUES ('2', 'c')");
    n[2].publish();
    n[2].apply(&inserts);
    n[2].apply(&deletes);
    assert_eq!(n[2].db.held().unwrap(), 2);
    at(&mut n[2], 10);
    n[2].clock.advance(Duration::from_secs(3600));
    forget_all(&mut n[2], 0);
    assert_eq!(n[2].db.held().unwrap(), 1);
    n[2].run("DELETE FROM t");
    n[2].publish();
    for _ in 0..2 {
        n[2].clock.advance(RETENTION);
        sweep(&mut n[2]);
    }
    assert_eq!(n[2].db.held().unwrap(), 0);
    n[2].restart();
    assert_eq!(n[2].rows("SELECT * FROM t"), "");
}
