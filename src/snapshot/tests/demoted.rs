//! Nodes that were set up apart, each with rows of its own under the same keys.

use super::{merge, snapshot};
use crate::apply::conflicts;
use crate::apply::tests::support::{Node, assert_equal, exchange};

/// Tables like those of Django.
const TYPES: &str = "CREATE TABLE ct(id INTEGER PRIMARY KEY AUTOINCREMENT, app TEXT, model TEXT, \
    UNIQUE(app, model));
    CREATE TABLE perm(id INTEGER PRIMARY KEY AUTOINCREMENT, ct_id INTEGER NOT NULL REFERENCES \
    ct(id), code TEXT,
                      UNIQUE(ct_id, code));
    CREATE TABLE same(id INTEGER PRIMARY KEY, v); INSERT INTO same VALUES (1, 'x');";

#[test]
fn rows_of_the_founder_are_everywhere_and_replaced_ones_are_counted() {
    let mut a = Node::unmet(
        1,
        &format!(
            "{TYPES} INSERT INTO ct VALUES (1, 'a', 'x'), (2, 'b', 'y');
                  INSERT INTO perm VALUES (1, 1, 'add'), (2, 2, 'add')"
        ),
    );
    let mut b = Node::unmet(
        2,
        &format!(
            "{TYPES} INSERT INTO ct VALUES (1, 'b', 'y'), (2, 'a', 'x'), (4, 'own', 'z');
                  INSERT INTO perm VALUES (1, 1, 'add'), (2, 2, 'add'), (3, 4, 'add')"
        ),
    );
    a.db.become_founder().unwrap();
    a.capture();
    let taken = snapshot(&mut a);
    b.capture();
    let mut merging = crate::snapshot::Merge::open(&taken.0, &taken.1).unwrap();
    while b.db.demoted.is_empty() {
        merging.step(&mut b.db).unwrap();
    }
    let counts: Vec<(&String, &u64)> = b.db.demoted.iter().collect();
    assert_eq!(counts, [(&"ct".to_owned(), &2)], "equal rows are no news");
    merge(&mut b, &taken);
    assert!(b.db.demoted.is_empty(), "it is said");
    let mut n = [a, b];
    exchange(&mut n);
    // The same row under a different key than on the other nodes is displaced.
    n[1].run("INSERT INTO ct VALUES (3, 'c', 'z')");
    n[0].run("INSERT INTO ct VALUES (9, 'c', 'z')");
    exchange(&mut n);
    exchange(&mut n);
    let ct = assert_equal(&n, "SELECT id, app FROM ct ORDER BY id");
    assert!(ct.starts_with("i1 t'a'\ni2 t'b'\n"), "{ct}");
    assert_eq!(
        assert_equal(&n, "SELECT * FROM perm ORDER BY id")
            .lines()
            .count(),
        3
    );
    for node in &mut n {
        let mut aside = Vec::new();
        conflicts(node.db.path(), &mut |c| {
            aside.push((c.table, c.collisions.len()))
        })
        .unwrap();
        assert_eq!(aside, [("ct".to_owned(), 1)]);
        node.check();
    }
}
