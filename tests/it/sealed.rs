//! The cluster key: what strangers with a login write is refused, and keys change while nodes run.

use std::fs;

use serde_json::json;

use harmonylite::model::frame::{FrameBuilder, KeyColumn, TableHeader};
use harmonylite::model::value::Value;
use harmonylite::model::version::Version;
use harmonylite::seal::{Seal, SealPlace, key};
use harmonylite::stream::client::Client;
use harmonylite::stream::key_value::KeyValue;
use harmonylite::stream::{Reader, StreamError, Writer};
use rustix::process::Signal;

use crate::cluster::{Cluster, client_of, converge};
use crate::health::{health, serve, until_health};
use crate::node::{Node, until};
use crate::stream::node::streams;

const STREAM: &str = "harmonylite-changes-c-1";
const META: &str = "harmonylite-changes-meta";

/// Gives a node a file with these keys, for its next start.
fn give(node: &mut Node, keys: &[&str], requires: bool) {
    let file = node.file("cluster.key");
    fs::write(&file, keys.concat()).unwrap();
    node.set("cluster_key_file", &format!("'{}'", file.display()))
        .set("require_key", &requires.to_string());
}

fn restart(node: &mut Node, change: impl FnOnce(&mut Node)) {
    node.stop();
    change(node);
    node.start();
}

/// Keeps snapshots in a folder of the first node, and makes them on demand.
fn in_a_folder(nodes: &mut [Node]) {
    let store = nodes[0].file("store");
    fs::create_dir_all(&store).unwrap();
    for node in nodes {
        node.set("snapshot.store", "'file'")
            .set("snapshot.file.path", &format!("'{}'", store.display()));
    }
}

fn snapshot(node: &Node) {
    let made = || node.log().matches(" made, because ").count();
    let before = made();
    node.signal(Signal::USR1);
    until("a snapshot is made", || (made() > before).then_some(()));
}

/// Message `sequence` of the stream as the broker has it, in base64.
fn stored(client: &Client, sequence: u64) -> String {
    let call = format!("STREAM.MSG.GET.{STREAM}");
    let reply = client.api(&call, &json!({ "seq": sequence })).unwrap();
    reply.unwrap()["message"]["data"].as_str().unwrap().into()
}

/// A frame with one row, as a node without the key would send it.
fn frame(id: i64) -> Vec<u8> {
    let column = KeyColumn {
        name: "id".into(),
        affinity: "INTEGER",
        collation: "BINARY".into(),
    };
    let header = TableHeader::new(1, "item", &[column], &["id", "value", "writer"]);
    let version = Version {
        hlc: 1_800_000_000_000 << 16,
        node: 2,
    };
    let values = [
        Value::Integer(id),
        Value::Text(b"forged"),
        Value::Integer(9),
    ];
    let mut frame = FrameBuilder::default();
    frame.upsert(&header, version, &[], values.into_iter());
    frame.finish()
}

/// What a holder of this key sends under this id.
fn sealed_by(key: &str, id: &str, frame: &[u8]) -> Vec<u8> {
    let seal = Seal::new(key::parse(key).unwrap(), true);
    let place = SealPlace::Message { stream: STREAM, id };
    seal.seal(place, frame).into_owned()
}

/// Stores a message under this id in the first stream.
fn put(cluster: &Cluster, id: &str, message: &[u8]) {
    let mut options = streams();
    options.stream_prefix = "harmonylite-changes".into();
    options.subject_prefix = "harmonylite-change-log".into();
    let mut writer = cluster.broker.writer(&options);
    writer.send(1, id, message, 1).unwrap();
    writer.flush();
    assert!(writer.acks().recv().unwrap().result.is_ok());
}

/// A stranger who has a login, and no key.
#[test]
fn what_a_stranger_writes_is_refused_and_counted() {
    let key = key::make(1).unwrap();
    let mut cluster = Cluster::stopped(2, |node| give(node, &[&key], true));
    in_a_folder(&mut cluster.nodes);
    let ports: Vec<u16> = cluster.nodes.iter_mut().map(serve).collect();
    Node::start_all(&mut cluster.nodes);
    cluster.nodes[0].execute("INSERT INTO item VALUES (1, 'plain words', 1)");
    cluster.nodes[1].execute("INSERT INTO item VALUES (2, 'b', 2)");
    assert_eq!(cluster.converge().len(), 2);
    snapshot(&cluster.nodes[0]);

    // Nothing that the broker or the store has can be read.
    let client = cluster.broker.client();
    let sealed = "SExTA"; // HLS in base64, and the first bits of 1
    assert!(stored(&client, 1).starts_with(sealed));
    let bucket = KeyValue::open(&client, META);
    for name in ["settings", "founder", "snapshot", "publisher-1"] {
        let error = bucket.get(name).unwrap_err().to_string();
        assert!(error.contains("this node has none"), "{name}: {error}");
    }
    let store = cluster.nodes[0].file("store");
    for entry in fs::read_dir(&store).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        assert!(bytes.starts_with(b"HLS\x02"));
    }

    // A forged frame, and a sealed one under a different id: all go into the stream.
    let replayed = sealed_by(&key, "before", &frame(3));
    put(&cluster, "forged", &frame(3));
    put(&cluster, "replayed", &replayed);
    // Poisoned keys.
    for (name, value) in [
        ("settings", &b"garbage"[..]),
        ("founder", b"99"),
        ("snapshot", b"{}"),
        ("snapshots", b"[]"),
        ("publisher-2", b""),
    ] {
        bucket.put(name, value).unwrap();
    }
    for (node, port) in cluster.nodes.iter_mut().zip(&ports) {
        until_health(
            *port,
            503,
            &["\"refused\":", "cluster key", "refused, the last"],
        );
        // It comes back, and writes the poisoned keys anew.
        node.kill();
        node.start();
    }
    cluster.nodes[0].execute("INSERT INTO item VALUES (4, 'c', 1)");
    cluster.nodes[1].execute("INSERT INTO item VALUES (5, 'd', 2)");
    let rows = cluster.converge();
    assert_eq!(rows.len(), 4, "{rows:?}");
    until("the settings are sealed again", || {
        bucket.get("settings").is_err().then_some(())
    });

    // A replaced manifest and a replaced object.
    for entry in fs::read_dir(&store).unwrap() {
        fs::write(entry.unwrap().path(), b"{\"format\":1}").unwrap();
    }
    let third = Node::new(3);
    fs::remove_file(third.database()).unwrap();
    cluster.nodes.push(third);
    let (others, third) = cluster.nodes.split_at_mut(2);
    client_of(&cluster.broker, &mut third[0]);
    give(&mut third[0], &[&key], true);
    let folder = format!("'{}'", store.display());
    third[0]
        .set("snapshot.store", "'file'")
        .set("snapshot.file.path", &folder);
    third[0].start();
    third[0].until_log("refused: object manifest.json: it is not sealed");
    snapshot(&others[0]);
    cluster.nodes[0].execute("INSERT INTO item VALUES (6, 'e', 1)");
    assert_eq!(cluster.converge().len(), 5);
    for (node, port) in cluster.nodes.iter().zip(&ports) {
        assert!(!health(*port).contains("\"refused\":0,"));
        let secret = key.split_once('-').unwrap().1.trim();
        assert!(!node.log().contains(secret));
    }
}

/// A rogue node: it has a login and HarmonyLite, and no key or a different one.
#[test]
fn a_node_without_the_key_gets_nothing_and_says_why() {
    let (key, other) = (key::make(1).unwrap(), key::make(1).unwrap());
    let cluster = Cluster::start(1, |node| give(node, &[&key], true));
    cluster.nodes[0].execute("INSERT INTO item VALUES (1, 'a', 1)");
    cluster.converge();
    let mut rogue = Node::new(2);
    client_of(&cluster.broker, &mut rogue).set("snapshot.leader_ttl", "2000");
    rogue.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, value, writer)");
    rogue.execute("INSERT INTO item VALUES (7, 'rogue', 2)");
    rogue.start();
    rogue.until_log("sealed with a cluster key, and this node has none: set cluster_key_file");
    let mut reader = cluster.broker.reader(&{
        let mut options = streams();
        options.stream_prefix = "harmonylite-changes".into();
        options
    });
    let stop = crossbeam_channel::never();
    let read = until("the reader gives up", || {
        match reader.fetch(1, std::time::Duration::from_secs(5), &stop) {
            Err(StreamError::ConsumerForgotten) => None,
            read => Some(read),
        }
    });
    assert!(
        matches!(read, Err(StreamError::Refused(why)) if why.contains("message 1: it is sealed"))
    );
    // With a key of its own it may write, and nobody takes it.
    restart(&mut rogue, |rogue| give(rogue, &[&other], true));
    cluster.nodes[0].until_log("refused: ");
    cluster.nodes[0].execute("INSERT INTO item VALUES (2, 'b', 1)");
    assert_eq!(converge(&cluster.nodes).len(), 2);
    assert_eq!(rogue.number("SELECT count(*) FROM item"), 1);
}

/// Writes a row on each node. Returns the number of rows that were written so far.
fn rows_for_each() -> impl FnMut(&[Node]) -> usize {
    let mut written = 0;
    move |nodes| {
        for node in nodes {
            node.execute(&format!("INSERT INTO item VALUES ({written}, 'x', 0)"));
            written += 1;
        }
        written
    }
}

#[test]
fn an_open_cluster_is_sealed_while_it_runs() {
    let key = key::make(1).unwrap();
    let mut cluster = Cluster::stopped(3, |_| {});
    in_a_folder(&mut cluster.nodes);
    Node::start_all(&mut cluster.nodes);
    let mut write = rows_for_each();
    write(&cluster.nodes);
    cluster.converge();
    // Those that have no key yet wait for it, and lose nothing.
    for n in 0..3 {
        restart(&mut cluster.nodes[n], |node| give(node, &[&key], false));
        write(&cluster.nodes);
        if n == 0 {
            cluster.nodes[2].until_log("sealed with a cluster key, and this node has none");
        }
    }
    let rows = write(&cluster.nodes);
    assert_eq!(cluster.converge().len(), rows);
    for n in 0..3 {
        restart(&mut cluster.nodes[n], |node| give(node, &[&key], true));
        let rows = write(&cluster.nodes);
        assert_eq!(cluster.converge().len(), rows);
    }
    // A new node reads what was sent before there was a key.
    let mut fourth = Node::new(4);
    client_of(&cluster.broker, &mut fourth).set("snapshot.enabled", "false");
    give(&mut fourth, &[&key], true);
    fourth.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, value, writer)");
    let port = serve(&mut fourth);
    fourth.start();
    cluster.nodes.push(fourth);
    let rows = write(&cluster.nodes);
    assert_eq!(cluster.converge().len(), rows);
    until_health(port, 200, &["\"refused\":0"]);

    // With the next key it is still known which messages are from before the first one.
    let next = key::make(2).unwrap();
    restart(&mut cluster.nodes[0], |node| {
        give(node, &[&next, &key], true)
    });
    let client = cluster.broker.client();
    let by_next = Seal::new(key::parse(&next).unwrap(), true);
    let bucket = KeyValue::open(&client, META).sealed_by(&by_next);
    until("open.until is sealed with the next key", || {
        bucket.get("open.until").unwrap().map(drop)
    });
}

/// A running node with the older key alone. A stranger's key is none of the cluster's.
fn the_key_changes_beside_a_running_node(shards: &str) {
    let [old, new, strange] = [1, 2, 3].map(|at| key::make(at).unwrap());
    let mut cluster = Cluster::start(2, |node| {
        give(node, &[&old], true);
        node.set("replication_log.shards", shards);
    });
    let mut write = rows_for_each();
    let rows = write(&cluster.nodes);
    assert_eq!(cluster.converge().len(), rows);
    let unknown = sealed_by(&strange, "strange", &frame(7));
    put(&cluster, "strange", &unknown);
    let rows = write(&cluster.nodes);
    assert_eq!(cluster.converge().len(), rows);
    restart(&mut cluster.nodes[0], |node| {
        give(node, &[&new, &old], true)
    });
    for _ in 0..10 {
        write(&cluster.nodes);
    }
    let (first, second) = cluster.nodes.split_at_mut(1);
    second[0].until_log("the cluster has a newer key");
    let [first, second] = [&mut first[0], &mut second[0]];
    let has_all = format!("the first node has all {}", write(&[]));
    until(&has_all, || {
        let count = first.number("SELECT count(*) FROM item");
        (count == write(&[]) as i64).then_some(())
    });
    restart(second, |node| give(node, &[&new, &old], true));
    let rows = write(&cluster.nodes);
    assert_eq!(cluster.converge().len(), rows);
    for node in &cluster.nodes {
        let log = node.log();
        let refused: Vec<&str> = log
            .lines()
            .filter(|line| line.contains("refused: "))
            .collect();
        let unknown = "sealed with a key that this node does not have";
        assert!(
            refused.len() == 1 && refused[0].contains(unknown),
            "{refused:#?}"
        );
    }
}

#[test]
fn a_running_node_waits_for_the_newer_key() {
    the_key_changes_beside_a_running_node("1");
}

#[test]
fn a_running_node_with_two_shards_waits_for_the_newer_key() {
    the_key_changes_beside_a_running_node("2");
}

#[test]
fn the_key_changes_while_the_cluster_runs() {
    let (old, new) = (key::make(1).unwrap(), key::make(2).unwrap());
    let mut cluster = Cluster::start(3, |node| give(node, &[&old], true));
    let mut write = rows_for_each();
    let rows = write(&cluster.nodes);
    assert_eq!(cluster.converge().len(), rows);
    let mut away = cluster.nodes.pop().unwrap();
    away.stop();
    for keys in [&[&*old, &new][..], &[&new, &old]] {
        for n in 0..2 {
            restart(&mut cluster.nodes[n], |node| give(node, keys, true));
            let rows = write(&cluster.nodes);
            assert_eq!(cluster.converge().len(), rows);
        }
    }
    // A node that was away does not take the new messages for forged ones.
    away.start();
    away.until_log("the cluster has a newer key");
    let before = away.number("SELECT count(*) FROM item");
    assert!(before < write(&cluster.nodes) as i64);
    restart(&mut away, |away| give(away, &[&old, &new], true));
    away.until_log("the cluster seals with a newer key");
    cluster.nodes.push(away);
    let rows = write(&cluster.nodes);
    assert_eq!(cluster.converge().len(), rows);
    for n in 0..3 {
        restart(&mut cluster.nodes[n], |node| give(node, &[&new], true));
        let rows = write(&cluster.nodes);
        assert_eq!(cluster.converge().len(), rows);
    }
    assert!(
        cluster
            .nodes
            .iter()
            .all(|node| !node.log().contains("refused: "))
    );
}

#[test]
fn a_key_file_that_others_read_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let mut node = Node::new(1);
    let file = node.file("cluster.key");
    let made = node.run(&["key", "new", file.to_str().unwrap()]);
    assert_eq!(made.status.code(), Some(2), "it takes no -config");
    let made = std::process::Command::new(env!("CARGO_BIN_EXE_harmonylite"))
        .args(["key", "new"])
        .arg(&file)
        .output()
        .unwrap();
    assert_eq!(made.status.code(), Some(0), "{made:?}");
    node.set("cluster_key_file", &format!("'{}'", file.display()));
    let checked = |node: &Node| {
        let output = node.run(&["-check"]);
        crate::command_line::text(&output)
    };
    assert!(!checked(&node).contains("cluster_key_file"));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let text = checked(&node);
    assert!(
        text.contains("can be read by every user (mode 644): chmod 600"),
        "{text}"
    );
    fs::write(&file, "12-abc").unwrap();
    let text = checked(&node);
    assert!(
        text.contains("line 1: that is no key as `harmonylite key` makes it"),
        "{text}"
    );
}
