//! Rows that number themselves, with `on_collision = "keep"`: none is lost.

use std::collections::BTreeSet;

use harmonylite::stream::key_value::KeyValue;

use crate::cluster::Cluster;
use crate::node::{Node, texts, until};

const META: &str = "harmonylite-changes-meta";
const BEGUN: &str = "all nodes know on_collision";

/// The texts of the rows that `harmonylite conflicts` lists.
fn waiting(node: &Node) -> BTreeSet<String> {
    let output = node.run(&["--json", "conflicts"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let all: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let each = all.as_array().unwrap().iter();
    each.map(|c| c["row"]["text"].as_str().unwrap().to_owned())
        .collect()
}

fn shown(node: &Node) -> BTreeSet<String> {
    let texts = texts(&node.open(), "SELECT text FROM note");
    texts.into_iter().collect()
}

#[test]
fn inserts_of_two_nodes_that_were_cut_off_are_all_there() {
    let mut cluster = Cluster::start(2, |node| {
        node.set("ids.on_collision", "'keep'")
            .set("nats.reconnect_wait_seconds", "2");
        node.execute("CREATE TABLE note (id INTEGER PRIMARY KEY AUTOINCREMENT, text)");
    });
    for node in &cluster.nodes {
        node.until_log(BEGUN);
    }
    cluster.nodes[0].execute("INSERT INTO note(text) VALUES ('before')");
    cluster.converge();
    cluster.broker.kill();
    for node in &cluster.nodes {
        node.until_log("changes are captured and kept meanwhile");
    }
    let mut all = BTreeSet::from(["before".to_owned()]);
    for (name, count) in [("a", 5), ("b", 8)] {
        let node = &cluster.nodes[usize::from(name == "b")];
        for n in 0..count {
            node.execute(&format!("INSERT INTO note(text) VALUES ('{name}{n}')"));
            all.insert(format!("{name}{n}"));
        }
    }
    cluster.nodes[1].kill();
    cluster.nodes[1].start();
    cluster.broker.start_again();
    assert_eq!(cluster.converge().len(), 1 + 8);
    for node in &cluster.nodes {
        assert_eq!((shown(node).len(), waiting(node).len()), (9, 5));
        assert_eq!(&shown(node) | &waiting(node), all);
    }
    assert_eq!(waiting(&cluster.nodes[0]), waiting(&cluster.nodes[1]));

    // A delete brings back the row that waits for the number.
    let newest = "SELECT text FROM note WHERE id = 3";
    let gone = texts(&cluster.nodes[0].open(), newest).remove(0);
    cluster.nodes[0].execute("DELETE FROM note WHERE id = 3");
    assert!(all.remove(&gone));
    until("the row that waited is there", || {
        let now = texts(&cluster.nodes[1].open(), newest);
        now.into_iter().find(|text| *text != gone)
    });
    cluster.converge();
    for node in &cluster.nodes {
        assert_eq!((shown(node).len(), waiting(node).len()), (9, 4));
        assert_eq!(&shown(node) | &waiting(node), all);
    }
    // The same after a restart, and an update concerns the row in the table alone.
    cluster.nodes[1].stop();
    cluster.nodes[1].start();
    cluster.nodes[1].execute("UPDATE note SET text = 'new' WHERE id = 2");
    cluster.converge();
    for node in &cluster.nodes {
        assert!(shown(node).contains("new"));
        assert_eq!(waiting(node).len(), 4);
    }
}

/// Whether a node gives births to rows.
fn gives_births(node: &Node) -> bool {
    let text = "SELECT count(*) FROM pragma_table_info('__harmonylite__note_versions')
                WHERE name = 'born'";
    node.number(text) == 1
}

/// The entry of a node of the release before, as that wrote it.
const OLDER: &[u8] = br#"{"name":"","release":"0.2.0","schema":"","previous":"","positions":[0],
    "unsent":0,"held":0,"displaced":0,"rejected":0,"quarantined":0,"problems":0,"lag_ms":0,
    "time_ms":0}"#;

#[test]
fn rows_are_kept_once_the_last_node_of_an_older_release_is_upgraded() {
    let mut cluster = Cluster::stopped(2, |node| {
        node.set("ids.on_collision", "'keep'")
            .set("status_interval", "1000");
        node.execute("CREATE TABLE note (id INTEGER PRIMARY KEY AUTOINCREMENT, text)");
    });
    let client = cluster.broker.client();
    let bucket = KeyValue::ensure_bucket(&client, META, 1, None).unwrap();
    bucket.put("publisher-2", b"null").unwrap();
    bucket.put("node.2", OLDER).unwrap();
    cluster.nodes[0].start();
    cluster.nodes[0].until_log("or are forgotten (`harmonylite forget`). Without it: 2");
    cluster.nodes[0].execute("INSERT INTO note(text) VALUES ('before')");
    until("the row is sent", || {
        cluster.nodes[0].is_quiet().then_some(())
    });
    assert!(!gives_births(&cluster.nodes[0]));
    assert_eq!(bucket.get("births").unwrap(), None);

    cluster.nodes[1].start();
    for node in &cluster.nodes {
        node.until_log(BEGUN);
        assert!(gives_births(node));
    }
    cluster.converge();
    cluster.nodes[1].stop();
    cluster.nodes[0].execute("INSERT INTO note(text) VALUES ('a')");
    cluster.nodes[1].execute("INSERT INTO note(text) VALUES ('b')");
    cluster.nodes[1].start();
    cluster.converge();
    let all = BTreeSet::from(["before", "a", "b"].map(str::to_owned));
    for node in &cluster.nodes {
        assert_eq!((shown(node).len(), waiting(node).len()), (2, 1));
        assert_eq!(&shown(node) | &waiting(node), all);
    }
    assert_eq!(waiting(&cluster.nodes[0]), waiting(&cluster.nodes[1]));
}
