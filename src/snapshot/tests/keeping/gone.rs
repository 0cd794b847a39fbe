//! Streams that are gone, and rows of them that only a snapshot has.

use super::*;

fn lose_stream(node: &Kept) {
    let mut locked = node.shared.lock();
    let known = locked.database.position("s");
    locked.database.note_lost("s", &known).unwrap();
    let anew = Position {
        created: "anew".into(),
        ..Position::default()
    };
    locked.database.move_position("s", anew);
    locked.database.flush().unwrap();
}

/// Node 1 made a snapshot at 10 and ended; node 2 had read up to `read` when the broker's store was
/// lost.
fn after_loss(read: u64) -> (Cluster, Kept) {
    let cluster = Cluster::new();
    let (mut a, mut b) = cluster.two_that_met();
    a.app
        .execute_batch("INSERT INTO Books VALUES (1, 'Dune', 'x')")
        .unwrap();
    move_on(&a, 10, None);
    a.scheduler.ask(false);
    cluster.round(&mut a).unwrap();
    move_on(&b, read, None);
    b.scheduler.connected();
    lose_stream(&b);
    (cluster, b)
}

/// Simulation, seed 4032597: no node was left that had read the rows.
#[test]
fn rows_of_a_lost_stream_in_a_snapshot_are_merged() {
    let (cluster, mut b) = after_loss(5);
    assert!(b.scheduler.has_work(&b.shared).unwrap());
    let away = || {
        Err(StoreError::Failed {
            store: "file".into(),
            doing: "opening it".into(),
            cause: "no disk".into(),
        })
    };
    cluster.round_with(&mut b, &away).unwrap_err();
    assert!(titles(&b).is_empty());
    cluster.round(&mut b).unwrap();
    assert_eq!(titles(&b), ["Dune"], "also after a failure");
    let locked = b.shared.lock();
    assert_eq!(locked.database.position("s").created, "anew");
    assert!(!locked.database.seeks_snapshot().unwrap(), "once");
}

/// The snapshot would be fetched for nothing, and bring back rows that are deleted and forgotten.
#[test]
fn messages_read_before_a_stream_was_lost_are_not_merged_again() {
    let (cluster, mut b) = after_loss(10);
    cluster.round(&mut b).unwrap();
    assert!(titles(&b).is_empty());
    assert!(!b.shared.lock().database.seeks_snapshot().unwrap());
}

/// Where replacing the manifest takes two steps, it can be read between them.
#[test]
fn a_torn_manifest_does_not_mean_that_there_is_no_snapshot() {
    let (cluster, mut b) = after_loss(5);
    let manifest = cluster.store.path().join(NAME);
    let whole = std::fs::read(&manifest).unwrap();
    std::fs::write(&manifest, &whole[..whole.len() / 2]).unwrap();
    let mut shared = cluster.shared.lock().unwrap();
    (shared.newest, shared.leader) = (None, Some(1));
    drop(shared);
    cluster.round(&mut b).unwrap();
    assert!(titles(&b).is_empty());
    std::fs::write(&manifest, &whole).unwrap();
    cluster.round(&mut b).unwrap();
    assert_eq!(titles(&b), ["Dune"]);
}

/// Everything in the snapshot is here, so it would be fetched for nothing.
#[test]
fn the_maker_of_the_first_snapshot_after_a_loss_does_not_merge_it() {
    let (cluster, mut b) = after_loss(5);
    std::fs::remove_file(cluster.store.path().join(NAME)).unwrap();
    cluster.shared.lock().unwrap().newest = None;
    cluster.round(&mut b).unwrap();
    let made = cluster.newest().unwrap();
    assert_eq!(made.node, 2);
    std::fs::remove_file(cluster.store.path().join(&made.name)).unwrap();
    cluster.round(&mut b).unwrap();
    assert!(!b.shared.lock().database.seeks_snapshot().unwrap());
}

/// The operator wants it, and may know of damage that the node does not.
#[test]
fn a_removed_mirror_lets_own_snapshots_be_merged() {
    let cluster = Cluster::new();
    let mut a = cluster.node(1, BOOKS);
    cluster.round(&mut a).unwrap();
    let made = cluster.store.path().join(cluster.newest().unwrap().name);
    std::fs::remove_file(&made).unwrap();
    cluster.round(&mut a).unwrap();
    a.shared.lock().database.forget_positions().unwrap();
    cluster.round(&mut a).unwrap_err();
}

/// Each time is a different loss.
#[test]
fn a_store_that_is_emptied_again_gets_another_again() {
    let cluster = Cluster::new();
    let (mut a, mut b) = cluster.two_that_met();
    let empty = || {
        for name in cluster.objects() {
            std::fs::remove_file(cluster.store.path().join(name)).unwrap();
        }
    };
    empty();
    b.shared.lock().database.forget_positions().unwrap();
    cluster.round(&mut b).unwrap();
    cluster.round(&mut a).unwrap();
    assert_eq!(cluster.objects().len(), 2);
    move_on(&b, 1, None);
    cluster.round(&mut b).unwrap();
    a.app
        .execute_batch("INSERT INTO Books VALUES (1, 'missed', 'x')")
        .unwrap();
    a.clock.advance(Duration::from_secs(1));
    move_on(&a, 100, None);
    cluster.round(&mut a).unwrap();
    empty();
    move_on(&b, 90, Some(90));
    for _ in 0..12 {
        a.clock.advance(Duration::from_secs(31));
        b.clock.advance(Duration::from_secs(31));
        let _ = cluster.round(&mut b);
        cluster.round(&mut a).unwrap();
    }
    assert!(!b.shared.lock().database.has_gap());
}

/// The snapshot's file is sound, but its content is not.
#[test]
fn a_snapshot_that_nobody_can_merge_does_not_prevent_others() {
    let cluster = Cluster::new();
    let (mut a, mut b) = cluster.two_that_met();
    a.app
        .execute_batch("INSERT INTO Books VALUES (1, 'Dune', 'x')")
        .unwrap();
    move_on(&a, 10, None);
    a.scheduler.ask(false);
    cluster.round(&mut a).unwrap();
    a.clock.advance(Duration::from_secs(1));
    a.app
        .execute_batch("UPDATE __harmonylite__Books_versions SET hlc = -5")
        .unwrap();
    a.scheduler.ask(false);
    cluster.round(&mut a).unwrap();
    let spoiled = cluster.newest().unwrap().name;
    // The manifest lists only that snapshot.
    let manifest = cluster.store.path().join(NAME);
    let text = std::fs::read(&manifest).unwrap();
    let mut m = crate::model::manifest::Manifest::parse(&text, "c").unwrap();
    m.snapshots.truncate(1);
    std::fs::write(&manifest, m.to_bytes()).unwrap();
    lose_stream(&b);
    let mut errors = Vec::new();
    for _ in 0..8 {
        b.clock.advance(Duration::from_secs(31));
        errors.push(cluster.round(&mut b).map_err(|e| e.to_string()));
    }
    assert_ne!(cluster.newest().unwrap().name, spoiled, "{errors:#?}");
}
