//! Embedded servers that form a cluster, and a run of one that does not say so.

use std::time::{Duration, Instant};

use crate::cluster::converge;
use crate::node::{Node, free_port, until};

/// Rounds of the scenario below; `HARMONYLITE_ROUNDS` sets a different number.
const ROUNDS: i64 = 2;

/// A row takes two seconds on a quiet machine.
const LATE: Duration = Duration::from_secs(10);

fn cluster() -> Vec<Node> {
    let ports = [(); 3].map(|()| free_port());
    let start = |n: usize| {
        let mut node = Node::new(n as u64 + 1);
        node.set("replication_log.shards", "2")
            .set("replication_log.replicas", "1");

        node.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, value, writer)");
        let others = ports.iter().filter(|port| **port != ports[n]);
        let peers: Vec<_> = others
            .map(|port| format!("nats://route:among-us@127.0.0.1:{port}/"))
            .collect();
        node.words = vec![
            "-cluster-addr".into(),
            format!("127.0.0.1:{}", ports[n]),
            "-cluster-peers".into(),
            peers.join(","),
        ];
        node.start();
        node
    };
    (0..3).map(start).collect()
}

/// One of three nodes is killed, saves a snapshot by its configuration alone, and is started again
/// with its flags.
#[test]
fn a_snapshot_is_saved_by_the_configuration_alone() {
    let mut nodes = cluster();
    nodes[0].execute("INSERT INTO item VALUES (0, 'first', 1)");
    converge(&nodes);
    let rounds = std::env::var("HARMONYLITE_ROUNDS").ok();
    for round in 1..=rounds.map_or(ROUNDS, |text| text.parse().unwrap()) {
        nodes[2].kill();
        let flags = std::mem::take(&mut nodes[2].words);
        let saved = nodes[2].run(&["-save-snapshot"]);
        let said = String::from_utf8_lossy(&saved.stdout).into_owned()
            + &String::from_utf8_lossy(&saved.stderr);
        assert!(saved.status.success(), "{said}");
        assert!(said.contains("joins those of the last start"), "{said}");
        assert!(!said.contains("among-us"), "{said}");
        nodes[2].words = flags;
        nodes[2].start();
        nodes[0].execute(&format!("INSERT INTO item VALUES ({round}, 'r', 1)"));
        let began = Instant::now();
        let seen = format!("SELECT count(*) FROM item WHERE id = {round}");
        until("the row is on node 3", || {
            (nodes[2].number(&seen) == 1).then_some(())
        });
        eprintln!("round {round}: {:?}", began.elapsed());
        assert!(began.elapsed() < LATE, "round {round}");
    }
    converge(&nodes);
    for node in &nodes {
        assert!(!node.log().contains("republishes all rows"));
    }
}

/// The store is from before HarmonyLite remembered the servers.
#[test]
fn a_store_of_a_cluster_is_not_opened_alone() {
    let mut nodes = cluster();
    nodes[0].execute("INSERT INTO item VALUES (0, 'first', 1)");
    converge(&nodes);
    let node = &mut nodes[2];
    node.stop();
    std::fs::remove_file(node.file("nats/harmonylite-node-3/cluster.flags")).unwrap();
    node.words.clear();
    node.start();
    assert_eq!(node.wait().code(), Some(1));
    for says in ["belongs to a cluster", "-cluster-peers"] {
        node.until_log(says);
    }
}
