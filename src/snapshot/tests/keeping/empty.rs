//! Nodes without tables, in each order with the node that has the data.

use super::*;

const MOMENT: Duration = Duration::from_secs(5);

fn founder(cluster: &Cluster) -> Option<u64> {
    cluster.shared.lock().unwrap().founder
}

/// A node with one book.
fn with_data(cluster: &Cluster, id: u64) -> Kept {
    let node = cluster.node(id, BOOKS);
    let text = format!("INSERT INTO Books VALUES ({id}, 'of {id}', 'x')");
    node.app.execute_batch(&text).unwrap();
    node
}

#[test]
fn a_node_without_tables_waits_for_the_data_however_long() {
    let cluster = Cluster::new();
    let mut b = cluster.node(2, "");
    cluster.round(&mut b).unwrap();
    assert!(!b.shared.has_begun(), "the data may come at any moment");
    b.clock.advance(MOMENT);
    assert_eq!(cluster.round(&mut b).unwrap(), NextRound::Rest);
    assert!(b.shared.has_begun() && !b.shared.is_joined());
    b.clock.advance(Duration::from_secs(1000));
    cluster.round(&mut b).unwrap();
    assert_eq!((founder(&cluster), cluster.newest()), (None, None));
    let mut a = with_data(&cluster, 1);
    cluster.round(&mut a).unwrap();
    assert_eq!(founder(&cluster), Some(1));
    cluster.round(&mut b).unwrap();
    assert!(b.shared.is_joined());
    assert_eq!(titles(&b), ["of 1"]);
}

#[test]
fn two_without_tables_begin_with_those_that_come_first() {
    let cluster = Cluster::new();
    let (mut a, mut b) = (cluster.node(1, ""), cluster.node(2, ""));
    for node in [&mut a, &mut b] {
        cluster.round(node).unwrap();
        node.clock.advance(MOMENT);
        cluster.round(node).unwrap();
    }
    b.app.execute_batch(BOOKS).unwrap();
    assert!(b.scheduler.has_work(&b.shared).unwrap());
    cluster.round(&mut b).unwrap();
    assert_eq!(founder(&cluster), Some(2));
    cluster.round(&mut a).unwrap();
    assert!(a.shared.is_joined());
    assert!(titles(&a).is_empty());
}

/// The application of the new node makes its tables while the node with the data still starts.
#[test]
fn tables_made_just_now_found_nothing_for_a_moment() {
    let cluster = Cluster::new();
    let mut b = cluster.node(2, "");
    b.app.execute_batch(BOOKS).unwrap();
    cluster.round(&mut b).unwrap();
    assert_eq!(founder(&cluster), None);
    let mut a = with_data(&cluster, 1);
    cluster.round(&mut a).unwrap();
    cluster.round(&mut b).unwrap();
    assert_eq!(
        (founder(&cluster), titles(&b)),
        (Some(1), vec!["of 1".into()])
    );

    let alone = Cluster::new();
    let mut c = alone.node(3, "");
    c.app.execute_batch(BOOKS).unwrap();
    alone.round(&mut c).unwrap();
    c.clock.advance(MOMENT);
    alone.round(&mut c).unwrap();
    assert_eq!(founder(&alone), Some(3));
}

#[test]
fn a_founder_that_died_keeps_no_application_from_its_work() {
    let cluster = Cluster::new();
    let mut b = cluster.node(2, "");
    cluster.shared.lock().unwrap().founder = Some(1);
    cluster.round(&mut b).unwrap();
    b.clock.advance(MOMENT);
    cluster.round(&mut b).unwrap();
    assert!(!b.shared.has_begun(), "it may come back");
    b.clock.advance(Duration::from_secs(31));
    cluster.round(&mut b).unwrap();
    assert!(b.shared.has_begun() && !b.shared.is_joined());
    assert_eq!(cluster.newest(), None, "an empty one is of no use");
    b.app.execute_batch(BOOKS).unwrap();
    cluster.round(&mut b).unwrap();
    assert!(b.shared.is_joined() && cluster.newest().is_some());
}

#[test]
fn a_snapshot_of_nothing_is_refused() {
    let cluster = Cluster::new();
    let mut b = cluster.node(2, "");
    b.scheduler.ask(false);
    let refused = cluster.round(&mut b).unwrap_err();
    assert!(matches!(refused, RoundError::Refused(_)), "{refused}");
    assert!(!b.scheduler.is_asked());
}
