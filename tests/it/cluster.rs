//! Several nodes around one external nats-server.

use std::time::Instant;

use crate::node::{Node, PATIENCE, free_port, pause, texts};
use crate::stream::node::Node as Broker;

pub const USER: &str = "replicator";
pub const PASSWORD: &str = "pa55-of-the-test";

pub struct Cluster {
    // Stands before the broker, so that the nodes end first.
    pub nodes: Vec<Node>,
    pub broker: Broker,
}

/// Starts a server that keeps its address when it is started again.
pub fn broker() -> Broker {
    Broker::with(|broker| {
        broker.options.bind_address = format!("127.0.0.1:{}", free_port());
        broker.options.user = Some((USER.into(), PASSWORD.into()));
    })
}

pub fn client_of<'n>(broker: &Broker, node: &'n mut Node) -> &'n mut Node {
    node.set(
        "nats.urls",
        &format!("['nats://{}']", broker.options.bind_address),
    )
    .set("nats.user_name", &format!("'{USER}'"))
    .set("nats.user_password", &format!("'{PASSWORD}'"))
}

impl Cluster {
    /// Starts nodes 1 to `count` with a table `item`.
    pub fn start(count: u64, change: impl Fn(&mut Node)) -> Cluster {
        let mut cluster = Cluster::stopped(count, change);
        Node::start_all(&mut cluster.nodes);
        cluster
    }

    /// Makes the same nodes and does not start them.
    pub fn stopped(count: u64, change: impl Fn(&mut Node)) -> Cluster {
        let broker = broker();
        let make = |id| {
            let mut node = Node::new(id);
            client_of(&broker, &mut node);
            node.set("replication_log.max_entries", "1000000");
            node.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, value, writer)");
            change(&mut node);
            node
        };
        let nodes = (1..=count).map(make).collect();
        Cluster { nodes, broker }
    }

    /// Waits until all nodes hold the same rows and nothing is under way, and checks every node.
    /// Returns the rows.
    pub fn converge(&self) -> Vec<String> {
        converge(&self.nodes)
    }
}

pub fn converge(nodes: &[Node]) -> Vec<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let quiet = nodes.iter().all(Node::is_quiet);
        let positions: Vec<_> = nodes.iter().map(positions).collect();
        let rows: Vec<_> = nodes.iter().map(Node::rows).collect();
        let same =
            rows.iter().all(|r| *r == rows[0]) && positions.iter().all(|p| *p == positions[0]);
        if quiet && same {
            nodes.iter().for_each(Node::check);
            return rows.into_iter().next().unwrap();
        }
        if Instant::now() > deadline {
            for (n, others) in rows.iter().enumerate().skip(1) {
                let differs = |a: &[String], b: &[String]| -> Vec<String> {
                    a.iter()
                        .filter(|row| !b.contains(row))
                        .take(5)
                        .cloned()
                        .collect()
                };
                eprintln!("only first: {:?}", differs(&rows[0], others));
                eprintln!("only {n}: {:?}", differs(others, &rows[0]));
            }
            let counts: Vec<_> = rows.iter().map(Vec::len).collect();
            panic!("no convergence: quiet {quiet}, positions {positions:?}, rows {counts:?}");
        }
        pause(20);
    }
}

fn positions(node: &Node) -> Vec<String> {
    let table = "SELECT name FROM sqlite_schema WHERE name = '__harmonylite___seq_map'";
    let app = node.open();
    if texts(&app, table).is_empty() {
        return vec![];
    }
    texts(
        &app,
        "SELECT stream || ' ' || seq FROM __harmonylite___seq_map ORDER BY stream",
    )
}
