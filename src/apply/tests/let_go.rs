//! Changes of excluded tables: nothing of them is stored.

use super::support::{Node, exchange};
use crate::capture::Outgoing;
use crate::database::Settings;
use crate::model::frame::pack;

const SCHEMA: &str = "CREATE TABLE u(id INTEGER PRIMARY KEY, v);
                      CREATE TABLE logs(id INTEGER PRIMARY KEY, m)";

fn without_logs(settings: &mut Settings) {
    settings.tables.exclude = vec!["logs".into()];
    settings.joins_by_snapshot = true;
}

fn held(node: &Node) -> String {
    node.rows("SELECT count(*) FROM __harmonylite___held")
}

/// The node has the table or not.
#[test]
fn nothing_is_held_of_a_table_that_is_left_out() {
    for theirs in [SCHEMA, "CREATE TABLE u(id INTEGER PRIMARY KEY, v)"] {
        let mut n = [Node::new(1, SCHEMA), Node::with(2, theirs, without_logs)];
        for i in 0..100 {
            n[0].run(&format!(
                "INSERT INTO logs VALUES ({i}, 'm'); INSERT INTO u VALUES ({i}, 1)"
            ));
        }
        exchange(&mut n);
        n[0].run("DELETE FROM logs");
        exchange(&mut n);
        assert_eq!(held(&n[1]), "i0");
        assert_eq!(n[1].rows("SELECT count(*) FROM u"), "i100");
        assert_eq!(n[1].db.held().unwrap(), 0);
    }
}

/// Frames too large for one message wait as parts until the last part is here.
#[test]
fn nothing_is_left_of_parts_of_such_a_table() {
    let mut n = [Node::new(1, SCHEMA), Node::with(2, SCHEMA, without_logs)];
    n[0].run("INSERT INTO logs VALUES (1, randomblob(10000))");
    let frame = n[0].publish().remove(0);
    let packed = pack(frame.raw.clone(), None);
    let parts = packed.messages(0, 2000).map(|raw| Outgoing {
        raw,
        ..frame.clone()
    });
    n[1].apply(&parts.collect::<Vec<_>>());
    assert_eq!(
        n[1].rows("SELECT count(*) FROM __harmonylite___parts"),
        "i0"
    );
    assert_eq!(held(&n[1]), "i0");
}

/// At the start a node removes what an earlier release held, a few entries at a time.
#[test]
fn held_rows_of_such_a_table_go() {
    let mut n = [Node::new(1, SCHEMA), Node::new(2, "")];
    for i in 0..300 {
        n[0].run(&format!(
            "INSERT INTO logs VALUES ({i}, 'm'); INSERT INTO u VALUES ({i}, 1)"
        ));
    }
    exchange(&mut n);
    n[1].run(
        "INSERT INTO __harmonylite___held SELECT 'sqlite_x', shape, key, column, hlc, site,
              value, reason FROM __harmonylite___held WHERE table_name = 'u'",
    );
    assert_eq!(n[1].db.held().unwrap(), 900);
    n[1].restart_with(without_logs);
    assert!(n[1].db.has_more());
    n[1].capture();
    let tables = "SELECT DISTINCT table_name FROM __harmonylite___held";
    assert_eq!(n[1].rows(tables), "t'u'");
    assert!(!n[1].db.has_more());
}

/// A different application sends changes of endlessly many tables.
#[test]
fn held_rows_of_absent_tables_are_bounded() {
    let mut n = [Node::new(1, SCHEMA), Node::unmet(2, "")];
    n[1].db.become_founder().unwrap();
    n[1].db.limits.held_bytes = 30_000;
    n[0].run("INSERT INTO u VALUES (1, 'small')");
    for i in 0..500 {
        // The same rows, held repeatedly, take no more space than once.
        let row = i % 10;
        n[0].run(&format!(
            "INSERT OR REPLACE INTO u VALUES ({row}, 'small {i}')"
        ));
        exchange(&mut n);
    }
    assert_eq!(n[1].db.held().unwrap(), 10);
    for i in 0..500 {
        n[0].run(&format!("INSERT INTO logs VALUES ({i}, 'm')"));
        exchange(&mut n);
    }
    n[1].capture();
    let tables = "SELECT DISTINCT table_name FROM __harmonylite___held";
    assert_eq!(n[1].rows(tables), "t'u'");
    assert!(n[1].db.has_let_go(true));
    let noted = "SELECT table_name FROM __harmonylite___held_tables";
    assert_eq!(n[1].rows(noted), "t'u'");
    n[1].restart_with(|s| s.joins_by_snapshot = true);
    n[0].run("INSERT INTO logs VALUES (1000, 'm')");
    exchange(&mut n);
    assert_eq!(n[1].rows(tables), "t'u'");
    n[1].run("CREATE TABLE u(id INTEGER PRIMARY KEY, v)");
    n[1].capture();
    assert_eq!(n[1].rows("SELECT count(*) FROM u"), "i10");
    assert_eq!(n[1].rows(noted), "");
}

/// One message may bring more bytes than may be held.
#[test]
fn a_single_message_does_not_fill_the_disk() {
    let mut n = [Node::new(1, SCHEMA), Node::unmet(2, "")];
    n[1].db.become_founder().unwrap();
    n[1].db.limits.held_bytes = 100_000;
    n[0].run(
        "WITH RECURSIVE s(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM s WHERE i < 2000)
         INSERT INTO logs SELECT i, randomblob(300) FROM s",
    );
    let frames = n[0].publish();
    n[1].apply(&frames);
    let stored = "SELECT total(length(value)) < 60000 FROM __harmonylite___held";
    assert_eq!(n[1].rows(stored), "i1");
    n[1].capture();
    assert_eq!(held(&n[1]), "i0");
}

/// Without snapshots nothing would bring the rows back.
#[test]
fn nothing_is_let_go_where_no_snapshots_are_kept() {
    let mut n = [Node::new(1, SCHEMA), Node::new(2, "")];
    n[1].db.limits.held_bytes = 1000;
    for i in 0..100 {
        n[0].run(&format!("INSERT INTO logs VALUES ({i}, 'm')"));
        exchange(&mut n);
    }
    assert_eq!(n[1].db.held().unwrap(), 100);
}
