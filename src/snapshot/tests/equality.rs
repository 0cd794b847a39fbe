//! Rows with one version and different content, which an unkeyed hash cannot tell apart.

use super::{merge, snapshot};
use crate::apply::tests::equality::{Colliding, colliding};
use crate::apply::tests::support::{Node, assert_equal};

/// A copied disk: both nodes write one version.
#[test]
fn a_merge_compares_values() {
    for constraint in ["", "UNIQUE"] {
        let Colliding { schema, pairs } = colliding(constraint);
        for [first, second] in &pairs {
            let mut n = [Node::new(1, &schema), Node::new(1, &schema)];
            for (node, update) in n.iter_mut().zip([first, second]) {
                node.run("INSERT INTO t(id) VALUES (1)");
                node.run(update);
                node.publish();
            }
            let [one, other] = &mut n;
            let copies = [snapshot(one), snapshot(other)];
            merge(other, &copies[0]);
            merge(one, &copies[1]);
            assert_equal(&n, "SELECT * FROM t");
        }
    }
}

/// A node that began with a snapshot has its maker's key: there hashes compare.
#[test]
fn a_snapshot_hands_its_key_on() {
    let schema = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)";
    let mut one = Node::new(1, schema);
    one.run("INSERT INTO t VALUES (1, 'a'), (2, 'b')");
    one.publish();
    let (file, _) = snapshot(&mut one);
    let mut other = Node::linked(2, &file, |_| {});
    assert_eq!(other.capture(), 0);
    assert_eq!(other.db.content_key, one.db.content_key);
    let stranger = Node::new(3, schema);
    assert_ne!(stranger.db.content_key.halves, one.db.content_key.halves);
}

/// As an earlier release left it: hashes without a key, and no key.
#[test]
fn hashes_of_an_earlier_release_still_tell_what_changed() {
    let schema = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)";
    let mut node = Node::new(1, schema);
    node.run("INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c')");
    node.publish();
    let table = node.db.tables()["t"].clone();
    let without_key = crate::database::table::Table::new(0, table.schema.clone(), vec![0, 0]);
    for (id, v) in [(1, "a"), (2, "b"), (3, "c")] {
        use crate::model::value::Value;
        let values = [Value::Integer(id), Value::Text(v.as_bytes())];
        let hash = without_key.content_hash(0, values.into_iter());
        let set = "UPDATE __harmonylite__t_versions SET hash = ?2 WHERE k1 = ?1";
        node.app.execute(set, [id, hash]).unwrap();
    }
    let forget = "DELETE FROM __harmonylite___meta WHERE key = 'content_key'";
    node.app.execute(forget, []).unwrap();
    node.restart();
    let lost = "DROP TRIGGER __harmonylite__t_update; UPDATE t SET v = 'new' WHERE id = 2";
    node.app.execute_batch(lost).unwrap();
    assert_eq!(node.capture(), 1);
    node.run("UPDATE t SET v = 'x' WHERE id = 1");
    node.publish();
    node.check();
}
