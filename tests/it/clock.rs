//! A machine whose clock is years off, by libfaketime (package `faketime`).
//!
//! Without libfaketime nothing is tested, unless `HARMONYLITE_REQUIRE_FAKETIME` is set. libfaketime
//! also works for a static program of another architecture, because the emulator is not static.

use std::path::PathBuf;

use crate::cluster::Cluster;
use crate::health::{serve, until_health};
use crate::node::Node;

fn libfaketime() -> Option<PathBuf> {
    let name = "faketime/libfaketimeMT.so.1";
    let folders = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"];
    let mut paths = folders
        .iter()
        .map(|folder| PathBuf::from(folder).join(name));
    let found = paths.find(|path| path.exists());
    let must = std::env::var_os("HARMONYLITE_REQUIRE_FAKETIME").is_some();
    assert!(
        found.is_some() || !must,
        "libfaketime is needed (apt-get install faketime)"
    );
    found
}

/// Two nodes write the same rows; the clock of one shows `time`.
fn converges_with_a_clock_at(time: &str) {
    let Some(library) = libfaketime() else {
        return eprintln!("skipped: there is no libfaketime");
    };
    let mut cluster = Cluster::stopped(2, |_| {});
    let wrong = &mut cluster.nodes[0];
    let port = serve(wrong);
    let variables = [
        ("LD_PRELOAD", library.to_str().unwrap()),
        ("FAKETIME", &format!("@{time}")),
        ("DONT_FAKE_MONOTONIC", "1"), // it is right on such a machine, too
        ("TZ", "UTC"),
    ];
    wrong.environment = variables.map(|(k, v)| (k.into(), v.into())).into();
    Node::start_all(&mut cluster.nodes);
    let shown = format!("clock shows {}", &time[..10]);
    until_health(port, 503, &["\"clock\":\"this machine's", &shown]);
    cluster.nodes[0].until_log(&shown);
    for round in 0..3 {
        for (n, node) in cluster.nodes.iter().enumerate() {
            let text = format!("INSERT OR REPLACE INTO item VALUES (1, {round}, {n})");
            node.execute(&text);
            let id = 10 + 2 * round + n;
            node.execute(&format!("INSERT INTO item VALUES ({id}, {round}, {n})"));
        }
        assert_eq!(cluster.converge().len(), 3 + 2 * round);
    }

    // Once the clock is set, later writes win over earlier ones.
    cluster.nodes[0].stop();
    cluster.nodes[0].environment.clear();
    cluster.nodes[0].start();
    until_health(port, 200, &["\"problems\":{}", "\"clock_ahead_seconds\":"]);
    cluster.nodes[1].execute("UPDATE item SET value = 'after' WHERE id = 1");
    let rows = cluster.converge();
    assert!(rows[0].contains("'after'"), "{rows:?}");
}

#[test]
fn in_2040() {
    converges_with_a_clock_at("2040-01-01 00:00:00");
}

#[test]
fn in_1970() {
    converges_with_a_clock_at("1970-01-01 00:00:10");
}
