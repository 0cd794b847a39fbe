//! `[edge]`: less traffic, a limit, a time window; `pause` and `resume`.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::Cluster;
use crate::node::{Node, until};
use crate::proxy::Proxy;

/// Puts a proxy before the broker, and gives the node its address with the cluster's login.
fn behind(cluster: &Cluster, node: &mut Node) -> Proxy {
    let proxy = Proxy::start(&cluster.broker.options.bind_address);
    node.set("nats.urls", &format!("['nats://{}']", proxy.address));
    proxy
}

fn health(node: &Node) -> Option<Value> {
    let socket = format!("{}-harmonylite.sock", node.database().display());
    let answer = harmonylite::http::client::get(socket.as_ref(), "/health").ok()?;
    serde_json::from_str(&answer.text(1 << 20).ok()?).ok()
}

fn until_healthy(node: &Node, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
    until(what, || health(node).filter(|told| fits(told)))
}

#[test]
fn a_paused_node_captures_and_stays_paused_over_a_restart() {
    let mut cluster = Cluster::stopped(2, |_| {});
    let mut node = cluster.nodes.pop().unwrap();
    let proxy = behind(&cluster, &mut node);
    cluster.nodes.push(node);
    Node::start_all(&mut cluster.nodes);
    cluster.nodes[1].execute("INSERT INTO item VALUES (1, 'a', 2)");
    cluster.converge();

    let output = cluster.nodes[1].run(&["pause"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let node = &mut cluster.nodes[1];
    let told = until_healthy(node, "it is offline", |told| {
        told["nats_connected"] == false
    });
    assert_eq!(told["status"], "healthy", "{told}");
    assert_eq!(told["offline"], "paused, until harmonylite resume");
    node.execute("INSERT INTO item VALUES (2, 'b', 2)");
    let log = "SELECT count(*) FROM __harmonylite___change_log_global";
    until("the capture", || (node.number(log) == 0).then_some(()));
    let status = String::from_utf8(node.run(&["status"]).stdout).unwrap();
    assert!(status.contains("offline on purpose: paused"), "{status}");

    node.stop();
    let connections = proxy.connections();
    node.start();
    let told = until_healthy(node, "it is up", |told| told["offline"].is_string());
    assert_eq!(told["status"], "healthy", "{told}");
    node.execute("INSERT INTO item VALUES (3, 'c', 2)");
    until("the capture", || (node.number(log) == 0).then_some(()));
    assert_eq!(proxy.connections(), connections, "it did not connect");
    assert_eq!(cluster.nodes[0].number("SELECT count(*) FROM item"), 1);
    let calm = cluster.nodes[1].log();
    let words = |line: &&str| line.contains("WARN") || line.contains("ERROR");
    assert_eq!(calm.lines().find(words), None);

    assert_eq!(cluster.nodes[1].run(&["resume"]).status.code(), Some(0));
    assert_eq!(cluster.converge().len(), 3);
    let told = until_healthy(&cluster.nodes[1], "it is online", |told| {
        told["nats_connected"] == true
    });
    assert!(told["offline"].is_null(), "{told}");
}

#[test]
fn a_pause_needs_a_daemon_and_a_broker_elsewhere() {
    let mut node = Node::new(1);
    node.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, value)");
    assert_eq!(node.run(&["pause"]).status.code(), Some(3));
    node.start();
    node.until_log("connected to NATS");
    let output = node.run(&["pause"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("nats.urls is empty"), "{said}");
    assert_eq!(
        node.run(&["resume"]).status.code(),
        Some(0),
        "nothing to do"
    );
    node.set("edge.sync_window", "'02:00-05:00'");
    let said = String::from_utf8(node.run(&["-check"]).stderr).unwrap();
    assert!(
        said.contains("edge.sync_window is set, so nats.urls must be set too"),
        "{said}"
    );
}

/// The time of day, shifted by some hours, as HH:MM.
fn clock(hours: u64) -> String {
    let now = std::time::SystemTime::now();
    let seconds = now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + hours * 3600;
    format!("{:02}:{:02}", seconds / 3600 % 24, seconds / 60 % 60)
}

#[test]
fn outside_of_its_window_a_node_is_offline_on_purpose() {
    let mut cluster = Cluster::stopped(1, |_| {});
    let mut node = cluster.nodes.pop().unwrap();
    let proxy = behind(&cluster, &mut node);
    let closed = format!("'{}-{}'", clock(10), clock(12));
    node.set("edge.sync_window", &closed);
    let start = |node: &Node| {
        let mut command = node.command(&[]);
        command
            .env("TZ", "UTC0")
            .stdout(std::process::Stdio::null());
        command.spawn().unwrap()
    };
    let mut daemon = start(&node);
    let told = until_healthy(&node, "it is up", |told| told["offline"].is_string());
    assert_eq!(told["status"], "healthy", "{told}");
    let why = told["offline"].as_str().unwrap();
    assert!(why.starts_with("outside of sync_window "), "{why}");
    node.execute("INSERT INTO item VALUES (1, 'a', 1)");
    let log = "SELECT count(*) FROM __harmonylite___change_log_global";
    until("the capture", || (node.number(log) == 0).then_some(()));
    assert_eq!(proxy.connections(), 0);
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    node.set("edge.sync_window", &format!("'{}-{}'", clock(23), clock(1)));
    let mut daemon = start(&node);
    until("the row is sent", || node.is_quiet().then_some(()));
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}

#[test]
fn a_limit_of_bytes_holds_in_both_directions() {
    const LIMIT: u64 = 64 * 1024;
    let mut cluster = Cluster::stopped(2, |node| {
        node.set("snapshot.enabled", "false")
            .set("replication_log.compress", "false");
    });
    let mut node = cluster.nodes.pop().unwrap();
    let proxy = behind(&cluster, &mut node);
    node.set("edge.max_bandwidth", &LIMIT.to_string());
    cluster.nodes.push(node);
    Node::start_all(&mut cluster.nodes);
    cluster.nodes[1].execute("INSERT INTO item VALUES (0, 'a', 2)");
    cluster.converge();
    // Each row is a message of 60 KB; the first ones fill the window of about a second.
    let row = |id: u64| format!("INSERT INTO item VALUES ({id}, randomblob(60000), 0)");
    let (before, began) = (proxy.bytes(), Instant::now());
    (1..=8).for_each(|id| cluster.nodes[1].execute(&row(id)));
    cluster.converge();
    let sent = proxy.bytes().0 - before.0;
    let least = Duration::from_secs_f64((sent - 130_000) as f64 / LIMIT as f64);
    assert!(
        began.elapsed() >= least,
        "{sent} bytes in {:?}",
        began.elapsed()
    );
    assert!(sent > 480_000);

    let (before, began) = (proxy.bytes(), Instant::now());
    (11..=18).for_each(|id| cluster.nodes[0].execute(&row(id)));
    cluster.converge();
    let received = proxy.bytes().1 - before.1;
    // Two pulls of 128 KiB may be under way before the limit counts.
    let least = Duration::from_secs_f64((received - 330_000) as f64 / LIMIT as f64);
    assert!(
        began.elapsed() >= least,
        "{received} bytes in {:?}",
        began.elapsed()
    );
}

#[test]
fn rare_heartbeats_make_an_idle_node_quiet() {
    let mut cluster = Cluster::stopped(2, |node| {
        node.set("snapshot.enabled", "false")
            .set("status_interval", "0");
    });
    let proxies: Vec<Proxy> = {
        let broker = &cluster.broker.options.bind_address;
        let start = |node: &mut Node| {
            let proxy = Proxy::start(broker);
            node.set("nats.urls", &format!("['nats://{}']", proxy.address));
            proxy
        };
        cluster.nodes.iter_mut().map(start).collect()
    };
    cluster.nodes[0].set("edge.heartbeat", "3000");
    cluster.nodes[1].set("edge.heartbeat", "60000");
    Node::start_all(&mut cluster.nodes);
    cluster.nodes[1].execute("INSERT INTO item VALUES (1, 'a', 2)");
    cluster.converge();
    let received = |node: usize| proxies[node].bytes().1;
    let (usual, rare) = (received(0), received(1));
    // One node receives three heartbeats; the other receives none in that time.
    until("some heartbeats", || {
        (received(0) > usual + 300).then_some(())
    });
    assert!(received(1) < rare + 100, "{} bytes", received(1) - rare);
    // A message arrives at once all the same.
    cluster.nodes[0].execute("INSERT INTO item VALUES (2, 'b', 1)");
    cluster.converge();
}
