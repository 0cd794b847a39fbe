//! Rows that number themselves, with `on_collision = "keep"`: none is lost.

use std::collections::BTreeSet;

use crate::cluster::Cluster;
use crate::node::{Node, texts};

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
    crate::node::until("the row that waited is there", || {
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
