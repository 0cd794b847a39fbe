//! Accounts whose size the operator of the broker limits.

use crate::cluster::converge;
use crate::node::{Node, free_port, until};
use crate::stream::node::Node as Broker;

/// Nodes on a broker whose account has these limits of JetStream.
fn nodes(limits: &str, change: impl Fn(&mut Node)) -> (Vec<Node>, Broker) {
    let broker = Broker::with(|broker| {
        let file = broker.folder.path().join("user.conf");
        let text = format!(
            "accounts {{ APP {{ jetstream {{\n{limits}\n}}\nusers: [ {{ user: a, password: b }} ] \
             }} }}"
        );
        std::fs::write(&file, text).unwrap();
        broker.options.user_config = Some(file);
        broker.options.bind_address = format!("127.0.0.1:{}", free_port());
    });
    let url = format!("['nats://a:b@{}']", broker.options.bind_address);
    let nodes = [1, 2].map(|id| {
        let mut node = Node::new(id);
        node.set("nats.urls", &url);
        node.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, value, writer)");
        change(&mut node);
        node.start();
        node
    });
    (nodes.into(), broker)
}

fn rows_flow(nodes: &[Node]) {
    nodes[0].execute("INSERT INTO item VALUES (1, 'a', 0)");
    nodes[1].execute("INSERT INTO item VALUES (2, 'b', 1)");
    assert_eq!(converge(nodes).len(), 2);
    until("a snapshot is made", || {
        let made = |node: &Node| node.log().contains(" made, because ");
        nodes.iter().any(made).then_some(())
    });
}

#[test]
fn an_account_that_wants_a_size_for_every_stream_gets_one() {
    let limits = "max_mem: 0\nmax_file: 1GB\nmax_streams: 10\nmax_consumers: 100
                  max_bytes_required: true\ndisk_max_stream_bytes: 200MB";
    let (nodes, _broker) = nodes(limits, |_| {});
    rows_flow(&nodes);
    until("the size is told", || {
        let told = |node: &Node| node.log().contains("the account wants a size for it");
        nodes.iter().any(told).then_some(())
    });
}

#[test]
fn a_limit_that_is_reached_is_named_with_what_to_change() {
    let (nodes, _broker) = nodes("max_file: 1GB\nmax_streams: 2", |_| {});
    for node in &nodes {
        node.until_log("maximum number of streams");
        node.until_log("max_streams");
    }
}

#[test]
fn a_size_above_the_accounts_limit_is_named_with_what_to_change() {
    let limits = "max_file: 1GB\ndisk_max_stream_bytes: 20MB";
    let (nodes, _broker) = nodes(limits, |node| {
        node.set("replication_log.max_bytes", "50000000");
    });
    for node in &nodes {
        node.until_log("disk_max_stream_bytes");
        node.until_log("replication_log.max_bytes");
    }
}

/// The stream drops old messages by their bytes, long before `max_entries`; snapshots are made in
/// time.
#[test]
fn snapshots_are_made_by_bytes() {
    let (nodes, _broker) = nodes("max_file: 1GB", |node| {
        node.set("replication_log.max_bytes", "4194304")
            .set("replication_log.max_entries", "1000000")
            .set("replication_log.compress", "false");
    });
    rows_flow(&nodes);
    for n in 0..60 {
        nodes[0].execute(&format!(
            "INSERT INTO item VALUES (10 + {n}, randomblob(50000), 0)"
        ));
    }
    assert_eq!(converge(&nodes).len(), 62);
    // The node may notice either reason first: more bytes than the last snapshot, or half of the
    // stream's limit.
    until("another snapshot is made", || {
        let due = |node: &Node| {
            let log = node.log();
            log.contains("half of what a stream keeps was written")
                || log.contains("much was written since the last")
        };
        nodes.iter().any(due).then_some(())
    });
}
