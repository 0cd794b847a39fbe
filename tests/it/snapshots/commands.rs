//! An operator's commands for snapshots.

use std::process::Output;

use rusqlite::Connection;

use super::{small, snapshot, write};
use crate::cluster::Cluster;
use crate::node::{Node, texts, until};

fn said(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&both).into_owned()
}

fn in_a_folder(node: &mut Node) {
    small(node);
    let store = node.file("store");
    std::fs::create_dir(&store).unwrap();
    node.set("snapshot.store", "'file'")
        .set("snapshot.file.path", &format!("'{}'", store.display()));
}

/// What the newest snapshot lacks, and that nothing was written.
fn compared(node: &Node, says: &str) {
    let before = node.rows();
    let output = node.run(&["restore", "-dry-run"]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains(says), "{text}");
    assert_eq!(node.rows(), before);
    assert!(!std::path::Path::new("restored.db").exists());
}

/// Saves, lists and restores snapshots, with the daemon running and without.
fn save_list_restore(node: &mut Node) {
    node.start();
    write(node, 0..100, "x");
    until("all is sent", || node.is_quiet().then_some(()));
    snapshot(node);

    let refused = node.run(&["-save-snapshot"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains("SIGUSR1"), "{}", said(&refused));

    for running in [true, false] {
        if !running {
            node.stop();
            write(node, 100..150, "y");
            let more = "100 row(s) there, 150 here; 50 of these it lacks: MORE THAN A TENTH";
            compared(node, more);
            let saved = node.run(&["-save-snapshot"]);
            assert_eq!(saved.status.code(), Some(0), "{}", said(&saved));
        }
        let listed = node.run(&["snapshots"]);
        assert!(said(&listed).contains("snapshot-"), "{}", said(&listed));
        let json = node.run(&["snapshots", "-json"]);
        let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
        assert_eq!(json[0]["node"], 1);

        compared(node, "here; 0 of these it lacks\n");
        let name = format!("restored-{running}.db");
        let file = node.file(&name);
        let to = file.to_str().unwrap();
        let restored = node.run(&["restore", "-o", to]);
        assert_eq!(restored.status.code(), Some(0), "{}", said(&restored));
        let plain = Connection::open(&file).unwrap();
        let count: i64 = plain
            .query_row("SELECT count(*) FROM item", [], |r| r.get(0))
            .unwrap();
        assert_eq!(count, if running { 100 } else { 150 });
        let ours = "SELECT name FROM sqlite_schema WHERE name LIKE '%harmonylite%'";
        assert_eq!(texts(&plain, ours), [""; 0]);
        assert_eq!(texts(&plain, "PRAGMA integrity_check"), ["ok"]);
        let again = node.run(&["restore", "-o", to]);
        assert_eq!(again.status.code(), Some(1));
        assert!(said(&again).contains("exists"));
    }
}

#[test]
fn from_the_store_of_our_own_server() {
    let mut node = Node::new(1);
    small(&mut node);
    node.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, value, writer)");
    save_list_restore(&mut node);
}

#[test]
fn from_a_folder() {
    let mut node = Node::new(1);
    in_a_folder(&mut node);
    node.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, value, writer)");
    save_list_restore(&mut node);
}

#[test]
fn a_machine_that_sleeps_saves_a_snapshot_first() {
    let mut cluster = Cluster::stopped(1, |node| {
        in_a_folder(node);
        node.set("sleep_timeout", "700");
    });
    let node = &mut cluster.nodes[0];
    node.start();
    write(node, 0..40, "x");
    assert_eq!(node.wait().code(), Some(0));
    let listed = said(&node.run(&["snapshots"]));
    assert!(listed.contains("up to"), "{listed}");
    let file = node.file("restored.db");
    node.run(&["restore", "-o", file.to_str().unwrap()]);
    let plain = Connection::open(&file).unwrap();
    assert_eq!(texts(&plain, "SELECT 'n' || count(*) FROM item"), ["n40"]);
}

#[test]
fn impossible_requests_get_an_error() {
    let mut node = Node::new(1);
    in_a_folder(&mut node);
    let none = node.run(&["restore"]);
    assert_eq!(none.status.code(), Some(1));
    assert!(said(&none).contains("no snapshots yet"), "{}", said(&none));
    node.set("snapshot.file.path", "'/no/such/folder'");
    let gone = said(&node.run(&["snapshots"]));
    assert!(gone.contains("file /no/such/folder"), "{gone}");
    let given_up = node.run(&["-save-snapshot"]);
    assert_eq!(given_up.status.code(), Some(1));
    let text = said(&given_up);
    let ending = text.lines().last().unwrap_or_default();
    for part in ["no snapshot was saved", "tries", "file /no/such/folder"] {
        assert!(ending.contains(part), "{text}");
    }
    std::fs::remove_file(node.database()).unwrap();
    let nothing = node.run(&["-save-snapshot"]);
    assert_eq!(nothing.status.code(), Some(1));
    assert!(said(&nothing).contains("there is no database at"));
    assert!(!node.database().exists());
    node.set("snapshot.enabled", "false");
    let off = node.run(&["-save-snapshot"]);
    assert_eq!(off.status.code(), Some(1));
    assert!(said(&off).contains("snapshot.enabled"), "{}", said(&off));
}
