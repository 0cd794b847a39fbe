//! Servers that want a login; and secrets, which no log shows.

use std::path::Path;

use crate::certificates;
use crate::cluster::{Cluster, PASSWORD, broker, client_of, converge};
use crate::jwt::Operator;
use crate::node::{Node, free_port};
use crate::stream::node::Node as Broker;

/// Two nodes on a broker with the configuration `text`, in which FOLDER stands for its folder.
fn two_nodes(text: &str, change: impl Fn(&mut Node, &Path)) -> (Vec<Node>, Broker) {
    let broker = Broker::with(|broker| {
        let folder = broker.folder.path();
        certificates::make(folder);
        let file = folder.join("user.conf");
        std::fs::write(&file, text.replace("FOLDER", &folder.display().to_string())).unwrap();
        broker.options.user_config = Some(file);
        broker.options.bind_address = format!("127.0.0.1:{}", free_port());
    });
    let nodes = [1, 2].map(|id| {
        let mut node = Node::new(id);
        node.set(
            "nats.urls",
            &format!("['nats://{}']", broker.options.bind_address),
        );
        node.set("logging.level", "'trace'");
        change(&mut node, broker.folder.path());
        node.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, value, writer)");
        node.start();
        node
    });
    (nodes.into(), broker)
}

fn rows_flow(nodes: &[Node]) {
    nodes[0].execute("INSERT INTO item VALUES (1, 'a', 0)");
    nodes[1].execute("INSERT INTO item VALUES (2, 'b', 1)");
    assert_eq!(converge(nodes).len(), 2);
}

#[test]
fn a_password_is_never_shown() {
    let mut cluster = Cluster::start(2, |node| {
        node.set("logging.level", "'trace'");
    });
    rows_flow(&cluster.nodes);
    let node = &mut cluster.nodes[0];
    node.stop();
    node.set("nats.user_password", "'wrong-secret'").start();
    assert_eq!(node.wait().code(), Some(1));
    node.until_log("uthoriz");
    // A login in the URL works as well.
    let address = cluster.broker.options.bind_address.clone();
    node.unset("nats.user_name");
    node.unset("nats.user_password");
    node.set(
        "nats.urls",
        &format!("['nats://replicator:{PASSWORD}@{address}']"),
    )
    .start();
    rows_flow_again(&cluster.nodes);
    for node in &cluster.nodes {
        for secret in [PASSWORD, "wrong-secret"] {
            assert!(!node.log().contains(secret), "{secret}");
        }
    }
}

/// An operator cannot change a password on all machines at the same moment.
#[test]
fn a_login_that_is_refused_later_ends_nobody() {
    let mut cluster = Cluster::start(2, |_| {});
    rows_flow(&cluster.nodes);
    let right = cluster.broker.options.user.clone();
    let mut again_with = |user| {
        cluster.broker.kill();
        cluster.broker.options.user = user;
        cluster.broker.start_again();
    };
    again_with(Some(("replicator".into(), "another".into())));
    for node in &cluster.nodes {
        node.until_log("the server refuses the login");
    }
    again_with(right);
    rows_flow_again(&cluster.nodes);
}

fn rows_flow_again(nodes: &[Node]) {
    nodes[0].execute("INSERT INTO item VALUES (3, 'a', 0)");
    assert_eq!(converge(nodes).len(), 3);
}

#[test]
fn an_nkey() {
    let key = nkeys::KeyPair::new_user();
    let seed = key.seed().unwrap();
    let conf = format!(
        "authorization {{ users: [ {{ nkey: {} }} ] }}",
        key.public_key()
    );
    let (mut nodes, _broker) = two_nodes(&conf, |node, folder| {
        let file = folder.join("seed");
        std::fs::write(&file, &seed).unwrap();
        node.set("nats.seed_file", &format!("'{}'", file.display()));
    });
    rows_flow(&nodes);
    let other = nkeys::KeyPair::new_user().seed().unwrap();
    std::fs::write(nodes[0].file("other"), &other).unwrap();
    nodes[0].stop();
    let file = format!("'{}'", nodes[0].file("other").display());
    nodes[0].set("nats.seed_file", &file).start();
    assert_eq!(nodes[0].wait().code(), Some(1));
    assert!(!nodes[0].log().contains(&seed) && !nodes[0].log().contains(&other));
}

/// The server has an operator: a `.creds` file lets the node in, and an expired one is named.
#[test]
fn a_jwt() {
    let operator = Operator::new();
    let (mut nodes, _broker) = two_nodes(&operator.config, |node, folder| {
        let file = folder.join("user.creds");
        std::fs::write(&file, operator.creds(None)).unwrap();
        node.set("nats.seed_file", &format!("'{}'", file.display()));
    });
    rows_flow(&nodes);
    nodes[0].stop();
    let expired = operator.creds(Some(1_700_000_001));
    std::fs::write(nodes[0].file("old.creds"), &expired).unwrap();
    let file = format!("'{}'", nodes[0].file("old.creds").display());
    nodes[0].set("nats.seed_file", &file).start();
    assert_eq!(nodes[0].wait().code(), Some(1));
    let log = nodes[0].log();
    assert!(log.contains("expired at 2023-11-14T22:13:21Z"), "{log}");
    let secrets = expired
        .lines()
        .filter(|line| line.starts_with("SU") || line.starts_with("ey"));
    assert!(secrets.into_iter().all(|secret| !log.contains(secret)));
    let seedless = expired.split("-----BEGIN USER").next().unwrap();
    std::fs::write(nodes[0].file("old.creds"), seedless).unwrap();
    nodes[0].start();
    assert_eq!(nodes[0].wait().code(), Some(1));
    nodes[0].until_log("holds a JWT, but not the nkey seed");
}

#[test]
fn tls_with_an_authority_and_a_client_certificate() {
    let conf = "tls { cert_file: FOLDER/server.pem, key_file: FOLDER/server.key,
                      ca_file: FOLDER/ca.pem, verify: true }
                authorization { user: me, password: tls-secret }";
    let (mut nodes, mut broker) = two_nodes(conf, |node, folder| {
        for (key, file) in [
            ("ca_file", "ca.pem"),
            ("cert_file", "client.pem"),
            ("key_file", "client.key"),
        ] {
            node.set(
                &format!("nats.{key}"),
                &format!("'{}'", folder.join(file).display()),
            );
        }
        node.set("nats.user_name", "'me'")
            .set("nats.user_password", "'tls-secret'");
    });
    rows_flow(&nodes);
    // The row is larger than the amount that TLS takes at once.
    nodes[0].execute("INSERT INTO item VALUES (3, randomblob(1000000), 0)");
    assert_eq!(converge(&nodes).len(), 3);
    // An operator cannot change certificates on all machines at the same moment.
    let [authority, stranger] = ["ca.pem", "other.pem"].map(|f| broker.folder.path().join(f));
    let right = std::fs::read(&authority).unwrap();
    broker.kill();
    std::fs::copy(&stranger, &authority).unwrap();
    broker.start_again();
    for node in &nodes {
        node.until_log("ertificate");
    }
    broker.kill();
    std::fs::write(&authority, right).unwrap();
    broker.start_again();
    nodes[0].execute("INSERT INTO item VALUES (4, 'b', 0)");
    assert_eq!(converge(&nodes).len(), 4);
    nodes[0].stop();
    nodes[0]
        .set("nats.ca_file", &format!("'{}'", stranger.display()))
        .start();
    assert_eq!(nodes[0].wait().code(), Some(1));
    assert!(nodes[0].log().contains("ertificate"), "{}", nodes[0].log());
    assert!(nodes.iter().all(|node| !node.log().contains("tls-secret")));
}

/// Of several servers the node takes the first that answers.
#[test]
fn several_servers() {
    let broker = broker();
    let mut node = Node::new(1);
    client_of(&broker, &mut node);
    let (dead, alive) = (free_port(), &broker.options.bind_address);
    node.set(
        "nats.urls",
        &format!("['nats://127.0.0.1:{dead}', 'nats://{alive}']"),
    );
    node.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, value, writer)");
    node.start();
    node.execute("INSERT INTO item VALUES (1, 'a', 0)");
    converge(&[node]);
}
