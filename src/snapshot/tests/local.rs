//! Tables that each node has for itself, and tables that merely have the name of an index's
//! storage, in a snapshot.

use super::{merge, snapshot};
use crate::apply::tests::support::{Node, assert_equal, exchange};
use crate::database::Settings;

const SCHEMA: &str = "
    CREATE TABLE django_migrations(id INTEGER PRIMARY KEY AUTOINCREMENT, app, name, applied);
    CREATE TABLE docs_content(id INTEGER PRIMARY KEY, body TEXT);
    CREATE VIRTUAL TABLE docs USING fts5(body, content='docs_content', content_rowid='id');
    CREATE TABLE t(id INTEGER PRIMARY KEY, v)";

const ROWS: &str = "
    INSERT INTO django_migrations VALUES (1, 'a', '0001', 'then'), (4, 'a', '0002', x'00');
    INSERT INTO docs_content VALUES (1, 'hello'); INSERT INTO t VALUES (1, 'x')";

const BOOK: &str = "SELECT * FROM django_migrations ORDER BY 1";
const DOCS: &str = "SELECT * FROM docs_content ORDER BY 1";

fn maker() -> Node {
    let mut node = Node::new(1, SCHEMA);
    node.run(ROWS);
    node.capture();
    node
}

#[test]
fn a_node_without_a_file_starts_with_the_books() {
    let mut a = maker();
    let (file, _) = snapshot(&mut a);
    let mut b = Node::linked(2, &file, |_| {});
    assert_eq!(b.rows(BOOK), a.rows(BOOK));
    assert_eq!(b.capture(), 0);
    b.run("DELETE FROM django_migrations WHERE id = 4; INSERT INTO docs_content VALUES (2, 'b')");
    let mut n = [a, b];
    exchange(&mut n);
    assert_equal(&n, DOCS);
    assert_eq!(n[0].rows("SELECT count(*) FROM django_migrations"), "i2");
}

#[test]
fn an_empty_file_gets_them_with_the_schema() {
    let mut a = maker();
    let taken = snapshot(&mut a);
    // Litestream began before the application did.
    let schema = "CREATE TABLE _litestream_seq(id INTEGER PRIMARY KEY, seq INTEGER);
                  INSERT INTO _litestream_seq VALUES (1, 7)";
    let mut n = [a, Node::new(2, ""), Node::new(3, schema)];
    for node in &mut n[1..] {
        merge(node, &taken);
    }
    assert_equal(&n, BOOK);
    assert_equal(
        &n,
        "SELECT seq FROM sqlite_sequence WHERE name = 'django_migrations'",
    );
    assert_equal(&n, DOCS);
    assert_equal(&n, "SELECT * FROM t");
    assert_eq!(n[2].rows("SELECT seq FROM _litestream_seq"), "i7");
    n[0].run("INSERT INTO docs_content VALUES (3, 'c')");
    exchange(&mut n);
    assert_equal(&n, DOCS);
    n[1].run("INSERT INTO docs(rowid, body) VALUES (3, 'c')");
    assert_eq!(
        n[1].rows("SELECT rowid FROM docs WHERE docs MATCH 'c'"),
        "i3"
    );
}

#[test]
fn a_file_with_tables_keeps_its_own() {
    let mut a = maker();
    let taken = snapshot(&mut a);
    let mut b = Node::new(2, SCHEMA);
    b.run("INSERT INTO django_migrations VALUES (1, 'b', '0007', 'now')");
    merge(&mut b, &taken);
    assert_eq!(b.rows(BOOK), "i1 t'b' t'0007' t'now'");
    let n = [a, b];
    assert_equal(&n, DOCS);
}

/// The maker's release or configuration replicates them.
#[test]
fn of_a_maker_that_replicates_them() {
    let all = |s: &mut Settings| {
        s.tables.include = vec!["*".into(), "django_migrations".into()];
    };
    let mut a = Node::with(1, SCHEMA, all);
    a.run(ROWS);
    a.publish();
    let taken = snapshot(&mut a);
    let mut empty = Node::new(2, "");
    merge(&mut empty, &taken);
    assert_eq!(empty.rows(BOOK), a.rows(BOOK));
    let mut own = Node::new(3, SCHEMA);
    own.run("INSERT INTO django_migrations VALUES (9, 'own', 'x', 'now')");
    merge(&mut own, &taken);
    assert_eq!(own.rows(BOOK), "i9 t'own' t'x' t'now'");
    let mut linked = Node::linked(4, &taken.0, |_| {});
    linked.capture();
    assert_eq!(linked.rows(BOOK), a.rows(BOOK));
    assert_eq!(linked.db.unsent().unwrap(), 0);
    for node in [empty, own, linked] {
        let known = "SELECT count(*) FROM __harmonylite___tables WHERE name = 'django_migrations'";
        assert_eq!(node.rows(known), "i0");
    }
}

/// The other way round: the node did not write just now the rows that came with the file.
#[test]
fn a_node_that_replicates_them_begins_with_a_file() {
    let mut a = maker();
    let (file, _) = snapshot(&mut a);
    let mut b = Node::linked(2, &file, |s| {
        s.tables.include = vec!["*".into(), "django_migrations".into()];
    });
    b.capture();
    let hlc = "SELECT DISTINCT hlc FROM __harmonylite__django_migrations_versions";
    assert_eq!(b.rows(hlc), "i1");
}
