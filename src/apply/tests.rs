//! Nodes that exchange frames by hand.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rusqlite::Connection;

use super::*;
use crate::capture::Outgoing;
use crate::clock::ManualClock;
use crate::database::Settings;

/// A database with the daemon's core, and an application's connection to it.
struct Node {
    db: Database,
    app: Connection,
    clock: Arc<ManualClock>,
    sent: Vec<Outgoing>,
    read: u64,
    _dir: tempfile::TempDir,
}

impl Node {
    fn new(id: u64, schema: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let app = Connection::open(&path).unwrap();
        app.execute_batch("PRAGMA journal_mode = WAL").unwrap();
        app.execute_batch(schema).unwrap();
        let settings = Settings {
            path,
            node_id: Some(id),
            publish: true,
            shards: 2,
            scan_max_changes: 512,
            max_transaction_bytes: 1 << 20,
            max_clock_drift: Duration::from_secs(60),
            allow_rowid_tables: true,
            selects: Box::new(|_| true),
            apply_triggers: vec![],
        };
        let clock = Arc::new(ManualClock::at(1_700_000_000_000));
        let db = Database::open(settings, clock.clone(), Arc::new(AtomicBool::new(false))).unwrap();
        Node {
            db,
            app,
            clock,
            sent: vec![],
            read: 0,
            _dir: dir,
        }
    }

    /// Captures and encodes all there is.
    fn publish(&mut self) -> Vec<Outgoing> {
        let mut all = std::mem::take(&mut self.sent);
        while self.db.capture().unwrap().more {}
        loop {
            let mut frames = self.db.backlog(1 << 20).unwrap();
            if let Some(last) = frames.last() {
                self.db.acknowledged(last.at);
            } else if self.db.is_live() {
                break;
            }
            all.append(&mut frames);
        }
        self.db.stop_live();
        all
    }

    fn apply(&mut self, frames: &[Outgoing]) {
        for frame in frames {
            self.read += 1;
            let content = match Frame::decode(&frame.raw) {
                Ok(frame) => Content::Frame(frame),
                Err(e) => Content::Bad {
                    reason: e.to_string(),
                    data: &frame.raw,
                },
            };
            let arrived = [Arrived {
                seq: self.read,
                id: "x",
                content,
            }];
            while self.db.apply("s", &arrived).unwrap().messages == 0 {}
        }
    }

    fn rows(&self, query: &str) -> String {
        let mut statement = self.app.prepare(query).unwrap();
        let count = statement.column_count();
        let mut rows = statement.query([]).unwrap();
        let mut out = Vec::new();
        while let Some(row) = rows.next().unwrap() {
            let values: Vec<String> = (0..count)
                .map(|i| format!("{:?}", row.get_ref(i).unwrap()))
                .collect();
            out.push(values.join(" "));
        }
        out.join("\n")
    }

    fn run(&self, sql: &str) {
        self.app.execute_batch(sql).unwrap();
    }
}

/// Everybody reads what everybody publishes, in an order of each one's own.
fn exchange(nodes: &mut [Node]) {
    let all: Vec<Vec<Outgoing>> = nodes.iter_mut().map(Node::publish).collect();
    for (i, node) in nodes.iter_mut().enumerate() {
        for k in 0..all.len() {
            node.apply(&all[(i + k) % all.len()]);
        }
    }
}

fn cluster(count: u64, schema: &str) -> Vec<Node> {
    (1..=count).map(|id| Node::new(id, schema)).collect()
}

fn assert_equal(nodes: &[Node], query: &str) -> String {
    let first = nodes[0].rows(query);
    for node in nodes {
        assert_eq!(node.rows(query), first, "{query}");
    }
    first
}

const BOOKS: &str = "CREATE TABLE Books(id INTEGER PRIMARY KEY, title TEXT NOT NULL, year INTEGER)";
const ALL: &str = "SELECT * FROM Books ORDER BY 1";

#[test]
fn a_row_arrives_changes_and_goes() {
    let mut n = cluster(2, BOOKS);
    n[0].run("INSERT INTO Books VALUES (1, 'Dune', 1965), (2, 'Emma', 1815)");
    exchange(&mut n);
    assert_equal(&n, ALL);
    assert_eq!(n[1].rows("SELECT count(*) FROM Books"), "Integer(2)");
    n[1].run("UPDATE Books SET year = 1966 WHERE id = 1; DELETE FROM Books WHERE id = 2");
    exchange(&mut n);
    assert_eq!(
        assert_equal(&n, "SELECT id, year FROM Books"),
        "Integer(1) Integer(1966)"
    );
}

#[test]
fn rows_from_before_are_joined() {
    let with = |rows: &str| format!("{BOOKS}; INSERT INTO Books VALUES {rows}");
    let mut n = vec![
        Node::new(1, &with("(1, 'Dune', 1), (2, 'only on 1', 1)")),
        Node::new(2, &with("(1, 'Dune', 2), (3, 'only on 2', 1)")),
    ];
    // A write since wins over what was there before, whoever's id is higher.
    n[0].run("UPDATE Books SET year = 9 WHERE id = 1");
    exchange(&mut n);
    let all = assert_equal(&n, ALL);
    assert_eq!(all.lines().count(), 3);
    assert_eq!(
        n[1].rows("SELECT year FROM Books WHERE id = 1"),
        "Integer(9)"
    );
}

#[test]
fn concurrent_writes_end_equal() {
    let mut n = cluster(3, BOOKS);
    for round in 0..20 {
        for node in &n {
            let id = node.db.node();
            node.run(&format!(
                "INSERT INTO Books VALUES (1, 'a{id}', {round}) ON CONFLICT DO UPDATE SET title = excluded.title;
                 INSERT OR REPLACE INTO Books VALUES (2 + {round} % 3, 'b{id}', {round});
                 DELETE FROM Books WHERE id = 2 + {} % 3", round + id
            ));
            node.clock.advance(Duration::from_millis(id * 7 % 5));
        }
        if round % 3 == 0 {
            exchange(&mut n);
            assert_equal(&n, ALL);
        }
    }
    exchange(&mut n);
    assert_equal(&n, ALL);
}

#[test]
fn unknown_columns_and_tables_are_held_until_they_are_known() {
    let mut n = vec![
        Node::new(
            1,
            "CREATE TABLE t(id INTEGER PRIMARY KEY, a, b DEFAULT 'x'); CREATE TABLE u(k TEXT PRIMARY KEY)",
        ),
        Node::new(2, "CREATE TABLE t(id INTEGER PRIMARY KEY, a)"),
    ];
    n[0].run("INSERT INTO t VALUES (1, 'one', 'B'); INSERT INTO u VALUES ('k'), ('gone'); DELETE FROM u WHERE k = 'gone'");
    exchange(&mut n);
    assert_eq!(n[1].rows("SELECT a FROM t"), n[0].rows("SELECT a FROM t"));
    assert!(n[1].db.held().unwrap() > 0);
    // The node without the column writes the row; the other's column must survive that.
    n[1].run("UPDATE t SET a = 'two'");
    exchange(&mut n);
    assert_eq!(
        n[0].rows("SELECT a, b FROM t"),
        "Text([116, 119, 111]) Text([66])"
    );
    n[1].run("ALTER TABLE t ADD COLUMN b DEFAULT 'x'; CREATE TABLE u(k TEXT PRIMARY KEY)");
    exchange(&mut n);
    assert_equal(&n, "SELECT * FROM t");
    assert_equal(&n, "SELECT * FROM u");
    assert_eq!(n[1].db.held().unwrap(), 0);
}

#[test]
fn unique_collisions_end_equal_and_come_back() {
    let mut n = cluster(
        2,
        "CREATE TABLE u(id INTEGER PRIMARY KEY, email TEXT COLLATE NOCASE UNIQUE, n)",
    );
    n[0].run("INSERT INTO u VALUES (1, 'a@x', 'first')");
    n[1].clock.advance(Duration::from_millis(5));
    n[1].run("INSERT INTO u VALUES (2, 'A@X', 'second')");
    exchange(&mut n);
    let all = "SELECT id, email, n FROM u ORDER BY id";
    assert_equal(&n, all);
    assert_eq!(n[0].rows("SELECT count(*) FROM u"), "Integer(1)");
    assert_eq!(
        (n[0].db.displaced().unwrap(), n[1].db.displaced().unwrap()),
        (1, 1)
    );
    let winner = n[0].rows("SELECT id FROM u");
    n[0].clock.advance(Duration::from_millis(50));
    n[0].run("UPDATE u SET email = 'b@x'");
    exchange(&mut n);
    assert_equal(&n, all);
    assert_eq!(
        n[1].rows("SELECT count(*) FROM u"),
        "Integer(2)",
        "the hidden row is back"
    );
    assert_eq!(
        (n[0].db.displaced().unwrap(), n[1].db.displaced().unwrap()),
        (0, 0)
    );
    assert!(!winner.is_empty());
}

#[test]
fn replace_that_evicts_is_seen() {
    let mut n = cluster(
        2,
        "CREATE TABLE u(id INTEGER PRIMARY KEY, email TEXT UNIQUE)",
    );
    n[0].run("INSERT INTO u VALUES (1, 'a'), (2, 'b')");
    exchange(&mut n);
    n[0].run("REPLACE INTO u VALUES (3, 'a'); INSERT OR IGNORE INTO u VALUES (4, 'b')");
    exchange(&mut n);
    let all = assert_equal(&n, "SELECT id, email FROM u ORDER BY id");
    assert_eq!(all, "Integer(2) Text([98])\nInteger(3) Text([97])");
}

#[test]
fn a_row_in_parts_is_put_together() {
    let mut n = cluster(2, "CREATE TABLE b(id INTEGER PRIMARY KEY, data BLOB)");
    n[0].run("INSERT INTO b VALUES (1, randomblob(3000000))");
    let frames = n[0].publish();
    let packed = frames[0].raw.clone();
    let id = crate::model::frame::message_id(&packed, 0);
    let parts: Vec<Outgoing> = crate::model::frame::cut(&id, &packed, 500_000)
        .into_iter()
        .rev()
        .map(|raw| Outgoing {
            raw,
            ..frames[0].clone()
        })
        .collect();
    assert!(parts.len() > 5);
    n[1].apply(&parts);
    assert_equal(&n, "SELECT * FROM b");
    assert_eq!(
        n[1].rows("SELECT count(*) FROM __harmonylite___parts"),
        "Integer(0)"
    );
}

#[test]
fn garbage_is_put_in_quarantine_and_the_rest_goes_on() {
    let mut n = cluster(2, BOOKS);
    n[0].run("INSERT INTO Books VALUES (1, 'Dune', 1965)");
    let good = n[0].publish();
    let bad = Outgoing {
        raw: b"garbage".to_vec(),
        ..good[0].clone()
    };
    n[1].apply(&[bad, good[0].clone()]);
    assert_equal(&n, ALL);
    assert_eq!(n[1].db.quarantined().unwrap(), 1);
}
