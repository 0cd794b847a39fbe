//! Changes of tables that are left out: nothing of them is kept.

use super::support::{Node, exchange};
use crate::capture::Outgoing;
use crate::database::Settings;
use crate::model::frame::pack;

const SCHEMA: &str = "CREATE TABLE u(id INTEGER PRIMARY KEY, v);
                      CREATE TABLE logs(id INTEGER PRIMARY KEY, m)";

fn without_logs(settings: &mut Settings) {
    settings.selects = Box::new(|table| table != "logs");
    settings.joins_by_snapshot = true;
}

fn held(node: &Node) -> String {
    node.rows("SELECT count(*) FROM __harmonylite___held")
}

/// Case 11: with the table here or without it.
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

/// Rows too large for one message wait as parts until the last is here.
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

/// What an earlier release held goes at the start, some at a time.
#[test]
fn what_was_held_of_such_a_table_goes() {
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
