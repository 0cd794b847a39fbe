//! Endless messages of peers take only bounded memory and disk.

use super::support::{Node, cluster, converge, exchange};
use crate::capture::Outgoing;
use crate::clock::Clock;
use crate::model::frame::{Frame, pack};

const T: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)";

fn rows(count: u32, bytes: u32) -> String {
    format!(
        "WITH RECURSIVE s(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM s WHERE i < {count})
         INSERT INTO t SELECT i, randomblob({bytes}) FROM s"
    )
}

fn bytes(frames: &[Outgoing]) -> usize {
    frames.iter().map(|f| f.raw.len()).sum()
}

#[test]
fn a_row_too_large_for_the_cluster_is_rejected_and_named() {
    let mut n = cluster(2, T);
    n[0].db.limits.row_bytes = 1000;
    n[0].capture(); // the first comparison is over
    n[0].run("INSERT INTO t VALUES (1, 'a'), (2, zeroblob(2000)), (3, 'c')");
    exchange(&mut n);
    assert_eq!(n[0].db.rejected(), 1);
    assert_eq!(n[1].rows("SELECT id FROM t"), "i1\ni3");
    // The row grows after it got its version, before its frame is encoded.
    n[0].run("UPDATE t SET v = 'soon larger' WHERE id = 1");
    n[0].capture();
    n[0].app
        .execute_batch("UPDATE t SET v = zeroblob(2000) WHERE id = 1")
        .unwrap();
    let sent = n[0].send();
    n[1].apply(&sent);
    assert_eq!(n[0].db.unsent().unwrap(), 0);
    exchange(&mut n);
    assert_eq!(n[0].db.rejected(), 3);
    n[0].run("UPDATE t SET v = 'small again'; DELETE FROM t WHERE id = 3");
    assert!(converge(&mut n).contains("small again"));
}

#[test]
fn a_transaction_of_large_rows_is_sent_in_pieces() {
    const LIMIT: usize = 100_000;
    let mut n = cluster(2, T);
    n[0].run(&rows(40, 50_000));
    n[0].run("INSERT INTO t VALUES (100, 'one more transaction')");
    n[0].capture();
    let mut pieces = 0;
    loop {
        let piece = n[0].db.backlog(LIMIT).unwrap();
        assert!(bytes(&piece) <= 2 * LIMIT + 60_000, "{}", bytes(&piece));
        let Some(last) = piece.last() else { break };
        n[1].apply(&piece);
        pieces += 1;
        match pieces {
            // The process ends, or the connection breaks, before the acknowledgement.
            3 => n[0].restart(),
            5 => n[0].db.stop_live(),
            _ => n[0].db.acknowledged(last.local_tx),
        }
        if pieces == 7 {
            // A row of a later piece and one of an earlier piece change on both nodes.
            n[0].run("UPDATE t SET v = 'here' WHERE id IN (2, 38)");
            n[1].run("UPDATE t SET v = 'there' WHERE id IN (3, 39)");
            let there = n[1].publish();
            n[0].apply(&there);
        }
    }
    assert!(pieces > 10 && n[0].db.is_live());
    assert_eq!(n[0].db.unsent().unwrap(), 0);
    n[0].db.stop_live();
    converge(&mut n);
}

#[test]
fn more_than_fits_in_memory_is_left_to_the_marks() {
    let mut n = cluster(2, T);
    assert!(n[0].db.backlog(1 << 20).unwrap().is_empty() && n[0].db.is_live());
    n[0].run(&rows(12, 1 << 20));
    let captured = n[0].db.capture().unwrap();
    assert!(captured.frames.is_empty() && !captured.more && !n[0].db.is_live());
    assert_eq!((captured.changes, n[0].db.unsent().unwrap()), (12, 12));
    converge(&mut n);
}

/// Frames of one row each, split into parts.
fn parts(node: &mut Node, ids: std::ops::Range<u32>) -> Vec<Vec<Outgoing>> {
    let mut all = Vec::new();
    for id in ids {
        node.run(&format!("INSERT INTO t VALUES ({id}, randomblob(10000))"));
        let frame = node.publish().remove(0);
        let packed = pack(frame.raw.clone(), None);
        let parts = packed.messages(0, 2000).map(|raw| Outgoing {
            raw,
            ..frame.clone()
        });
        all.push(parts.collect());
    }
    all
}

#[test]
fn parts_whose_others_never_come_make_room() {
    let mut n = cluster(2, T);
    let all = parts(&mut n[0], 0..20);
    n[1].db.limits.parts_bytes = 30_000;
    for parts in &all[..19] {
        n[1].clock.advance(std::time::Duration::from_secs(1));
        n[1].apply(&parts[1..]); // the first is lost
    }
    let stored = "SELECT total(length(bytes)) < 30000 FROM __harmonylite___parts";
    assert_eq!(n[1].rows(stored), "i1");
    assert!(n[1].db.quarantined().unwrap() > 10);
    n[1].apply(&all[19]);
    n[1].apply(&all[18][..1]);
    assert_eq!(n[1].rows("SELECT id FROM t"), "i18\ni19");
}

/// The sender was cut off in the middle, and published the whole frame again.
#[test]
fn parts_whose_others_do_not_come_for_a_month_go() {
    let mut n = cluster(2, T);
    let all = parts(&mut n[0], 0..2);
    let stored = "SELECT count(DISTINCT id) FROM __harmonylite___parts";
    n[1].apply(&all[0][..1]);
    n[1].clock
        .advance(std::time::Duration::from_secs(29 * 24 * 3600));
    n[1].apply(&all[1][..1]);
    assert_eq!(n[1].rows(stored), "i2");
    n[1].clock
        .advance(std::time::Duration::from_secs(2 * 24 * 3600));
    n[1].apply(&all[1][1..2]);
    assert_eq!(n[1].rows(stored), "i1");
}

/// The node was off between the parts, or booted without knowing the time.
#[test]
fn parts_wait_for_the_others_however_long() {
    let mut n = cluster(2, T);
    let all = parts(&mut n[0], 0..1);
    let now = n[1].clock.now_ms();
    n[1].clock.set(20_000);
    n[1].apply(&all[0][..1]);
    n[1].clock.set(now);
    n[1].apply(&all[0][1..]);
    assert_eq!(n[1].rows("SELECT id FROM t"), "i0");
}

#[test]
fn quarantine_keeps_the_newest_and_counts_the_rest() {
    let mut n = cluster(1, T);
    (n[0].db.limits.quarantined, n[0].db.limits.quarantined_bytes) = (10, 5000);
    let garbage = |i: u8| Outgoing {
        local_tx: 0,
        shard: 1,
        salt: 0,
        raw: vec![0xff - i; 1000],
    };
    for i in 0..25 {
        n[0].clock.advance(std::time::Duration::from_secs(1));
        n[0].apply(&[garbage(i)]);
        n[0].restart_with(|_| {});
        (n[0].db.limits.quarantined, n[0].db.limits.quarantined_bytes) = (10, 5000);
    }
    assert_eq!(n[0].db.quarantined().unwrap(), 25);
    let kept = "SELECT min(seq), max(seq), count(*), sum(length(data)), min(seq) FILTER (WHERE \
        data NOT NULL)
                FROM __harmonylite___quarantine";
    assert_eq!(n[0].rows(kept), "i16 i25 i10 i5000 i21");
}

/// The memory that one message can take is bounded by its bytes.
#[test]
fn absurd_counts_and_deep_nesting_are_refused_at_once() {
    let array = |count: u64| [&[0x9b][..], &count.to_be_bytes()].concat();
    let mut frames = vec![
        vec![0x81; 4 << 20], // an array in an array in an array…
        vec![0xc6; 4 << 20], // a tag of a tag of a tag…
        [&[0x84, 1, 0][..], &array(u64::MAX)].concat(),
        [&[0x84, 1, 0, 0x80][..], &array(u64::MAX)].concat(),
        [&[0x84, 1, 0][..], &array(4 << 20), &vec![0; 4 << 20]].concat(),
        [
            &[0x84, 1, 0, 0x80][..],
            &array(1 << 18),
            &vec![0x84; 1 << 18],
        ]
        .concat(),
    ];
    frames.push(
        [
            &[0x86, 1, 1, 0x50][..],
            &[0; 16],
            &[0, 0x1b],
            &[0xff; 8],
            &[0x40],
        ]
        .concat(),
    );
    for frame in frames {
        assert!(Frame::decode(&frame).is_err());
    }
}
