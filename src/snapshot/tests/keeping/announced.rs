//! Somebody can write to the store, and has no word in the broker's bucket.

use super::*;
use crate::model::manifest::Manifest;

fn manifest(cluster: &Cluster) -> std::path::PathBuf {
    let mut folders = vec![cluster.store.path().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false if path.ends_with(NAME) => return path,
                false => {}
            }
        }
    }
    panic!("no manifest");
}

fn forge(cluster: &Cluster, change: impl FnOnce(&mut Manifest)) {
    let path = manifest(cluster);
    let mut forged = Manifest::parse(&std::fs::read(&path).unwrap(), "c").unwrap();
    change(&mut forged);
    std::fs::write(&path, forged.to_bytes()).unwrap();
}

/// Two nodes with a book that both know; the second misses messages.
fn returning(cluster: &Cluster) -> (Kept, Kept) {
    let mut a = cluster.node(1, BOOKS);
    let add = "INSERT INTO Books VALUES (1, 'kept', 'x')";
    a.app.execute_batch(add).unwrap();
    let mut b = cluster.node(2, BOOKS);
    cluster.round(&mut a).unwrap();
    cluster.round(&mut b).unwrap();
    assert_eq!(titles(&b), ["kept"]);
    move_on(&b, 1, Some(1));
    (a, b)
}

/// A bound for dropped tombstones that takes every row for deleted, as the store says it.
#[test]
fn the_store_says_nothing_of_a_snapshot_but_that_it_has_it() {
    let cluster = Cluster::new();
    let (_a, mut b) = returning(&cluster);
    let announced = cluster.newest().unwrap();
    forge(&cluster, |manifest| {
        manifest.snapshots[0].dropped = Some((1 << 61, 1));
        manifest.snapshots[0].streams.get_mut("s").unwrap().seq = 1 << 40;
    });
    cluster.round(&mut b).unwrap();
    assert_eq!(titles(&b), ["kept"]);
    assert_eq!(
        b.shared.lock().database.position("s").seq,
        announced.streams["s"].seq.max(1)
    );
    assert!(!b.shared.lock().database.dropped().unwrap().is_valid());
}

#[test]
fn a_snapshot_that_no_node_announced_is_not_taken() {
    let cluster = Cluster::new();
    let (_a, mut b) = returning(&cluster);
    for forged in [true, false] {
        forge(&cluster, |manifest| match forged {
            true => manifest.snapshots[0].sha256 = "0".repeat(64),
            false => manifest.snapshots[0].name = "snapshot-9-1-9.db.zst".into(),
        });
        let _ = cluster.round(&mut b);
        assert_eq!(titles(&b), ["kept"]);
        let locked = b.shared.lock();
        let told = crate::health::report(&b.shared.health, Some(&locked.database)).unwrap();
        drop(locked);
        let text = told["problems"]["snapshots that nobody announced"].to_string();
        assert!(text.contains("lists 1 of which"), "{told}");
        assert!(b.shared.lock().database.has_gap(), "it is not merged");
    }
}

/// The broker lost its data, and the store is all there is.
#[test]
fn the_store_is_believed_while_nothing_is_announced() {
    let cluster = Cluster::new();
    let (_a, _b) = returning(&cluster);
    *cluster.shared.lock().unwrap() = Inner::default();
    let mut c = cluster.node(3, BOOKS);
    cluster.round(&mut c).unwrap();
    assert_eq!(titles(&c), ["kept"]);
}
