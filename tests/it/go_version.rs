//! A cluster that ran the Go version becomes one of ours.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::node::{Node, free_port, pause, until};

#[path = "../../src/database/go_version/made_by_go.rs"]
mod made_by_go;

use made_by_go::{Cell, event};

/// The time in milliseconds, by whole seconds: enough for tests.
const NOW: &str = "CAST(strftime('%s', 'now') AS INTEGER) * 1000";

/// The tables and triggers of the Go version for the tables of these tests.
fn go() -> String {
    let item = [("id", "INTEGER"), ("value", ""), ("writer", "")];
    let word = [("a", "TEXT"), ("b", "BLOB"), ("v", "")];
    made_by_go::go_log("item", &item, NOW) + &made_by_go::go_log("word", &word, NOW)
}

const TABLES: &str = "
    CREATE TABLE word(a TEXT, b BLOB, v, PRIMARY KEY(a, b)) WITHOUT ROWID;
    INSERT INTO item VALUES (1, 'Dune', 0), (2, 'Solaris', 0), (3, 'Emma', 0);
    INSERT INTO word VALUES ('a', x'00', 1), ('b', x'ff', 2)";

fn of_go(count: u64) -> Cluster {
    Cluster::stopped(count, |node| {
        node.execute(TABLES);
        node.execute(&go());
    })
}

/// An application that writes all the time and must never be refused.
struct Application {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl Application {
    fn start(app: Connection, writer: u64) -> Application {
        let (stop, written) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (stopped, count) = (stop.clone(), written.clone());
        let thread = std::thread::spawn(move || {
            let mut insert = app
                .prepare("INSERT INTO item VALUES (?1, 'new', ?2)")
                .unwrap();
            let mut update = app
                .prepare("UPDATE item SET value = ?1 WHERE id = 3")
                .unwrap();
            while !stopped.load(Ordering::Relaxed) {
                let n = count.fetch_add(1, Ordering::Relaxed);
                insert.execute([1000 * writer + n, writer]).unwrap();
                update.execute([n]).unwrap();
                pause(3);
            }
        });
        Application {
            stop,
            written,
            thread,
        }
    }

    fn until_written(&self, more: u64) {
        let enough = self.written.load(Ordering::Relaxed) + more;
        until("the application writes", || {
            let written = self.written.load(Ordering::Relaxed);
            (written >= enough || self.thread.is_finished()).then_some(())
        });
    }

    /// Ends the application. Returns the number of rows that it wrote.
    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("no write failed");
        self.written.load(Ordering::Relaxed)
    }
}

#[test]
fn the_application_writes_while_go_gives_way() {
    let mut cluster = of_go(2);
    // Go was stopped before it published these rows.
    cluster.nodes[0].execute(
        "INSERT INTO item VALUES (4, 'Ubik', 0); UPDATE item SET value = 'Dune 2' WHERE id = 1;
         DELETE FROM item WHERE id = 2; DELETE FROM word WHERE a = 'a'",
    );
    cluster.nodes[1].execute("UPDATE word SET v = 3 WHERE a = 'b'");
    let applications: Vec<Application> = cluster
        .nodes
        .iter()
        .zip(1..)
        .map(|(node, writer)| Application::start(node.open(), writer))
        .collect();
    applications.iter().for_each(|app| app.until_written(20));
    Node::start_all(&mut cluster.nodes);
    for node in &cluster.nodes {
        node.until_log("managed by the Go version");
    }
    applications.iter().for_each(|app| app.until_written(20));
    let written: u64 = applications.into_iter().map(Application::end).sum();
    let rows = cluster.converge();
    let news = rows.iter().filter(|row| row.contains("'new'")).count();
    assert_eq!(news as u64, written);
    for there in [
        "item: 1 'Dune 2' 0",
        "item: 4 'Ubik' 0",
        "word: 'b' X'FF' 3",
    ] {
        assert!(
            rows.iter().any(|row| row == there),
            "{there} is not in {rows:?}"
        );
    }
    let gone = |row: &&String| row.starts_with("item: 2 ") || row.starts_with("word: 'a'");
    assert_eq!(rows.iter().find(gone), None);
    for node in &cluster.nodes {
        let left = "SELECT count(*) FROM sqlite_schema WHERE name GLOB '*_change_log_on_*'
                    OR name GLOB '*_change_log' OR name = '__harmonylite__schema_version'";
        assert_eq!(node.number(left), 0);
    }
}

#[test]
fn check_and_cleanup_know_a_database_of_go() {
    let cluster = of_go(1);
    let node = &cluster.nodes[0];
    node.execute("DELETE FROM item WHERE id < 3");
    let before = node.rows();
    let checked = node.run(&["-check"]);
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(
        checked.status.success() && said.contains("the 2 change(s)"),
        "{said}"
    );
    assert_eq!(
        node.number("SELECT count(*) FROM __harmonylite__item_change_log"),
        2
    );
    let cleaned = node.run(&["-cleanup"]);
    let said = String::from_utf8_lossy(&cleaned.stdout).into_owned();
    assert!(
        cleaned.status.success() && said.contains("2 change(s)"),
        "{said}"
    );
    let left = "SELECT count(*) FROM sqlite_schema WHERE name GLOB '__harmonylite__*'";
    assert_eq!((node.number(left), node.rows()), (0, before));
}

/// A framework's schema file is loaded on a new machine.
#[test]
fn tables_with_our_names_from_elsewhere_are_refused_with_rows_and_replaced_without() {
    let mut cluster = Cluster::stopped(1, |_| {});
    let node = &mut cluster.nodes[0];
    node.execute(
        "CREATE TABLE __harmonylite___unsent(id INTEGER PRIMARY KEY, note);
         INSERT INTO __harmonylite___unsent VALUES (1, 'x')",
    );
    for words in [&["-check"][..], &[]] {
        let refused = node.run(words);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            !refused.status.success() && said.contains("__harmonylite___unsent"),
            "{said}"
        );
        assert_eq!(
            node.number("SELECT count(*) FROM sqlite_schema WHERE type = 'trigger'"),
            0
        );
    }
    node.execute("DELETE FROM __harmonylite___unsent");
    node.start();
    node.until_log("1 table(s)");
    node.execute("INSERT INTO item VALUES (1, 'a', 0)");
    until("it is sent", || node.is_quiet().then_some(()));
}

const STREAM: &str = "harmonylite-changes-c-1";

/// Makes what Go left in the broker: its stream of `messages`, the first `gone` of them dropped,
/// and its buckets, one with a snapshot.
fn broker_of_go(cluster: &Cluster, messages: &[Vec<u8>], gone: u64) {
    let client = cluster.broker.client();
    let call = |call: &str, body: Value| client.api(call, &body).unwrap().unwrap();
    let subject = "harmonylite-change-log-1";
    let config = json!({
        "name": STREAM, "subjects": [subject], "retention": "limits", "storage": "file",
        "discard": "old", "max_msgs": 1024, "max_msgs_per_subject": -1, "max_consumers": -1,
        "num_replicas": 1, "allow_direct": true, "deny_delete": true,
    });
    call(&format!("STREAM.CREATE.{STREAM}"), config);
    for bucket in ["KV_e-harmonylite", "KV_harmonylite-schema-registry"] {
        let config = json!({
            "name": bucket, "subjects": [format!("$KV.{}.>", &bucket[3..])], "discard": "new",
            "max_msgs_per_subject": 1, "allow_rollup_hdrs": true, "deny_delete": true,
        });
        call(&format!("STREAM.CREATE.{bucket}"), config);
    }
    let store = "harmonylite-changes-snapshot-store";
    let config = json!({
        "name": format!("OBJ_{store}"), "description": "Bucket to store snapshot",
        "subjects": [format!("$O.{store}.C.>"), format!("$O.{store}.M.>")], "discard": "new",
        "allow_rollup_hdrs": true, "allow_direct": true,
    });
    call(&format!("STREAM.CREATE.OBJ_{store}"), config);
    client
        .publish(&format!("$O.{store}.C.x"), None, &[], b"of Go")
        .unwrap();
    messages
        .iter()
        .for_each(|message| publish(cluster, message));
    if gone > 0 {
        call(
            &format!("STREAM.PURGE.{STREAM}"),
            json!({ "seq": gone + 1 }),
        );
    }
}

/// Publishes as a Go node does, and waits until the broker has stored the message.
fn publish(cluster: &Cluster, message: &[u8]) {
    let client = cluster.broker.client();
    let last = || {
        let info = client.api(&format!("STREAM.INFO.{STREAM}"), &Value::Null);
        info.unwrap().unwrap()["state"]["last_seq"]
            .as_u64()
            .unwrap()
    };
    let before = last();
    let mut zstd = zstd::bulk::Compressor::new(3).unwrap();
    zstd.include_contentsize(message.len() >= 256).unwrap();
    let packed = zstd.compress(message).unwrap();
    client
        .publish("harmonylite-change-log-1", None, &[], &packed)
        .unwrap();
    until("it is stored", || (last() > before).then_some(()));
}

fn item<'a>(id: i64, value: &'a str) -> [(&'a str, Cell<'a>); 3] {
    let (id, value) = (Cell::Integer(id), Cell::Text(value));
    [("id", id), ("value", value), ("writer", Cell::Integer(2))]
}

fn word<'a>(a: &'a str, v: Cell<'a>) -> [(&'a str, Cell<'a>); 3] {
    [("a", Cell::Text(a)), ("b", Cell::Bytes(&[1])), ("v", v)]
}

#[test]
fn changes_that_go_published_and_a_node_had_not_read_are_applied() {
    let mut cluster = of_go(2);
    broker_of_go(
        &cluster,
        &[
            event(1, "insert", "item", &item(1, "dropped by the stream")),
            event(2, "insert", "item", &item(2, "dropped by the stream")),
            event(2, "insert", "item", &item(5, "not read by node 1")),
            event(2, "update", "item", &item(1, "Dune, by node 2")),
            event(2, "delete", "item", &[("id", Cell::Integer(3))]),
            event(2, "insert", "word", &word("t", Cell::Time(0))),
            event(2, "insert", "word", &word("u", Cell::Bool(true))),
            event(2, "insert", "word", &word("n", Cell::Null)),
            event(1, "insert", "elsewhere", &[("id", Cell::Integer(3))]),
        ],
        2,
    );
    cluster.nodes[1].execute(
        "PRAGMA trusted_schema = ON; INSERT INTO item VALUES (5, 'not read by node 1', 2);
         UPDATE item SET value = 'Dune, by node 2' WHERE id = 1; DELETE FROM item WHERE id = 3;
         UPDATE __harmonylite__item_change_log SET state = 1;
         INSERT INTO item VALUES (6, 'unpublished', 2)",
    );
    let mut ports = Vec::new();
    for (node, read) in cluster.nodes.iter_mut().zip([3, 9]) {
        // A CBOR map of stream to last message read, as Go wrote it.
        let map = [b"\xa1\x77", STREAM.as_bytes(), &[read]].concat();
        std::fs::write(node.file("seq-map.cbor"), map).unwrap();
        let port = free_port();
        node.set("health_check.enable", "true")
            .set("health_check.bind", &format!("'127.0.0.1:{port}'"));
        ports.push(port);
    }
    Node::start_all(&mut cluster.nodes);
    let wanted = [
        "item: 1 'Dune, by node 2' 2",
        "item: 2 'Solaris' 0",
        "item: 5 'not read by node 1' 2",
        "item: 6 'unpublished' 2",
        "word: 'n' X'01' NULL",
        "word: 't' X'01' '1970-01-01 00:00:00+00:00'",
        "word: 'u' X'01' 1",
    ];
    until("all of it is everywhere", || {
        let has_all = |node: &Node| {
            let rows = node.rows();
            wanted.iter().all(|row| rows.iter().any(|r| r == row)) && !rows[2].contains("Emma")
        };
        cluster.nodes.iter().all(has_all).then_some(())
    });
    assert_eq!(cluster.nodes[0].rows(), cluster.nodes[1].rows());
    for node in &cluster.nodes {
        node.until_log("holds changes of the Go version");
        let log = node.log();
        assert!(!log.contains("lacks changes"), "{log}");
        let held = "SELECT count(DISTINCT key) FROM __harmonylite___held";
        assert_eq!(node.number(held), 1, "of a table that is nowhere");
        let why = "changes of table \"elsewhere\" are held";
        assert_eq!(log.matches(why).count(), 1, "{log}");
        let kept = "SELECT count(*) FROM __harmonylite___quarantine";
        assert_eq!(node.number(kept), 0);
    }
    for port in &ports {
        until("all is well", || {
            let health = crate::health::health(*port);
            health.starts_with("HTTP/1.1 200 ").then_some(())
        });
    }
    // One node went back to the Go version.
    publish(
        &cluster,
        &event(7, "insert", "item", &item(7, "by Go, now")),
    );
    for (node, port) in cluster.nodes.iter().zip(ports) {
        let there = "SELECT count(*) FROM item WHERE id = 7";
        until("it arrives", || (node.number(there) == 1).then_some(()));
        node.until_log("node 7 runs the Go version");
        let health = crate::health::health(port);
        assert!(health.starts_with("HTTP/1.1 503 "), "{health}");
        assert!(
            health.contains("nodes [7] run the Go version") && health.contains("\"from_go\":8")
        );
    }
}
