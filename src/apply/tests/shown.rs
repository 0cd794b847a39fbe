//! The output of `harmonylite conflicts`.

use super::support::{Node, cluster, converge, exchange};
use crate::apply::{Conflict, conflicts};
use crate::model::text::literal;

fn found(node: &Node) -> Vec<Conflict> {
    let mut all = Vec::new();
    conflicts(node.db.path(), &mut |c| all.push(c)).unwrap();
    all
}

fn words(values: &[(String, crate::model::value::OwnedValue)]) -> String {
    let each = values
        .iter()
        .map(|(n, v)| format!("{n} = {}", literal(v.borrow())));
    each.collect::<Vec<_>>().join(", ")
}

#[test]
fn all_nodes_show_the_same_conflicts_with_both_versions() {
    let mut n = cluster(
        2,
        "CREATE TABLE users(id INTEGER PRIMARY KEY, email TEXT COLLATE NOCASE UNIQUE, name TEXT);
         CREATE UNIQUE INDEX by_name ON users(lower(name)) WHERE name <> '';
         CREATE TABLE notes(word UNIQUE)",
    );
    assert!(found(&n[0]).is_empty());
    n[0].run("INSERT INTO users VALUES (1, 'ann@x', 'Ann'); INSERT INTO notes VALUES ('w')");
    n[1].clock.advance(std::time::Duration::from_secs(1));
    n[1].run("INSERT INTO users VALUES (2, 'ANN@x', ''), (3, '', 'ANN')");
    n[1].run("INSERT INTO notes(rowid, word) VALUES (9, 'w')");
    converge(&mut n);
    let shown = found(&n[0]);
    assert_eq!(shown, found(&n[1]));
    assert_eq!(shown.len(), 2);
    let (note, user) = (&shown[0], &shown[1]);
    assert_eq!(
        (note.table.as_str(), words(note.key())),
        ("notes", "rowid = 1".into())
    );
    assert_eq!(words(&note.collisions[0].winner_key), "rowid = 9");
    assert_eq!(words(&user.row), "id = 1, email = 'ann@x', name = 'Ann'");
    let each: Vec<_> = user
        .collisions
        .iter()
        .map(|c| {
            (
                words(&c.tuple),
                words(&c.winner_key),
                c.winner_version.unwrap().node,
            )
        })
        .collect();
    let expected = [
        ("lower(name) = 'ann'", "id = 3", 2),
        ("email = 'ann@x'", "id = 2", 2),
    ]
    .map(|(tuple, key, node)| (tuple.to_owned(), key.to_owned(), node));
    assert_eq!(each, expected);
    assert!(user.version < user.collisions[0].winner_version);
    n[1].run("DELETE FROM users; DELETE FROM notes");
    exchange(&mut n);
    assert!(found(&n[0]).is_empty());
}

#[test]
fn a_database_without_our_tables_is_named_and_left_alone() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = conflicts(file.path(), &mut |_| panic!("nothing to show")).unwrap_err();
    assert!(error.to_string().contains("never started on it"), "{error}");
    assert_eq!(std::fs::metadata(file.path()).unwrap().len(), 0);
    let gone = file.path().with_extension("gone");
    assert!(conflicts(&gone, &mut |_| ()).is_err());
    assert!(!gone.exists());
}
