//! The lines of the log, and their forms.

use std::fs;

use serde_json::Value;

use crate::cluster::converge;
use crate::embedded::three;
use crate::node::Node;

/// Warnings and errors of a log in either form.
fn complaints(node: &Node) -> Vec<String> {
    let is_bad = |line: &&str| match serde_json::from_str::<Value>(line) {
        Ok(line) => line["level"] != "info",
        Err(_) => line.contains(" WARN ") || line.contains(" ERROR "),
    };
    let log = node.log();
    log.lines().filter(is_bad).map(str::to_owned).collect()
}

/// A person who looks for warnings finds none where all is well.
#[test]
fn a_cluster_that_starts_stops_and_starts_again_warns_of_nothing() {
    let mut nodes = three();
    nodes[2].set("logging.format", "'json'");
    let mut row = 0;
    let mut write = |nodes: &[Node]| {
        for node in nodes {
            row += 1;
            node.execute(&format!("INSERT INTO item VALUES ({row}, 'a', 0)"));
        }
        assert_eq!(converge(nodes).len(), row);
    };
    Node::start_all(&mut nodes);
    write(&nodes);
    // One node after the other is restarted, as in an upgrade.
    for n in 0..3 {
        nodes[n].stop();
        nodes[n].start();
        write(&nodes);
    }
    stop_all(&mut nodes);
    Node::start_all(&mut nodes);
    write(&nodes);
    stop_all(&mut nodes);
    let complaints: Vec<_> = nodes.iter().map(complaints).collect();
    assert!(complaints.iter().all(Vec::is_empty), "{complaints:#?}");
    check_json(&nodes[2].log());
}

fn stop_all(nodes: &mut [Node]) {
    for node in nodes {
        node.stop();
    }
}

/// The fields are those of the Go version's log library.
fn check_json(log: &str) {
    assert!(!log.is_empty());
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        assert_eq!(line["node_id"], 3, "{line}");
        assert!(text("time").ends_with('Z') && text("time").contains('T'));
        assert!(!text("message").is_empty());
        assert_eq!(text("level"), "info");
    }
}

/// A line break in the name of a table begins no line of the log.
#[test]
fn names_cannot_make_lines() {
    let mut node = Node::new(1);
    node.execute("CREATE TABLE \"a\n2026-01-01T00:00:00.000Z ERROR forged\x1b[2J\" (value)");
    node.set("nats.bind_address", "'127.0.0.1:-1'").start();
    node.until_log("has no primary key");
    node.stop();
    let log = fs::read_to_string(node.file("log")).unwrap();
    assert!(
        !log.lines()
            .any(|l| l.contains("Z ERROR forged") && l.starts_with("2026-01-01T00"))
    );
    assert!(
        log.contains("a\\n2026-01-01") && !log.contains('\x1b'),
        "{log}"
    );
}
