//! A database that is of no use any more. The snapshots made of it before still are.

use std::os::unix::fs::FileExt;

use super::*;

/// Two snapshots of it would take the place of the sound ones, and none would be left to begin
/// with.
#[test]
fn no_snapshot_is_made_of_a_damaged_database() {
    let cluster = Cluster::new();
    let mut a = cluster.node(1, BOOKS);
    let mut b = cluster.node(2, BOOKS);
    a.app
        .execute_batch("INSERT INTO Books VALUES (1, 'Dune', 'x')")
        .unwrap();
    cluster.round(&mut a).unwrap();
    cluster.round(&mut b).unwrap();
    let sound = (cluster.newest().unwrap().name, cluster.objects());
    damage(&a);
    a.clock.advance(Duration::from_secs(1));
    move_on(&a, 100, None);
    let refused = cluster.round(&mut a).unwrap_err().to_string();
    assert!(refused.contains("is damaged, and no snapshot"), "{refused}");
    assert_eq!((cluster.newest().unwrap().name, cluster.objects()), sound);
    let left = std::fs::read_dir(a.dir.path()).unwrap();
    assert_eq!(left.count(), 3, "nothing is left beside it");
    b.clock.advance(Duration::from_secs(1));
    move_on(&b, 100, None);
    cluster.round(&mut b).unwrap();
    assert_ne!(cluster.newest().unwrap().name, sound.0, "another node can");
}

/// Overwrites the root of an index, as a dying card may.
fn damage(node: &Kept) {
    let page: u64 = node
        .app
        .query_row(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'sqlite_autoindex_Books_1'",
            [],
            |r| r.get(0),
        )
        .unwrap();
    node.app
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .unwrap();
    let path = node.shared.lock().database.path().to_owned();
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(&[0xff; 4096], (page - 1) * 4096).unwrap();
}
