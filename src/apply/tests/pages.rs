//! Pages that a row costs: each is written to the WAL, and later to the database.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::support::Node;
use crate::clock::Clock;

const SCHEMA: &str = "PRAGMA page_size = 4096; PRAGMA journal_mode = WAL;
                      CREATE TABLE t(id INTEGER PRIMARY KEY, v)";

const ROWS: u64 = 50;

/// Pages in the WAL, which is not checkpointed here.
fn pages(node: &Node) -> f64 {
    (node.db.wal_bytes().saturating_sub(32) / (4096 + 24)) as f64
}

/// At one row a second: the application writes a page of its table and one of the change log. A
/// capture writes a page of versions, of marks and of the change log, an apply one of the table, of
/// versions and of positions. The rest is what happens now and then.
#[test]
fn a_row_a_second_costs_few_pages() {
    let mut nodes = [1, 2].map(|id| Node::new(id, SCHEMA));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    for node in &mut nodes {
        // The triggers take the time from the machine.
        node.clock
            .advance(now - Duration::from_millis(node.clock.now_ms() as u64));
        node.publish();
        assert!(node.db.backlog(1 << 20).unwrap().is_empty() && node.db.is_live());
    }
    let [writing, receiving] = &mut nodes;
    let before = [pages(writing), pages(receiving)];
    for row in 1..=ROWS {
        for node in [&*writing, &*receiving] {
            node.clock.advance(Duration::from_secs(1));
        }
        let text = "INSERT INTO t VALUES (?1, zeroblob(100))";
        writing.app.execute(text, [row as i64]).unwrap();
        let captured = writing.db.capture().unwrap();
        let [frame] = &captured.frames[..] else {
            panic!("{captured:?}");
        };
        receiving.apply(&captured.frames);
        writing.db.note_acknowledged("s", row, format!("m{row}"));
        writing.db.acknowledged(frame.local_tx);
        if row % 5 == 0 {
            for node in [&mut *writing, &mut *receiving] {
                node.db.flush_now_and_then().unwrap();
            }
        }
    }
    assert_eq!(receiving.rows("SELECT count(*) FROM t"), format!("i{ROWS}"));
    let each = |node: &Node, before: f64| (pages(node) - before) / ROWS as f64;
    let [writes, receives] = [each(writing, before[0]), each(receiving, before[1])];
    assert!(writes <= 5.5, "writing: {writes} pages a row");
    assert!(receives <= 3.3, "receiving: {receives} pages a row");
}
