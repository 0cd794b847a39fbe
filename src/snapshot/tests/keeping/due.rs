//! When a snapshot is due: by bytes, by the stream's own limits, and who makes it.

use super::*;
use crate::stream::{Retention, StreamState};

const HOUR: Duration = Duration::from_secs(3600);

/// The broker tells how much the stream keeps.
fn hears(node: &Kept, retention: Retention) {
    node.shared.heard_of(&StreamState {
        first: 1,
        last: 1,
        created: String::new(),
        now_ms: None,
        retention,
    });
}

fn is_due(node: &Kept) -> bool {
    node.scheduler.has_work(&node.shared).unwrap()
}

/// A node that knows all, with a snapshot that ends with message 1.
fn node_at_rest(cluster: &Cluster) -> Kept {
    let mut node = cluster.node(1, BOOKS);
    cluster.round(&mut node).unwrap();
    assert!(!is_due(&node));
    node
}

#[test]
fn much_was_written_in_few_messages() {
    let cluster = Cluster::new();
    let a = node_at_rest(&cluster);
    let message_bytes = Some(100 << 10);
    hears(
        &a,
        Retention {
            message_bytes,
            ..Retention::default()
        },
    );
    move_on(&a, 11, None);
    assert!(!is_due(&a), "1000 KiB");
    move_on(&a, 12, None);
    assert!(is_due(&a), "1100 KiB, and the database has less");
}

/// A different node or a person made the stream, or its limit is not ours to choose.
#[test]
fn a_stream_that_keeps_less_than_is_configured() {
    let cluster = Cluster::new();
    let a = node_at_rest(&cluster);
    let max_messages = Some(10);
    hears(
        &a,
        Retention {
            max_messages,
            ..Retention::default()
        },
    );
    move_on(&a, 6, None);
    assert!(!is_due(&a), "half of the ten");
    move_on(&a, 7, None);
    assert!(is_due(&a));
}

#[test]
fn messages_that_grow_old() {
    let cluster = Cluster::new();
    let mut a = node_at_rest(&cluster);
    let max_age = Some(2 * HOUR);
    hears(
        &a,
        Retention {
            max_age,
            ..Retention::default()
        },
    );
    a.clock.advance(HOUR);
    assert!(!is_due(&a), "nothing was written");
    assert_eq!(a.scheduler.rest(&a.shared), NextRound::Rest);
    cluster.write(&a);
    assert!(is_due(&a), "what was written may be as old as the snapshot");
    cluster.round(&mut a).unwrap();
    assert!(!is_due(&a));
    cluster.write(&a);
    assert_eq!(a.scheduler.rest(&a.shared), NextRound::After(HOUR));
    a.clock.advance(HOUR);
    assert!(is_due(&a));
}

/// The first snapshot that a process sees may be old; a later one is not, whatever the clocks say.
#[test]
fn an_old_snapshot_of_another_node() {
    let cluster = Cluster::new();
    let (a, mut b) = cluster.two_that_met();
    let max_age = Some(2 * HOUR);
    cluster.write(&b);
    b.clock.advance(3 * HOUR);
    let mut late = cluster.node(3, BOOKS);
    late.clock.advance(3 * HOUR);
    cluster.round(&mut late).unwrap();
    for node in [&b, &late] {
        hears(
            node,
            Retention {
                max_age,
                ..Retention::default()
            },
        );
    }
    move_on(&late, 2, None);
    assert!(is_due(&late), "it was there before this process");
    cluster.round(&mut b).unwrap();
    drop(a);
}

#[test]
fn a_node_without_snapshots_says_when_nobody_makes_any() {
    let cluster = Cluster::new();
    let (_a, mut b) = cluster.two_that_met();
    b.scheduler = cluster.scheduler(false);
    cluster.round(&mut b).unwrap();
    move_on(&b, 40, None);
    let objects = cluster.objects();
    let health = |node: &Kept| {
        let found = crate::health::report(&node.shared.health, None).unwrap();
        found["problems"]["nobody makes snapshots"].clone()
    };
    let next = cluster.round(&mut b).unwrap();
    assert_eq!(next, NextRound::After(Duration::from_secs(300)));
    assert!(health(&b).is_null());
    b.clock.advance(Duration::from_secs(301));
    cluster.round(&mut b).unwrap();
    let said = health(&b).to_string();
    assert!(said.contains("snapshot.make = true"), "{said}");
    assert_eq!(cluster.objects(), objects);
    move_on(&b, 1, None);
    cluster.round(&mut b).unwrap();
    assert!(health(&b).is_null());
}
