//! Checks UNIQUE indexes against the rule itself: over the versions known to all nodes, rows are
//! admitted from the highest (hlc, node, key) down, and a row that collides with an admitted one is
//! skipped.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use rusqlite::Connection;

use super::support::{Node, cluster};
use crate::capture::Outgoing;
use crate::database::table::versions_table;
use crate::database::values;
use crate::model::cbor::Cursor;
use crate::model::value::OwnedValue;

/// Schemas of the table, with the columns in the order of `COLUMNS`.
const SCHEMAS: [&str; 4] = [
    "CREATE TABLE u(id INTEGER PRIMARY KEY, a, b, c)",
    "CREATE TABLE u(id TEXT PRIMARY KEY COLLATE NOCASE, a INT, b TEXT, c NUMERIC) WITHOUT ROWID",
    "CREATE TABLE u(id, a TEXT, b TEXT COLLATE NOCASE, c, PRIMARY KEY(id))",
    "CREATE TABLE u(id INT PRIMARY KEY, a, b, c, g AS (a || b))",
];

const INDEXES: [&[&str]; 6] = [
    &["u(a)"],
    &["u(b COLLATE NOCASE)", "u(a)"],
    &["u(a, b)", "u(c)"],
    &["u(a) WHERE c > '1'", "u(b)"],
    &["u(lower(b))", "u(a, c) WHERE b IS NOT NULL", "u(c)"],
    &[
        "u(coalesce(a, 0) + c)",
        "u(b COLLATE NOCASE) WHERE a = 1",
        "u(a)",
    ],
];

#[derive(Debug, Clone)]
enum Op {
    Insert(u8, [u8; 3]),
    Replace(u8, [u8; 3]),
    Ignore(u8, [u8; 3]),
    Update(u8, u8, u8),
    UpdateOrReplace(u8, u8, u8),
    Rekey(u8, u8),
    Delete(u8),
    Wait(u8),
    /// The node publishes its changes.
    Publish,
    /// The node reads the n-th of all frames that were published.
    Read(prop::sample::Index),
}

fn op() -> impl Strategy<Value = Op> {
    let (key, value) = (0..6u8, || 0..4u8);
    let values = prop::array::uniform3(0..4u8);
    prop_oneof![
        3 => (key.clone(), values.clone()).prop_map(|(k, v)| Op::Insert(k, v)),
        2 => (key.clone(), values.clone()).prop_map(|(k, v)| Op::Replace(k, v)),
        1 => (key.clone(), values).prop_map(|(k, v)| Op::Ignore(k, v)),
        2 => (key.clone(), 0..3u8, value()).prop_map(|(k, c, v)| Op::Update(k, c, v)),
        1 => (key.clone(), 0..3u8, value()).prop_map(|(k, c, v)| Op::UpdateOrReplace(k, c, v)),
        1 => (key.clone(), key.clone()).prop_map(|(a, b)| Op::Rekey(a, b)),
        2 => key.prop_map(Op::Delete),
        3 => (0..3u8).prop_map(Op::Wait),
        2 => Just(Op::Publish),
        4 => any::<prop::sample::Index>().prop_map(Op::Read),
    ]
}

/// Literals that are equal under some index, and NULL.
fn literal(v: u8) -> &'static str {
    ["NULL", "1", "'x'", "'X'"][v as usize]
}

fn key(k: u8) -> &'static str {
    ["1", "2", "3", "'4'", "5", "6"][k as usize]
}

fn sql(op: &Op) -> Option<String> {
    let row = |k: &u8, v: &[u8; 3]| {
        let [a, b, c] = v.map(literal);
        format!("INTO u(id, a, b, c) VALUES ({}, {a}, {b}, {c})", key(*k))
    };
    let column = |c: u8| ["a", "b", "c"][c as usize];
    Some(match op {
        Op::Insert(k, v) => format!("INSERT {}", row(k, v)),
        Op::Replace(k, v) => format!("REPLACE {}", row(k, v)),
        Op::Ignore(k, v) => format!("INSERT OR IGNORE {}", row(k, v)),
        Op::Update(k, c, v) => format!(
            "UPDATE u SET {} = {} WHERE id = {}",
            column(*c),
            literal(*v),
            key(*k)
        ),
        Op::UpdateOrReplace(k, c, v) => format!(
            "UPDATE OR REPLACE u SET {} = {} WHERE id = {}",
            column(*c),
            literal(*v),
            key(*k)
        ),
        Op::Rekey(a, b) => format!("UPDATE u SET id = {} WHERE id = {}", key(*b), key(*a)),
        Op::Delete(k) => format!("DELETE FROM u WHERE id = {}", key(*k)),
        _ => return None,
    })
}

fn step(node: &mut Node, op: &Op, sent: &mut Vec<Outgoing>) {
    match op {
        Op::Wait(ms) => node.clock.advance(Duration::from_millis(u64::from(*ms))),
        Op::Publish => sent.append(&mut node.publish()),
        Op::Read(_) if sent.is_empty() => {}
        Op::Read(index) => node.apply(&[index.get(sent).clone()]),
        write => node.try_run(&sql(write).unwrap()),
    }
}

type Row = Vec<OwnedValue>;

/// Every live row of one node by its order, lowest first: in the table or displaced.
fn live_rows(node: &Node) -> BTreeMap<(i64, u64, Vec<u8>), Row> {
    let table = &node.db.tables()["u"];
    let count = table.schema.columns.len();
    let mut rows: Vec<Row> = Vec::new();
    let mut all = node.app.prepare("SELECT id, a, b, c FROM u").unwrap();
    let mut all = all.query([]).unwrap();
    while let Some(row) = all.next().unwrap() {
        rows.push(
            (0..count)
                .map(|i| values::column(row, i).to_owned())
                .collect(),
        );
    }
    let mut aside = node
        .app
        .prepare("SELECT row FROM __harmonylite___displaced")
        .unwrap();
    let aside = aside.query_map([], |r| r.get::<_, Vec<u8>>(0)).unwrap();
    for bytes in aside {
        let bytes = bytes.unwrap();
        let mut cursor = Cursor::new(&bytes);
        let pairs = cursor.array().unwrap() / 2;
        let by_name: BTreeMap<String, OwnedValue> = (0..pairs)
            .map(|_| {
                let name = cursor.text().unwrap().to_owned();
                (name, cursor.value().unwrap().to_owned())
            })
            .collect();
        rows.push(["id", "a", "b", "c"].map(|c| by_name[c].clone()).to_vec());
    }
    let version = format!(
        "SELECT hlc, node FROM {} JOIN __harmonylite___sites USING (site) WHERE k1 = ?1 AND NOT \
         deleted",
        versions_table("u")
    );
    let order = |row: Row| {
        let found = node.app.query_row(&version, [&row[0]], |r| {
            Ok((r.get(0)?, r.get::<_, i64>(1)? as u64))
        });
        let (hlc, site) = found.expect("a live row has a version");
        (
            (hlc, site, table.key_bytes([row[0].borrow()].into_iter())),
            row,
        )
    };
    let count = rows.len();
    let by_order: BTreeMap<_, _> = rows.into_iter().map(order).collect();
    assert_eq!(by_order.len(), count, "a row is there twice");
    by_order
}

/// The rows that are in the table by the rule.
fn admitted(schema: &str, rows: BTreeMap<(i64, u64, Vec<u8>), Row>) -> Vec<String> {
    let oracle = Connection::open_in_memory().unwrap();
    oracle.execute_batch(schema).unwrap();
    for row in rows.into_values().rev() {
        oracle
            .execute(
                "INSERT OR IGNORE INTO u(id, a, b, c) VALUES (?1, ?2, ?3, ?4)",
                rusqlite::params_from_iter(row),
            )
            .unwrap();
    }
    content(&oracle)
}

fn content(conn: &Connection) -> Vec<String> {
    let mut statement = conn.prepare("SELECT id, a, b, c FROM u").unwrap();
    let read = |r: &rusqlite::Row<'_>| {
        Ok(format!(
            "{:?}",
            [0, 1, 2, 3].map(|i| values::column(r, i).to_owned())
        ))
    };
    let mut rows: Vec<String> = statement
        .query_map([], read)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    rows.sort_unstable();
    rows
}

fn check_rule(nodes: &[Node], schema: &str) {
    for node in nodes {
        assert_eq!(
            content(&node.app),
            admitted(schema, live_rows(node)),
            "node {}",
            node.db.node()
        );
    }
}

proptest! {
    #![proptest_config(super::support::cases())]

    #[test]
    fn the_table_is_what_the_rule_admits(
        schema in 0..SCHEMAS.len(), indexes in 0..INDEXES.len(),
        ops in prop::collection::vec((0..3usize, op()), 1..60),
    ) {
        let mut text = SCHEMAS[schema].to_owned();
        for (i, index) in INDEXES[indexes].iter().enumerate() {
            text += &format!("; CREATE UNIQUE INDEX i{i} ON {index}");
        }
        if SCHEMAS[schema].contains("g AS") {
            text += "; CREATE UNIQUE INDEX ig ON u(g)";
        }
        let mut nodes = cluster(3, &text);
        let mut sent = Vec::new();
        for (node, op) in &ops {
            step(&mut nodes[*node], op, &mut sent);
            if matches!(op, Op::Publish) {
                check_rule(&nodes[*node..=*node], &text);
            }
        }
        for node in &mut nodes {
            node.apply(&sent);
        }
        super::support::converge(&mut nodes);
        check_rule(&nodes, &text);
    }
}
