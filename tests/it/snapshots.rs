//! New nodes, and nodes that were away for longer than the streams reach back.

use std::fs;

use rusqlite::Connection;
use rustix::process::Signal;

use crate::cluster::Cluster;
use crate::node::{Node, pause, texts, until};

mod commands;
mod returning;

/// Settings for streams that forget soon, and a lease that ends soon.
fn small(node: &mut Node) {
    node.set("replication_log.max_entries", "64")
        .set("snapshot.leader_ttl", "1000");
}

/// Inserts the rows, each in a transaction of its own.
fn write(node: &Node, ids: std::ops::Range<i64>, text: &str) {
    let app = node.open();
    let mut put = app
        .prepare("INSERT INTO item VALUES (?1, ?2, 0) ON CONFLICT DO UPDATE SET value = ?2")
        .unwrap();
    for id in ids {
        put.execute((id, text)).unwrap();
    }
}

/// Inserts so slowly that the streams forget the first message before the last one comes.
fn write_at_length(node: &Node, ids: std::ops::Range<i64>, text: &str) {
    for from in ids.clone().step_by(20) {
        write(node, from..ids.end.min(from + 20), text);
        pause(10);
    }
}

fn remove_database(node: &Node) {
    for end in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(node.file(&format!("app.db{end}")));
    }
}

fn snapshot(node: &Node) {
    // Counts snapshots that were asked for; the first one is made by itself.
    let made = || node.log().matches("made, because it was asked for").count();
    let before = made();
    node.signal(Signal::USR1);
    until("a snapshot is made", || (made() > before).then_some(()));
}

/// Adds a node without a database to the cluster.
fn add(cluster: &mut Cluster, change: impl Fn(&mut Node)) {
    let mut node = Node::new(cluster.nodes.len() as u64 + 1);
    crate::cluster::client_of(&cluster.broker, &mut node);
    change(&mut node);
    remove_database(&node);
    cluster.nodes.push(node);
}

#[test]
fn a_new_node_without_a_file() {
    let mut cluster = Cluster::start(2, small);
    write(&cluster.nodes[0], 0..300, "early");
    cluster.nodes[0].execute("CREATE INDEX by_value ON item(value); DELETE FROM item WHERE id = 5");
    cluster.converge();
    snapshot(&cluster.nodes[0]);
    write(&cluster.nodes[1], 300..320, "late");
    add(&mut cluster, small);
    cluster.nodes[2].start();
    cluster.nodes[2].until_log("it begins with snapshot");
    assert_eq!(cluster.converge().len(), 319);
    let index = "SELECT count(*) FROM sqlite_schema WHERE name = 'by_value'";
    assert_eq!(cluster.nodes[2].number(index), 1);
    let left = fs::read_dir(cluster.nodes[2].folder.path()).unwrap();
    let left = left.map(|f| f.unwrap().file_name().into_string().unwrap());
    assert!(!left.into_iter().any(|name| name.contains(".harmonylite-")));
}

/// The application opens the empty file first, and holds it open meanwhile.
#[test]
fn a_new_node_with_an_empty_file() {
    let mut cluster = Cluster::start(1, small);
    write(&cluster.nodes[0], 0..200, "early");
    until("all is sent", || cluster.nodes[0].is_quiet().then_some(()));
    snapshot(&cluster.nodes[0]);
    add(&mut cluster, small);
    let app = Connection::open(cluster.nodes[1].database()).unwrap();
    app.execute_batch("PRAGMA journal_mode = WAL").unwrap();
    cluster.nodes[1].start();
    until("the table comes along", || {
        let mut rows = app.prepare("SELECT count(*) FROM item").ok()?;
        let count: i64 = rows.query_row([], |r| r.get(0)).ok()?;
        (count == 200).then_some(())
    });
    app.execute("INSERT INTO item VALUES (900, 'own', 2)", [])
        .unwrap();
    assert_eq!(cluster.converge().len(), 201);
}

/// A node without data must not found the cluster with nothing.
#[test]
fn a_node_without_a_file_that_comes_first() {
    let mut cluster = Cluster::stopped(1, small);
    write(&cluster.nodes[0], 0..50, "early");
    add(&mut cluster, small);
    cluster.nodes[1].start();
    cluster.nodes[1].until_log("there are no tables here");
    cluster.nodes[0].start();
    assert_eq!(cluster.converge().len(), 50);
    assert!(cluster.nodes[0].log().contains("founds the cluster"));
    // Both nodes start at the same time.
    let mut cluster = Cluster::stopped(1, small);
    write(&cluster.nodes[0], 0..50, "early");
    add(&mut cluster, small);
    cluster.nodes.iter_mut().rev().for_each(Node::start);
    assert_eq!(cluster.converge().len(), 50);
}

/// No other node will ever come.
#[test]
fn a_lone_node_without_a_file_founds_once_its_application_has_tables() {
    let mut cluster = Cluster::stopped(0, small);
    add(&mut cluster, small);
    let node = &mut cluster.nodes[0];
    node.start();
    node.until_log("there are no tables here");
    node.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, value, writer)");
    node.until_log("founds the cluster");
    write(node, 0..5, "a");
    assert_eq!(cluster.converge().len(), 5);
}

#[test]
fn two_found_at_once_with_other_rows() {
    let cluster = {
        let mut cluster = Cluster::stopped(3, small);
        for (n, node) in cluster.nodes.iter().enumerate() {
            write(node, 0..50, &format!("from before, of {n}"));
            write(node, 100 * n as i64 + 100..100 * n as i64 + 110, "alone");
        }
        Node::start_all(&mut cluster.nodes);
        cluster
    };
    let rows = cluster.converge();
    assert_eq!(rows.len(), 80);
    // All fifty rows are of one node, whichever founded the cluster.
    let values = "SELECT DISTINCT value FROM item WHERE id < 50";
    assert_eq!(texts(&cluster.nodes[0].open(), values).len(), 1);
    let founders = |n: &&Node| n.log().contains("founds the cluster");
    assert_eq!(cluster.nodes.iter().filter(founders).count(), 1);
}

#[test]
fn a_store_that_is_down_stops_nobody() {
    let cluster = Cluster::start(2, |node| {
        small(node);
        node.set("snapshot.store", "'sftp'")
            .set("snapshot.sftp.endpoint", "'127.0.0.1:9'")
            .set("snapshot.sftp.username", "'nobody'")
            .set("snapshot.sftp.password", "'pa55-of-nobody'");
    });
    write(&cluster.nodes[0], 0..10, "x");
    write(&cluster.nodes[1], 10..20, "y");
    assert_eq!(cluster.converge().len(), 20);
    for node in &cluster.nodes {
        let log = node.log();
        assert!(log.contains("sftp") && log.contains("127.0.0.1:9"), "{log}");
        assert!(!log.contains("pa55-of-nobody"));
    }
}
