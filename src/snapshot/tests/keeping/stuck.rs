//! Stores that lie or refuse: nobody is stuck with that, and nobody works without end.

use std::io::{Read, Write};

use super::*;

/// A folder in which nothing may be removed.
struct Keeps(Box<dyn Store>);

impl Store for Keeps {
    fn address(&self) -> &str {
        self.0.address()
    }

    fn put(&mut self, name: &str, size: u64, from: &mut dyn Read) -> store::Result<()> {
        self.0.put(name, size, from)
    }

    fn get(&mut self, name: &str, into: &mut (dyn Write + Send)) -> store::Result<()> {
        self.0.get(name, into)
    }

    fn list(&mut self) -> store::Result<Vec<String>> {
        self.0.list()
    }

    fn remove(&mut self, name: &str) -> store::Result<()> {
        Err(StoreError::Failed {
            store: self.0.address().to_owned(),
            doing: format!("remove {name}"),
            cause: "403 Forbidden".into(),
        })
    }
}

#[test]
fn a_store_that_keeps_everything_is_not_filled_without_end() {
    let cluster = Cluster::new();
    let mut a = cluster.node(1, BOOKS);
    let keeps = || Ok(Box::new(Keeps(open(cluster.store.path())?)) as Box<dyn Store>);
    for seq in [50, 100, 150, 200] {
        a.clock.advance(Duration::from_secs(1));
        move_on(&a, seq, None);
        cluster.round_with(&mut a, &keeps).unwrap();
        assert_eq!(cluster.newest().unwrap().streams["s"].seq, seq);
        assert!(!a.keeper.has_work(&a.gate).unwrap());
    }
}

/// Two nodes that have met, and a gap in the second that the newest snapshot would close.
fn gap_and_snapshot(cluster: &Cluster) -> (Kept, Kept) {
    let mut a = cluster.node(1, BOOKS);
    let mut b = cluster.node(2, BOOKS);
    cluster.round(&mut a).unwrap();
    cluster.round(&mut b).unwrap();
    a.app
        .execute_batch("INSERT INTO Books VALUES (1, 'missed', 'x')")
        .unwrap();
    a.clock.advance(Duration::from_secs(1));
    move_on(&a, 100, None);
    cluster.round(&mut a).unwrap();
    move_on(&b, 90, Some(90));
    (a, b)
}

#[test]
fn a_snapshot_that_got_lost_or_torn_is_made_again() {
    for torn in [true, false] {
        let cluster = Cluster::new();
        let (mut a, mut b) = gap_and_snapshot(&cluster);
        a.clock.advance(Duration::from_secs(1));
        a.keeper.ask(false);
        cluster.round(&mut a).unwrap();
        // Both that there are.
        for name in cluster.objects().iter().filter(|n| n.ends_with(".zst")) {
            let file = cluster.store.path().join(name);
            match torn {
                true => std::fs::write(&file, b"torn").unwrap(),
                false => std::fs::remove_file(&file).unwrap(),
            }
        }
        for _ in 0..8 {
            a.clock.advance(Duration::from_secs(1));
            let _ = cluster.round(&mut b);
            cluster.round(&mut a).unwrap();
        }
        assert!(!b.gate.enter().database.has_gap(), "torn: {torn}");
        assert_eq!(titles(&b), ["missed"]);
    }
}

/// What the file holds makes no sense here, or a later release made it: the one before may do.
#[test]
fn a_snapshot_that_cannot_be_read_does_not_hide_the_one_before() {
    for spoil in [
        "UPDATE __harmonylite___meta SET value = 99 WHERE key = 'format'",
        "UPDATE __harmonylite__Books_versions SET hlc = -5",
    ] {
        let cluster = Cluster::new();
        let mut a = cluster.node(1, BOOKS);
        a.app
            .execute_batch("INSERT INTO Books VALUES (1, 'old', 'x')")
            .unwrap();
        cluster.round(&mut a).unwrap();
        a.clock.advance(Duration::from_secs(1));
        a.app.execute_batch(spoil).unwrap();
        a.keeper.ask(false);
        cluster.round(&mut a).unwrap();
        assert_eq!(cluster.objects().len(), 3);
        let mut b = cluster.node(2, BOOKS);
        cluster.round(&mut b).unwrap();
        assert!(b.gate.is_joined(), "{spoil}");
        assert_eq!(titles(&b), ["old"], "{spoil}");
    }
}

#[test]
fn what_waits_is_sent_though_no_snapshot_can_be_had() {
    let cluster = Cluster::new();
    let mut a = cluster.node(1, BOOKS);
    cluster.round(&mut a).unwrap();
    move_on(&a, 20, Some(15));
    let broken = || {
        Err(StoreError::Failed {
            store: "nowhere".into(),
            doing: "open".into(),
            cause: "no route".into(),
        })
    };
    let _ = cluster.round_with(&mut a, &broken);
    assert!(!may_publish(&a));
    a.clock.advance(Duration::from_secs(30));
    let _ = cluster.round_with(&mut a, &broken);
    assert!(may_publish(&a) && a.gate.enter().database.has_gap());
    // The next one may be had at once.
    move_on(&a, 20, None);
    let _ = cluster.round_with(&mut a, &broken);
    move_on(&a, 40, Some(35));
    let _ = cluster.round_with(&mut a, &broken);
    assert!(!may_publish(&a));
}
