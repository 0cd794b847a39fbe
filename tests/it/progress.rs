//! How far long work is: in health, status and metrics, and on a terminal.

use std::fs;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value as Json;

use crate::cluster::{Cluster, client_of};
use crate::health::{ask, serve, until_health};
use crate::node::{Node, until};

/// Rows of a kilobyte that cannot be compressed.
fn fill(node: &Node, count: u32) {
    node.execute(&format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})
         INSERT INTO item SELECT i, randomblob(1000), 0 FROM n"
    ));
}

fn get(port: u16, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let answer = ask(port, &request);
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body);
    body.unwrap_or_default().to_owned()
}

/// Waits until health names this step of this work; returns the answer.
fn until_at_work(port: u16, what: &str, step: &str) -> Json {
    until(&format!("{what} is under way"), || {
        let told: Json = serde_json::from_str(&get(port, "/health")).ok()?;
        let works = told["progress"].as_array()?;
        let is_it = |work: &Json| work["what"] == what && work["step"] == step;
        let is_there = works.iter().any(is_it);
        is_there.then_some(told)
    })
}

pub fn metric(port: u16, name: &str) -> f64 {
    let text = get(port, "/metrics");
    let line = text.lines().find(|line| line.starts_with(name));
    let value = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    value.unwrap_or_else(|| panic!("{name}: {text}"))
}

fn status(node: &Node) -> String {
    let output = node.run(&["status"]);
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

/// Adds a node with a slow link, over which two megabytes take seven seconds.
fn add(cluster: &mut Cluster) -> (usize, u16) {
    let mut node = Node::new(cluster.nodes.len() as u64 + 1);
    client_of(&cluster.broker, &mut node).set("edge.max_bandwidth", "300000");
    let port = serve(&mut node);
    cluster.nodes.push(node);
    (cluster.nodes.len() - 1, port)
}

/// A node with two megabytes in its snapshot.
fn founded() -> Cluster {
    let mut cluster = Cluster::stopped(1, |_| {});
    fill(&cluster.nodes[0], 2000);
    cluster.nodes[0].start();
    cluster.nodes[0].until_log(" made, because ");
    cluster
}

#[test]
fn a_snapshot_that_takes_long_is_shown_everywhere() {
    let mut cluster = founded();
    // A node with a database merges the snapshot.
    let (n, port) = add(&mut cluster);
    cluster.nodes[n].execute("CREATE TABLE item (id INTEGER PRIMARY KEY, value, writer)");
    cluster.nodes[n].start();
    until_at_work(port, "snapshot", "fetching");
    let ratio = metric(port, "harmonylite_restore_progress_ratio");
    assert!(ratio > 0.0 && ratio < 1.0, "{ratio}");
    let shown = status(&cluster.nodes[n]);
    let says = shown.contains("at work for") && shown.contains(": snapshot: fetching, ");
    assert!(says, "{shown}");
    cluster.converge();
    until("the snapshot is merged", || {
        (metric(port, "harmonylite_restore_progress_ratio") == 1.0).then_some(())
    });

    // It saves one of its own.
    cluster.nodes[n].signal(Signal::USR1);
    until_at_work(port, "snapshot", "uploading");
    cluster.nodes[n].until_log("made, because it was asked for");

    // A node without a database fetches it before anything else.
    let (n, port) = add(&mut cluster);
    fs::remove_file(cluster.nodes[n].database()).unwrap();
    cluster.nodes[n].start();
    let told = until_at_work(port, "first snapshot", "fetching");
    assert_eq!([&told["status"], &told["stage"]], ["unhealthy", "starting"]);
    let shown = status(&cluster.nodes[n]);
    assert!(
        shown.contains("the daemon is starting; at work for"),
        "{shown}"
    );
    cluster.converge();
}

/// The application holds the write lock, so that the walk through its table takes long.
#[test]
fn a_large_table_that_is_taken_in_shows_how_far_it_is() {
    let mut cluster = Cluster::stopped(1, |_| {});
    let node = &mut cluster.nodes[0];
    let port = serve(node);
    node.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
         INSERT INTO item SELECT i, i, 0 FROM n",
    );
    node.start();
    until_health(port, 200, &[]);
    metric(port, "harmonylite_up");
    let app = node.open();
    let done = || -> Option<u64> {
        let text = "SELECT count(*) FROM __harmonylite__item_versions";
        app.query_row(text, [], |r| r.get(0)).ok()
    };
    until("the walk began", || done().filter(|rows| *rows > 0));
    app.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert!(done() < Some(100_000), "it was over too soon");
    until_at_work(port, "tables", "taking in item");
    app.execute_batch("ROLLBACK").unwrap();
    until("the metric says so", || {
        (metric(port, "harmonylite_install_progress_ratio") < 1.0).then_some(())
    });
}

/// `script` (package bsdutils) runs the daemon on a terminal.
#[test]
fn a_terminal_shows_how_far_the_first_snapshot_is() {
    let mut cluster = founded();
    let (n, _) = add(&mut cluster);
    let node = &cluster.nodes[n];
    fs::remove_file(node.database()).unwrap();
    let (drawn, pid) = (node.file("drawn"), node.file("pid"));
    let command = node.command(&["-pid-file", pid.to_str().unwrap()]);
    let words = [command.get_program()]
        .into_iter()
        .chain(command.get_args());
    let words: Vec<String> = words
        .map(|w| format!("'{}'", w.to_str().unwrap()))
        .collect();
    let mut terminal = Command::new("script")
        .args(["-qefc", &words.join(" ")])
        .arg(&drawn)
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("script, of the package bsdutils");
    let text = || String::from_utf8_lossy(&fs::read(&drawn).unwrap_or_default()).into_owned();
    until("a bar is drawn, and wiped", || {
        let text = text();
        let bar = &text[text.find("\r[#")?..];
        let is_bar = bar.contains(" % of 1 MB, ") && bar.contains(" s: first snapshot, fetching");
        (is_bar && bar.contains("\r\x1b[K")).then_some(())
    });
    let pid = fs::read_to_string(pid).unwrap().trim().parse().unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
    assert!(terminal.wait().unwrap().success(), "{}", text());
}
