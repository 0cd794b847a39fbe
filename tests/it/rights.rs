//! A broker's user with exactly the rights that HarmonyLite needs.

use std::collections::BTreeMap;
use std::time::Duration;

use harmonylite::cluster::registry::{KeyValueRegistry, Registry};
use harmonylite::model::manifest::StreamPosition;
use harmonylite::stream::client::{Client, ClientOptions};
use harmonylite::stream::key_value::KeyValue;

use crate::cluster::converge;
use crate::node::{Node, PATIENCE, free_port, until};
use crate::stream::node::Node as Broker;

/// The rights that the program prints for a node with the defaults, as nats-server reads them.
fn rights(node: Option<&str>) -> String {
    rights_of(&Node::new(1), node)
}

/// Those for a node with this configuration.
fn rights_of(configured: &Node, node: Option<&str>) -> String {
    let of_node = node.map_or(vec![], |id| vec!["-node", id]);
    let printed = configured.run(&[&["nats-permissions"], &of_node[..]].concat());
    assert_eq!(printed.status.code(), Some(0), "{printed:?}");
    String::from_utf8(printed.stdout).unwrap()
}

/// One login for all, or one for each node.
fn broker(rights: &[String]) -> Broker {
    Broker::with(|broker| {
        let file = broker.folder.path().join("user.conf");
        let user = |(n, rights): (usize, &String)| {
            format!("{{ user: node-{}, password: secret, {rights} }}\n", n + 1)
        };
        let users: String = rights.iter().enumerate().map(user).collect();
        let text = format!("authorization {{ users: [ {users} ] }}");
        std::fs::write(&file, text).unwrap();
        broker.options.user_config = Some(file);
        broker.options.bind_address = format!("127.0.0.1:{}", free_port());
    })
}

fn node(id: u64, broker: &Broker) -> Node {
    let mut node = Node::new(id);
    let url = format!(
        "['nats://node-{id}:secret@{}']",
        broker.options.bind_address
    );
    node.set("nats.urls", &url);
    node
}

#[test]
fn the_printed_rights_suffice() {
    suffice(&[(); 3].map(|()| rights(None)));
}

#[test]
fn those_of_each_node_suffice() {
    suffice(&["1", "2", "3"].map(|id| rights(Some(id))));
}

/// Nodes write, make snapshots and begin with one, and a server refuses them nothing.
fn suffice(rights: &[String]) {
    let broker = broker(rights);
    let mut nodes: Vec<_> = [1, 2].map(|id| node(id, &broker)).into();
    for node in &mut nodes {
        node.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, value, writer)");
        node.start();
    }
    nodes[0].execute("INSERT INTO item VALUES (1, 'a', 0)");
    nodes[1].execute("INSERT INTO item VALUES (2, 'b', 1)");
    assert_eq!(converge(&nodes).len(), 2);
    for node in &nodes {
        let before = node.log().matches(" made, because ").count();
        node.signal(rustix::process::Signal::USR1);
        until("a snapshot is made", || {
            (node.log().matches(" made, because ").count() > before).then_some(())
        });
    }
    let third = node(3, &broker);
    std::fs::remove_file(third.database()).unwrap();
    nodes.push(third);
    nodes[2].start();
    nodes[2].until_log("it begins with snapshot");
    nodes[0].execute("INSERT INTO item VALUES (3, 'c', 0)");
    assert_eq!(converge(&nodes).len(), 3);
    for node in &nodes {
        assert!(!node.log().contains("Violation"), "{}", node.log());
    }
}

/// A node with `publish = false`, not started, and the rights that the program prints for it.
fn reader(change: impl FnOnce(&mut Node)) -> (Node, String) {
    let mut node = Node::new(2);
    node.set("publish", "false");
    change(&mut node);
    let rights = rights_of(&node, Some("2"));
    for write in [
        "harmonylite-change-log",
        "$O.",
        "STREAM.CREATE",
        "PURGE",
        "lease.>",
    ] {
        assert!(!rights.contains(write), "{write}: {rights}");
    }
    (node, rights)
}

/// Lets `node` begin beside one that writes, and read on after a restart. `rights` are its own.
fn reads(mut node: Node, rights: String) -> (Node, Node, Broker) {
    let broker = broker(&[self::rights(Some("1")), rights]);
    let url = |id: u64| {
        let address = &broker.options.bind_address;
        format!("['nats://node-{id}:secret@{address}']")
    };
    node.set("nats.urls", &url(2));
    std::fs::remove_file(node.database()).unwrap();
    let mut writer = self::node(1, &broker);
    writer.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, value, writer)");
    writer.execute("INSERT INTO item VALUES (1, 'a', 0)");
    writer.start();
    writer.until_log(" made, because ");
    node.start();
    node.until_log("it begins with snapshot");
    let arrives = |node: &Node, id: i64| {
        writer.execute(&format!("INSERT INTO item VALUES ({id}, 'b', 0)"));
        let is_there = format!("SELECT count(*) FROM item WHERE id = {id}");
        until("the row arrives", || {
            (node.number(&is_there) == 1).then_some(())
        });
    };
    arrives(&node, 2);
    node.stop();
    node.start();
    arrives(&node, 3);
    (writer, node, broker)
}

#[test]
fn a_node_that_only_reads_needs_no_right_to_write() {
    let mut port = 0;
    let (node, rights) = reader(|node| {
        port = crate::health::serve(node.set("status_interval", "0"));
    });
    assert_eq!(rights.matches("$KV.").count(), 1, "to subscribe: {rights}");
    let (writer, node, _broker) = reads(node, rights);
    crate::health::until_health(port, 200, &["\"kept_here\":0"]);
    node.execute("INSERT INTO item VALUES (10, 'mine', 2), (11, 'mine', 2)");
    let says = [
        "\"kept_here\":2",
        "the application wrote 2 row(s) here",
        "publish = false",
    ];
    crate::health::until_health(port, 503, &says);
    writer.execute("INSERT INTO item VALUES (4, 'b', 0)");
    until("the row arrives", || (node.rows().len() == 6).then_some(()));
    assert_eq!(writer.rows().len(), 4);
    node.until_log("they stay on this node");
    let log = node.log();
    assert!(!log.contains("Violation"), "{log}");
    assert_eq!(log.matches("they stay on this node").count(), 1, "{log}");
    writer.check();
    node.check();
}

/// It tells how it is doing, if its login may, and is quiet if it may not.
#[test]
fn a_node_that_only_reads_is_in_the_status_of_the_others() {
    let (node, rights) = reader(|_| {});
    let (writer, node, _broker) = reads(node, rights.clone());
    until("the other node sees it", || {
        let status = writer.run(&["status", "-json"]);
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
        let others = status["others"].as_array()?;
        let is_it = |n: &serde_json::Value| n["node"] == "2" && n["known_by"] == "entry";
        others.iter().any(is_it).then_some(())
    });
    assert!(!node.log().contains("Violation"), "{}", node.log());
}

#[test]
fn a_status_that_may_not_be_told_is_let_be() {
    let (node, rights) = reader(|node| {
        node.set("status_interval", "1000");
    });
    let own = |line: &&str| !line.contains("meta.node.") && !line.contains("meta.digest.");
    let less: Vec<&str> = rights.lines().filter(own).collect();
    assert_eq!(less.len() + 2, rights.lines().count(), "{rights}");
    let (writer, node, _broker) = reads(node, less.join("\n"));
    node.until_log("may not tell the other nodes");
    writer.execute("INSERT INTO item VALUES (4, 'b', 0)");
    until("the row arrives", || (node.rows().len() == 4).then_some(()));
    let log = node.log();
    let loud = log
        .lines()
        .filter(|line| line.contains(" WARN ") || line.contains(" ERROR "));
    let loud = loud.filter(|line| line.contains("Violation"));
    assert!(loud.count() <= 2, "once for each start: {log}");
}

#[test]
fn a_request_that_may_not_be_made_is_no_failure() {
    let (_, rights) = reader(|_| {});
    let broker = broker(&[self::rights(None), rights]);
    let client = |id: u64| {
        let address = &broker.options.bind_address;
        let options = ClientOptions {
            urls: vec![format!("nats://node-{id}:secret@{address}")],
            ..ClientOptions::default()
        };
        Client::connect(&options, PATIENCE).unwrap()
    };
    KeyValue::ensure_bucket(&client(1), "harmonylite-changes-meta", 1, None).unwrap();
    let open = |id: u64| {
        let (ttl, token) = (Duration::from_secs(30), "t".to_owned());
        KeyValueRegistry::open(client(id), "harmonylite-changes", 1, ttl, (token, true)).unwrap()
    };
    let places = BTreeMap::from([("s-1".to_owned(), StreamPosition::default())]);
    let mut registry = open(2);
    registry.request(&places).unwrap();
    registry.request(&places).unwrap();
    assert!(registry.requested().unwrap().is_empty());
    let agrees = [
        registry.lease().unwrap(),
        registry.lease_is_held().unwrap(),
        registry.claim_founder(2).unwrap(),
    ];
    assert_eq!(agrees, [false; 3]);
    // A login that may write lets such a node ask.
    open(1).request(&places).unwrap();
    assert_eq!(registry.requested().unwrap(), places);
}

#[test]
fn a_right_that_is_missing_is_named_once() {
    let lacking = "harmonylite-change-log-1";
    let right = format!("    \"{lacking}\"\n");
    let some = rights(None).replace(&right, "");
    assert_ne!(some, rights(None));
    let broker = broker(&[some]);
    let mut node = node(1, &broker);
    node.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, value, writer)");
    node.set("logging.level", "'debug'");
    let port = crate::health::serve(&mut node);
    node.start();
    node.execute("INSERT INTO item VALUES (1, 'a', 0)");
    crate::health::until_health(port, 503, &["Permissions Violation", lacking]);
    until("it was tried again", || {
        let tries = node.log().matches("connecting again").count();
        (tries > 1).then_some(())
    });
    let log = node.log();
    let loud = log.lines().filter(|line| {
        (line.contains(" WARN ") || line.contains(" ERROR ")) && line.contains("Violation")
    });
    assert_eq!(
        loud.count(),
        2,
        "as it came, and why publishing fails: {log}"
    );
}
