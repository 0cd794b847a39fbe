//! The tables that its maker excludes, in a snapshot's file; and a database that begins as such a
//! file.

use std::io;
use std::time::Duration;

use rusqlite::Connection;

use super::{BOOKS, meet, merge, snapshot};
use crate::apply::tests::support::{Node, assert_equal, cluster, exchange};
use crate::database::meta::{Meta, MetaType, set_meta};
use crate::db_file::access::FileAccess;
use crate::snapshot::error::TransferError;
use crate::snapshot::scratch::Scratch;
use crate::snapshot::transfer::put_in_place;
use crate::snapshot::watch::{Watch, stop};

const USERS: &str = "CREATE TABLE users(id INTEGER PRIMARY KEY, name TEXT);
    CREATE TABLE orders(id INTEGER PRIMARY KEY, user INTEGER REFERENCES users ON DELETE CASCADE)";
const ROWS: &str = "INSERT INTO users VALUES (1, 'a secret name of a user');
    INSERT INTO orders VALUES (7, 1)";

fn without_users(settings: &mut crate::database::Settings) {
    settings.tables.exclude = vec!["users".into()];
}

#[test]
fn references_to_a_table_that_is_left_out_stay() {
    let mut a = Node::with(1, USERS, without_users);
    a.run(ROWS);
    let (file, _) = snapshot(&mut a);
    let mut b = Node::linked(2, &file, without_users);
    assert_eq!(b.rows("SELECT * FROM orders"), "i7 i1");
    assert_eq!(b.rows("SELECT count(*) FROM users"), "i0");
    b.capture();
    assert_eq!(b.rows("SELECT * FROM orders"), "i7 i1");
    assert_eq!(b.db.tombstones("orders").unwrap(), 0);
}

#[test]
fn nothing_is_left_of_a_table_that_is_left_out() {
    let schema = USERS.replace("ON DELETE CASCADE", "");
    let mut a = Node::with(1, &schema, without_users);
    a.run(ROWS);
    let (file, _) = snapshot(&mut a);
    let bytes = std::fs::read(file).unwrap();
    let secret = b"a secret name";
    assert!(!bytes.windows(secret.len()).any(|w| w == secret));
}

/// No rows stay in an index over an excluded table, nor in an index that is excluded itself.
#[test]
fn nothing_is_left_in_indexes() {
    let schema = "CREATE TABLE users(id INTEGER PRIMARY KEY, name TEXT);
        CREATE VIEW names AS SELECT id, name FROM \"users\";
        CREATE VIRTUAL TABLE by_table USING fts5(name, content='users', content_rowid='id');
        CREATE VIRTUAL TABLE by_view USING fts4(name, content=names);
        CREATE VIRTUAL TABLE own USING fts5(name);
        CREATE VIRTUAL TABLE kept USING fts5(name)";
    let mut a = Node::with(1, schema, |s| {
        s.tables.exclude = vec!["users".into(), "own".into()];
    });
    a.run("INSERT INTO users VALUES (1, 'xyzzyplugh')");
    for index in ["by_table", "by_view", "own"] {
        a.run(&format!(
            "INSERT INTO {index}(rowid, name) VALUES (1, 'xyzzyplugh')"
        ));
    }
    a.run("INSERT INTO kept VALUES ('words')");
    let (file, _) = snapshot(&mut a);
    let bytes = std::fs::read(&file).unwrap();
    assert!(!bytes.windows(6).any(|w| w == b"xyzzyp"));
    let b = Node::linked(2, &file, |_| {});
    b.run("INSERT INTO by_table(rowid, name) VALUES (2, 'new')");
    for (index, word, found) in [
        ("by_table", "new", "i1"),
        ("own", "xyz*", "i0"),
        ("kept", "words", "i1"),
    ] {
        let matches = format!("SELECT count(*) FROM {index} WHERE {index} MATCH '{word}'");
        assert_eq!(b.rows(&matches), found, "{index}");
    }
}

/// A table that once was replicated has versions. Without its rows they would read like deletes.
#[test]
fn a_table_that_is_left_out_and_taken_in_again_is_not_emptied() {
    let mut a = Node::new(1, &format!("{BOOKS}; {USERS}"));
    a.run(ROWS);
    a.publish();
    a.restart_with(without_users);
    let (file, _) = snapshot(&mut a);
    for selects in [without_users, |_: &mut _| {}] {
        let mut b = Node::linked(2, &file, selects);
        b.capture();
        b.restart();
        b.capture();
        assert_eq!(b.db.tombstones("users").unwrap(), 0);
        assert_eq!(b.db.unsent().unwrap(), 0);
    }
}

/// A row that is older than a column has the default of that time in it, which no node wrote.
#[test]
fn a_default_that_is_another_by_now_is_no_write() {
    let mut a = Node::new(1, BOOKS);
    a.run("INSERT INTO Books VALUES (1, 'Dune', 'x')");
    a.capture();
    a.run("ALTER TABLE Books ADD COLUMN place TEXT DEFAULT 'shelf'");
    a.capture();
    a.run(
        "CREATE TABLE n(id INTEGER PRIMARY KEY, title TEXT, isbn TEXT UNIQUE,
                        place TEXT DEFAULT 'box');
         INSERT INTO n SELECT * FROM Books; DROP TABLE Books; ALTER TABLE n RENAME TO Books",
    );
    let with_place = BOOKS.replace("UNIQUE", "UNIQUE, place TEXT DEFAULT 'shelf'");
    let (mut by_frame, mut by_file) = (Node::new(2, &with_place), Node::new(3, &with_place));
    merge(&mut by_file, &snapshot(&mut a));
    by_frame.apply(&a.publish());
    assert_eq!(by_frame.versions(), by_file.versions());
}

/// Older rows have the old default, on every node and on nodes that come later.
#[test]
fn a_default_that_is_another_by_now_is_known_to_who_comes_later() {
    let now = BOOKS.replace("UNIQUE", "UNIQUE, place TEXT DEFAULT 'box'");
    let rebuild = now.replace("Books(", "n(")
        + ";INSERT INTO n SELECT * FROM Books; DROP TABLE Books; ALTER TABLE n RENAME TO Books";
    let mut n = cluster(2, BOOKS);
    n[0].run("INSERT INTO Books VALUES (1, 'a', 1), (2, 'b', 2), (3, 'c', 3), (5, 'd', 5)");
    n[0].capture();
    n[0].run("DELETE FROM Books WHERE id = 2; INSERT INTO Books VALUES (2, 'again', 2)");
    n[0].run("DELETE FROM Books WHERE id = 5");
    exchange(&mut n);
    let add = "ALTER TABLE Books ADD COLUMN place TEXT DEFAULT 'shelf'";
    n.iter().for_each(|node| node.run(add));
    exchange(&mut n);
    n[1].run("UPDATE Books SET place = 'written' WHERE id = 3");
    exchange(&mut n);
    let early = snapshot(&mut n[0]);
    n.iter().for_each(|node| node.run(&rebuild));
    exchange(&mut n);
    n.extend([3, 4, 5].map(|id| Node::new(id, &now)));
    let taken = snapshot(&mut n[0]);
    merge(&mut n[2], &taken);
    merge(&mut n[4], &early);
    n[1].db.republish_all().unwrap();
    n[1].run("INSERT INTO Books(id) VALUES (4); INSERT INTO Books VALUES (5, 'e', 5, 'shelf')");
    meet(&mut n);
    let places = "SELECT place FROM Books ORDER BY id";
    let expected = "t'shelf'\nt'shelf'\nt'written'\nt'box'\nt'shelf'";
    assert_eq!(assert_equal(&n, places), expected);
    assert_eq!(n[2].versions(), n[3].versions());
}

fn is_set(conn: &Connection, key: Meta) -> bool {
    let text = "SELECT 1 FROM __harmonylite___meta WHERE key = ?1";
    conn.prepare(text).unwrap().exists([key.name()]).unwrap()
}

/// Values that concern only a node and its file stay with it.
#[test]
fn a_copy_has_the_meta_keys_that_travel() {
    let mut a = Node::new(1, BOOKS);
    a.run("INSERT INTO Books VALUES (1, 'a', 'x')");
    a.capture();
    let unset = Meta::ALL.iter().filter(|key| !is_set(&a.db.conn, **key));
    for key in unset {
        match key.kind() {
            MetaType::Integer => set_meta(&a.db.conn, *key, 1),
            MetaType::Text => set_meta(&a.db.conn, *key, "x"),
            MetaType::Json => set_meta(&a.db.conn, *key, "[]"),
            MetaType::Cbor => set_meta(&a.db.conn, *key, [0u8; 0]),
        }
        .unwrap();
    }
    let (file, _) = snapshot(&mut a);
    let copy = Connection::open(file).unwrap();
    for key in Meta::ALL {
        // A copy has its own list of the excluded tables.
        let expected = key.travels() || *key == Meta::NotReplicated;
        assert_eq!(is_set(&copy, *key), expected, "{}", key.name());
    }
}

/// Every value that a node has stored has the type of its key.
#[test]
fn meta_values_have_their_types() {
    let mut a = Node::new(1, BOOKS);
    a.run("INSERT INTO Books VALUES (1, 'a', 'x')");
    a.capture();
    let text = "SELECT key, typeof(value) FROM __harmonylite___meta";
    let mut list = a.db.conn.prepare(text).unwrap();
    let rows = list.query_map([], |r| Ok((r.get(0)?, r.get(1)?)));
    let rows: Vec<(String, String)> = rows.unwrap().map(Result::unwrap).collect();
    assert!(rows.len() > 8, "{rows:?}");
    for (name, found) in rows {
        let key = Meta::ALL.iter().find(|key| key.name() == name);
        let key = key.unwrap_or_else(|| panic!("{name} is no key"));
        let expected = match key.kind() {
            MetaType::Integer => "integer",
            MetaType::Text | MetaType::Json => "text",
            MetaType::Cbor => "blob",
        };
        assert_eq!(found, expected, "{name}");
    }
}

/// Ends the work at the report with this number.
struct EndsAt(usize, Vec<(&'static str, u64, u64)>);

impl Watch for EndsAt {
    fn progress(&mut self, step: &'static str, done: u64, total: u64) -> io::Result<()> {
        self.1.push((step, done, total));
        if self.1.len() == self.0 {
            Err(stop())
        } else {
            Ok(())
        }
    }

    fn pause(&mut self, _: Duration) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_rows_of_a_first_snapshot_are_read_under_the_watch() {
    let mut a = Node::new(1, BOOKS);
    a.run(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)
         INSERT INTO Books SELECT i, 'a', i FROM n",
    );
    let (file, _) = snapshot(&mut a);
    let place = |ends: &mut EndsAt| {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("app.db");
        let scratch = Scratch::beside(&database, "fetched", &FileAccess::OURS).unwrap();
        std::fs::copy(&file, scratch.path()).unwrap();
        (put_in_place(scratch, &database, ends), database.exists())
    };
    let mut ends = EndsAt(3, Vec::new());
    let (placed, is_there) = place(&mut ends);
    assert!(matches!(placed, Err(TransferError::Stopped)), "{placed:?}");
    assert!(!is_there && ends.1.len() == 3);
    let mut goes_on = EndsAt(0, Vec::new());
    let (placed, is_there) = place(&mut goes_on);
    assert!(placed.unwrap() && is_there);
    let (step, done, total) = *goes_on.1.last().unwrap();
    assert_eq!((step, done), ("comparing", total));
    assert!(goes_on.1.len() >= 8);
}
