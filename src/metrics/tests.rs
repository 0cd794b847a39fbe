//! The exported text: its form, as promtool checks it, and its values.

use std::collections::BTreeMap;

use super::*;
use crate::apply::tests::support::Node;

/// The exported text of a node.
fn exported(shared: &Shared, namespace: &str) -> String {
    let options = MetricsOptions {
        namespace,
        subsystem: "",
        node: 1,
        store: "nats",
    };
    Exporter::new(&options, shared)
        .unwrap()
        .text(shared)
        .unwrap()
}

/// The mistakes that `promtool check metrics` would report.
fn complaints(text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut complain = |name: &str, what: &str| complaints.push(format!("{name}: {what}"));
    let helped = |name: &str| text.contains(&format!("# HELP {name} "));
    for line in text.lines().filter_map(|l| l.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        let words: Vec<&str> = name.split('_').collect();
        let has = |list: &[&str]| words.iter().any(|w| list.contains(w));
        let ends = |list: &[&str]| list.iter().any(|end| name.ends_with(end));
        if !helped(name) {
            complain(name, "no help");
        }
        if (kind == "counter") != name.ends_with("_total") {
            complain(name, "counters, and no others, end with _total");
        }
        if kind != "histogram" && ends(&["_bucket", "_count", "_sum"]) {
            complain(name, "an end of histograms");
        }
        if has(&["counter", "gauge", "histogram", "summary"]) {
            complain(name, "its type in its name");
        }
        if has(&[
            "ms",
            "us",
            "ns",
            "sec",
            "kb",
            "mb",
            "milliseconds",
            "minutes",
            "hours",
        ]) {
            complain(name, "not a base unit");
        }
        if name
            .chars()
            .any(|c| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'))
        {
            complain(name, "characters of others");
        }
    }
    complaints
}

/// Values by the name and labels in front of them.
fn values(text: &str) -> BTreeMap<&str, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.map(|line| line.rsplit_once(' ').unwrap());
    pairs
        .map(|(name, value)| (name, value.parse().unwrap()))
        .collect()
}

#[test]
fn names_and_texts_are_sound() {
    let shared = Shared::new(Node::new(1, "").db, 2).0;
    let text = exported(&shared, "harmonylite");
    assert_eq!(complaints(&text), Vec::<String>::new());
    let with_labels = text.lines().filter(|line| !line.starts_with('#'));
    for line in with_labels {
        assert!(line.starts_with("harmonylite_"), "{line}");
        assert!(line.contains("node_id=\"1\""), "{line}");
    }
    assert!(exported(&shared, "").contains("\npublished{node_id=\"1\"} 0\n"));
}

#[test]
fn events_are_counted_once_and_only_if_committed() {
    let [mut a, mut b] =
        [1, 2].map(|id| Node::new(id, "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT UNIQUE)"));
    a.run("INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c')");
    b.run("INSERT INTO t VALUES (9, 'a')");
    b.capture();
    let frames = a.publish();
    b.apply(&frames);
    let once = b.db.counts();
    assert_eq!((once.won, once.lost, once.held), (3, 0, 0));
    assert_eq!(once.conflicts, 1, "one of the two rows with 'a'");
    b.apply(&frames);
    assert_eq!((b.db.counts().won, b.db.counts().lost), (3, 3));
    a.run("CREATE TABLE u(id INTEGER PRIMARY KEY)");
    a.run("INSERT INTO u VALUES (1)");
    b.apply(&a.publish());
    assert_eq!(b.db.counts().held, 1);
    let before = b.db.counts();
    let undone: crate::database::Result<()> = b.db.write(|db| {
        db.counts.won += 100;
        Err(crate::database::DatabaseError::Unusable("no".into()))
    });
    assert!(undone.is_err());
    assert_eq!(b.db.counts(), before);

    let shared = Shared::new(b.db, 1).0;
    let text = exported(&shared, "h");
    let values = values(&text);
    assert_eq!(values["h_applied_rows_total{node_id=\"1\"}"], 3.0);
    assert_eq!(values["h_held_rows{node_id=\"1\"}"], 1.0);
    assert_eq!(values["h_schema_mismatch_paused{node_id=\"1\"}"], 1.0);
    assert_eq!(values["h_displaced_rows{node_id=\"1\"}"], 1.0);
}

/// A cluster of a thousand nodes has 32 labels, and counters never fall.
#[test]
fn labels_are_bounded_and_counters_rise() {
    let shared = Shared::new(Node::new(1, "").db, 1).0;
    let options = MetricsOptions {
        namespace: "h",
        subsystem: "s",
        node: 1,
        store: "file",
    };
    let exporter = Exporter::new(&options, &shared).unwrap();
    let mut facts = MetricFacts {
        lag_ms: (0..1000).map(|node| (node, node)).collect(),
        snapshot_failures: 2,
        ..MetricFacts::default()
    };
    let set = |facts: &MetricFacts| {
        exporter.known.lock().unwrap().set(facts);
        TextEncoder::new()
            .encode_to_string(&exporter.registry.gather())
            .unwrap()
    };
    let text = set(&facts);
    assert_eq!(text.matches("h_s_lag_seconds{").count(), ORIGINS);
    let has = |text: &str, label: &str, end: &str| {
        let mut lines = text.lines();
        lines.any(|line| line.contains(label) && line.ends_with(end))
    };
    assert!(has(&text, "origin=\"999\"", "} 0.999"), "{text}");
    assert!(has(&text, "store=\"file\"", "} 2"), "{text}");
    facts.snapshot_failures = 1;
    facts.lag_ms.clear();
    let text = set(&facts);
    assert!(has(&text, "store=\"file\"", "} 2"), "it does not fall");
    assert!(!text.contains("h_s_lag_seconds{"));
}
