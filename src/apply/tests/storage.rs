//! Tables that only have the name of an index's storage.

use super::support::{Node, assert_equal, converge, exchange};
use crate::database::selection::Kind;

const SCHEMA: &str = "
    CREATE TABLE docs_content(id INTEGER PRIMARY KEY, body TEXT);
    CREATE VIRTUAL TABLE docs USING fts5(body, content='docs_content', content_rowid='id');
    CREATE TABLE mail(id INTEGER PRIMARY KEY, body TEXT);
    CREATE VIEW search_content AS SELECT id, body FROM mail;
    CREATE VIRTUAL TABLE search USING fts5(body, content='search_content', content_rowid='id');
    CREATE TABLE notes_docsize(id INTEGER PRIMARY KEY, sz TEXT);
    CREATE VIRTUAL TABLE notes USING fts5(body, columnsize=0)";

#[test]
fn the_applications_table_is_replicated() {
    let mut n = [Node::new(1, SCHEMA), Node::new(2, SCHEMA)];
    n[0].run("INSERT INTO docs_content VALUES (1, 'hello'); INSERT INTO mail VALUES (2, 'hi')");
    n[1].run("INSERT INTO notes_docsize VALUES (3, 'large'); INSERT INTO notes VALUES ('own')");
    converge(&mut n);
    assert_equal(&n, "SELECT * FROM docs_content");
    assert_eq!(n[0].rows("SELECT * FROM notes_docsize"), "i3 t'large'");
    assert_eq!(
        n[1].rows("SELECT * FROM docs_content, mail"),
        "i1 t'hello' i2 t'hi'"
    );
    let mut kinds: Vec<&str> = n[0]
        .db
        .not_replicated()
        .iter()
        .map(|l| l.kind.name())
        .collect();
    kinds.dedup();
    assert_eq!(kinds, ["virtual", "storage"].repeat(3));
    let named = |name: &str| n[0].db.not_replicated().iter().find(|l| l.table == name);
    assert_eq!(named("notes_content").map(|l| l.kind), Some(Kind::Storage));
    assert!(named("docs_content").is_none());
}

/// A release that did not replicate such a table left no note of it: its rows are older than later
/// writes.
#[test]
fn one_that_an_earlier_release_left_alone_is_not_written_just_now() {
    let mut node = Node::new(1, SCHEMA);
    node.run("INSERT INTO docs_content VALUES (1, 'old')");
    node.capture();
    node.db
        .conn
        .execute_batch(
            "DROP TABLE __harmonylite__docs_content_versions;
             DELETE FROM __harmonylite___tables WHERE name = 'docs_content';
             DELETE FROM __harmonylite___meta WHERE key = 'knows_storage';
             DELETE FROM __harmonylite___unsent",
        )
        .unwrap();
    for kind in ["insert", "update", "delete", "columns"] {
        let drop = format!("DROP TRIGGER __harmonylite__docs_content_{kind}");
        node.app.execute_batch(&drop).unwrap();
    }
    node.app
        .execute_batch(
            "REPLACE INTO __harmonylite___meta
             SELECT 'schema_version', schema_version FROM pragma_schema_version",
        )
        .unwrap();
    node.restart();
    node.run("INSERT INTO docs_content VALUES (2, 'new')");
    node.capture();
    let old = node.rows("SELECT k1, hlc = 1 FROM __harmonylite__docs_content_versions ORDER BY 1");
    assert_eq!(old, "i1 i1\ni2 i0");
}

/// The tables of a module that nobody here knows, but what is known of other modules.
#[test]
fn a_name_that_only_begins_like_a_virtual_table() {
    let schema = "PRAGMA writable_schema = 1;
        INSERT INTO sqlite_master VALUES
            ('table', 'items', 'items', 0, 'CREATE VIRTUAL TABLE items USING vec0(v float[4])');
        CREATE TABLE items_chunks(chunk_id INTEGER PRIMARY KEY, size, validity, rowids);
        CREATE TABLE items_rowids(rowid INTEGER PRIMARY KEY, id, chunk_id, chunk_offset);
        CREATE TABLE items_sold(id INTEGER PRIMARY KEY, price);
        PRAGMA writable_schema = RESET";
    let mut n = [Node::new(1, schema), Node::new(2, schema)];
    n[0].run("INSERT INTO items_sold VALUES (1, 3); INSERT INTO items_rowids VALUES (1, 1, 1, 1)");
    exchange(&mut n);
    assert_eq!(n[1].rows("SELECT * FROM items_sold"), "i1 i3");
    assert_eq!(n[1].rows("SELECT * FROM items_rowids"), "");
}
