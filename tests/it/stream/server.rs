//! The supervised nats-server: configuration, cluster, start and end.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crossbeam_channel::never;
use harmonylite::stream::Reader;
use harmonylite::stream::jetstream::{StreamOptions, stream_name};
use harmonylite::stream::server::{Server, ServerError};
use harmonylite::stream::writer::JetStreamWriter;
use serde_json::json;

use crate::stream::node::{Node, PATIENCE, binary, ensure, publish, read, streams, until};
use crate::wait::free_port;

/// Three servers, and the streams that all of them hold.
fn cluster() -> ([Node; 3], StreamOptions) {
    let ports = [(); 3].map(|()| free_port());
    let peers = ports.map(|port| format!("nats://route:se%20cret@127.0.0.1:{port}/"));
    let nodes = [0, 1, 2].map(|n| {
        Node::with(|node| {
            node.options.node_name = format!("harmonylite-node-{n}");
            node.options.cluster_addr = Some(format!("127.0.0.1:{}", ports[n]));
            node.options.peers = peers.to_vec();
        })
    });
    let mut options = streams();
    options.replicas = 3;
    ensure(&nodes[0].client(), &options);
    (nodes, options)
}

/// Publishes message `n` from `node` until the stream takes it: the servers may be electing a
/// leader.
fn publish_in_the_end(node: &Node, options: &StreamOptions, n: u64) {
    until("a leader is elected", || {
        let writer = JetStreamWriter::new(node.client(), options).ok();
        publish(&mut writer?, n..n + 1)[0]
            .result
            .as_ref()
            .ok()
            .copied()
    });
}

#[test]
fn three_nodes_form_a_cluster() {
    let (nodes, options) = cluster();
    publish_in_the_end(&nodes[1], &options, 1);
    let acks = publish(&mut nodes[1].writer(&options), 2..101);
    assert!(acks.iter().all(|ack| ack.result.is_ok()), "{acks:?}");
    assert_eq!(read(&mut nodes[2].reader(&options), 1, 100).len(), 100);
    // One of the three servers is away.
    nodes[0].kill();
    publish_in_the_end(&nodes[1], &options, 101);
    let last = until("the third node reads on", || {
        let mut reader = nodes[2].reader(&options);
        let from = reader.state().ok()?.last;
        reader.fetch(from, PATIENCE, &never()).ok()?.pop()
    });
    assert_eq!(last.data, b"101");
}

/// A killed server takes the consumers of other nodes along, and no server tells those nodes.
#[test]
fn a_consumer_on_a_killed_server_is_missed_within_seconds() {
    let (nodes, options) = cluster();
    let client = nodes[2].client();
    publish_in_the_end(&nodes[2], &options, 1);
    let name = stream_name(&options, 1);
    // The servers place consumers at random.
    let (mut reader, host) = until("a consumer is on another server", || {
        let mut reader = nodes[2].reader(&options);
        assert_eq!(read(&mut reader, 1, 1).len(), 1);
        let list = client.api(&format!("CONSUMER.LIST.{name}"), &json!(null));
        let list = list.unwrap().unwrap();
        let newest = list["consumers"].as_array()?.iter();
        let newest = newest.max_by_key(|consumer| consumer["created"].to_string())?;
        let host = newest["cluster"]["leader"].as_str()?.rsplit('-').next()?;
        let host: usize = host.parse().ok()?;
        (host != 2).then_some((reader, host))
    });
    nodes[host].kill();
    publish_in_the_end(&nodes[2], &options, 2);
    let began = Instant::now();
    assert_eq!(read(&mut reader, 2, 1)[0].data, b"2");
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn peers_behind_a_name_are_found() {
    let (port, other) = (free_port(), free_port());
    let node = Node::with(|node| {
        node.options.cluster_addr = Some(format!("127.0.0.1:{port}"));
        // `min` is more than there will ever be: the server starts all the same.
        node.options.peers = vec![format!("dns://localhost:{port}/?min=9&interval_ms=10")];
    });
    node.client();
    let alone = |node: &mut Node| node.options.cluster_addr = Some(format!("127.0.0.1:{other}"));
    Node::with(alone).client();
}

#[test]
fn the_operators_file_counts() {
    let elsewhere = tempfile::tempdir().unwrap();
    let store = elsewhere.path().join("their store");
    let text = format!("max_payload: 2MB\njetstream {{ store_dir: {store:?} }}\n");
    let node = Node::with_config(&text);
    let client = node.client();
    assert_eq!(client.max_payload(), 2 * 1024 * 1024);
    ensure(&client, &streams());
    assert!(store.join("jetstream").is_dir());
    assert!(!node.options.store_dir.join("jetstream").exists());
}

#[test]
fn a_bad_operators_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start();
    let mut options = node.options.clone();
    options.store_dir = folder.path().join("store");
    options.user_config = Some(folder.path().join("user.conf"));
    std::fs::write(folder.path().join("user.conf"), "max_payload: nonsense\n").unwrap();
    let Err(ServerError::Config(text)) = Server::start(&options, &never()) else {
        panic!("no error")
    };
    assert!(text.contains("user.conf:1"), "{text}");
    options.user_config = Some(folder.path().join("missing.conf"));
    // A process that another test starts meanwhile holds the first lock until its exec.
    let error = until("the store is free", || {
        let error = Server::start(&options, &never()).err().unwrap();
        (!matches!(error, ServerError::StoreInUse(_))).then(|| error.to_string())
    });
    assert!(error.contains("missing.conf"), "{error}");
}

/// The server is killed, as by a system without memory: the configuration is not at fault.
#[test]
fn a_server_that_is_killed_while_it_reads_its_configuration_is_tried_again() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let binary = folder.path().join("nats-server");
    std::fs::write(&binary, "#!/bin/sh\nkill -9 $$\n").unwrap();
    std::fs::set_permissions(&binary, PermissionsExt::from_mode(0o755)).unwrap();
    let node = Node::start();
    let mut options = node.options.clone();
    options.store_dir = folder.path().join("store");
    options.binary = Some(binary);
    let error = Server::start(&options, &never()).err().unwrap();
    assert!(error.to_string().contains("signal: 9"), "{error}");
    assert!(!error.is_fatal());
}

#[test]
fn a_store_has_one_server() {
    let node = Node::start();
    let error = Server::start(&node.options, &never()).err().unwrap();
    assert!(matches!(error, ServerError::StoreInUse(_)), "{error}");
    assert!(
        error
            .to_string()
            .contains(&node.options.store_dir.display().to_string())
    );
}

#[test]
fn a_taken_port_is_reported_with_the_servers_words() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start();
    let mut options = node.options.clone();
    options.store_dir = folder.path().join("store");
    options.bind_address = taken.local_addr().unwrap().to_string();
    let error = Server::start(&options, &never()).err().unwrap();
    assert!(matches!(error, ServerError::Failed(_)), "{error}");
    assert!(
        error.to_string().contains("address already in use"),
        "{error}"
    );
}

#[test]
fn stops_and_tells_how_it_ended() {
    let mut node = Node::start();
    assert_eq!(node.server.as_mut().unwrap().exited(), None);
    node.kill();
    let words = node.server.as_mut().unwrap().exited().unwrap();
    assert!(words.contains("signal: 9"), "{words}");
    node.start_again();
    ensure(&node.client(), &streams());
    let pid = node.server().pid();
    node.server.take().unwrap().stop(&never());
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn the_configuration_is_for_our_eyes_only() {
    use std::os::unix::fs::PermissionsExt;
    let node = Node::start();
    let conf = node
        .folder
        .path()
        .join("nats/harmonylite-node-1.run/nats.conf");
    assert_eq!(
        std::fs::metadata(&conf).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let (_, password) = node.server().user().unwrap();
    assert!(std::fs::read_to_string(conf).unwrap().contains(&password));
    assert!(!format!("{:?}", node.client_options()).contains(&password));
}

/// The process that `the_server_dies_with_us` kills; run alone, it does nothing.
#[test]
fn helper_that_is_killed() {
    if let Some(store) = std::env::var_os("HARMONYLITE_TEST_STORE") {
        let node = Node::with(|node| node.options.store_dir = store.into());
        println!("\npid {}", node.server().pid());
        loop {
            std::thread::park();
        }
    }
}

#[test]
fn the_server_dies_with_us() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let mut daemon = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "stream::server::helper_that_is_killed",
            "--nocapture",
        ])
        .env("HARMONYLITE_TEST_STORE", &store)
        .env("TMPDIR", folder.path()) // what it leaves behind goes with ours
        .env("HARMONYLITE_NATS_SERVER", binary())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(daemon.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok);
    let pid = lines
        .filter_map(|line| line.strip_prefix("pid ")?.parse::<u32>().ok())
        .next();
    let pid = pid.expect("the helper tells the pid");
    let node = Node::start();
    let mut options = node.options.clone();
    options.store_dir = store;
    assert!(matches!(
        Server::start(&options, &never()),
        Err(ServerError::StoreInUse(_))
    ));
    daemon.kill().unwrap(); // SIGKILL
    daemon.wait().unwrap();
    // A server has the lock as long as it lives, so a new one on its store proves that it is gone.
    let server = until("the server ends", || Server::start(&options, &never()).ok());
    assert_ne!(server.pid(), pid);
    server.stop(&never());
}
