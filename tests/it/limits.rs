//! Accounts whose size the operator of the broker limits.

use std::cell::RefCell;
use std::path::PathBuf;

use rustix::process::Signal;

use crate::cluster::converge;
use crate::health::{serve, until_health};
use crate::node::{Node, free_port, until};
use crate::stream::node::Node as Broker;

/// Writes the configuration of a broker whose account has these limits of JetStream.
fn limit(broker: &Broker, limits: &str) -> PathBuf {
    let file = broker.folder.path().join("user.conf");
    let text = format!(
        "accounts {{ APP {{ jetstream {{\n{limits}\n}}\nusers: [ {{ user: a, password: b }} ] }} }}"
    );
    std::fs::write(&file, text).unwrap();
    file
}

/// Nodes on such a broker.
fn nodes(limits: &str, change: impl Fn(&mut Node)) -> (Vec<Node>, Broker) {
    let broker = Broker::with(|broker| {
        broker.options.user_config = Some(limit(broker, limits));
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

/// Other applications may have filled it as well.
#[test]
fn a_full_account_delays_rows_and_loses_none() {
    const ROWS: i64 = 200;
    let ports = RefCell::new(Vec::new());
    let (nodes, broker) = nodes("max_file: 6MB", |node| {
        node.set("replication_log.compress", "false");
        ports.borrow_mut().push(serve(node));
    });
    let ports = ports.into_inner();
    rows_flow(&nodes);
    let write = |from: i64| {
        for id in from..from + ROWS {
            let row = format!("INSERT INTO item VALUES ({id}, randomblob(50000), 0)");
            nodes[0].execute(&row);
        }
    };
    write(1000);
    let says = ["\"publishing\":", "a frame was not stored", "(max_file)"];
    until_health(ports[0], 503, &says);
    // The application goes on meanwhile, on both nodes.
    write(2000);
    nodes[1].execute("INSERT INTO item VALUES (3, randomblob(90000), 1)");
    until_health(ports[1], 503, &says);
    let here = nodes[0].number("SELECT count(*) FROM item");
    assert_eq!(here, 2 + 2 * ROWS);
    assert!(nodes[1].number("SELECT count(*) FROM item") < here);
    for node in &nodes {
        let log = node.log();
        let loud = log.lines().filter(|line| line.contains(" WARN "));
        let loud = loud.filter(|line| line.contains("a frame was not stored"));
        assert!(loud.count() <= 2, "{log}");
    }
    limit(&broker, "max_file: 1GB");
    broker.signal(Signal::HUP);
    assert_eq!(converge(&nodes).len() as i64, here + 1);
    for port in ports {
        until_health(port, 200, &["\"status\":\"healthy\""]);
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
