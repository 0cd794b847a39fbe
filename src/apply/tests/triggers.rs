//! Triggers of the application that also fire for incoming changes.

use super::support::{Node, exchange};
use crate::database::Settings;

/// Two nodes. The second one runs these triggers, and does not replicate the tables they feed.
fn pair(schema: &str, names: &[&str]) -> Vec<Node> {
    let with = |s: &mut Settings| feeding(s, names);
    vec![
        Node::with(1, schema, |s| feeding(s, &[])),
        Node::with(2, schema, with),
    ]
}

fn feeding(settings: &mut Settings, names: &[&str]) {
    settings.apply_triggers = names.iter().map(|n| (*n).to_owned()).collect();
    settings.tables.exclude = ["pending", "audit"].map(str::to_owned).into();
}

fn failures(node: &Node) -> u64 {
    node.db.apply_triggers.failures()
}

fn unsupported(node: &Node) -> String {
    let all = node.db.apply_triggers.unsupported();
    let each: Vec<String> = all.iter().map(|(n, why)| format!("{n}: {why}")).collect();
    each.join("\n")
}

/// The triggers of sqlite-chronicle are like these.
const AUDIT: &str = "CREATE TABLE pending(id INTEGER PRIMARY KEY);
    CREATE TABLE audit(n INTEGER PRIMARY KEY, what TEXT, id);
    CREATE TRIGGER bi BEFORE INSERT ON dogs WHEN EXISTS(SELECT 1 FROM dogs WHERE id = NEW.id)
      BEGIN INSERT OR REPLACE INTO pending VALUES(NEW.id); END;
    CREATE TRIGGER ai AFTER INSERT ON dogs BEGIN
      DELETE FROM pending WHERE id = NEW.id; INSERT INTO audit(what, id) VALUES('insert', NEW.id); \
      END;
    CREATE TRIGGER au AFTER UPDATE ON dogs BEGIN INSERT INTO audit(what, id) VALUES('update', \
    NEW.id); END;
    CREATE TRIGGER ad AFTER DELETE ON dogs WHEN NOT EXISTS(SELECT 1 FROM pending WHERE id = OLD.id)
      BEGIN INSERT INTO audit(what, id) VALUES('delete', OLD.id); END";
const ALL: [&str; 4] = ["bi", "ai", "au", "ad"];

#[test]
fn an_update_fires_what_an_update_fires() {
    for (table, old, new) in [
        ("id INTEGER PRIMARY KEY, name)", "1", "1"),
        ("id INTEGER PRIMARY KEY, name UNIQUE)", "1", "1"),
        ("id TEXT PRIMARY KEY COLLATE NOCASE, name)", "'a'", "'A'"),
        ("id TEXT PRIMARY KEY, name) WITHOUT ROWID", "'a'", "'a'"),
        (
            "id INTEGER PRIMARY KEY ON CONFLICT REPLACE, name)",
            "1",
            "1",
        ),
    ] {
        let schema = format!("CREATE TABLE dogs({table}; {AUDIT}");
        let mut n = pair(&schema, &ALL);
        for (sql, expected) in [
            (
                format!("INSERT INTO dogs VALUES ({old}, 'Rex')"),
                "t'insert'",
            ),
            (
                format!("UPDATE dogs SET id = {new}, name = 'Max'"),
                "t'update'",
            ),
            ("DELETE FROM dogs".to_owned(), "t'delete'"),
        ] {
            n[1].run("DELETE FROM audit");
            n[0].run(&sql);
            exchange(&mut n);
            assert_eq!(n[1].rows("SELECT what FROM audit"), expected, "{table}");
            assert_eq!(
                n[1].rows("SELECT * FROM dogs"),
                n[0].rows("SELECT * FROM dogs")
            );
            assert_eq!(n[1].rows("SELECT count(*) FROM pending"), "i0");
        }
        assert_eq!(
            (failures(&n[1]), unsupported(&n[1])),
            (0, String::new()),
            "{table}"
        );
        n[1].check();
    }
}

#[test]
fn a_trigger_of_some_columns_fires_for_those_that_differ() {
    let schema = "CREATE TABLE t(id INTEGER PRIMARY KEY, a, b); CREATE TABLE audit(what);
        CREATE TRIGGER ua AFTER UPDATE OF a ON t BEGIN INSERT INTO audit VALUES (NEW.a); END";
    let mut n = pair(schema, &["ua"]);
    n[0].run("INSERT INTO t VALUES (1, 'a', 'b')");
    exchange(&mut n);
    n[0].run("UPDATE t SET b = 'c'");
    exchange(&mut n);
    n[0].run("UPDATE t SET a = 'new'");
    exchange(&mut n);
    assert_eq!(n[1].rows("SELECT * FROM audit"), "t'new'");
    n[1].check();
}

/// In SQLite the statement that fires a trigger overrides the conflict clauses inside it.
#[test]
fn the_conflict_clause_of_a_trigger_counts() {
    let schema = "CREATE TABLE t(id INTEGER PRIMARY KEY, tag UNIQUE);
        CREATE TABLE audit(what PRIMARY KEY, n);
        CREATE TRIGGER i AFTER INSERT ON t BEGIN
          INSERT OR IGNORE INTO audit VALUES ('row', 1); INSERT OR REPLACE INTO audit VALUES \
          ('last', NEW.id); END;
        CREATE TRIGGER u AFTER UPDATE ON t BEGIN INSERT OR REPLACE INTO audit VALUES ('last', \
        NEW.tag); END";
    let mut n = pair(schema, &["i", "u"]);
    n[0].run("INSERT INTO t VALUES (1, 'a'), (2, 'b')");
    exchange(&mut n);
    n[0].run("UPDATE t SET tag = 'c' WHERE id = 2");
    exchange(&mut n);
    assert_eq!(n[1].rows("SELECT * FROM audit"), "t'row' i1\nt'last' t'c'");
    assert_eq!(failures(&n[1]), 0);
}

/// An incoming change has happened elsewhere: a trigger cannot refuse it.
#[test]
fn a_trigger_that_fails_keeps_no_row_out() {
    let fails = [
        "SELECT RAISE(ABORT, 'no')",
        "SELECT RAISE(FAIL, 'no')",
        "SELECT RAISE(IGNORE)",
        "INSERT INTO audit VALUES (NULL)",
        "INSERT INTO audit VALUES ('once')",
        "INSERT INTO audit VALUES (json_extract('no json', '$'))",
    ];
    for (fail, when) in fails.iter().flat_map(|f| [(f, "BEFORE"), (f, "AFTER")]) {
        for unique in ["", "UNIQUE"] {
            let schema = format!(
                "CREATE TABLE t(id INTEGER PRIMARY KEY, a {unique});
                 CREATE TABLE audit(what NOT NULL UNIQUE); INSERT INTO audit VALUES ('once');
                 CREATE TRIGGER i {when} INSERT ON t WHEN NEW.a = 'x' BEGIN {fail}; END;
                 CREATE TRIGGER u {when} UPDATE ON t WHEN NEW.a = 'y' BEGIN {fail}; END;
                 CREATE TRIGGER d {when} DELETE ON t WHEN OLD.a = 'y' BEGIN {fail}; END;"
            );
            let mut n = pair(&schema, &["i", "u", "d"]);
            n[0].run("DROP TRIGGER i; DROP TRIGGER u; DROP TRIGGER d");
            let is_passed_over = *fail == "SELECT RAISE(IGNORE)" && when == "AFTER";
            let each = u64::from(!is_passed_over); // the row is there by then
            n[0].run("INSERT INTO t VALUES (1, 'x'), (2, 'b')");
            exchange(&mut n);
            let all = "SELECT * FROM t ORDER BY id";
            assert_eq!(n[1].rows(all), "i1 t'x'\ni2 t'b'", "{when} {fail}");
            assert_eq!(failures(&n[1]), each, "{when} {fail}");
            n[0].run("UPDATE t SET a = 'y' WHERE id = 1");
            exchange(&mut n);
            assert_eq!(n[1].rows(all), "i1 t'y'\ni2 t'b'", "{when} {fail}");
            n[0].run("DELETE FROM t WHERE id = 1");
            exchange(&mut n);
            assert_eq!(n[1].rows(all), "i2 t'b'", "{when} {fail}");
            assert_eq!(failures(&n[1]), 3 * each, "{when} {fail}");
            assert_eq!(n[1].db.held().unwrap(), 0, "{when} {fail} {unique}");
            n[1].check();
        }
    }
}

/// Rows that break a constraint without any trigger's fault are held as usual, and no failure is
/// counted.
#[test]
fn a_constraint_is_not_taken_for_a_trigger() {
    let schema = "CREATE TABLE t(id INTEGER PRIMARY KEY, a); CREATE TABLE audit(id)";
    let mut n = pair(schema, &[]);
    let with = |s: &mut Settings| feeding(s, &["i"]);
    let strict = schema.replace("a)", "a CHECK (a > 0))")
        + "; CREATE TRIGGER i AFTER INSERT ON t BEGIN INSERT INTO audit VALUES (NEW.id); END";
    n[1] = Node::with(2, &strict, with);
    n[0].run("INSERT INTO t VALUES (1, 0), (2, 7)");
    exchange(&mut n);
    assert_eq!(n[1].rows("SELECT id FROM t"), "i2");
    assert_eq!(n[1].rows("SELECT id FROM audit"), "i2");
    assert_eq!((n[1].db.held().unwrap(), failures(&n[1])), (1, 0));
}

#[test]
fn a_displaced_row_comes_back_whatever_a_trigger_says() {
    let schema = "CREATE TABLE t(id INTEGER PRIMARY KEY, a UNIQUE); CREATE TABLE audit(id UNIQUE);
        CREATE TRIGGER i AFTER INSERT ON t BEGIN INSERT INTO audit VALUES (NEW.id); END";
    let mut n = pair(schema, &["i"]);
    n[0].run("INSERT INTO t VALUES (1, 'a')");
    exchange(&mut n);
    n[0].clock.advance(std::time::Duration::from_secs(1));
    n[0].run("UPDATE t SET a = 'b' WHERE id = 1; INSERT INTO t VALUES (2, 'a')");
    n[1].clock.advance(std::time::Duration::from_secs(2));
    n[1].run("INSERT INTO t VALUES (3, 'b')");
    exchange(&mut n);
    assert_eq!(n[1].rows("SELECT id FROM t ORDER BY id"), "i2\ni3");
    n[0].clock.advance(std::time::Duration::from_secs(5));
    n[0].run("UPDATE t SET a = 'c' WHERE id = 3");
    exchange(&mut n);
    for node in &mut n {
        assert_eq!(node.rows("SELECT id FROM t ORDER BY id"), "i1\ni2\ni3");
        node.check();
    }
    assert!(failures(&n[1]) > 0);
}

/// The virtual table of an extension that only the application has, written by hand as the
/// extension would store it in the file.
const EXTENSION: &str = "PRAGMA writable_schema = 1;
    INSERT INTO sqlite_master VALUES('table', 'vec_items', 'vec_items', 0,
      'CREATE VIRTUAL TABLE vec_items USING vec0(emb float[4])');
    PRAGMA writable_schema = RESET";

#[test]
fn a_trigger_that_cannot_run_here_is_named_and_left_out() {
    const ITEMS: &str = "CREATE TABLE items(id INTEGER PRIMARY KEY, body TEXT);
        CREATE VIRTUAL TABLE r USING rtree(id, a, b); CREATE TABLE undoes(x UNIQUE ON CONFLICT \
        ROLLBACK);
        CREATE TABLE audit(id);
        CREATE TRIGGER fine AFTER INSERT ON items BEGIN INSERT INTO audit VALUES (NEW.id); END;";
    for (body, reason) in [
        (
            "INSERT INTO vec_items(rowid, emb) VALUES (NEW.id, NEW.body)",
            "no such module: vec0",
        ),
        (
            "INSERT INTO r VALUES (NEW.id, ST_MinX(NEW.body), 1)",
            "no such function: ST_MinX",
        ),
        (
            "INSERT INTO elsewhere VALUES (1)",
            "no such table: elsewhere",
        ),
        (
            "INSERT INTO audit(gone) VALUES (1)",
            "table audit has no column named gone",
        ),
        ("SELECT RAISE(ROLLBACK, 'no')", "ROLLBACK"),
        ("INSERT OR ROLLBACK INTO audit VALUES (1)", "ROLLBACK"),
        ("INSERT INTO undoes VALUES (1)", "ROLLBACK"),
    ] {
        for event in [
            "AFTER INSERT",
            "BEFORE UPDATE",
            "AFTER UPDATE OF body",
            "AFTER DELETE",
        ] {
            let body = match event {
                "AFTER DELETE" => body.replace("NEW", "OLD"),
                _ => body.to_owned(),
            };
            let bad = format!("CREATE TRIGGER bad {event} ON items BEGIN {body}; END");
            let mut n = pair(ITEMS, &["fine"]);
            n[1].run(&format!("{EXTENSION}; {bad}"));
            n[1].restart_with(|s| feeding(s, &["bad", "FINE", "fine"]));
            n[0].run("INSERT INTO items VALUES (1, 'hello'), (2, 'you')");
            exchange(&mut n);
            n[0].run("UPDATE items SET body = 'b'; DELETE FROM items WHERE id = 2");
            exchange(&mut n);
            assert_eq!(n[1].rows("SELECT * FROM items"), "i1 t'b'", "{bad}");
            assert_eq!(n[1].rows("SELECT id FROM audit"), "i1\ni2", "{bad}");
            let left = unsupported(&n[1]);
            assert!(left.starts_with("bad: ") && left.contains(reason), "{left}");
            let health = crate::health::report(&Default::default(), Some(&n[1].db)).unwrap();
            let problem = health["problems"]["trigger bad"].as_str().unwrap();
            assert!(problem.contains(reason), "{health}");
            assert_eq!(health["triggers_left_out"], 1);
            // This migration mends the trigger.
            n[1].run(
                "DROP TRIGGER bad; CREATE TRIGGER bad AFTER INSERT ON items BEGIN
                      INSERT INTO audit VALUES ('mended'); END",
            );
            n[0].run("INSERT INTO items VALUES (3, 'c')");
            exchange(&mut n);
            assert!(n[1].rows("SELECT id FROM audit").contains("mended"));
            assert_eq!(unsupported(&n[1]), "");
        }
    }
}

#[test]
fn tables_that_a_trigger_needs_may_come_later_and_go() {
    let schema = "CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE TABLE audit(id);
        CREATE TRIGGER i AFTER INSERT ON t BEGIN INSERT INTO f(rowid, v) VALUES (NEW.id, NEW.v); \
        END";
    let mut n = pair(schema, &["i"]);
    let mut id = 0;
    let mut arrive = |n: &mut Vec<Node>| {
        id += 1;
        n[0].run(&format!("INSERT INTO t VALUES ({id}, 'word{id}')"));
        exchange(n);
        assert_eq!(n[1].rows("SELECT max(id) FROM t"), format!("i{id}"));
        assert_eq!(n[1].capture(), 0);
    };
    n[0].run("DROP TRIGGER i");
    arrive(&mut n);
    assert_eq!(unsupported(&n[1]), "i: no such table: f");
    n[1].run("CREATE VIRTUAL TABLE f USING fts5(v)");
    arrive(&mut n);
    assert_eq!(n[1].rows("SELECT rowid FROM f WHERE f MATCH 'word2'"), "i2");
    n[1].run("ALTER TABLE f RENAME TO g");
    arrive(&mut n);
    assert_eq!(n[1].rows("SELECT count(*) FROM g"), "i2");
    // The trigger is dropped and created under a different name, and then under its own.
    let trigger = "AFTER INSERT ON t BEGIN INSERT INTO g(rowid, v) VALUES (NEW.id, NEW.v); END";
    n[1].run(&format!("DROP TRIGGER i; CREATE TRIGGER j {trigger}"));
    arrive(&mut n);
    assert!(
        unsupported(&n[1]).starts_with("i: apply_triggers names i"),
        "{}",
        unsupported(&n[1])
    );
    n[1].run(&format!("DROP TRIGGER j; CREATE TRIGGER i {trigger}"));
    arrive(&mut n);
    assert_eq!(n[1].rows("SELECT rowid FROM g"), "i2\ni3\ni5");
    // The rebuild of the table drops its triggers.
    n[1].run(&format!(
        "BEGIN; CREATE TABLE t2(id INTEGER PRIMARY KEY, v TEXT); INSERT INTO t2 SELECT * FROM t; \
         DROP TABLE t;
         ALTER TABLE t2 RENAME TO t; CREATE TRIGGER i {trigger}; COMMIT"
    ));
    n[1].capture();
    arrive(&mut n);
    assert_eq!(n[1].rows("SELECT max(rowid) FROM g"), "i6");
    assert_eq!(failures(&n[1]), 0);
}

/// An INSTEAD OF trigger on a view receives what is written to the view.
#[test]
fn one_trigger_may_write_through_the_view_of_another() {
    let schema = "CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE TABLE audit(id);
        CREATE VIEW w AS SELECT id FROM audit;
        CREATE TRIGGER i AFTER INSERT ON t BEGIN INSERT INTO w VALUES (NEW.id); END;
        CREATE TRIGGER wi INSTEAD OF INSERT ON w BEGIN INSERT INTO audit VALUES (NEW.id); END";
    let mut n = pair(schema, &["i", "wi"]);
    n[0].run("INSERT INTO t VALUES (1, 'a')");
    exchange(&mut n);
    assert_eq!(n[1].rows("SELECT id FROM audit"), "i1");
    assert_eq!(unsupported(&n[1]), "");
}

/// The index has lost its content: the index is damaged, not the database.
#[test]
fn an_index_that_is_damaged_keeps_no_row_out() {
    let schema = "CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE TABLE audit(id);
        CREATE VIRTUAL TABLE f USING fts5(v, content = 't', content_rowid = 'id');
        CREATE TRIGGER ti AFTER INSERT ON t BEGIN INSERT INTO f(rowid, v) VALUES (NEW.id, NEW.v); \
        END;
        CREATE TRIGGER td AFTER DELETE ON t BEGIN INSERT INTO f(f, rowid, v) VALUES ('delete', \
        OLD.id, OLD.v); END";
    let mut n = pair(schema, &["ti", "td"]);
    n[0].run("INSERT INTO t VALUES (1, 'one'), (2, 'two')");
    exchange(&mut n);
    n[1].run("DELETE FROM f_data");
    n[0].run("DELETE FROM t WHERE id = 1; INSERT INTO t VALUES (3, 'three')");
    exchange(&mut n);
    assert_eq!(n[1].rows("SELECT id FROM t"), "i2\ni3");
    assert!(failures(&n[1]) > 0);
    n[1].run("INSERT INTO f(f) VALUES ('rebuild')");
    n[0].run("INSERT INTO t VALUES (4, 'four')");
    exchange(&mut n);
    n[1].run("INSERT INTO f(f, rank) VALUES ('integrity-check', 1)");
    assert_eq!(
        n[1].rows("SELECT rowid FROM f WHERE f MATCH 'three OR four'"),
        "i3\ni4"
    );
    n[1].check();
}
