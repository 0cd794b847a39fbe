//! Nodes whose schemas differ for a while and end up equal, under any order of events.

use std::time::Duration;

use proptest::prelude::*;

use super::support::{Node, converge, exchange};
use crate::capture::Outgoing;

/// The schema that a node begins with, and the migration that gives it all columns.
const SCHEMAS: [(&str, &str); 8] = [
    ("CREATE TABLE t(id INTEGER PRIMARY KEY, a, b, c DEFAULT 5)", ""),
    (
        "CREATE TABLE t(id INTEGER PRIMARY KEY, a, b)",
        "ALTER TABLE t ADD COLUMN c DEFAULT 5",
    ),
    (
        "CREATE TABLE t(id INTEGER PRIMARY KEY, a)",
        "ALTER TABLE t ADD COLUMN b; ALTER TABLE t ADD COLUMN c DEFAULT 5",
    ),
    ("", "CREATE TABLE t(id INTEGER PRIMARY KEY, c DEFAULT 5, b, a)"),
    (
        "CREATE TABLE t(id INTEGER PRIMARY KEY, b, a, c DEFAULT 5); CREATE UNIQUE INDEX u ON t(a)",
        "DROP INDEX u",
    ),
    (
        "CREATE TABLE t(c DEFAULT 5, a, id INTEGER PRIMARY KEY)",
        "CREATE TABLE n(id INTEGER PRIMARY KEY, a, b, c DEFAULT 5); INSERT INTO n(id, a, c) SELECT \
         id, a, c FROM t;
         DROP TABLE t; ALTER TABLE n RENAME TO t",
    ),
    (
        "CREATE TABLE t(id INTEGER PRIMARY KEY, a, b CHECK (b IS NOT 'y'), c DEFAULT 5)",
        "CREATE TABLE n(id INTEGER PRIMARY KEY, a, b, c DEFAULT 5); INSERT INTO n SELECT * FROM t;
         DROP TABLE t; ALTER TABLE n RENAME TO t",
    ),
    (
        "CREATE TABLE t(id TEXT PRIMARY KEY, a, b, c)",
        "CREATE TABLE n(id INTEGER PRIMARY KEY, a, b, c DEFAULT 5); INSERT INTO n SELECT * FROM t;
         DROP TABLE t; ALTER TABLE n RENAME TO t",
    ),
];

#[derive(Debug, Clone)]
enum Op {
    Insert(u8, u8),
    Replace(u8, u8),
    Set(u8, u8, u8),
    Delete(u8),
    Wait(u8),
    Publish,
    Read(prop::sample::Index),
    Migrate,
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0..4u8, 0..4u8).prop_map(|(k, v)| Op::Insert(k, v)),
        2 => (0..4u8, 0..4u8).prop_map(|(k, v)| Op::Replace(k, v)),
        4 => (0..4u8, 0..3u8, 0..4u8).prop_map(|(k, c, v)| Op::Set(k, c, v)),
        3 => (0..4u8).prop_map(Op::Delete),
        3 => (0..3u8).prop_map(Op::Wait),
        3 => Just(Op::Publish),
        6 => any::<prop::sample::Index>().prop_map(Op::Read),
        1 => Just(Op::Migrate),
        1 => Just(Op::Restart),
    ]
}

fn value(v: u8) -> &'static str {
    ["NULL", "5", "'x'", "'y'"][v as usize]
}

/// A node, and the rest of its migration.
type Growing = (Node, &'static str);

fn step((node, migration): &mut Growing, op: &Op, sent: &mut Vec<Outgoing>) {
    let has = |column: &str| {
        let text = format!("SELECT 1 FROM pragma_table_info('t') WHERE name = '{column}'");
        node.app.prepare(&text).unwrap().exists([]).unwrap()
    };
    let column = ["a", "b", "c"];
    match op {
        Op::Wait(ms) => node.clock.advance(Duration::from_millis(u64::from(*ms))),
        Op::Publish => sent.append(&mut node.publish()),
        Op::Read(_) if sent.is_empty() => {}
        Op::Read(index) => node.apply(&[index.get(sent).clone()]),
        Op::Migrate => {
            let all = format!("BEGIN; {}; COMMIT", std::mem::take(migration));
            node.run(&all);
        }
        Op::Restart => node.restart(),
        _ if !has("a") => {}
        Op::Insert(k, v) => node.try_run(&format!(
            "INSERT OR IGNORE INTO t(id, a) VALUES ({k}, {})",
            value(*v)
        )),
        Op::Replace(k, v) => node.try_run(&format!(
            "REPLACE INTO t(id, a) VALUES ({k}, {})",
            value(*v)
        )),
        Op::Set(k, c, v) if has(column[*c as usize]) => {
            let column = column[*c as usize];
            node.try_run(&format!(
                "UPDATE t SET {column} = {} WHERE id = {k}",
                value(*v)
            ));
        }
        Op::Set(..) => {}
        Op::Delete(k) => node.try_run(&format!("DELETE FROM t WHERE id = {k}")),
    }
}

/// Runs a history on three nodes, migrates them all and lets each read all. Returns the nodes.
fn play(schemas: [usize; 3], ops: &[(usize, Op)]) -> Vec<Node> {
    let mut id = 0;
    let mut nodes = schemas.map(|s| {
        id += 1;
        (Node::new(id, SCHEMAS[s].0), SCHEMAS[s].1)
    });
    let mut sent = Vec::new();
    for (node, op) in ops {
        step(&mut nodes[*node], op, &mut sent);
    }
    for node in &mut nodes {
        step(node, &Op::Migrate, &mut sent);
        node.0.apply(&sent);
        node.0.capture();
    }
    let mut nodes: Vec<Node> = nodes.into_iter().map(|(n, _)| n).collect();
    for node in &mut nodes {
        // A table that a migration made anew waits for its rows if it is empty.
        node.clock.advance(Duration::from_secs(601));
    }
    exchange(&mut nodes);
    nodes
}

#[test]
fn a_row_that_is_deleted_right_after_its_key_changed() {
    let ops = [Op::Insert(2, 0), Op::Publish, Op::Migrate, Op::Delete(2)];
    let mut nodes = play([0, 0, 7], &ops.map(|op| (2, op)));
    converge(&mut nodes);
}

/// Nothing tells that the row that was inserted since is not in a copy.
#[test]
fn a_table_that_a_migration_leaves_empty_waits_and_comes_back() {
    let ops = [Op::Replace(2, 0), Op::Delete(2)];
    let mut nodes = play([0, 5, 0], &ops.map(|op| (1, op)));
    converge(&mut nodes);
}

proptest! {
    #![proptest_config(super::support::cases())]

    #[test]
    fn nodes_of_different_schemas_end_equal(
        schemas in prop::array::uniform3(0..SCHEMAS.len()),
        ops in prop::collection::vec((0..3usize, op()), 1..60),
    ) {
        let mut nodes = play(schemas, &ops);
        converge(&mut nodes);
        // A row under a key of a different shape is held for a node that has that shape.
        if schemas.iter().all(|s| SCHEMAS[*s].0.contains("INTEGER")) {
            for node in &nodes {
                prop_assert_eq!(node.db.held().unwrap(), 0);
            }
        }
    }

    #[test]
    fn nodes_of_one_schema_agree_on_every_version(
        schema in 0..2usize,
        ops in prop::collection::vec((0..3usize, op()), 1..80),
    ) {
        let schema = SCHEMAS[schema].0;
        let mut nodes = [1, 2, 3].map(|id| (Node::new(id, schema), ""));
        let mut sent = Vec::new();
        for (node, op) in &ops {
            step(&mut nodes[*node], op, &mut sent);
        }
        for (node, _) in &mut nodes {
            node.apply(&sent);
        }
        converge(&mut nodes.into_iter().map(|(n, _)| n).collect::<Vec<_>>());
    }
}
