//! A daemon with nothing to do: few threads, which sleep.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::health::serve;
use crate::node::{Node, until};
use crate::progress::metric;

/// Threads beside those of shards: main, events, publisher, snapshots, two of the connection.
const THREADS: usize = 6;

/// Times that the threads of an idle daemon may wake up in [`WINDOW`]. On a quiet machine they wake
/// up five times.
const WAKES: u64 = 15;
const WINDOW: Duration = Duration::from_secs(10);

/// Wake-ups since the start by thread.
fn threads(node: &Node) -> BTreeMap<String, u64> {
    let tasks = fs::read_dir(format!("/proc/{}/task", node.pid())).unwrap();
    let of_task = |task: std::path::PathBuf| {
        let name = fs::read_to_string(task.join("comm")).ok()?;
        let status = fs::read_to_string(task.join("status")).ok()?;
        let of_line = |line: &str| {
            line.strip_prefix("voluntary_ctxt_switches:")?
                .trim()
                .parse()
                .ok()
        };
        let number = task.file_name()?.to_str()?.to_owned();
        let wakes = status.lines().find_map(of_line)?;
        Some((format!("{} {number}", name.trim()), wakes))
    };
    tasks
        .flatten()
        .filter_map(|task| of_task(task.path()))
        .collect()
}

#[test]
fn an_idle_daemon_has_few_threads_which_sleep() {
    let mut cluster = Cluster::stopped(2, |node| {
        node.set("cleanup_interval", "5000")
            .set("nats.reconnect_wait_seconds", "2");
    });
    Node::start_all(&mut cluster.nodes);
    cluster.nodes[0].execute("INSERT INTO item VALUES (1, 'a', 1)");
    cluster.nodes[1].execute("INSERT INTO item VALUES (2, 'b', 2)");
    cluster.converge();
    for node in &cluster.nodes {
        until("few threads", || {
            (threads(node).len() <= THREADS + 1).then_some(())
        });
    }
    let node = &cluster.nodes[0];
    let mut window = (Instant::now(), threads(node));
    until("it wakes up rarely", || {
        let (began, before) = &window;
        if began.elapsed() < WINDOW {
            return None;
        }
        let after = threads(node);
        let since = |(name, wakes): (&String, &u64)| wakes - before.get(name).unwrap_or(&0);
        let wakes: u64 = after.iter().map(since).sum();
        println!(
            "{wakes} wake-ups in {:?}: {before:?}, {after:?}",
            began.elapsed()
        );
        window = (Instant::now(), after);
        (wakes <= WAKES).then_some(())
    });
    let now = threads(node);
    assert!(now.len() <= THREADS + 1, "{now:?}");
}

/// Each row comes by a write of the receiving node, whose hint tells it nothing.
#[test]
fn a_node_looks_rarely_for_changes_where_nobody_else_writes() {
    const ROWS: i64 = 40;
    let mut cluster = Cluster::stopped(2, |_| {});
    let port = serve(&mut cluster.nodes[1]);
    Node::start_all(&mut cluster.nodes);
    let [writing, reading] = [0, 1].map(|n| cluster.nodes[n].open());
    let looks = || metric(port, "harmonylite_count_changes_count");
    let mut before = 0.0;
    for id in 0..=ROWS {
        let sql = "INSERT INTO item VALUES (?1, 'x', 0)";
        writing.execute(sql, [id]).unwrap();
        until("the other node has it", || {
            let sql = "SELECT 1 FROM item WHERE id = ?1";
            reading.query_row(sql, [id], |_| Ok(())).ok()
        });
        if id == 0 {
            before = looks();
        }
    }
    let each = (looks() - before) / ROWS as f64;
    println!("{each} looks a row");
    assert!(each < 4.0);
}
