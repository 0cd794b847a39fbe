//! Three nodes in one process, which a test may change behind the triggers' back.

use std::collections::BTreeMap;

use crossbeam_channel::{Receiver, Sender, bounded};
use rusqlite::Connection;
use rusqlite::config::DbConfig;

use super::answer::{SliceReader, answer};
use super::message::{RowAnswer, VerifyAnswer, VerifyRequest, Want};
use super::report::VerifyReport;
use super::run::{Nodes, verify};
use crate::apply::tests::support::{Node, converge};
use crate::apply::{Arrived, Content};
use crate::capture::Outgoing;
use crate::model::frame::Frame;
use crate::shared::Shared;
use crate::status::board::About;

const SCHEMA: &str = "CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT COLLATE NOCASE, v);
    CREATE TABLE pair(a TEXT, b REAL, c, PRIMARY KEY(a, b)) WITHOUT ROWID;
    CREATE TABLE plain(x)";

struct Cluster {
    shareds: Vec<Shared>,
    apps: Vec<Connection>,
    /// Number of messages in the one stream.
    read: u64,
    folders: Vec<tempfile::TempDir>,
    stop: (Sender<()>, Receiver<()>),
    step: u32,
    /// Whether applications write while rows are compared.
    is_written: bool,
}

impl Cluster {
    fn new(rows: u32) -> Cluster {
        let mut nodes: Vec<Node> = (1..=3).map(|id| Node::new(id, SCHEMA)).collect();
        for id in 0..rows {
            nodes[id as usize % 3].run(&format!(
                "INSERT INTO item VALUES ({id}, 'name {id}', {id}.5);
                 INSERT INTO pair VALUES ('k{id}', {id}, x'00');"
            ));
        }
        converge(&mut nodes);
        let read = nodes[0].db.position("s").seq;
        let mut cluster = Cluster {
            shareds: Vec::new(),
            apps: Vec::new(),
            read,
            folders: Vec::new(),
            stop: bounded(0),
            step: 0,
            is_written: false,
        };
        for node in nodes {
            let Node { db, app, dir, .. } = node;
            let shared = Shared::new(db, 1).0;
            shared.set_at_end(1, true);
            shared.status.introduce(About {
                name: String::new(),
                streams: vec!["s".into()],
            });
            app.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)
                .unwrap();
            cluster.shareds.push(shared);
            cluster.apps.push(app);
            cluster.folders.push(dir);
        }
        cluster
    }

    /// Writes behind the triggers' back.
    fn spoil(&self, node: usize, sql: &str) {
        self.apps[node].execute_batch(sql).unwrap();
    }

    /// Sends all marked rows, and lets all nodes read them.
    fn exchange(&mut self) {
        let mut frames = Vec::new();
        for shared in &self.shareds {
            let mut locked = shared.lock();
            loop {
                let some: Vec<Outgoing> = locked.database.backlog(1 << 20).unwrap();
                match some.last() {
                    Some(last) => locked.database.acknowledged(last.local_tx),
                    None => break,
                }
                frames.extend(some);
            }
            locked.database.stop_live();
            locked.database.flush().unwrap();
        }
        for frame in &frames {
            self.read += 1;
            for shared in &self.shareds {
                let arrived = [Arrived {
                    seq: self.read,
                    id: "x",
                    time_ms: 0,
                    content: Content::Frame(Frame::decode(&frame.raw).unwrap()),
                }];
                let applied = shared.lock().database.apply("s", &arrived).unwrap();
                assert_eq!(applied.messages, 1);
            }
        }
    }

    /// An application writes, on a different node each time.
    fn write(&self) {
        let (step, node) = (self.step, self.step as usize % 3);
        let app = &self.apps[node];
        let set = |on| app.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, on);
        set(true).unwrap();
        app.execute_batch(&format!(
            "UPDATE item SET v = {step} WHERE id % 50 = {node};
             DELETE FROM item WHERE id = {step};
             INSERT INTO pair VALUES ('new {step}', 0, NULL)"
        ))
        .unwrap();
        set(false).unwrap();
    }

    fn verify(&mut self) -> VerifyReport {
        verify(self, false, false)
    }

    fn repair(&mut self) -> VerifyReport {
        let report = verify(self, true, false);
        self.exchange();
        report
    }

    fn rows(&self, node: usize, sql: &str) -> Vec<String> {
        let mut statement = self.apps[node].prepare(sql).unwrap();
        let rows = statement.query_map([], |r| r.get(0)).unwrap();
        rows.map(Result::unwrap).collect()
    }
}

impl Nodes for Cluster {
    fn this(&self) -> u64 {
        1
    }

    fn ask(&mut self, want: &Want) -> Result<BTreeMap<u64, Option<VerifyAnswer>>, String> {
        self.step += 1;
        let mut answers = BTreeMap::new();
        if self.is_written && !matches!(want, Want::States { .. }) {
            self.write();
        } else if self.is_written {
            self.exchange();
        }
        for (i, shared) in self.shareds.iter().enumerate() {
            let request = VerifyRequest {
                run: "r".into(),
                step: self.step,
                by: 1,
                key: "0f".repeat(32),
                want: want.clone(),
            };
            let answer = match want {
                Want::Repair(fixes) => {
                    let (repaired, _) = shared.lock().database.repair(fixes).unwrap();
                    VerifyAnswer {
                        repaired: repaired.unwrap(),
                        ..VerifyAnswer::default()
                    }
                }
                _ => answer(shared, &request, &self.stop.1).unwrap(),
            };
            answers.insert(i as u64 + 1, Some(answer));
        }
        Ok(answers)
    }

    fn reader(&self) -> SliceReader<'_> {
        SliceReader::new(&self.shareds[0], &self.stop.1)
    }

    fn note(&mut self, _: &VerifyReport) {}
}

#[test]
fn equal_nodes_are_fine_and_one_changed_byte_is_found_and_mended() {
    let mut cluster = Cluster::new(90);
    let report = cluster.verify();
    assert!(report.fine, "{report:?}");
    assert_eq!((report.tables, report.rows), (3, 180));

    cluster.spoil(1, "UPDATE item SET name = 'name 1!' WHERE id = 17");
    let report = cluster.verify();
    assert!(!report.fine);
    assert_eq!(report.differ, ["item"]);
    let [row] = &report.different_rows[..] else {
        panic!("{report:?}")
    };
    assert_eq!((&*row.table, &*row.key), ("item", "(17)"));
    let intact: Vec<bool> = row.nodes.iter().map(|on| on.intact).collect();
    assert_eq!(intact, [true, false, true]);

    let report = cluster.repair();
    assert_eq!(report.repaired, 1, "{report:?}");
    assert!(cluster.verify().fine);
    let name = "SELECT name FROM item WHERE id = 17";
    assert_eq!(cluster.rows(1, name), ["name 17"]);
}

/// The spoilt content would win against the other one by its bytes.
#[test]
fn a_change_behind_the_triggers_back_is_mended() {
    for spoil in [
        "UPDATE item SET v = 'zzz' WHERE id = 5",
        "UPDATE item SET v = NULL WHERE id = 5",
        "UPDATE item SET v = 5 WHERE id = 5",
        "UPDATE item SET name = 'NAME 5' WHERE id = 5",
        "DELETE FROM item WHERE id = 5",
        "UPDATE pair SET c = x'01' WHERE a = 'k5'",
        "DELETE FROM pair WHERE a = 'k5'",
    ] {
        for node in [0, 2] {
            let mut cluster = Cluster::new(12);
            let before: Vec<_> = [
                "SELECT id || name || v FROM item",
                "SELECT hex(c) FROM pair",
            ]
            .map(|sql| cluster.rows(1, sql))
            .into();
            cluster.spoil(node, spoil);
            let report = cluster.repair();
            assert_eq!(report.different_rows.len(), 1, "{spoil}: {report:?}");
            let report = cluster.verify();
            assert!(report.fine, "{spoil} on {node}: {report:?}");
            for node in 0..3 {
                let after: Vec<_> = [
                    "SELECT id || name || v FROM item",
                    "SELECT hex(c) FROM pair",
                ]
                .map(|sql| cluster.rows(node, sql))
                .into();
                assert_eq!(after, before, "{spoil}");
                // The version that comes back was made under this node's own id.
                let id = cluster.shareds[node].lock().database.node();
                assert_eq!(id, node as u64 + 1, "{spoil}");
            }
        }
    }
}

#[test]
fn a_row_that_nobody_heard_of_is_published() {
    let mut cluster = Cluster::new(3);
    cluster.spoil(2, "INSERT INTO item VALUES (77, 'new', 1)");
    assert_eq!(cluster.repair().different_rows.len(), 1);
    cluster.exchange();
    assert!(cluster.verify().fine);
    assert_eq!(
        cluster.rows(0, "SELECT name FROM item WHERE id = 77"),
        ["new"]
    );
}

#[test]
fn a_row_that_is_back_behind_the_triggers_back_goes() {
    let mut cluster = Cluster::new(6);
    let on = |cluster: &Cluster, on| {
        let app = &cluster.apps[0];
        app.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, on)
            .unwrap();
    };
    on(&cluster, true);
    cluster.spoil(0, "DELETE FROM item WHERE id = 4");
    on(&cluster, false);
    cluster.exchange();
    assert!(cluster.verify().fine);
    cluster.spoil(1, "INSERT INTO item VALUES (4, 'zombie', 1)");
    assert_eq!(cluster.repair().different_rows.len(), 1);
    let report = cluster.verify();
    assert!(report.fine, "{report:?}");
    assert!(
        cluster
            .rows(1, "SELECT name FROM item WHERE id = 4")
            .is_empty()
    );
}

#[test]
fn a_node_that_has_not_read_the_same_messages_is_not_compared() {
    let mut cluster = Cluster::new(6);
    cluster.spoil(1, "DELETE FROM item");
    for node in [0, 2] {
        let shared = &cluster.shareds[node];
        shared.lock().database.read_up_to("s", 1000, "y");
    }
    let report = cluster.verify();
    assert!(!report.fine && report.differ.is_empty(), "{report:?}");
    assert!(!report.nodes[1].comparable && report.nodes[2].comparable);
}

/// Between two answers of a node rows change, and nodes read each other's changes later.
#[test]
fn a_write_meanwhile_is_no_difference_and_hides_none() {
    let mut cluster = Cluster::new(300);
    cluster.is_written = true;
    let report = cluster.verify();
    assert!(report.fine, "{report:?}");
    assert!(cluster.step > 4, "rows were examined: {}", cluster.step);
    cluster.spoil(2, "UPDATE item SET name = 'name 222!' WHERE id = 222");
    let report = cluster.verify();
    assert_eq!(report.different_rows.len(), 1, "{report:?}");
    assert_eq!(report.different_rows[0].key, "(222)");
}

#[test]
fn a_large_table_is_compared_range_by_range() {
    let mut cluster = Cluster::new(3);
    cluster.apps[0]
        .set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, true)
        .unwrap();
    let fill = "WITH RECURSIVE n(i) AS (SELECT 10 UNION ALL SELECT i + 1 FROM n WHERE i < 5009)
        INSERT INTO pair SELECT 'k' || (i % 7), i, zeroblob(i % 40) FROM n";
    cluster.spoil(0, fill);
    cluster.exchange();
    let report = cluster.verify();
    assert!(report.fine && report.rows == 5006, "{report:?}");
    // So many rows in one range that it is divided once more.
    let more = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 900)
        INSERT INTO pair SELECT 'k3', i + 0.5, NULL FROM n";
    cluster.spoil(2, more);
    cluster.spoil(1, "UPDATE pair SET c = x'ff' WHERE b = 4711");
    let report = cluster.repair();
    assert_eq!(report.different_rows.len(), 901, "{:?}", report.differ);
    assert_eq!(report.repaired, 901);
    cluster.exchange();
    assert!(cluster.verify().fine);
    let count = "SELECT count(*) FROM pair";
    let rows = |node: usize| -> i64 {
        let app = &cluster.apps[node];
        app.query_row(count, [], |r| r.get(0)).unwrap()
    };
    assert_eq!([rows(0), rows(1), rows(2)], [5903; 3]);
}

/// A copy of the damage, as in a snapshot that was made meanwhile, is mended as well; and where
/// every copy is damaged, one of them is taken.
#[test]
fn every_copy_of_a_damaged_row_is_mended() {
    let id = |cluster: &Cluster, node: usize| cluster.shareds[node].lock().database.node();
    for damage in [
        ["v = 'zz'", "v = 'zz'", ""],
        ["v = 0", "", "v = 'zz'"],
        ["v = 1", "v = 2", "v = 3"],
    ] {
        let mut cluster = Cluster::new(6);
        for (node, change) in damage.iter().enumerate().filter(|(_, c)| !c.is_empty()) {
            cluster.spoil(node, &format!("UPDATE item SET {change} WHERE id = 4"));
        }
        let report = cluster.repair();
        assert_eq!(report.repaired, 1, "{damage:?}: {report:?}");
        let report = cluster.verify();
        assert!(report.fine, "{damage:?}: {report:?}");
        let values = [0, 1, 2].map(|node| cluster.rows(node, "SELECT v || '' FROM item").join(","));
        assert!(values.iter().all(|v| *v == values[0]), "{values:?}");
        if damage.contains(&"") {
            assert_eq!(values[0], "0.5,1.5,2.5,3.5,4.5,5.5");
        }
        assert_eq!([0, 1, 2].map(|node| id(&cluster, node)), [1, 2, 3]);
    }
}

/// A write that the repair did not see is newer than what it publishes.
#[test]
fn a_repair_takes_no_write_back() {
    let mut cluster = Cluster::new(6);
    cluster.spoil(0, "UPDATE item SET v = 'damage' WHERE id = 4");
    cluster.apps[2]
        .set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, true)
        .unwrap();
    let report = verify(&mut cluster, false, false);
    assert_eq!(report.different_rows.len(), 1);
    cluster.spoil(2, "UPDATE item SET v = 'written' WHERE id = 4");
    // The third node is away, and comes back after the repair.
    let third = [cluster.shareds.pop().unwrap()];
    cluster.repair();
    cluster.shareds.extend(third);
    cluster.exchange();
    cluster.exchange();
    let written = "SELECT v FROM item WHERE id = 4";
    assert_eq!(cluster.rows(0, written), ["written"]);
    assert_eq!(cluster.rows(1, written), ["written"]);
}

#[test]
fn rows_are_judged_by_what_each_node_has_heard() {
    use super::run::{RowVerdict, judge};
    let row = |hlc: i64, digest: &str| RowAnswer {
        version: (hlc > 0).then_some((hlc, 1)),
        present: !digest.is_empty(),
        intact: hlc > 0,
        digest: digest.into(),
        ..RowAnswer::default()
    };
    let judged = |before: [RowAnswer; 2], now: [RowAnswer; 2]| {
        let by_node = |states: [RowAnswer; 2]| (1..).zip(states).collect::<BTreeMap<u64, _>>();
        judge(&by_node(before), &by_node(now))
    };
    let both = |hlc, digest| [row(hlc, digest), row(hlc, digest)];
    let under_way = [row(5, "a"), row(4, "b")];
    assert_eq!(judged(under_way.clone(), both(5, "a")), RowVerdict::Same);
    assert_eq!(
        judged(under_way.clone(), under_way.clone()),
        RowVerdict::Differs
    );
    // It was written again, and the other node has what was known before.
    assert_eq!(
        judged(both(5, "a"), [row(6, "c"), row(5, "a")]),
        RowVerdict::Same
    );
    assert_eq!(
        judged(both(5, "a"), [row(5, "a"), row(5, "b")]),
        RowVerdict::Differs
    );
    assert_eq!(
        judged(both(0, ""), [row(0, "a"), row(0, "")]),
        RowVerdict::Differs
    );
    // Displaced on one of them: that depends on a different row.
    assert_eq!(
        judged(both(5, "a"), [row(5, "a"), row(5, "")]),
        RowVerdict::Open
    );
    let mut waits = under_way.clone();
    waits[1].waits = true;
    assert_eq!(judged(under_way, waits), RowVerdict::Open);
    assert_eq!(
        judged(both(5, "a"), both(7, "")),
        RowVerdict::Same,
        "it is deleted"
    );
}

#[test]
fn a_dry_run_changes_nothing() {
    let mut cluster = Cluster::new(6);
    cluster.spoil(1, "UPDATE item SET v = 0 WHERE id < 3");
    let report = verify(&mut cluster, true, true);
    assert_eq!((report.repaired, report.different_rows.len()), (3, 3));
    cluster.exchange();
    assert_eq!(cluster.verify().different_rows.len(), 3);
}
