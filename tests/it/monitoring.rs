//! examples/monitoring against a running daemon: the daemon exports each metric that a rule or a
//! panel uses, and promtool (of Debian's `prometheus`) accepts all files.
//!
//! Without promtool the test checks names alone, unless `HARMONYLITE_REQUIRE_MONITORING` is set.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::cluster::Cluster;
use crate::health::{ask, serve};
use crate::node::until;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/monitoring")
}

fn read(name: &str) -> String {
    fs::read_to_string(folder().join(name)).unwrap()
}

/// Runs promtool on its standard input or on files; none if there is no promtool.
fn promtool(words: &[&str], input: &str) -> Option<()> {
    let spawned = Command::new("promtool")
        .args(words)
        .current_dir(folder())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = spawned else {
        let is_required = std::env::var_os("HARMONYLITE_REQUIRE_MONITORING").is_some();
        assert!(!is_required, "no promtool: apt-get install prometheus");
        return None;
    };
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "promtool {words:?}: {said}");
    Some(())
}

/// All expressions of the dashboard.
fn panels() -> Vec<String> {
    let board: Value = serde_json::from_str(&read("grafana.json")).unwrap();
    let panels = board["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().unwrap());
    targets
        .map(|target| target["expr"].as_str().unwrap().to_owned())
        .collect()
}

/// Names of our metrics in a text.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = words.filter(|word| word.starts_with("harmonylite_"));
    ours.map(str::to_owned).collect()
}

#[test]
fn rules_and_panels_ask_for_what_a_daemon_exports() {
    let mut cluster = Cluster::stopped(2, |_| {});
    let port = serve(&mut cluster.nodes[0]);
    crate::node::Node::start_all(&mut cluster.nodes);
    for n in 0..2 {
        cluster.nodes[n].execute(&format!("INSERT INTO item VALUES ({n}, 'a', 0)"));
    }
    cluster.converge();
    let exported = until("what happened is exported", || {
        let answer = ask(port, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let (_, text) = answer.split_once("\r\n\r\n")?;
        let is_there = |name: &str| text.contains(name);
        (is_there("harmonylite_lag_seconds{") && is_there("apply_duration_seconds_bucket{"))
            .then(|| text.to_owned())
    });
    let known = names(&exported);
    let expressions = panels();
    assert!(expressions.len() > 15);
    for (from, text) in [
        ("alerts.yml", read("alerts.yml")),
        ("alerts.test.yml", read("alerts.test.yml")),
        ("grafana.json", expressions.join("\n")),
    ] {
        let asked = names(&text);
        let missing: Vec<_> = asked.difference(&known).collect();
        assert!(
            !asked.is_empty() && missing.is_empty(),
            "{from}: {missing:?}"
        );
    }

    let _ = promtool(&["check", "metrics"], &exported);
    let _ = promtool(&["check", "config", "--syntax-only", "prometheus.yml"], "");
    let _ = promtool(&["check", "rules", "alerts.yml"], "");
    let _ = promtool(&["test", "rules", "alerts.test.yml"], "");
    // Each expression of the dashboard, as a rule.
    let rule = |(n, e): (usize, &String)| {
        let quoted = serde_json::to_string(e).unwrap();
        format!("  - {{record: \"panel:{n}\", expr: {quoted}}}\n")
    };
    let rules: String = expressions.iter().enumerate().map(rule).collect();
    let file = cluster.nodes[0].file("panels.yml");
    fs::write(&file, format!("groups:\n- name: panels\n  rules:\n{rules}")).unwrap();
    let _ = promtool(&["check", "rules", file.to_str().unwrap()], "");
}
