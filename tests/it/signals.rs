//! Signals, log rotation and closed terminals.

use std::fs;
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::cluster::Cluster;
use crate::node::{Node, until};

fn log_of(node: &Node, name: &str) -> String {
    fs::read_to_string(node.file(name)).unwrap_or_default()
}

fn until_says(node: &Node, name: &str, text: &str) {
    until(&format!("{name} says {text:?}"), || {
        log_of(node, name).contains(text).then_some(())
    });
}

/// Gives the node a log file and no snapshots: SIGUSR1 then writes a line that says so.
fn with_log_file(node: &mut Node) {
    let path = format!("'{}'", node.file("hl.log").display());
    node.set("logging.file", &path)
        .set("snapshot.enabled", "false");
}

#[test]
fn a_rotated_log_file_is_opened_anew() {
    let mut cluster = Cluster::start(1, with_log_file);
    let node = &mut cluster.nodes[0];
    let rotate = |to: &str| fs::rename(node.file("hl.log"), node.file(to)).unwrap();
    until_says(node, "hl.log", "connected to NATS");
    rotate("hl.log.1");
    node.signal(Signal::HUP);
    until_says(node, "hl.log", "SIGHUP: logging.file is reopened");
    // Without a signal the next line makes the file anew.
    rotate("hl.log.2");
    node.signal(Signal::USR1);
    until_says(node, "hl.log", "SIGUSR1");
    fs::remove_file(node.file("hl.log")).unwrap();
    node.signal(Signal::USR1);
    until_says(node, "hl.log", "SIGUSR1");
    node.stop();
    assert!(!log_of(node, "hl.log.1").contains("SIG"));
    assert!(!log_of(node, "hl.log.2").contains("SIGUSR1"));
}

#[test]
fn sighup_reads_the_configuration_again() {
    let mut cluster = Cluster::start(1, with_log_file);
    let node = &mut cluster.nodes[0];
    until_says(node, "hl.log", "connected to NATS");
    node.set("logging.level", "'debug'");
    node.signal(Signal::HUP);
    until_says(node, "hl.log", "SIGHUP: the configuration is read again");
    node.signal(Signal::USR2);
    until_says(node, "hl.log", "has no meaning here");
    node.set("replication_log.max_entries", "'many'")
        .signal(Signal::HUP);
    until_says(node, "hl.log", "SIGHUP: the configuration stays as it was");
    node.set("replication_log.max_entries", "77")
        .signal(Signal::HUP);
    until_says(
        node,
        "hl.log",
        "the changes of [replication_log] count once",
    );
    node.stop();
}

#[test]
fn no_signal_ends_it_but_those_that_ask_for_the_end() {
    let mut cluster = Cluster::start(1, |node| {
        node.set("logging.level", "'debug'");
    });
    for (id, signal) in [Signal::HUP, Signal::USR2, Signal::ALARM]
        .into_iter()
        .enumerate()
    {
        let node = &cluster.nodes[0];
        node.until_log("connected to NATS");
        node.signal(signal);
        node.until_log(if id == 0 {
            "SIGHUP: "
        } else {
            "has no meaning here"
        });
        node.execute(&format!("INSERT INTO item VALUES ({id}, 'a', 0)"));
        cluster.converge();
    }
    let node = &mut cluster.nodes[0];
    node.signal(Signal::QUIT);
    assert_eq!(node.wait().code(), Some(0), "in good order");
    node.until_log("stopping");
}

/// The terminal is closed: SIGHUP comes, and every write to the terminal fails.
#[test]
fn a_closed_terminal_does_no_harm() {
    let mut cluster = Cluster::start(1, |node| {
        node.set("snapshot.enabled", "false")
            .set("logging.level", "'debug'");
    });
    let node = &mut cluster.nodes[0];
    node.until_log("connected to NATS");
    node.stop();
    let mut command = node.command(&[]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut daemon = Running(command.spawn().unwrap());
    node.execute("INSERT INTO item VALUES (1, 'a', 0)");
    until("it works", || node.is_quiet().then_some(()));
    daemon.0.stdout = None;
    daemon.0.stderr = None;
    let id = Pid::from_raw(daemon.0.id() as i32).unwrap();
    let signal = |which| kill_process(id, which).unwrap();
    signal(Signal::HUP);
    signal(Signal::USR1); // which says something
    node.execute("INSERT INTO item VALUES (2, 'b', 0)");
    until("it goes on", || node.is_quiet().then_some(()));
    signal(Signal::TERM);
    let status = until("it ends", || daemon.0.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
}

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
