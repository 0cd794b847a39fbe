//! Small machines: limits of disks, and work that a node leaves to others.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::cluster::Cluster;
use crate::node::{Node, until};
use crate::stream::node::{Node as Broker, ensure, streams};
use harmonylite::stream::jetstream::{StreamOptions, ensure_streams};

/// Bytes of all files below a folder.
fn bytes_below(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.path() {
            path if path.is_dir() => bytes_below(&path),
            path => fs::metadata(path).map_or(0, |found| found.len()),
        })
        .sum()
}

/// Three times as many bytes pass through the server's store as it may have.
#[test]
fn a_store_with_a_limit_stays_within_it_and_nothing_is_lost() {
    const LIMIT: u64 = 16 << 20;
    let mut node = Node::new(1);
    node.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, value, writer)");
    node.set("nats.store_max_bytes", &LIMIT.to_string())
        .set("replication_log.compress", "false")
        .start();
    node.until_log(" made, because there is none yet");
    for n in 0..100 {
        node.execute(&format!(
            "REPLACE INTO item VALUES ({n} % 3, randomblob(500000), {n})"
        ));
        until("it is published", || node.is_quiet().then_some(()));
    }
    node.until_log("made, because much was written");
    let stored = bytes_below(&node.file("nats"));
    assert!(stored > LIMIT / 4 && stored < LIMIT / 4 * 5, "{stored}"); // dropped blocks go later
    let rows = node.rows();
    // An empty node gets all rows, although the stream kept only a part.
    node.stop();
    fs::remove_file(node.database()).unwrap();
    node.start();
    until("all rows are back", || {
        (node.database().exists() && node.rows() == rows).then_some(())
    });
    node.stop();
}

/// The default number of messages is more than the Go version's.
#[test]
fn a_new_stream_keeps_much_and_an_existing_one_what_it_kept() {
    let broker = Broker::start();
    let client = broker.client();
    let kept = |name: &str| {
        let info = client.api(&format!("STREAM.INFO.{name}"), &json!(null));
        let config = info.unwrap().unwrap()["config"].take();
        (config["max_msgs"].clone(), config["max_bytes"].clone())
    };
    let chosen = |prefix: &str| StreamOptions {
        stream_prefix: prefix.into(),
        subject_prefix: prefix.into(),
        max_entries: 65_536,
        is_chosen: true,
        ..streams()
    };
    ensure(&client, &chosen("new"));
    assert_eq!(kept("new-c-1"), (json!(65_536), json!(512 << 20)));
    let old = StreamOptions {
        max_entries: 1024,
        is_chosen: false,
        ..chosen("old")
    };
    ensure(&client, &old);
    let mut later = chosen("old");
    for update_existing in [false, true] {
        later.update_existing = update_existing;
        ensure_streams(&client, &later).unwrap();
        assert_eq!(kept("old-c-1"), (json!(1024), json!(-1)));
    }
}

#[test]
fn a_new_stream_keeps_less_where_there_is_little_room() {
    let broker = Broker::with(|broker| broker.options.max_bytes = Some(64 << 20));
    let client = broker.client();
    let options = StreamOptions {
        max_entries: 65_536,
        is_chosen: true,
        ..streams()
    };
    ensure(&client, &options);
    let info = client.api("STREAM.INFO.changes-c-1", &json!(null));
    let config = info.unwrap().unwrap()["config"].take();
    assert_eq!(config["max_msgs"], 1024);
    assert_eq!(config["max_bytes"], -1);
}

/// The broker drops messages that are older than three seconds. A snapshot is made in time because
/// time passes, not because much was written, and a new node begins with it.
#[test]
fn messages_that_grew_old_in_the_stream_are_in_a_snapshot() {
    let mut cluster = Cluster::stopped(2, |node| {
        node.set("replication_log.max_entries", "0");
    });
    let client = cluster.broker.client();
    let config = json!({
        "name": "harmonylite-changes-c-1", "subjects": ["harmonylite-change-log-1"],
        "max_age": 3_000_000_000_u64, "duplicate_window": 3_000_000_000_u64,
        "allow_direct": true,
    });
    let made = client.api("STREAM.CREATE.harmonylite-changes-c-1", &config);
    made.unwrap().unwrap();
    let [first, second] = &mut cluster.nodes[..] else {
        panic!("two nodes");
    };
    first.start();
    first.until_log("made, because there is none yet");
    first.execute("INSERT INTO item VALUES (1, 'a', 0)");
    first.until_log("made, because half of the time that a stream keeps messages is over");
    until("the message is gone", || {
        let info = client.api("STREAM.INFO.harmonylite-changes-c-1", &json!(null));
        (info.unwrap().unwrap()["state"]["messages"] == 0).then_some(())
    });
    second.start();
    until("the row arrives", || {
        (second.rows().len() == 1).then_some(())
    });
}

/// One node leaves snapshots to the other, and has its scratch files elsewhere.
#[test]
fn a_node_that_makes_no_snapshot_takes_those_of_others() {
    let mut cluster = Cluster::stopped(2, |_| {});
    let [maker, taker] = &mut cluster.nodes[..] else {
        panic!("two nodes");
    };
    fs::create_dir(taker.file("scratch")).unwrap();
    let scratch = format!("'{}'", taker.file("scratch").display());
    taker
        .set("snapshot.make", "false")
        .set("snapshot.scratch", &scratch);
    maker.execute("INSERT INTO item VALUES (1, 'a', 0)");
    maker.start();
    maker.until_log(" made, because ");
    taker.start();
    taker.until_log(" merged, ");
    let saved = taker.run(&["-save-snapshot"]);
    let said = String::from_utf8_lossy(&saved.stderr).into_owned();
    assert!(
        !saved.status.success() && said.contains("db_path: another"),
        "{said}"
    );
    taker.signal(rustix::process::Signal::USR1);
    taker.until_log("snapshot.make = false makes no snapshots");
    assert_eq!(fs::read_dir(taker.file("scratch")).unwrap().count(), 0);
    assert_eq!(taker.rows().len(), 1);
}

/// The first limit under which the program can be loaded at all is refused, and a little more than
/// it asks for suffices.
#[test]
fn a_limit_of_address_space_that_is_too_low_is_named() {
    let cluster = Cluster::stopped(1, |_| {});
    let node = &cluster.nodes[0];
    let run = |kib: u64| {
        let daemon = node.command(&["-save-snapshot"]);
        let mut shell = Command::new("sh");
        let limited = format!("ulimit -v {kib}; exec \"$@\"");
        shell.args(["-c", &limited, "sh"]).arg(daemon.get_program());
        let done = shell.args(daemon.get_args()).stdin(Stdio::null()).output();
        let done = done.unwrap();
        (
            done.status.code(),
            String::from_utf8_lossy(&done.stderr).into_owned(),
        )
    };
    let mut limits = (8..400).map(|mb| mb << 10);
    let first =
        limits.find_map(|kib| Some((kib, run(kib))).filter(|(_, (code, _))| *code == Some(1)));
    let (kib, (_, said)) = first.unwrap();
    let text = format!("the limit of address space (ulimit -v, LimitAS of systemd) is {kib} KiB");
    assert!(said.contains(&text), "{said}");
    let needed = said.split_once("but at least ").unwrap().1;
    let needed: u64 = needed.split(' ').next().unwrap().parse().unwrap();
    let (code, said) = run(needed + (8 << 10));
    assert_eq!(code, Some(0), "{said}");
}
