//! A broker's user with exactly the rights that HarmonyLite needs.

use crate::cluster::converge;
use crate::node::{Node, free_port, until};
use crate::stream::node::Node as Broker;

/// The rights that the program prints for a node with the defaults, as nats-server reads them.
fn rights(node: Option<&str>) -> String {
    let of_node = node.map_or(vec![], |id| vec!["-node", id]);
    let printed = Node::new(1).run(&[&["nats-permissions"], &of_node[..]].concat());
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
