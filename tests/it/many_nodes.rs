//! The cost of the meta bucket in a cluster of 1,000 nodes, by the bytes on a node's connection.
//! The node's own code speaks with a real nats-server; the other nodes are the keys that they would
//! have written. `cargo test --test it many_nodes -- --nocapture` prints the table of
//! src/guide/performance.md.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::size_of;
use std::time::{Duration, Instant};

use harmonylite::cluster::broker::meta_bucket;
use harmonylite::cluster::registry::{KeyValueRegistry, PUBLISHER, Registry, TABLES};
use harmonylite::status::entry::{KEY, NodeEntry};
use harmonylite::status::local::NodeFacts;
use harmonylite::status::peers::{self, PeerStates};
use harmonylite::stream::client::Client;
use harmonylite::stream::jetstream::{ensure_streams, stream_name};
use harmonylite::stream::key_value::KeyValue;

use crate::proxy::Proxy;
use crate::stream::node::{Node as Broker, PATIENCE, streams};

const NODES: u64 = 1000;

fn entry(node: u64) -> NodeEntry {
    NodeEntry {
        name: format!("gadget-{node:04}"),
        release: env!("CARGO_PKG_VERSION").into(),
        schema: "5".repeat(64),
        previous: "6".repeat(64),
        positions: vec![1_000_000 + node],
        snapshot: Some(format!("snapshot-1750000000000-{node}-0a1b2c3d.db.zst")),
        time_ms: 1_750_000_000_000,
        ..NodeEntry::default()
    }
}

fn tables() -> BTreeSet<String> {
    let names = ["users", "orders", "items", "sessions", "settings", "notes"];
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Writes the keys of every node but this one to the bucket.
fn write_all(bucket: &KeyValue<'_>) {
    let tables = serde_json::to_vec(&Some(tables())).unwrap();
    for node in 2..=NODES {
        bucket.put(&format!("{PUBLISHER}{node}"), b"*").unwrap();
        bucket.put(&format!("{TABLES}{node}"), &tables).unwrap();
        let bytes = entry(node).to_bytes();
        bucket.put(&format!("{KEY}{node}"), &bytes).unwrap();
    }
}

/// A row of the table: bytes sent and received, and the time.
struct Cost {
    sent: u64,
    received: u64,
    took: Duration,
}

impl Cost {
    fn bytes(&self) -> u64 {
        self.sent + self.received
    }
}

fn cost<T>(proxy: &Proxy, what: &str, does: impl FnOnce() -> T) -> (T, Cost) {
    let (sent, received) = proxy.bytes();
    let began = Instant::now();
    let result = does();
    let took = began.elapsed();
    let now = proxy.bytes();
    let (sent, received) = (now.0 - sent, now.1 - received);
    println!("| {what} | {sent} | {received} | {} |", took.as_millis());
    (
        result,
        Cost {
            sent,
            received,
            took,
        },
    )
}

/// Bytes that the table of all nodes takes in memory.
fn memory(peers: &PeerStates) -> usize {
    let of = |entry: &NodeEntry| {
        let texts = [&entry.name, &entry.release, &entry.schema, &entry.previous];
        let texts: usize = texts.into_iter().map(String::capacity).sum();
        texts + entry.snapshot.as_ref().map_or(0, String::capacity) + 8 * entry.positions.capacity()
    };
    let each = peers.nodes.values().flatten();
    let inside: usize = each.map(|(entry, _)| of(entry)).sum();
    inside + peers.nodes.len() * size_of::<(u64, Option<(NodeEntry, i64)>)>()
}

#[test]
fn a_thousand_nodes_cost_each_of_them_little() {
    let broker = Broker::start();
    let options = streams();
    let direct = broker.client();
    ensure_streams(&direct, &options).unwrap();
    let name = meta_bucket(&options.stream_prefix);
    let bucket = KeyValue::ensure_bucket(&direct, &name, 1, None).unwrap();
    write_all(&bucket);

    let mut theirs = broker.client_options();
    let proxy = Proxy::start(theirs.urls[0].trim_start_matches("nats://"));
    theirs.urls = vec![format!("nats://{}", proxy.address)];
    let connect = || Client::connect(&theirs, PATIENCE).unwrap();
    println!("| 1,000 nodes | bytes sent | received | ms |\n|---|---|---|---|");

    let client = connect();
    let own = entry(1).to_bytes();
    let ours = KeyValue::open(&client, &name);
    let (_, told) = cost(&proxy, "a node tells of itself", || {
        ours.put(&format!("{KEY}1"), &own).unwrap()
    });
    let all = [stream_name(&options, 1)];
    let (known, read) = cost(&proxy, "status or page: it asks for all others", || {
        PeerStates::fetch(&client, &options.stream_prefix, &all, &BTreeMap::new()).unwrap()
    });
    assert_eq!(known.nodes.len() as u64, NODES);
    let mut facts = NodeFacts {
        node: 1,
        entry: entry(1),
        now_ms: Some(1_750_000_000_000),
        ..NodeFacts::default()
    };
    facts.lag_ms = (2..=NODES).map(|node| (node, 0)).collect();
    facts.heard_ms = (2..=NODES).map(|node| (node, 1_749_999_999_000)).collect();
    let bytes = memory(&known);
    let began = Instant::now();
    let status = peers::status(&facts, &all, Ok(known));
    let json = serde_json::to_vec(&status).unwrap();
    let making = began.elapsed();

    let registry = connect();
    let ttl = Duration::from_secs(30);
    let mut registry = KeyValueRegistry::open(
        registry,
        &options.stream_prefix,
        1,
        ttl,
        ("t".into(), false),
    )
    .unwrap();
    let mut look = |what: &str| {
        let (found, cost) = cost(&proxy, what, || {
            let tables = registry.tables().unwrap();
            (tables, registry.publishers().unwrap())
        });
        let found: (BTreeMap<_, _>, BTreeMap<_, _>) = found;
        (found, cost)
    };
    let ((told_tables, publishers), first) = look("tables and publishers, first look");
    assert_eq!((told_tables.len(), publishers.len()), (999, 999));
    let (again, second) = look("the same again");
    assert_eq!(again, (told_tables, publishers));
    bucket.put(&format!("{TABLES}7"), b"[\"other\"]").unwrap();
    bucket.delete(&format!("{PUBLISHER}8")).unwrap();
    let changed = crate::node::until("the change arrives", || {
        let ((tables, publishers), cost) = look("the same after two changes");
        let seen = tables[&7] == Some(BTreeSet::from(["other".to_owned()]));
        (seen && !publishers.contains_key(&8)).then_some(cost)
    });

    println!("\n| a node and day | KB |\n|---|---|");
    for (what, times) in [("idle, every 10 minutes", 144), ("busy, every 10 s", 8640)] {
        println!(
            "| tells of itself: {what} | {} |",
            told.bytes() * times / 1000
        );
    }
    println!(
        "\nThe table of all nodes takes {} KB of memory; to make the status of it takes {} ms, {} \
         KB of JSON.",
        bytes / 1000,
        making.as_millis(),
        json.len() / 1000
    );
    assert!(told.bytes() < 2_000, "{}", told.bytes());
    assert!(
        read.bytes() < 1_500_000 && read.took < PATIENCE,
        "{}",
        read.bytes()
    );
    assert!(first.bytes() < 1_500_000, "{}", first.bytes());
    assert_eq!(second.bytes(), 0, "nothing changed");
    assert!(changed.bytes() < 3_000, "{}", changed.bytes());
    assert!(bytes < 2_000_000, "{bytes}");
}
