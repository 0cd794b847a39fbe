//! A broker's user with exactly the rights that HarmonyLite needs.

use crate::cluster::converge;
use crate::node::{Node, free_port, until};
use crate::stream::node::Node as Broker;

const CHANGES: &str = "harmonylite-changes-c-1";
const BUCKETS: [&str; 3] = [
    "KV_harmonylite-changes-meta",
    "KV_harmonylite-changes-lease",
    "OBJ_harmonylite-changes-snapshot-store",
];

/// The subjects to which the user may publish, with default prefixes, one shard and the store
/// "nats".
fn rights() -> Vec<String> {
    let mut rights: Vec<String> = [
        "harmonylite-change-log-1",
        "$KV.harmonylite-changes-meta.>",
        "$KV.harmonylite-changes-lease.>",
        "$O.harmonylite-changes-snapshot-store.>",
        "_INBOX.*.end",
    ]
    .map(str::to_owned)
    .into();
    for stream in [CHANGES].iter().chain(&BUCKETS) {
        for call in ["INFO", "CREATE", "MSG.GET"] {
            rights.push(format!("$JS.API.STREAM.{call}.{stream}"));
        }
    }
    for stream in [CHANGES, BUCKETS[2]] {
        rights.push(format!("$JS.API.CONSUMER.CREATE.{stream}"));
        for call in ["MSG.NEXT", "DELETE"] {
            rights.push(format!("$JS.API.CONSUMER.{call}.{stream}.*"));
        }
    }
    rights.push(format!("$JS.API.STREAM.PURGE.{}", BUCKETS[2]));
    rights
}

fn broker(rights: &[String]) -> Broker {
    Broker::with(|broker| {
        let file = broker.folder.path().join("user.conf");
        let allowed: Vec<_> = rights.iter().map(|right| format!("{right:?}")).collect();
        let text = format!(
            "authorization {{ users: [ {{ user: node, password: secret, permissions: {{
               publish: {{ allow: [ {} ] }}
               subscribe: {{ allow: [ \"_INBOX.>\", \"$KV.harmonylite-changes-meta.*\" ] }}
             }} }} ] }}",
            allowed.join(", ")
        );
        std::fs::write(&file, text).unwrap();
        broker.options.user_config = Some(file);
        broker.options.bind_address = format!("127.0.0.1:{}", free_port());
    })
}

fn node(id: u64, broker: &Broker) -> Node {
    let mut node = Node::new(id);
    let url = format!("['nats://node:secret@{}']", broker.options.bind_address);
    node.set("nats.urls", &url);
    node
}

#[test]
fn these_rights_suffice() {
    let broker = broker(&rights());
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
    let rights: Vec<_> = rights().into_iter().filter(|r| r != lacking).collect();
    let broker = broker(&rights);
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
