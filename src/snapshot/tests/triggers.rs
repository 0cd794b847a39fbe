//! Tables that the application's triggers feed, on nodes that get their rows with a snapshot.

use super::{merge, snapshot};
use crate::apply::tests::support::{Node, exchange};
use crate::database::Settings;

/// Every kind of index that SQLite has, one kept in a table, and one over the rows of an excluded
/// table.
const SCHEMA: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v, x);
    CREATE TABLE words(id INTEGER PRIMARY KEY, v); CREATE TABLE sessions(id INTEGER PRIMARY KEY, v);
    CREATE VIRTUAL TABLE f USING fts5(v, content = 't', content_rowid = 'id');
    CREATE VIRTUAL TABLE g USING fts5(v); CREATE VIRTUAL TABLE r USING rtree(id, a, b);
    CREATE TRIGGER ti AFTER INSERT ON t BEGIN
      INSERT INTO f(rowid, v) VALUES (NEW.id, NEW.v); INSERT INTO g(rowid, v) VALUES (NEW.id, \
      NEW.v);
      INSERT INTO r VALUES (NEW.id, NEW.x, NEW.x + 1); INSERT INTO words VALUES (NEW.id, NEW.v); \
      END;
    CREATE TRIGGER tu AFTER UPDATE ON t BEGIN
      INSERT INTO f(f, rowid, v) VALUES ('delete', OLD.id, OLD.v); INSERT INTO f(rowid, v) VALUES \
      (NEW.id, NEW.v);
      UPDATE g SET v = NEW.v WHERE rowid = NEW.id; UPDATE r SET a = NEW.x, b = NEW.x + 1 WHERE id \
      = NEW.id;
      UPDATE words SET v = NEW.v WHERE id = NEW.id; END;
    CREATE TRIGGER td AFTER DELETE ON t BEGIN
      INSERT INTO f(f, rowid, v) VALUES ('delete', OLD.id, OLD.v); DELETE FROM g WHERE rowid = \
      OLD.id;
      DELETE FROM r WHERE id = OLD.id; DELETE FROM words WHERE id = OLD.id; END;";

fn feeding(settings: &mut Settings) {
    settings.apply_triggers = ["ti", "tu", "td"].map(Into::into).to_vec();
    settings.tables.exclude = ["words", "sessions"].map(str::to_owned).into();
}

/// The index holds exactly the rows of the table.
fn check(node: &Node) {
    let fresh = rusqlite::Connection::open(node.dir.path().join("app.db")).unwrap();
    for index in ["f", "g"] {
        let text = format!("INSERT INTO {index}({index}, rank) VALUES ('integrity-check', 1)");
        fresh.execute_batch(&text).unwrap();
        let found = format!("SELECT rowid FROM {index} WHERE {index} MATCH 'new' ORDER BY 1");
        assert_eq!(node.rows(&found), "i1\ni3", "{index}");
        let found = format!("SELECT rowid FROM {index} WHERE {index} MATCH 'old OR gone'");
        assert_eq!(node.rows(&found), "", "{index}");
    }
    assert_eq!(
        node.rows("SELECT id FROM r WHERE a >= 5 ORDER BY 1"),
        "i1\ni3"
    );
    assert_eq!(
        node.rows("SELECT * FROM words ORDER BY 1"),
        node.rows("SELECT id, v FROM t ORDER BY 1")
    );
    assert_eq!(node.db.apply_triggers.failures(), 0);
}

#[test]
fn tables_fed_by_triggers_come_right_on_every_node() {
    let mut maker = Node::with(1, SCHEMA, feeding);
    maker.run(
        "INSERT INTO sessions VALUES (1, 'secret'); INSERT INTO t VALUES (1, 'old', 1), (2, \
        'gone', 1)",
    );
    maker.publish();
    let taken = snapshot(&mut maker);
    let linked = Node::linked(2, &taken.0, feeding);
    assert_eq!(linked.rows("SELECT id FROM words"), "i1\ni2");
    let mut empty = Node::with(3, "", feeding);
    let mut merging = Node::with(4, SCHEMA, feeding);
    merging.run("INSERT INTO t VALUES (7, 'mine', 1)");
    for node in [&mut empty, &mut merging] {
        merge(node, &taken);
    }
    for node in [&linked, &empty, &merging] {
        assert_eq!(node.rows("SELECT count(*) FROM sessions"), "i0");
    }
    let mut n = vec![maker, linked, empty, merging];
    n[0].run(
        "UPDATE t SET v = 'new', x = 5 WHERE id = 1; DELETE FROM t WHERE id = 2; INSERT INTO \
        t VALUES (3, 'new', 6)",
    );
    n[3].run("DELETE FROM t WHERE id = 7");
    exchange(&mut n);
    exchange(&mut n);
    for node in &mut n {
        check(node);
        node.run("INSERT INTO f(f) VALUES ('rebuild')");
        check(node);
        assert_eq!(node.capture(), 0);
    }
}
