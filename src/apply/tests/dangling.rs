//! Rows that refer to a row which another node deleted.

use super::support::{Node, cluster, converge, exchange};
use crate::apply::dangling;

/// All dangling rows, as `child key -> parent values, time of the deletion`.
fn found(node: &Node) -> Vec<String> {
    let mut all = Vec::new();
    let mut show = |d: crate::apply::Dangling| {
        let (key, by) = (&d.key, &d.columns);
        let deleted = d.deleted.map(|v| v.node);
        all.push(format!(
            "{} {key:?} -> {} {by:?} {deleted:?}",
            d.table, d.parent
        ));
        assert_eq!(d.columns.len(), d.parent_columns.len());
    };
    dangling(node.db.path(), &mut show).unwrap();
    all
}

fn text(node: &Node, as_json: bool) -> String {
    let mut out = Vec::new();
    crate::commands::conflicts::show(node.db.path(), as_json, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// Django declares its foreign keys like this.
const BOOKS: &str = "CREATE TABLE author(id INTEGER PRIMARY KEY, n);
    CREATE TABLE book(id INTEGER PRIMARY KEY, author_id INTEGER NOT NULL
      REFERENCES author(id) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED)";

#[test]
fn a_child_of_a_deleted_row_is_found_and_named_on_every_node() {
    let schema = format!("{BOOKS}; CREATE INDEX book_author ON book(author_id)");
    let mut n = cluster(3, &schema);
    n[0].run("INSERT INTO author VALUES (1, 'Ann'), (2, 'Bob')");
    converge(&mut n);
    assert!(found(&n[0]).is_empty());
    assert_eq!(text(&n[0], false), "no row is displaced\n");
    assert_eq!(text(&n[0], true), "[]\n");
    n[0].run("DELETE FROM author WHERE id = 1");
    n[1].run("INSERT INTO book VALUES (5, 1), (6, 2)");
    exchange(&mut n);
    exchange(&mut n);
    for node in &n {
        assert_eq!(found(node).len(), 1);
        assert_eq!(node.db.dangling_seen(), 1, "node {}", node.db.node());
        let text = text(node, false);
        assert!(
            text.starts_with("no row is displaced\ntable book\n  id = 5, written 20"),
            "{text}"
        );
        assert!(
            text.contains(" on node 2\n    refers by author_id = 1 to author(id), deleted 20"),
            "{text}"
        );
        assert!(
            text.ends_with(" on node 1\n1 row refers to a row that is not there\n"),
            "{text}"
        );
        assert_eq!(
            node.rows("PRAGMA foreign_key_check"),
            "t'book' i5 t'author' i0"
        );
    }
    let json: serde_json::Value = serde_json::from_str(&text(&n[2], true)).unwrap();
    assert_eq!(json[0]["refers_to"]["by"]["author_id"], 1);
    assert_eq!(json[0]["refers_to"]["deleted"]["node"], "1");
    n[2].run("DELETE FROM book WHERE id = 5");
    converge(&mut n);
    assert!(found(&n[0]).is_empty());
}

#[test]
fn every_kind_of_foreign_key_is_looked_at() {
    let schema = "CREATE TABLE p(a, b TEXT COLLATE NOCASE, PRIMARY KEY(a, b)) WITHOUT ROWID;
        CREATE TABLE q(id INTEGER PRIMARY KEY, code TEXT UNIQUE);
        CREATE TABLE c1(k TEXT PRIMARY KEY, y, x, FOREIGN KEY(y, x) REFERENCES p(b, a)) WITHOUT \
        ROWID;
        CREATE TABLE c2(code REFERENCES q(code), up INTEGER REFERENCES c2, part TEXT);
        CREATE TABLE c3(id INTEGER PRIMARY KEY REFERENCES q, gone REFERENCES nowhere);
        CREATE TABLE local(id INTEGER PRIMARY KEY, q REFERENCES q);";
    let schema = schema.replace("up INTEGER REFERENCES c2, ", "");
    let mut n = cluster(2, &schema);
    n[0].run(
        "PRAGMA foreign_keys = OFF; INSERT INTO p VALUES (1, 'x'), (2, 'y');
        INSERT INTO q VALUES (1, 'one'), (2, 'two')",
    );
    converge(&mut n);
    n[0].run("DELETE FROM p WHERE a = 1; DELETE FROM q WHERE id = 1");
    n[1].run(
        "PRAGMA foreign_keys = OFF;
        INSERT INTO c1 VALUES ('k', 'X', 1), ('l', 'Y', 2), ('m', NULL, 1);
        INSERT INTO c2(code) VALUES ('one'), ('two'), (NULL); INSERT INTO c3(id) VALUES (1), (2);
        INSERT INTO local VALUES (3, 1)",
    );
    exchange(&mut n);
    exchange(&mut n);
    let tables: Vec<String> = found(&n[0]).iter().map(|l| l[..2].to_owned()).collect();
    assert_eq!(tables, ["c1", "c2", "c3", "lo"]);
    assert_eq!(n[0].db.dangling_seen(), 3, "all but by a UNIQUE column");
    n[1].run("UPDATE c3 SET gone = 7 WHERE id = 2; INSERT OR REPLACE INTO q VALUES (1, 'one')");
    exchange(&mut n);
    let mut all = Vec::new();
    let mut show =
        |d: crate::apply::Dangling| all.push((d.table, d.parent, d.parent_columns.len()));
    dangling(n[0].db.path(), &mut show).unwrap();
    assert_eq!(
        all,
        [
            ("c1".into(), "p".into(), 2),
            ("c3".into(), "nowhere".into(), 0)
        ]
    );
}

/// An excluded table has no versions, and may refer to rows that other nodes delete.
#[test]
fn rows_of_tables_that_are_left_out_are_found() {
    let with =
        |s: &mut crate::database::Settings| s.tables.exclude = ["book"].map(str::to_owned).into();
    let mut n = vec![Node::new(1, BOOKS), Node::with(2, BOOKS, with)];
    n[0].run("INSERT INTO author VALUES (1, 'Ann')");
    exchange(&mut n);
    n[1].run("INSERT INTO book VALUES (5, 1)");
    n[0].run("DELETE FROM author");
    exchange(&mut n);
    assert_eq!(found(&n[1]).len(), 1);
    assert!(text(&n[1], false).contains("not replicated"));
}
