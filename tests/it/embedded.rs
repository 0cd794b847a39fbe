//! The nats-server that HarmonyLite runs beside itself.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

use crate::cluster::converge;
use crate::node::{Node, free_port, pause, until};

fn node(id: u64) -> Node {
    let node = Node::new(id);
    node.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, value, writer)");
    node
}

/// The process number of the node's server, as the log tells it last.
fn server(node: &Node) -> u32 {
    until("the server listens", || {
        let log = node.log();
        let (_, rest) = log.rsplit_once("(pid ")?;
        let (pid, rest) = rest.split_once(')')?;
        let pid = pid.parse().ok()?;
        (rest.starts_with(" listens at") && is_server(pid)).then_some(pid)
    })
}

fn is_server(pid: u32) -> bool {
    // A process that ended and is not reaped yet has an empty command line.
    fs::read(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|line| String::from_utf8_lossy(&line).contains("nats"))
}

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
}

#[test]
fn a_single_one_is_started_again() {
    let mut nodes = [node(1)];
    nodes[0].start();
    nodes[0].execute("INSERT INTO item VALUES (1, 'a', 0)");
    converge(&nodes);
    let first = server(&nodes[0]);
    kill(first);
    nodes[0].until_log("starting it again");
    nodes[0].execute("INSERT INTO item VALUES (2, 'b', 0)");
    assert_ne!(server(&nodes[0]), first);
    converge(&nodes);
    let second = server(&nodes[0]);
    assert!(nodes[0].stop().as_secs() < 3);
    assert!(!is_server(second), "it ends with us");
    assert!(
        nodes[0].file("nats/harmonylite-node-1/jetstream").is_dir(),
        "beside the database"
    );
}

#[test]
fn a_login_of_the_configuration_closes_the_cluster() {
    let password = "se:cr@t/of-the-routes\n";
    is_closed("nats.cluster.password_file", password, "of-the-routes");
}

#[test]
fn the_cluster_key_closes_the_cluster() {
    let key = harmonylite::seal::key::make(1).unwrap();
    is_closed("cluster_key_file", &key, key.trim());
}

/// Servers of strangers do not join, and the secret stands in no log and on no command line.
fn is_closed(setting: &str, text: &str, secret: &str) {
    let ports = [(); 2].map(|()| free_port());
    let peers = ports
        .map(|port| format!("nats://127.0.0.1:{port}/"))
        .join(",");
    let mut nodes = [0, 1].map(|n| {
        let mut node = node(n as u64 + 1);
        fs::write(node.file("secret"), text).unwrap();
        let file = format!("'{}'", node.file("secret").display());
        node.set(setting, &file);
        let address = format!("127.0.0.1:{}", ports[n]);
        let words = ["-cluster-addr", &address, "-cluster-peers", &peers];
        node.words = words.map(str::to_owned).into();
        node
    });
    Node::start_all(&mut nodes);
    nodes[0].execute("INSERT INTO item VALUES (1, 'a', 0)");
    assert_eq!(converge(&nodes).len(), 1);
    for pid in nodes.iter().flat_map(|node| [node.pid(), server(node)]) {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        assert!(!String::from_utf8_lossy(&line).contains(secret));
    }
    // A stranger knows name and address of the cluster, and not the secret.
    let stranger = crate::stream::node::Node::with_config(&format!(
        "cluster {{ name: \"e-harmonylite\", listen: \"127.0.0.1:{}\",
                    routes: [ \"nats://127.0.0.1:{}\" ] }}",
        free_port(),
        ports[0],
    ));
    nodes[0].until_log("authentication error");
    drop(stranger);
    nodes[1].execute("INSERT INTO item VALUES (2, 'b', 1)");
    assert_eq!(converge(&nodes).len(), 2);
    assert!(nodes.iter().all(|node| !node.log().contains(secret)));
}

#[test]
fn an_open_cluster_must_be_asked_for() {
    let mut node = node(1);
    let address = format!("0.0.0.0:{}", free_port());
    node.words = vec!["-cluster-addr".into(), address];
    node.start();
    assert_eq!(node.wait().code(), Some(1));
    node.until_log("any server that reaches it could join the cluster");
    node.words.push("-insecure-cluster".into());
    node.start();
    server(&node);
}

/// Three nodes whose servers form a cluster, not started.
pub fn three() -> [Node; 3] {
    let ports = [(); 3].map(|()| free_port());
    let peers = ports
        .map(|port| format!("nats://route:among-us@127.0.0.1:{port}/"))
        .join(",");
    [0, 1, 2].map(|n| {
        let mut node = node(n as u64 + 1);
        let address = format!("127.0.0.1:{}", ports[n]);
        node.words = vec![
            "-cluster-addr".into(),
            address,
            "-cluster-peers".into(),
            peers.clone(),
        ];
        node
    })
}

#[test]
fn three_find_each_other() {
    let mut nodes = three();
    Node::start_all(&mut nodes);
    for (n, node) in nodes.iter().enumerate() {
        node.execute(&format!("INSERT INTO item VALUES ({n}, 'a', {n})"));
    }
    assert_eq!(converge(&nodes).len(), 3);
    // One of the three is away with its server.
    nodes[2].kill();
    nodes[2].execute("INSERT INTO item VALUES (12, 'alone', 2)");
    nodes[0].execute("INSERT INTO item VALUES (10, 'b', 0)");
    nodes[1].execute("INSERT INTO item VALUES (11, 'b', 1)");
    converge(&nodes[..2]);
    nodes[2].start();
    assert_eq!(converge(&nodes).len(), 6);
    // One of the three servers alone is killed.
    kill(server(&nodes[0]));
    nodes[0].execute("INSERT INTO item VALUES (20, 'c', 0)");
    nodes[1].execute("INSERT INTO item VALUES (21, 'c', 1)");
    assert_eq!(converge(&nodes).len(), 8);
    assert!(nodes.iter().all(|node| !node.log().contains("among-us")));
}

/// The last node of a cluster ends: no server answers it any more. It ends its own server early,
/// which ends all waits for it.
#[test]
fn the_last_of_three_ends_in_order() {
    let mut nodes = three();
    Node::start_all(&mut nodes);
    nodes[0].execute("INSERT INTO item VALUES (1, 'a', 0)");
    assert_eq!(converge(&nodes).len(), 1);
    for node in &mut nodes[..2] {
        node.stop();
    }
    // A request that no server answers is under way when the node is told to end.
    nodes[2].signal(Signal::USR1);
    pause(300);
    assert!(nodes[2].stop().as_secs() < 3);
    for bad in ["ending without waiting any longer", "killing it"] {
        assert!(!nodes[2].log().contains(bad), "{bad}");
    }
}

#[test]
fn a_killed_daemon_leaves_no_server() {
    let mut node = node(1);
    node.start();
    let pid = server(&node);
    node.kill();
    until("the server ends", || (!is_server(pid)).then_some(()));
    node.start();
    node.execute("INSERT INTO item VALUES (1, 'a', 0)");
    converge(&[node]);
}

/// A server that went on would keep the store from the next one for ever.
#[test]
fn a_server_that_hangs_is_not_left_behind() {
    let mut node = node(1);
    node.start();
    let pid = server(&node);
    let hung = Pid::from_raw(pid as i32).unwrap();
    kill_process(hung, Signal::STOP).unwrap();
    node.stop();
    assert!(!is_server(pid));
    node.start();
    node.execute("INSERT INTO item VALUES (1, 'a', 0)");
    converge(&[node]);
}

#[test]
fn a_program_by_another_name() {
    let mut node = node(1);
    let versioned = node.file("nats-2.15");
    std::os::unix::fs::symlink(crate::stream::node::binary(), &versioned).unwrap();
    let quoted = format!("'{}'", versioned.display());
    node.set("nats.server_binary", &quoted).start();
    node.execute("INSERT INTO item VALUES (1, 'a', 0)");
    converge(&[node]);
}

#[test]
fn none_to_be_found() {
    let mut node = node(1);
    let no_program = node.file("notes.txt");
    fs::write(&no_program, "").unwrap();
    let quoted = format!("'{}'", no_program.display());
    node.set("nats.server_binary", &quoted).start();
    assert_eq!(node.wait().code(), Some(1));
    for says in [
        "notes.txt",
        "apt-get install nats-server",
        "nats.server_binary",
        "nats.urls",
    ] {
        assert!(node.log().contains(says), "{}", node.log());
    }
}

#[test]
fn a_leaf_and_its_hub() {
    let port = free_port();
    let mut hub = node(1);
    let conf = format!("leafnodes {{ listen: \"127.0.0.1:{port}\" }}\n");
    fs::write(hub.file("hub.conf"), conf).unwrap();
    let file = format!("'{}'", hub.file("hub.conf").display());
    hub.set("nats.server_config", &file)
        .set("nats.user_name", "'u'")
        .set("nats.user_password", "'hub-secret'");
    let mut leaf = node(2);
    leaf.words = vec![
        "-leaf-servers".into(),
        format!("nats://u:hub-secret@127.0.0.1:{port}"),
    ];
    let mut nodes = [hub, leaf];
    Node::start_all(&mut nodes);
    nodes[0].execute("INSERT INTO item VALUES (1, 'a', 0)");
    nodes[1].execute("INSERT INTO item VALUES (2, 'b', 1)");
    assert_eq!(converge(&nodes).len(), 2);
    assert!(nodes.iter().all(|node| !node.log().contains("hub-secret")));
}

/// The operator lets clients of others in, with the login that the configuration names.
#[test]
fn at_a_known_address() {
    let address = format!("127.0.0.1:{}", free_port());
    let mut first = node(1);
    first
        .set("nats.bind_address", &format!("'{address}'"))
        .set("nats.user_name", "'u'")
        .set("nats.user_password", "'bind-secret'");
    let mut second = node(2);
    second.set("nats.urls", &format!("['nats://u:bind-secret@{address}']"));
    let mut nodes = [first, second];
    Node::start_all(&mut nodes);
    nodes[0].execute("INSERT INTO item VALUES (1, 'a', 0)");
    nodes[1].execute("INSERT INTO item VALUES (2, 'b', 1)");
    assert_eq!(converge(&nodes).len(), 2);
    assert!(nodes.iter().all(|node| !node.log().contains("bind-secret")));
}
