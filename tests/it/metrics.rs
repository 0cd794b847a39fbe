//! The metrics of a running daemon.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use harmonylite::http::client;

use crate::cluster::Cluster;
use crate::node::{Node, until};

/// The metrics from the node's socket; none while it does not answer.
pub fn scraped(node: &Node) -> Option<String> {
    let socket = node.file("app.db-harmonylite.sock");
    let answer = client::get(&socket, "/metrics").ok()?;
    (answer.status == 200).then(|| answer.text(1 << 20).unwrap())
}

pub fn value(text: &str, name: &str) -> f64 {
    let mut lines = text.lines();
    let line = lines.find(|line| line.starts_with(&format!("{name}{{")));
    let value = line.and_then(|line| line.rsplit(' ').next());
    value.and_then(|v| v.parse().ok()).unwrap_or(f64::NAN)
}

#[test]
fn a_daemon_exports_what_the_guide_lists() {
    let mut cluster = Cluster::stopped(2, |node| {
        node.set("prometheus.namespace", "'h'");
    });
    Node::start_all(&mut cluster.nodes);
    for id in 0..20 {
        cluster.nodes[0].execute(&format!("INSERT INTO item VALUES ({id}, 'a', 0)"));
    }
    cluster.converge();
    let is_counted = |node: usize, name: &'static str, least: f64| {
        until(name, || {
            let text = scraped(&cluster.nodes[node])?;
            (value(&text, name) >= least).then_some(text)
        })
    };
    let receives = is_counted(1, "h_applied_rows_total", 20.0);
    let sends = is_counted(0, "h_published_rows_total", 20.0);
    for (text, name, expected) in [
        (
            &sends,
            "h_published",
            value(&sends, "h_published_rows_total"),
        ),
        (&sends, "h_up", 1.0),
        (&sends, "h_ready", 1.0),
        (&receives, "h_lag_seconds", 0.0),
        (&receives, "h_held_rows", 0.0),
        (
            &receives,
            "h_replicated_tables",
            value(&sends, "h_replicated_tables"),
        ),
    ] {
        assert_eq!(value(text, name), expected, "{name}: {text}");
    }
    for (text, name) in [
        (&sends, "h_publish_duration_seconds_count"),
        (&sends, "h_scan_changes_count"),
        (&sends, "h_database_size_bytes"),
        (&receives, "h_apply_duration_seconds_count"),
        (&receives, "h_shard_position"),
        (&receives, "h_resident_memory_bytes"),
    ] {
        assert!(value(text, name) > 0.0, "{name}: {text}");
    }
    assert!(receives.contains("h_build_info{"), "{receives}");
    assert_eq!(exported(&receives), documented());
    check_with_promtool(&receives);
}

/// Names of the exported metrics, without the namespace.
fn exported(text: &str) -> BTreeSet<String> {
    let names = text.lines().filter_map(|l| l.strip_prefix("# TYPE h_"));
    names
        .map(|l| l.split(' ').next().unwrap().to_owned())
        .collect()
}

/// Names of the metrics in the guide's table.
fn documented() -> BTreeSet<String> {
    let guide = include_str!("../../src/guide/operations.md");
    let section = guide.split("\n## Metrics\n").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| row.split('`').next().unwrap().to_owned())
        .collect()
}

/// Runs `promtool check metrics`, where it is installed. Unit tests check the same rules.
fn check_with_promtool(text: &str) {
    let program = std::env::var("HARMONYLITE_PROMTOOL").unwrap_or("promtool".into());
    let child = Command::new(program)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else { return };
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let says = String::from_utf8_lossy(&output.stderr).into_owned();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{says}{told}");
}
