//! Several databases on one machine, or on one nats-server, with default names.

use crate::cluster::{Cluster, broker, client_of};
use crate::health::{serve, until_health};
use crate::node::{Node, until};

/// A second database in the first one's folder.
fn beside(first: &Node) -> Node {
    let mut second = Node::new(2);
    let path = format!("'{}'", first.file("two.db").display());
    second.set("db_path", &path);
    rusqlite::Connection::open(first.file("two.db"))
        .unwrap()
        .execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE jobs (id INTEGER PRIMARY KEY)")
        .unwrap();
    second
}

#[test]
fn two_databases_in_one_folder_do_not_share_a_mirror() {
    let broker = broker();
    let mut one = Node::new(1);
    client_of(&broker, &mut one);
    one.execute("CREATE TABLE item (id INTEGER PRIMARY KEY)");
    one.start();
    one.execute("INSERT INTO item VALUES (1)");
    until("the mirror", || {
        one.file("seq-map.cbor").exists().then_some(())
    });
    let mut two = beside(&one);
    client_of(&broker, &mut two);
    two.set("nats.stream_prefix", "'two'")
        .set("nats.subject_prefix", "'two'")
        .start();
    two.until_log("the positions are written to");
    let own = one.file("two.db-seq-map.cbor");
    assert!(own.exists());
    two.stop();
    two.set(
        "seq_map_path",
        &format!("'{}'", one.file("seq-map.cbor").display()),
    );
    // The configuration names the default file, and the file that this database has already goes
    // before it.
    two.start();
    two.until_log("connected to NATS");
    assert!(!two.log().contains("is missing"), "{}", two.log());
}

#[test]
fn the_second_embedded_server_names_the_key() {
    let mut one = Node::new(1);
    one.set("nats.bind_address", "'127.0.0.1:-1'").start();
    one.until_log("connected to NATS");
    let mut two = beside(&one);
    two.set("node_id", "1").start();
    two.until_log("set nats.store_dir to a directory of its own");
    two.kill();
    let store = format!("'{}'", one.file("nats-two").display());
    two.set("nats.store_dir", &store).start();
    two.until_log("connected to NATS");
    assert!(one.file("nats-two").is_dir());
}

/// Two applications with one nats-server and default names.
#[test]
fn another_application_on_the_same_streams_is_told() {
    let cluster = Cluster::start(1, |_| {});
    cluster.converge();
    let mut other = Node::new(2);
    client_of(&cluster.broker, &mut other);
    other.execute("CREATE TABLE jobs (id INTEGER PRIMARY KEY, payload)");
    other.execute("INSERT INTO jobs VALUES (1, 'a')");
    let port = serve(&mut other);
    other.start();
    until_health(
        port,
        503,
        &[
            "another application",
            "nats.subject_prefix",
            "here are jobs",
        ],
    );
    assert!(
        other.log().contains("nats.stream_prefix"),
        "{}",
        other.log()
    );
    // The second application's node keeps to itself until an operator acts.
    let held = "SELECT count(*) FROM __harmonylite___held";
    assert_eq!(cluster.nodes[0].number(held), 0);
    // With names of its own it works.
    other.stop();
    other
        .set("nats.stream_prefix", "'two'")
        .set("nats.subject_prefix", "'two'")
        .start();
    until_health(port, 200, &["\"problems\":{}"]);
    cluster.nodes[0].execute("INSERT INTO item VALUES (1, 'a', 0)");
    cluster.converge();
}
