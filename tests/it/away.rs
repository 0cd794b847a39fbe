//! A broker that is away for long: how rarely a node tries it, and when the node tries at once.

use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::cluster::{Cluster, broker, client_of};
use crate::node::{Node, free_port, until};

/// Accepts connections, notes the time of each and closes it.
fn closing_listener() -> (String, Arc<Mutex<Vec<Instant>>>) {
    let listener = TcpListener::bind(("127.0.0.1", free_port())).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let times = Arc::<Mutex<Vec<Instant>>>::default();
    let noted = times.clone();
    thread::spawn(move || {
        for connection in listener.incoming() {
            noted.lock().unwrap().push(Instant::now());
            drop(connection);
        }
    });
    (address, times)
}

#[test]
fn a_broker_that_is_away_is_tried_by_one_thread_at_a_time_and_ever_more_rarely() {
    let (address, times) = closing_listener();
    let mut node = Node::new(1);
    node.set("nats.urls", &format!("['nats://{address}']"));
    node.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, value)");
    node.start();
    // All threads try at first, and each attempt connects a second time, to learn about TLS.
    let waits = until("some attempts", || {
        let times = times.lock().unwrap();
        let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
        let waits: Vec<_> = gaps
            .filter(|gap| *gap > Duration::from_millis(100))
            .collect();
        (waits.len() >= 12).then_some(waits)
    });
    let began = times.lock().unwrap()[0];
    assert!(began.elapsed() > Duration::from_secs(3), "{waits:?}");
    let sum = |waits: &[Duration]| waits.iter().sum::<Duration>();
    assert!(sum(&waits[9..]) > sum(&waits[..3]), "{waits:?}");
    node.check();
}

#[test]
fn a_short_outage_is_over_within_moments() {
    let mut cluster = Cluster::start(2, |node| {
        node.set("nats.reconnect_wait_seconds", "2");
    });
    cluster.nodes[0].execute("INSERT INTO item VALUES (1, 'a', 0)");
    cluster.converge();
    cluster.broker.kill();
    for node in &cluster.nodes {
        node.until_log("changes are captured and kept meanwhile");
    }
    cluster.nodes[0].execute("INSERT INTO item VALUES (2, 'b', 0)");
    cluster.broker.start_again();
    let began = Instant::now();
    cluster.converge();
    // By then no wait is near the longest one of five minutes.
    assert!(began.elapsed() < Duration::from_secs(15));
}

/// A node whose next attempt would come too late for the test.
fn patient(node: &mut Node) {
    node.set("nats.reconnect_wait_seconds", "3600")
        .set("logging.level", "'debug'");
}

#[test]
fn a_signal_tries_at_once() {
    let mut broker = broker();
    let mut node = Node::new(1);
    client_of(&broker, &mut node);
    patient(&mut node);
    node.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, value)");
    broker.kill();
    node.start();
    node.until_log("changes are captured and kept meanwhile");
    node.execute("INSERT INTO item VALUES (1, 'a')");
    broker.start_again();
    node.signal(Signal::HUP);
    until("the row is sent", || node.is_quiet().then_some(()));
}

/// The daemon runs in a network namespace of its own, whose only link is down at first.
#[test]
fn a_change_of_the_network_tries_at_once() {
    let mut node = Node::new(1);
    patient(&mut node);
    let port = free_port();
    node.set("nats.urls", &format!("['nats://127.0.0.1:{port}']"));
    node.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, value)");
    let daemon = node.command(&[]);
    let words = daemon.get_args().map(|word| word.to_str().unwrap());
    let words = words.map(|word| format!("'{word}'")).collect::<Vec<_>>();
    let script = format!(
        "'{server}' -js -sd '{store}' -a 0.0.0.0 -p {port} >/dev/null 2>&1 &
         '{program}' {words} >'{log}' 2>&1 &
         daemon=$!
         until grep -q 'kept meanwhile' '{log}'; do sleep 0.02; done
         ip link set lo up
         until grep -q 'connected to NATS, publishing' '{log}' || ! kill -0 $daemon; do
             sleep 0.02
         done
         kill %1 %2; wait",
        server = crate::stream::node::binary().display(),
        store = node.file("js").display(),
        program = daemon.get_program().to_str().unwrap(),
        words = words.join(" "),
        log = node.file("log").display(),
    );
    let mut shell = Command::new("unshare")
        .args(["-Urn", "--kill-child", "--fork", "bash", "-c", &script])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let connects = || node.log().contains("connected to NATS, publishing");
    let deadline = Instant::now() + Duration::from_secs(40);
    let ended = loop {
        if let Some(status) = shell.try_wait().unwrap() {
            break Some(status);
        }
        if Instant::now() > deadline {
            break None;
        }
        crate::node::pause(20);
    };
    let _ = shell.kill();
    let _ = shell.wait();
    assert!(connects(), "{ended:?}\n{}", node.log());
}
