//! Nodes that come back: from a long absence, from a backup, as a copy of another node.

use std::fs;

use super::{remove_database, small, snapshot, write, write_at_length};
use crate::cluster::Cluster;
use crate::node::{Node, until};

#[test]
fn away_for_longer_than_the_streams_reach_back() {
    let mut cluster = Cluster::start(3, small);
    write(&cluster.nodes[0], 0..100, "early");
    cluster.converge();
    cluster.nodes[2].stop();
    write(&cluster.nodes[2], 2_000..4_000, "written apart");
    write(&cluster.nodes[2], 0..10, "changed apart");
    cluster.nodes[2].execute("DELETE FROM item WHERE id = 50");
    write_at_length(&cluster.nodes[0], 4_000..6_000, "meanwhile");
    write(&cluster.nodes[1], 10..20, "changed meanwhile");
    cluster.nodes[1].execute("DELETE FROM item WHERE id = 60");
    crate::cluster::converge(&cluster.nodes[..2]);
    cluster.nodes[2].start();
    cluster.nodes[2].until_log("merged");
    assert_eq!(cluster.converge().len(), 4_098);
    let count = |value: &str| {
        let text = format!("SELECT count(*) FROM item WHERE value = '{value}'");
        cluster.nodes[1].number(&text)
    };
    assert_eq!(count("changed apart"), 10);
    assert_eq!(count("changed meanwhile"), 10);
}

/// Both nodes write more than the stream holds, at the same time.
#[test]
fn full_speed_through_a_small_stream() {
    let cluster = Cluster::start(2, small);
    std::thread::scope(|scope| {
        for (n, node) in cluster.nodes.iter().enumerate() {
            let from = 10_000 * n as i64;
            scope.spawn(move || {
                write(node, from..from + 2_000, "own");
                write(node, 50_000..50_200, &format!("of {n}"));
            });
        }
    });
    assert_eq!(cluster.converge().len(), 4_200);
}

/// The broker's store is gone, with the snapshots in it.
#[test]
fn the_brokers_store_is_lost() {
    let mut cluster = Cluster::start(3, small);
    write(&cluster.nodes[0], 0..200, "a");
    cluster.converge();
    snapshot(&cluster.nodes[0]);
    cluster.nodes[2].stop();
    write(&cluster.nodes[2], 900..950, "written apart");
    cluster.broker.kill();
    fs::remove_dir_all(&cluster.broker.options.store_dir).unwrap();
    write(&cluster.nodes[1], 200..400, "b");
    cluster.broker.start_again();
    write(&cluster.nodes[0], 400..500, "c");
    cluster.nodes[2].start();
    assert_eq!(cluster.converge().len(), 550);
}

#[test]
fn a_file_from_last_weeks_backup() {
    let mut cluster = Cluster::start(2, small);
    write(&cluster.nodes[0], 0..50, "a");
    cluster.converge();
    cluster.nodes[0].stop();
    let backup = cluster.nodes[0].file("backup.db");
    let into = format!("VACUUM INTO '{}'", backup.display());
    cluster.nodes[0].execute(&into);
    cluster.nodes[0].start();
    write(&cluster.nodes[0], 0..200, "since the backup");
    write(&cluster.nodes[1], 200..400, "b");
    cluster.converge();
    cluster.nodes[0].stop();
    remove_database(&cluster.nodes[0]);
    fs::rename(&backup, cluster.nodes[0].database()).unwrap();
    write(&cluster.nodes[0], 500..510, "on the old file");
    cluster.nodes[0].start();
    assert_eq!(cluster.converge().len(), 410);
    let kept = "SELECT count(*) FROM item WHERE value = 'since the backup'";
    assert_eq!(cluster.nodes[0].number(kept), 200);
}

/// Two nodes run under one configured id.
#[test]
fn a_cloned_card_beside_its_original() {
    let small = |node: &mut Node| {
        small(node);
        node.set("status_interval", "1000");
    };
    let mut cluster = Cluster::start(2, small);
    write(&cluster.nodes[0], 0..50, "a");
    cluster.converge();
    cluster.nodes[0].stop();
    // A write after the daemon's last one, such as that of a snapshot under way, would have
    // reserved time again. Within a reserved time two nodes with one id do not tell the other's
    // writes from their own.
    let reserved =
        "SELECT value - unixepoch() * 1000 FROM __harmonylite___meta WHERE key = 'clock_until'";
    assert!(cluster.nodes[0].number(reserved) <= 1000);
    let mut clone = Node::new(1);
    crate::cluster::client_of(&cluster.broker, &mut clone);
    small(&mut clone);
    remove_database(&clone);
    let into = format!("VACUUM INTO '{}'", clone.database().display());
    cluster.nodes[0].execute(&into);
    clone.execute("PRAGMA journal_mode = WAL");
    cluster.nodes[0].start();
    clone.start();
    write(&cluster.nodes[0], 100..150, "original");
    write(&clone, 200..250, "clone");
    cluster.nodes.push(clone);
    cluster.converge();
    write(&cluster.nodes[0], 0..20, "changed by the original");
    write(&cluster.nodes[2], 0..20, "changed by the clone");
    assert_eq!(cluster.converge().len(), 150);
    // The rows are a claim that anybody can make; the entries in the broker's bucket are the proof.
    let says = |n: &Node| n.log().contains("another node writes under this node's id");
    until("one of the two takes a fresh id", || {
        write(&cluster.nodes[0], 0..1, "again by the original");
        write(&cluster.nodes[2], 1..2, "again by the clone");
        cluster.nodes.iter().any(says).then_some(())
    });
    cluster.converge();
    // The fresh id stays.
    let ids = |n: &Node| n.number("SELECT value FROM __harmonylite___meta WHERE key = 'node_id'");
    let before: Vec<i64> = [0, 2].map(|n| ids(&cluster.nodes[n])).to_vec();
    assert_ne!(before[0], before[1]);
    cluster.nodes[2].stop();
    cluster.nodes[2].start();
    write(&cluster.nodes[2], 300..310, "later");
    cluster.converge();
    assert_eq!(ids(&cluster.nodes[2]), before[1]);
}

/// An operator removes the mirror of the positions to get everything anew.
#[test]
fn the_file_of_positions_is_removed() {
    let mut cluster = Cluster::start(2, small);
    write_at_length(&cluster.nodes[0], 0..2_000, "a");
    cluster.converge();
    snapshot(&cluster.nodes[0]);
    cluster.nodes[1].stop();
    // Rows are lost as by another program's mistake.
    let meddle = "DELETE FROM item WHERE id < 100;
                  DELETE FROM __harmonylite__item_versions WHERE k1 < 100;
                  DELETE FROM __harmonylite___change_log_global";
    cluster.nodes[1].execute(meddle);
    fs::remove_file(cluster.nodes[1].file("seq-map.cbor")).unwrap();
    cluster.nodes[1].start();
    assert_eq!(cluster.converge().len(), 2_000);
}

#[test]
fn killed_in_the_middle_of_a_merge() {
    let mut cluster = Cluster::start(2, small);
    write(&cluster.nodes[0], 0..10, "a");
    cluster.converge();
    cluster.nodes[1].stop();
    let many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60000)
                INSERT INTO item SELECT 1000 + i, hex(randomblob(20)), 0 FROM n";
    cluster.nodes[0].execute(many);
    write(&cluster.nodes[0], 100..300, "b");
    until("all is sent", || cluster.nodes[0].is_quiet().then_some(()));
    write(&cluster.nodes[1], 500..510, "written apart");
    for rows in [2_000, 20_000, 40_000] {
        cluster.nodes[1].start();
        until("the merge is under way", || {
            let here = cluster.nodes[1].number("SELECT count(*) FROM item");
            (here > rows).then_some(())
        });
        cluster.nodes[1].kill();
    }
    cluster.nodes[1].start();
    assert_eq!(cluster.converge().len(), 60_220);
}
