//! A hub and, at every site, a leaf server with a JetStream domain of its own.

use crate::cluster::{PASSWORD, USER, client_of, converge};
use crate::health::{serve, until_health};
use crate::node::{Node, free_port, pause, until};
use crate::stream::node::Node as Broker;

/// A server with a domain; `leafnodes` is the content of that section.
fn server(domain: &str, leafnodes: &str) -> Broker {
    Broker::with(|broker| {
        let file = broker.folder.path().join("user.conf");
        let text = format!("jetstream {{ domain: {domain} }}\nleafnodes {{ {leafnodes} }}\n");
        std::fs::write(&file, text).unwrap();
        broker.options.node_name = domain.into();
        broker.options.user_config = Some(file);
        broker.options.user = Some((USER.into(), PASSWORD.into()));
        broker.options.bind_address = format!("127.0.0.1:{}", free_port());
    })
}

/// Two nodes, each at a leaf server of its own, and the servers, the hub first.
fn sites(change: impl Fn(&mut Node)) -> (Vec<Node>, Vec<Broker>) {
    let port = free_port();
    let mut servers = vec![server("hub", &format!("listen: \"127.0.0.1:{port}\""))];
    let remote = format!("nats://{USER}:{PASSWORD}@127.0.0.1:{port}");
    let mut nodes = Vec::new();
    for id in [1, 2] {
        let remotes = format!("remotes: [ {{ url: \"{remote}\" }} ]");
        let leaf = server(&format!("leaf{id}"), &remotes);
        let mut node = Node::new(id);
        client_of(&leaf, &mut node);
        node.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, value, writer)");
        change(&mut node);
        servers.push(leaf);
        nodes.push(node);
    }
    (nodes, servers)
}

#[test]
fn nodes_that_use_different_streams_say_so() {
    let (mut nodes, _servers) = sites(|_| {});
    let ports: Vec<_> = nodes.iter_mut().map(serve).collect();
    Node::start_all(&mut nodes);
    for node in &nodes {
        node.until_log("connected to NATS");
    }
    // Waits until the leaf servers are linked.
    let mut id = 0;
    until("it is noticed", || {
        id += 1;
        nodes[0].execute(&format!("INSERT INTO item VALUES ({id}, 'linked', 0)"));
        pause(200);
        let says = |node: &Node| node.log().contains("the nodes use different streams");
        nodes.iter().all(says).then_some(())
    });
    for port in ports {
        until_health(port, 503, &["nats.jetstream_domain", "leaf1", "leaf2"]);
    }
}

/// `jetstream_domain` chooses the hub's streams. Rows that were written while the hub was away
/// arrive, too.
#[test]
fn one_stream_at_the_hub_serves_all() {
    let (mut nodes, mut servers) = sites(|node| {
        node.set("nats.jetstream_domain", "'hub'")
            .set("snapshot.interval", "1000");
    });
    Node::start_all(&mut nodes);
    nodes[0].execute("INSERT INTO item VALUES (1, 'linked', 0)");
    assert_eq!(converge(&nodes).len(), 1);
    servers[0].kill();
    nodes[0].execute("INSERT INTO item VALUES (10, 'a', 0)");
    nodes[1].execute("INSERT INTO item VALUES (20, 'b', 1)");
    servers[0].start_again();
    nodes[0].execute("INSERT INTO item VALUES (30, 'after', 0)");
    assert_eq!(converge(&nodes).len(), 4);
    for node in &nodes {
        assert!(!node.log().contains("different streams"));
    }
    until("a snapshot has the last row", || {
        let made = |node: &Node| node.log().contains("the interval is over");
        nodes.iter().any(made).then_some(())
    });
}
