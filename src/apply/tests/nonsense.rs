//! A peer that sends well-formed frames with impossible contents harms nothing else.

use super::support::{Node, cluster, converge, exchange};
use crate::capture::Outgoing;
use crate::model::frame::{FrameBuilder, KeyColumn, ROWID, TableHeader};
use crate::model::value::Value;
use crate::model::version::{HLC_LIMIT, Version};

const GOOD: &str = "CREATE TABLE good(id INTEGER PRIMARY KEY, v)";

fn header(number: i64, name: &str, affinity: &'static str, columns: &[&str]) -> TableHeader {
    let key = [KeyColumn {
        name: columns[0].into(),
        affinity,
        collation: "BINARY".into(),
    }];
    TableHeader::new(number, name, &key, columns)
}

fn version(ms: i64) -> Version {
    Version {
        hlc: ms << 16,
        node: 99,
    }
}

fn outgoing(frame: FrameBuilder) -> Outgoing {
    Outgoing {
        local_tx: 0,
        shard: 1,
        salt: 0,
        raw: frame.finish(),
    }
}

/// A frame with a good row before, between and after the rows that `add` puts into it.
fn among_good(add: impl Fn(&mut FrameBuilder, usize)) -> Outgoing {
    let good = header(1, "good", "INTEGER", &["id", "v"]);
    let mut frame = FrameBuilder::default();
    for i in 0..3 {
        let values = [Value::Integer(i), Value::Text(b"fine")];
        frame.upsert(&good, version(1), &[], values.into_iter());
        add(&mut frame, i as usize);
    }
    outgoing(frame)
}

/// Asserts that the good rows are there and the node still works.
fn check(node: &mut Node) {
    assert_eq!(
        node.rows("SELECT id FROM good WHERE v = 'fine'"),
        "i0\ni1\ni2"
    );
    node.run("INSERT INTO good VALUES (10, 'local')");
    node.capture();
    node.restart();
    node.capture();
    assert_eq!(node.rows("SELECT v FROM good WHERE id = 10"), "t'local'");
    assert_eq!(node.rows("PRAGMA integrity_check"), "t'ok'");
}

#[test]
fn rows_that_cannot_be_go_to_quarantine_by_themselves() {
    let good = header(1, "good", "INTEGER", &["id", "v"]);
    let frame = among_good(|frame, i| {
        let bad = [HLC_LIMIT, i64::MAX, 0][i];
        let row = |key| [key, Value::Text(b"bad")].into_iter();
        let of_year_9999 = Version { hlc: bad, node: 99 };
        frame.upsert(&good, of_year_9999, &[], row(Value::Integer(50)));
        frame.upsert(&good, version(2), &[], row(Value::Null));
        frame.upsert(
            &good,
            version(2),
            &[(1, version(3))],
            row(Value::Integer(51)),
        );
        frame.delete(&good, of_year_9999, [Value::Integer(0)].into_iter());
    });
    let mut n = cluster(1, GOOD);
    n[0].apply(&[frame]);
    assert_eq!(n[0].db.quarantined().unwrap(), 1);
    let reason = n[0].rows("SELECT reason FROM __harmonylite___quarantine");
    assert!(reason.contains("12 row(s) are left out; table"), "{reason}");
    assert_eq!(n[0].rows("SELECT count(*) FROM good WHERE v = 'bad'"), "i0");
    check(&mut n[0]);
}

#[test]
fn unknown_tables_and_columns_and_other_keys_are_held_by_themselves() {
    let long = "x".repeat(200);
    let frame = among_good(|frame, i| {
        let key = Value::Integer(i as i64);
        let row = || [key, Value::Text(b"v")].into_iter();
        let put = |frame: &mut FrameBuilder, number: i64, name: &str, columns: &[&str]| {
            let header = header(number, name, "INTEGER", columns);
            frame.upsert(&header, version(2), &[], row());
        };
        put(frame, 2, "nobody's\n\u{1b}[2J table", &["id", "v"]);
        put(frame, 3, &long, &["id", &long]);
        put(frame, 4, "", &["", " "]);
        put(frame, 5, "sqlite_schema", &["rootpage", "sql"]);
        put(frame, 6, "__harmonylite___meta", &["key", "value"]);
        put(frame, 7, "__harmonylite__good_versions", &["k1", "hlc"]);
        put(frame, 8, "good", &["v", "id"]);
        put(frame, 9, "good", &[ROWID, "v"]);
        let text = header(10, "good", "TEXT", &["id", "v"]);
        frame.delete(&text, version(9), [key].into_iter());
    });
    let mut n = cluster(1, GOOD);
    let tables = "SELECT count(*) FROM sqlite_schema";
    let before = n[0].rows(tables);
    n[0].apply(&[frame]);
    assert_eq!(n[0].rows(tables), before);
    assert!(n[0].db.held().unwrap() > 0);
    check(&mut n[0]);
}

/// The storage classes of values are not those of their columns.
#[test]
fn values_of_other_classes_are_stored_as_sqlite_does_or_held() {
    let schema = format!(
        "{GOOD}; CREATE TABLE strict(id INTEGER PRIMARY KEY, i INTEGER, t TEXT) STRICT;
         CREATE TABLE texts(id TEXT PRIMARY KEY, v UNIQUE);
         CREATE TABLE numbers(id NUMERIC PRIMARY KEY, v UNIQUE) WITHOUT ROWID"
    );
    let values = [
        Value::Integer(1),
        Value::Real(1.0),
        Value::Real(f64::INFINITY),
        Value::Text(b"1"),
        Value::Text(b" 1e0 "),
        Value::Text(b"\xff\0x"),
        Value::Blob(b"1"),
        Value::Blob(b""),
    ];
    let strict = header(2, "strict", "INTEGER", &["id", "i", "t"]);
    let texts = header(3, "texts", "TEXT", &["id", "v"]);
    let numbers = header(4, "numbers", "NUMERIC", &["id", "v"]);
    let frame = among_good(|frame, i| {
        for (k, key) in values.iter().enumerate() {
            let version = version((i * 100 + k + 2) as i64);
            let other = values[(k + i) % values.len()];
            frame.upsert(&strict, version, &[], [*key, other, *key].into_iter());
            frame.upsert(&texts, version, &[], [*key, other].into_iter());
            frame.upsert(&numbers, version, &[], [*key, other].into_iter());
            if k % 3 == i {
                frame.delete(&numbers, version, [other].into_iter());
            }
        }
    });
    let mut n = vec![Node::new(1, &schema), Node::new(2, &schema)];
    for node in &mut n {
        node.apply(std::slice::from_ref(&frame));
        node.apply(std::slice::from_ref(&frame));
        node.run(
            "UPDATE texts SET v = 'local' WHERE rowid = (SELECT min(rowid) FROM texts); \
            DELETE FROM numbers WHERE id = 1",
        );
        check(node);
    }
    exchange(&mut n);
    converge(&mut n);
}

/// No version is above the highest one: its row is blocked, the rest goes on.
#[test]
fn a_version_at_the_bound_blocks_its_own_row_alone() {
    let good = header(1, "good", "INTEGER", &["id", "v"]);
    let highest = Version {
        hlc: HLC_LIMIT - 1,
        node: u64::MAX,
    };
    let frame = among_good(|frame, _| {
        let row = [Value::Integer(7), Value::Text(b"for ever")];
        frame.upsert(&good, highest, &[], row.into_iter());
    });
    let mut n = cluster(2, GOOD);
    for node in &mut n {
        node.apply(std::slice::from_ref(&frame));
    }
    n[0].run(
        "UPDATE good SET v = 'not for ever' WHERE id = 7; UPDATE good SET v = 'new' WHERE id = 1",
    );
    exchange(&mut n);
    assert_eq!(n[1].rows("SELECT v FROM good WHERE id = 1"), "t'new'");
}

/// Thousands of tables that no node has: the log names a few, and the bytes sent bound the bytes
/// held.
#[test]
fn tables_without_number_are_held_and_not_all_named() {
    let mut n = cluster(1, GOOD);
    let mut frame = FrameBuilder::default();
    for i in 0..2000 {
        let header = header(i + 2, &format!("t{i}"), "INTEGER", &["id", "v"]);
        let row = [Value::Integer(1), Value::Null];
        frame.upsert(&header, version(1), &[], row.into_iter());
    }
    n[0].apply(&[outgoing(frame)]);
    let tables = "SELECT count(DISTINCT table_name) FROM __harmonylite___held";
    assert_eq!(n[0].rows(tables), "i2000");
    assert!(n[0].db.said_held.len() <= 64);
    n[0].run("CREATE TABLE t1234(id INTEGER PRIMARY KEY, v)");
    n[0].capture();
    assert_eq!(n[0].rows("SELECT count(*) FROM t1234"), "i1");
}
