//! Nodes whose broker is away for a while.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::cluster::Cluster;
use crate::node::{Node, until};

#[test]
fn an_outage_with_writes_on_both_sides() {
    let mut cluster = Cluster::start(2, |_| {});
    cluster.nodes[0].execute("INSERT INTO item VALUES (1, 'before', 0), (2, 'before', 0)");
    cluster.converge();
    for round in 0..3 {
        cluster.broker.kill();
        for (n, node) in cluster.nodes.iter().enumerate() {
            for i in 0..30 {
                let id = 10 + i + 100 * n as i64;
                node.execute(&format!(
                    "REPLACE INTO item VALUES ({id}, 'during {round}', {n})"
                ));
                node.execute(&format!(
                    "UPDATE item SET value = {i}, writer = {n} WHERE id = 1"
                ));
            }
        }
        cluster.nodes[round % 2].execute("DELETE FROM item WHERE id = 2");
        cluster.broker.start_again();
        assert_eq!(cluster.converge().len(), 61);
    }
    // No process was started again for that.
    for node in &cluster.nodes {
        assert_eq!(node.log().matches("harmonylite 0.").count(), 1);
    }
}

#[test]
fn a_start_without_any_broker() {
    let mut cluster = Cluster::stopped(2, |_| {});
    cluster.broker.kill();
    Node::start_all(&mut cluster.nodes);
    for node in &cluster.nodes {
        node.until_log("changes are captured and kept meanwhile");
    }
    cluster.nodes[0].execute("INSERT INTO item VALUES (1, 'a', 0)");
    cluster.nodes[1].execute("INSERT INTO item VALUES (2, 'b', 1)");
    // The rows are captured: the change log is empty, and the marks stand.
    crate::node::until("the capture", || {
        let log = "SELECT count(*) FROM __harmonylite___change_log_global";
        (cluster.nodes[0].number(log) == 0).then_some(())
    });
    assert!(!cluster.nodes[0].is_quiet());
    cluster.broker.start_again();
    assert_eq!(cluster.converge().len(), 2);
}

#[test]
fn giving_up_is_possible() {
    let mut cluster = Cluster::stopped(1, |node| {
        node.set("nats.connect_retries", "2");
    });
    cluster.broker.kill();
    let node = &mut cluster.nodes[0];
    node.start();
    assert_eq!(node.wait().code(), Some(1));
    assert!(
        node.log().contains("gave up after 3 tries"),
        "{}",
        node.log()
    );
}

#[test]
fn positions_are_shown_and_a_missing_file_is_made_anew() {
    let mut cluster = Cluster::start(2, |_| {});
    cluster.nodes[0].execute("INSERT INTO item VALUES (1, 'a', 0)");
    cluster.nodes[1].execute("INSERT INTO item VALUES (2, 'b', 1)");
    cluster.converge();
    let node = &mut cluster.nodes[1];
    let file = node.file("seq-map.cbor");
    let read = || -> std::collections::BTreeMap<String, u64> {
        ciborium::from_reader(fs::File::open(&file).unwrap()).unwrap()
    };
    node.stop();
    let position = node.number("SELECT seq FROM __harmonylite___seq_map");
    assert_eq!(
        read().into_iter().collect::<Vec<_>>(),
        [("harmonylite-changes-c-1".into(), position as u64)]
    );
    fs::remove_file(&file).unwrap();
    node.start();
    cluster.nodes[0].execute("INSERT INTO item VALUES (3, 'c', 0)");
    cluster.converge();
    crate::node::until("the file is back", || file.exists().then_some(()));
    crate::node::until("it shows the new position", || {
        (read()["harmonylite-changes-c-1"] > position as u64).then_some(())
    });
}

/// A broker that accepts connections and refuses every message, as with a full disk.
#[test]
fn a_broker_that_refuses_every_message() {
    let cluster = Cluster::start(1, |node| {
        node.set("logging.level", "'debug'");
    });
    let node = &cluster.nodes[0];
    node.execute("INSERT INTO item VALUES (1, 'a', 0)");
    node.until_log("connected to NATS"); // so that the stream is there
    cluster.converge();
    let client = cluster.broker.client();
    let call =
        |subject: &str, body: &serde_json::Value| client.api(subject, body).unwrap().unwrap();
    let names = call("STREAM.NAMES", &json!({}));
    let names = names["streams"].as_array().unwrap().iter();
    let limit = |most: i64| {
        for name in names.clone().map(|name| name.as_str().unwrap()) {
            if !name.contains('_') {
                let mut info = call(&format!("STREAM.INFO.{name}"), &json!({}));
                info["config"]["max_msg_size"] = json!(most);
                call(&format!("STREAM.UPDATE.{name}"), &info["config"]);
            }
        }
    };
    limit(10);
    let began = Instant::now();
    node.execute("INSERT INTO item VALUES (2, 'b', 0)");
    let refusals = || node.log().matches("a frame was not stored").count();
    until("four tries", || (refusals() >= 4).then_some(()));
    // Pauses of 250, 500 and 1000 ms lie between them.
    assert!(began.elapsed() > Duration::from_millis(1700));
    let log = node.log();
    let mut warnings = log.lines().filter(|line| line.contains("a frame was not"));
    assert!(warnings.next().unwrap().to_lowercase().contains("warn"));
    assert!(warnings.all(|line| !line.to_lowercase().contains("warn")));
    limit(-1);
    cluster.converge();
}

/// The database is a symbolic link: the daemon watches the folder of the real file, and its own
/// files lie there, too.
#[test]
fn a_database_behind_a_symbolic_link() {
    let mut cluster = Cluster::stopped(1, |_| {});
    let node = &mut cluster.nodes[0];
    fs::create_dir(node.file("data")).unwrap();
    fs::rename(node.database(), node.file("data/real.db")).unwrap();
    symlink("data/real.db", node.database()).unwrap();
    node.start();
    node.execute("INSERT INTO item VALUES (1, 'a', 0)");
    node.execute("INSERT INTO item VALUES (2, 'b', 0)");
    until("it is sent", || node.is_quiet().then_some(()));
    node.stop();
    assert!(node.file("data/seq-map.cbor").exists() && !node.file("seq-map.cbor").exists());
    assert!(node.file("data/real.db-harmonylite.lock").exists());
}

/// A daemon that went on would miss everything: the application writes to a different file.
#[test]
fn a_database_that_is_replaced_under_the_daemon() {
    let mut cluster = Cluster::start(1, |_| {});
    let node = &mut cluster.nodes[0];
    node.until_log("connected to NATS, publishing"); // the copy is to have our triggers
    node.execute("INSERT INTO item VALUES (1, 'a', 0)");
    until("it is sent", || node.is_quiet().then_some(()));
    node.execute(&format!("VACUUM INTO '{}'", node.file("copy").display()));
    fs::rename(node.file("copy"), node.database()).unwrap();
    assert_eq!(node.wait().code(), Some(1));
    node.until_log("it takes the file that is there now");
    for left in ["app.db-wal", "app.db-shm"] {
        let _ = fs::remove_file(node.file(left)); // as whoever replaces a database is to do
    }
    node.start();
    node.execute("INSERT INTO item VALUES (2, 'b', 0)");
    until("it is sent", || node.is_quiet().then_some(()));
    fs::remove_file(node.database()).unwrap();
    assert_eq!(node.wait().code(), Some(1));
}
