//! Messages whose rows take several transactions.

use std::time::Duration;

use super::support::{Node, cluster, converge};
use crate::apply::{Arrived, Content};
use crate::database::sites::MAX_NODES;
use crate::model::frame::{Frame, FrameBuilder};
use crate::model::value::Value;
use crate::model::version::Version;

const SCHEMA: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE TABLE u(id INTEGER PRIMARY
    KEY, v UNIQUE); CREATE TABLE w(id INTEGER PRIMARY KEY, v)";

const ROWS: &str = "WITH RECURSIVE s(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM s WHERE i < 50)
    INSERT INTO t SELECT i, 'a' FROM s; INSERT INTO u SELECT id, id FROM t;
    INSERT INTO w SELECT id, v FROM t";

fn arrived<'a>(raw: &'a [u8], node: &Node) -> Arrived<'a> {
    Arrived {
        seq: 1,
        id: "x",
        time_ms: crate::clock::Clock::now_ms(&*node.clock),
        content: Content::Frame(Frame::decode(raw).unwrap()),
    }
}

/// One table is plain, one has a UNIQUE index, and one is not here yet.
#[test]
fn every_row_of_a_message_arrives_in_steps() {
    let mut n = vec![
        Node::new(1, SCHEMA),
        Node::new(2, &SCHEMA[..SCHEMA.find("; CREATE TABLE w").unwrap()]),
    ];
    n[0].run(&format!("BEGIN; {ROWS}; COMMIT"));
    let frames = n[0].publish();
    n[1].db.apply_in_steps(7, Duration::ZERO);
    let mut steps = 0;
    for frame in &frames {
        let message = [arrived(&frame.raw, &n[1])];
        let before = n[1].db.position("s").seq;
        while n[1].db.apply("s", &message).unwrap().messages == 0 {
            steps += 1;
            assert!(n[1].db.is_part_way());
            assert_eq!(
                n[1].db.position("s").seq,
                before,
                "the message is not read yet"
            );
        }
    }
    assert!(steps > 10, "{steps}");
    assert!(!n[1].db.is_part_way());
    assert_eq!(n[1].db.held().unwrap(), 50);
    n[1].run("CREATE TABLE w(id INTEGER PRIMARY KEY, v)");
    converge(&mut n);
    assert_eq!(n[1].rows("SELECT count(*) FROM w"), "i50");
}

/// Eight rows of 200 columns are as much work as a hundred rows.
#[test]
fn a_few_wide_rows_take_as_many_steps_as_many_rows() {
    let columns: Vec<String> = (0..200).map(|i| format!("c{i}")).collect();
    let wide = format!(
        "CREATE TABLE w(id INTEGER PRIMARY KEY, {})",
        columns.join(", ")
    );
    for theirs in ["CREATE TABLE w(id INTEGER PRIMARY KEY, c0)", "", &wide] {
        let mut n = [Node::new(1, &wide), Node::new(2, theirs)];
        n[0].run("BEGIN");
        for id in 0..60 {
            n[0].run(&format!("INSERT INTO w(id, c0) VALUES ({id}, 'a')"));
        }
        n[0].run("COMMIT");
        let frame = n[0].publish().remove(0);
        n[1].db.apply_in_steps(100, Duration::ZERO);
        let message = [arrived(&frame.raw, &n[1])];
        let mut steps = 1;
        while n[1].db.apply("s", &message).unwrap().messages == 0 {
            steps += 1;
        }
        assert!(steps >= 3, "{steps} {theirs}");
    }
}

/// A crash, or another stream, begins the message anew.
#[test]
fn a_message_that_was_cut_is_read_again_after_a_crash() {
    let mut n = cluster(2, SCHEMA);
    n[0].run(&format!("BEGIN; {ROWS}; COMMIT"));
    let frames = n[0].publish();
    n[1].db.apply_in_steps(7, Duration::ZERO);
    let message = [arrived(&frames[0].raw, &n[1])];
    assert_eq!(n[1].db.apply("s", &message).unwrap().messages, 0);
    n[1].restart();
    assert!(!n[1].db.is_part_way());
    n[1].apply(&frames);
    converge(&mut n);
    assert_eq!(n[1].rows("SELECT count(*) FROM t"), "i50");
}

#[test]
fn invented_nodes_do_not_fill_memory() {
    let mut node = Node::new(1, SCHEMA);
    let table = node.db.tables()["t"].clone();
    for first in [1u64 << 32, 1 << 33] {
        let mut builder = FrameBuilder::default();
        for i in 0..MAX_NODES as u64 - 10 {
            let version = Version {
                hlc: 2,
                node: first + i,
            };
            builder.delete(
                &table.header,
                version,
                [Value::Integer(i as i64)].into_iter(),
            );
        }
        let raw = builder.finish();
        let message = [arrived(&raw, &node)];
        while node.db.apply("s", &message).unwrap().messages == 0 {}
    }
    assert_eq!(node.db.quarantined().unwrap(), 1);
    assert!(node.db.sites.count() <= MAX_NODES);
}
