//! `/health` over HTTP.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use rusqlite::Connection;
use rustix::process::Signal;
use sha2::{Digest, Sha256};

use harmonylite::http::client;
use harmonylite::stream::key_value::KeyValue;

use crate::cluster::Cluster;
use crate::node::{Node, free_port, until};

/// The status and everything after it; empty while nobody listens.
pub fn ask(port: u16, request: &str) -> String {
    let mut answer = String::new();
    if let Ok(mut connection) = TcpStream::connect(("127.0.0.1", port)) {
        // The server may reset a connection that it refuses early.
        let _ = connection.write_all(request.as_bytes());
        let _ = connection.read_to_string(&mut answer);
    }
    answer
}

pub fn health(port: u16) -> String {
    ask(port, "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

pub fn until_health(port: u16, status: u16, texts: &[&str]) {
    until("the health", || {
        let answer = health(port);
        let is_so = answer.starts_with(&format!("HTTP/1.1 {status} "));
        let says = texts.iter().all(|text| answer.contains(text));
        (is_so && says).then_some(())
    });
}

pub fn serve(node: &mut Node) -> u16 {
    let port = free_port();
    node.set("prometheus.enable", "true")
        .set("prometheus.bind", &format!("'127.0.0.1:{port}'"));
    port
}

#[test]
fn a_problem_is_named_until_it_is_gone() {
    let mut cluster = Cluster::stopped(1, |_| {});
    let disk = cluster.nodes[0].file("disk");
    let path = format!("'{}'", disk.join("snapshots").display());
    cluster.nodes[0]
        .set("snapshot.store", "'file'")
        .set("snapshot.file.path", &path);
    let port = serve(&mut cluster.nodes[0]);
    cluster.nodes[0].start();
    until_health(port, 503, &["\"snapshots\":", "is its disk mounted?"]);
    std::fs::create_dir_all(disk.join("snapshots")).unwrap();
    until_health(port, 200, &["\"status\":\"healthy\"", "\"node_id\":1"]);
    // The fields of the Go version, and further ones that a monitor needs.
    let fields = [
        "nats_connected\":true",
        "db_connected\":true",
        "cdc_installed\":true",
    ];
    until_health(port, 200, &fields);
    let fields = [
        "\"lag_seconds\":0",
        "\"pending\":0",
        "\"last_error\":{",
        "store",
    ];
    until_health(port, 200, &fields);

    cluster.broker.kill();
    let names = ["\"connecting\":", "\"reading harmonylite-changes-"];
    until_health(port, 503, &names);
    cluster.broker.start_again();
    until_health(port, 200, &["\"problems\":{}"]);
}

#[test]
fn missed_messages_are_named_until_a_snapshot_brings_them() {
    let mut cluster = Cluster::stopped(2, |node| {
        node.set("replication_log.max_entries", "16")
            .set("snapshot.leader_ttl", "2000");
    });
    let port = serve(&mut cluster.nodes[1]);
    Node::start_all(&mut cluster.nodes);
    cluster.nodes[0].execute("INSERT INTO item VALUES (0, 'a', 0)");
    cluster.converge();
    cluster.nodes[1].set("snapshot.enabled", "false").stop();
    for id in 1..40 {
        cluster.nodes[0].execute(&format!("INSERT INTO item VALUES ({id}, 'b', 0)"));
        // Each row is a message of its own.
        until("it is sent", || cluster.nodes[0].is_quiet().then_some(()));
    }
    cluster.nodes[1].start();
    until_health(port, 503, &["gap in harmonylite-changes-", "lacks changes"]);
    cluster.nodes[1].stop();
    cluster.nodes[1].set("snapshot.enabled", "true").start();
    until_health(port, 200, &["\"problems\":{}"]);
    assert_eq!(cluster.converge().len(), 40);
}

#[test]
fn rows_that_wait_for_a_migration() {
    let mut cluster = Cluster::stopped(2, |_| {});
    let port = serve(&mut cluster.nodes[1]);
    Node::start_all(&mut cluster.nodes);
    cluster.converge();
    let new = "CREATE TABLE later (id INTEGER PRIMARY KEY, value)";
    cluster.nodes[0].execute(new);
    cluster.nodes[0].execute("INSERT INTO later VALUES (1, 'a')");
    until_health(port, 200, &["\"holds_rows\":true", "\"held\":1,"]);
    cluster.nodes[1].execute(new);
    until_health(port, 200, &["\"holds_rows\":false", "\"held\":0,"]);
    cluster.nodes[1].until_log("no change of table \"later\" is held any more");
    assert_eq!(cluster.nodes[1].number("SELECT count(*) FROM later"), 1);
}

#[test]
fn requests_that_make_no_sense() {
    let mut node = Node::new(1);
    let port = serve(&mut node);
    node.set("nats.bind_address", "'127.0.0.1:-1'").start();
    node.until_log("health at http://127.0.0.1:");
    let status = |request: &str| ask(port, request).get(..12).map(str::to_owned);
    for (request, expected) in [
        ("GET /nowhere HTTP/1.1\r\n\r\n", "HTTP/1.1 404"),
        ("POST /health HTTP/1.1\r\n\r\n", "HTTP/1.1 405"),
        (
            "GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n",
            "HTTP/1.1 403",
        ),
        ("\x16\x03\x01\r\n\r\n", "HTTP/1.1 400"),
    ] {
        assert_eq!(status(request).as_deref(), Some(expected), "{request:?}");
    }
    let head = ask(port, "HEAD /health?x HTTP/1.0\r\n\r\n");
    assert!(
        head.contains("application/json") && head.ends_with("\r\n\r\n"),
        "{head}"
    );
    // A client that says nothing delays no other for long.
    let _silent = TcpStream::connect(("127.0.0.1", port)).unwrap();
    until_health(port, 200, &[]);

    let mut second = Node::new(2);
    second.set("prometheus.enable", "true");
    second
        .set("prometheus.bind", &format!("'127.0.0.1:{port}'"))
        .start();
    assert_eq!(second.wait().code(), Some(1));
    let says = format!("prometheus.bind: listen on 127.0.0.1:{port}: Address already in use");
    assert!(second.log().contains(&says), "{}", second.log());
    let tables = "SELECT count(*) FROM sqlite_schema";
    assert_eq!(second.number(tables), 0, "nothing is changed");
}

/// The daemon waits as long as it takes, and a client gets its answer at once.
#[test]
fn an_application_that_keeps_the_database_locked() {
    let mut node = Node::new(1);
    let port = serve(&mut node);
    node.execute("CREATE TABLE item (id INTEGER PRIMARY KEY)");
    node.set("nats.bind_address", "'127.0.0.1:-1'").start();
    until_health(port, 200, &[]);
    let app = node.open();
    app.execute_batch("INSERT INTO item VALUES (1); BEGIN IMMEDIATE")
        .unwrap();
    until_health(port, 503, &["\"database\":", "write lock"]);
    app.execute_batch("ROLLBACK").unwrap();
    until_health(port, 200, &["\"problems\":{}"]);
}

/// Damages a snapshot in its folder, or its entry in the manifest.
type Spoil = fn(&Path, &mut serde_json::Value);

fn another_sha256(_: &Path, entry: &mut serde_json::Value) {
    entry["sha256"] = "0".repeat(64).into();
}

fn damaged_before_it_was_packed(object: &Path, entry: &mut serde_json::Value) {
    let mut database = zstd::decode_all(fs::File::open(object).unwrap()).unwrap();
    let table = {
        let file = object.with_extension("sqlite");
        fs::write(&file, &database).unwrap();
        let conn = Connection::open(&file).unwrap();
        let root = "SELECT rootpage FROM sqlite_schema WHERE name = 'item'";
        conn.query_row(root, [], |r| r.get::<_, usize>(0)).unwrap()
    };
    database[(table - 1) * 4096..table * 4096].fill(0xff);
    let packed = zstd::encode_all(&database[..], 3).unwrap();
    let hash = Sha256::digest(&packed);
    let hash: String = hash.iter().map(|b| format!("{b:02x}")).collect();
    entry["sha256"] = hash.into();
    entry["size"] = packed.len().into();
    fs::write(object, packed).unwrap();
}

fn larger_than_the_disk(_: &Path, entry: &mut serde_json::Value) {
    entry["database_size"] = (1_u64 << 43).into();
}

#[test]
fn a_snapshot_that_is_no_use_is_named_until_there_is_another() {
    for (spoil, says) in [
        (
            another_sha256 as Spoil,
            "its SHA-256 is not that of the manifest",
        ),
        (damaged_before_it_was_packed, "quick_check: "),
        (larger_than_the_disk, "needs"),
    ] {
        let store = tempfile::tempdir().unwrap();
        let mut cluster = Cluster::stopped(2, |node| {
            node.set("snapshot.store", "'file'").set(
                "snapshot.file.path",
                &format!("'{}'", store.path().display()),
            );
        });
        let port = serve(&mut cluster.nodes[1]);
        cluster.nodes[0].execute("INSERT INTO item VALUES (1, 'a', 0)");
        cluster.nodes[0].start();
        cluster.nodes[0].until_log("made, because");
        cluster.nodes[0].until_log("connected to NATS");
        cluster.nodes[0].stop();
        let manifest = store.path().join("manifest.json");
        let mut listed: serde_json::Value =
            serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
        let entry = &mut listed["snapshots"][0];
        let object = store.path().join(entry["name"].as_str().unwrap());
        spoil(&object, entry);
        fs::write(&manifest, listed.to_string()).unwrap();
        // Where nothing is announced, the store is believed.
        let client = cluster.broker.client();
        let bucket = KeyValue::open(&client, "harmonylite-changes-meta");
        for key in ["snapshot", "snapshots"] {
            bucket.delete(key).unwrap();
        }

        cluster.nodes[1].start();
        until_health(port, 503, &["\"snapshots\":", says]);
        cluster.nodes[0].start();
        until("it runs again", || {
            let connected = cluster.nodes[0].log().matches("connected to NATS").count();
            (connected == 2).then_some(())
        });
        cluster.nodes[0].signal(Signal::USR1);
        until_health(port, 200, &["\"problems\":{}"]);
        assert_eq!(cluster.converge().len(), 1);
    }
}

/// By default the socket beside the database is there; an empty `control_socket` turns it off.
#[test]
fn a_socket_beside_the_database() {
    let mut node = Node::new(1);
    node.execute("CREATE TABLE item (id INTEGER PRIMARY KEY)");
    node.set("nats.bind_address", "'127.0.0.1:-1'").start();
    let socket = node.file("app.db-harmonylite.sock");
    let ready = || {
        let answer = client::get(&socket, "/ready").ok()?;
        let status = answer.status;
        let text = answer.text(1 << 20).ok()?;
        (status == 200).then_some(text)
    };
    let told = until("it is ready", ready);
    assert!(told.contains("\"ready\":true"), "{told}");
    let nowhere = client::get(&socket, "/nowhere").unwrap();
    assert_eq!(nowhere.status, 404);
    node.stop();
    assert!(!socket.exists(), "it goes with the daemon");

    let before = node.log().matches("connected to NATS").count();
    node.set("control_socket", "''").start();
    until("it is connected again", || {
        (node.log().matches("connected to NATS").count() > before).then_some(())
    });
    assert!(!socket.exists());
    let elsewhere = node.file("no/such/folder/a.sock");
    node.stop();
    node.set("control_socket", &format!("'{}'", elsewhere.display()));
    node.start();
    assert_eq!(node.wait().code(), Some(1));
    assert!(node.log().contains("control_socket is "), "{}", node.log());
}

/// The node calls a monitor that cannot reach it, while all is well.
#[test]
fn a_heartbeat_goes_out_while_all_is_well() {
    let monitor = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = monitor.local_addr().unwrap();
    let mut node = Node::new(1);
    node.execute("CREATE TABLE item (id INTEGER PRIMARY KEY)");
    node.set("nats.bind_address", "'127.0.0.1:-1'")
        .set("logging.level", "'trace'")
        .set("health_check.heartbeat_interval", "1000")
        .set(
            "health_check.heartbeat_url",
            &format!("'http://{address}/hidden-token'"),
        )
        .start();
    for _ in 0..2 {
        let (mut client, _) = monitor.accept().unwrap();
        let mut head = [0; 4096];
        let read = client.read(&mut head).unwrap();
        let head = String::from_utf8_lossy(&head[..read]).into_owned();
        assert!(head.starts_with("GET /hidden-token HTTP/1.1\r\n"), "{head}");
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        client.write_all(answer).unwrap();
    }
    node.stop();
    assert!(!node.log().contains("hidden-token"), "{}", node.log());
    node.set("health_check.heartbeat_url", "'hidden-token'")
        .start();
    assert_eq!(node.wait().code(), Some(1));
    let log = node.log();
    assert!(
        log.contains("health_check.heartbeat_url must be a URL"),
        "{log}"
    );
    assert!(!log.contains("hidden-token"), "{log}");
}

/// The path and the answer are those of the Go version.
#[test]
fn a_health_check_has_an_address_and_a_path_of_its_own() {
    let mut cluster = Cluster::stopped(1, |_| {});
    let port = free_port();
    let bind = format!("'127.0.0.1:{port}'");
    let node = &mut cluster.nodes[0];
    node.set("health_check.enable", "true")
        .set("health_check.bind", &bind)
        .set("health_check.path", "'/up'")
        .set("health_check.detailed", "false");
    node.start();
    let answer = until("it is well", || {
        let answer = ask(port, "GET /up HTTP/1.1\r\nHost: localhost\r\n\r\n");
        answer.starts_with("HTTP/1.1 200 ").then_some(answer)
    });
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    assert!(health(port).starts_with("HTTP/1.1 404 "));
}
