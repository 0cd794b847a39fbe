//! Two applications that use the same streams.

use super::*;
use crate::apply::{Arrived, Content};
use crate::clock::Clock;
use crate::model::frame::Frame;

const JOBS: &str = "CREATE TABLE jobs(id INTEGER PRIMARY KEY, payload)";

fn problems(node: &Kept) -> String {
    let locked = node.shared.lock();
    let report = crate::health::report(&node.shared.health, Some(&locked.database));
    report.unwrap()["problems"].to_string()
}

#[test]
fn another_application_does_not_join_and_is_told() {
    let cluster = Cluster::new();
    let mut a = cluster.node(1, BOOKS);
    let mut b = cluster.node(2, JOBS);
    cluster.round(&mut a).unwrap();
    cluster.round(&mut b).unwrap();
    assert!(!b.shared.is_joined());
    let told = problems(&b);
    for says in [
        "node 1 replicates books",
        "here are jobs",
        "nats.subject_prefix",
    ] {
        assert!(told.contains(says), "{told}");
    }
    a.clock.advance(Duration::from_secs(31));
    cluster.round(&mut a).unwrap();
    assert_eq!(problems(&a), "{}", "who was there first is well");
    assert!(a.scheduler.strangers.ends(), "and said it");
    // The node turns out to be of the same application, before its migrations.
    b.app.execute_batch(BOOKS).unwrap();
    b.shared.lock().database.capture().unwrap();
    assert!(b.shared.lock().database.has_news());
    cluster.round(&mut b).unwrap();
    assert!(b.shared.is_joined());
    assert_eq!(problems(&b), "{}");
}

#[test]
fn a_node_without_tables_joins() {
    let cluster = Cluster::new();
    let (mut a, mut b) = (cluster.node(1, BOOKS), cluster.node(2, ""));
    cluster.round(&mut a).unwrap();
    cluster.round(&mut b).unwrap();
    assert!(b.shared.is_joined());
}

/// A node of an earlier release does not say which tables it has.
#[test]
fn beside_one_that_does_not_tell_its_tables_it_joins_and_is_told() {
    let cluster = Cluster::new();
    let (mut a, mut b) = (cluster.node(1, BOOKS), cluster.node(2, JOBS));
    cluster.round(&mut a).unwrap();
    cluster
        .shared
        .lock()
        .unwrap()
        .publishers
        .insert(3, String::new());
    cluster.round(&mut b).unwrap();
    assert!(b.shared.is_joined());
    assert!(problems(&b).contains("another application"));
}

fn held(node: &Kept) -> u64 {
    node.shared.lock().database.held().unwrap()
}

/// A table that lived for two seconds on one node, as the others see it.
#[test]
fn held_rows_of_a_table_that_nobody_has_end() {
    let cluster = Cluster::new();
    let (mut a, mut b) = cluster.two_that_met();
    let mut third = Node::new(3, "CREATE TABLE import_1(id INTEGER PRIMARY KEY)");
    third.run("INSERT INTO import_1 VALUES (1), (2), (3)");
    for frame in third.publish() {
        let content = Content::Frame(Frame::decode(&frame.raw).unwrap());
        let mut locked = b.shared.lock();
        let seq = locked.database.position("s").seq + 1;
        let arrived = Arrived {
            seq,
            id: "x",
            time_ms: b.clock.now_ms(),
            content,
        };
        locked.database.apply("s", &[arrived]).unwrap();
    }
    assert_eq!(held(&b), 3);
    let later = |b: &mut Kept, days: u64| {
        b.clock.advance(Duration::from_secs(days * 24 * 3600));
        let now_ms = b.clock.now_ms();
        let mut locked = b.shared.lock();
        locked.database.heard_broker_time(now_ms);
        locked.database.note_age().unwrap();
        drop(locked);
        cluster.round(b).unwrap();
        while b.shared.lock().database.capture().unwrap().more {}
    };
    later(&mut b, 1);
    cluster.shared.lock().unwrap().tables.insert(1, None);
    later(&mut b, 31);
    assert_eq!(held(&b), 3, "node 1 may have it");
    cluster.round(&mut a).unwrap();
    let told = BTreeSet::from(["books".to_owned()]);
    cluster.shared.lock().unwrap().tables.insert(1, Some(told));
    later(&mut b, 1);
    assert_eq!(held(&b), 0);
}

/// The node let go of a table that others may have, so their snapshot is the better one.
#[test]
fn a_node_that_let_go_of_a_table_waits_for_a_snapshot_of_others() {
    let cluster = Cluster::new();
    let (_a, mut b) = cluster.two_that_met();
    let made = cluster.newest().unwrap().name;
    b.shared
        .lock()
        .database
        .write(|db| db.note_let_go("jobs"))
        .unwrap();
    move_on(&b, 20, None);
    let created = b.shared.lock().database.position("s").created;
    let wanted = StreamPosition {
        seq: 20,
        created,
        ..StreamPosition::default()
    };
    b.registry
        .request(&BTreeMap::from([("s".to_owned(), wanted)]))
        .unwrap();
    for (seconds, is_made) in [(0, false), (31, false), (31, true)] {
        b.clock.advance(Duration::from_secs(seconds));
        cluster.round(&mut b).unwrap();
        let newest = cluster.newest().unwrap();
        assert_eq!(newest.name != made, is_made, "after {seconds} s");
        assert_eq!(newest.lacks == ["jobs"], is_made);
    }
}
