//! Nodes that exchange frames by hand, and the checks that hold for all of them.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use proptest::prelude::ProptestConfig;
use rusqlite::Connection;

use super::check::assert_same;
use crate::apply::{Arrived, Content};
use crate::capture::Outgoing;
use crate::clock::{Clock, ManualClock};
use crate::database::{Database, Settings};
use crate::db_file::access::FileAccess;
use crate::model::frame::Frame;
use crate::snapshot::scratch::Scratch;
use crate::snapshot::transfer::put_in_place;
use crate::snapshot::watch::Nobody;

/// A database with the daemon's core, and a connection of an application to it.
pub(crate) struct Node {
    pub db: Database,
    pub app: Connection,
    pub clock: Arc<ManualClock>,
    id: u64,
    read: u64,
    pub dir: tempfile::TempDir,
}

/// The manual clocks begin in 2023; times that triggers took from the machine's clock are later
/// than this.
const REAL_TIME: i64 = 1_750_000_000_000;

/// Settings of most nodes.
pub(crate) fn settings() -> Settings {
    Settings {
        path: "app.db".into(),
        node_id: None,
        publish: true,
        shards: 2,
        streams: Default::default(),
        cache_size: 2000,
        cleanup_interval: Duration::from_secs(5),
        scan_max_changes: 512,
        max_transaction_bytes: 1 << 20,
        max_clock_drift: Duration::from_secs(60),
        courtesy: Duration::ZERO,
        tombstone_retention: Duration::from_secs(30 * 24 * 3600),
        births: false,
        births_later: false,
        allow_rowid_tables: true,
        joins_by_snapshot: false,
        seq_map_path: None,
        tables: Default::default(),
        apply_triggers: vec![],
    }
}

impl Node {
    pub(crate) fn new(id: u64, schema: &str) -> Self {
        Node::with(id, schema, |_| {})
    }

    /// A node that joins the others by a snapshot.
    pub(crate) fn unmet(id: u64, schema: &str) -> Self {
        Node::with(id, schema, |s| s.joins_by_snapshot = true)
    }

    /// A node with changed settings. Its path and id are filled in.
    pub(crate) fn with(id: u64, schema: &str, change: impl FnOnce(&mut Settings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let app = Connection::open(&path).unwrap();
        app.execute_batch("PRAGMA foreign_keys = ON; PRAGMA trusted_schema = OFF")
            .unwrap();
        app.execute_batch(schema).unwrap();
        Node::open(id, dir, Some(app), change)
    }

    /// Opens the database in `dir` as the daemon does; an application may have it open already.
    fn open(
        id: u64,
        dir: tempfile::TempDir,
        app: Option<Connection>,
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        let path = dir.path().join("app.db");
        let mut settings = settings();
        (settings.path, settings.node_id) = (path.clone(), Some(id));
        change(&mut settings);
        let clock = Arc::new(ManualClock::at(1_700_000_000_000));
        let db = open(settings, &clock);
        Node {
            db,
            app: app.unwrap_or_else(|| Connection::open(path).unwrap()),
            clock,
            id,
            read: 0,
            dir,
        }
    }

    /// A node whose database starts as a snapshot's file.
    pub(crate) fn linked(id: u64, file: &Path, change: impl FnOnce(&mut Settings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let scratch = Scratch::beside(&path, "fetched", &FileAccess::OURS).unwrap();
        std::fs::copy(file, scratch.path()).unwrap();
        put_in_place(scratch, &path, &mut Nobody).unwrap();
        Node::open(id, dir, None, change)
    }

    /// Restarts the daemon as after kill -9: the state in memory is gone.
    pub(crate) fn restart(&mut self) {
        self.restart_with(|_| {});
    }

    pub(crate) fn restart_with(&mut self, change: impl FnOnce(&mut Settings)) {
        let mut settings = settings();
        (settings.path, settings.node_id) = (self.dir.path().join("app.db"), Some(self.id));
        change(&mut settings);
        self.db = open(settings, &self.clock);
    }

    /// The files of the database, as a power cut may leave them.
    pub(crate) fn image(&self) -> [Vec<u8>; 2] {
        ["app.db", "app.db-wal"].map(|name| std::fs::read(self.dir.path().join(name)).unwrap())
    }

    /// Restarts from an image two seconds after a power cut: later writes are gone.
    pub(crate) fn cut_power(&mut self, image: [Vec<u8>; 2]) {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in ["app.db", "app.db-wal"].iter().zip(image) {
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        self.clock.reboot();
        self.clock.advance(Duration::from_millis(100));
        self.app = Connection::open(dir.path().join("app.db")).unwrap();
        let old = std::mem::replace(&mut self.dir, dir);
        self.restart();
        drop(old);
    }

    /// Leaves new and changed tables alone for a while, as the daemon does.
    pub(crate) fn be_quiet(&mut self) {
        self.db.wait_for_quiet(Duration::from_secs(2));
    }

    /// Runs SQL as the application, at the time of the node's clock.
    pub(crate) fn run(&self, sql: &str) {
        self.app
            .execute_batch(sql)
            .unwrap_or_else(|e| panic!("{e}: {sql}"));
        self.app
            .execute(
                "UPDATE __harmonylite___change_log_global SET created_at = ?1 WHERE created_at > \
                 ?2",
                [self.clock.now_ms(), REAL_TIME],
            )
            .unwrap();
    }

    /// Runs it if the constraints allow it.
    pub(crate) fn try_run(&self, sql: &str) {
        match self.app.prepare(sql).and_then(|mut s| s.execute([])) {
            Err(e) if e.sqlite_error_code() != Some(rusqlite::ErrorCode::ConstraintViolation) => {
                panic!("{e}: {sql}")
            }
            _ => {}
        }
        self.run("");
    }

    /// Captures every change. Returns how many rows changed.
    pub(crate) fn capture(&mut self) -> usize {
        let mut changes = 0;
        for _ in 0..10_000 {
            let captured = self.db.capture().unwrap();
            changes += captured.changes;
            if !captured.more {
                return changes;
            }
        }
        panic!("capture never comes to an end");
    }

    /// Captures every change and encodes it.
    pub(crate) fn publish(&mut self) -> Vec<Outgoing> {
        self.capture();
        self.send()
    }

    /// Encodes every marked row.
    pub(crate) fn send(&mut self) -> Vec<Outgoing> {
        let mut all = Vec::new();
        loop {
            let mut frames = self.db.backlog(1 << 20).unwrap();
            if let Some(last) = frames.last() {
                self.db.acknowledged(last.local_tx);
            } else if self.db.is_live() || !self.db.is_captured() {
                break;
            }
            all.append(&mut frames);
        }
        self.db.stop_live();
        all
    }

    pub(crate) fn apply(&mut self, frames: &[Outgoing]) {
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
                time_ms: self.clock.now_ms(),
                content,
            }];
            let done = (0..10_000).any(|_| self.db.apply("s", &arrived).unwrap().messages == 1);
            assert!(done, "apply never comes to an end");
        }
    }
}

fn open(settings: Settings, clock: &Arc<ManualClock>) -> Database {
    let stop = Arc::new(AtomicBool::new(false));
    let mut db = Database::open(settings, clock.clone(), stop).unwrap();
    db.wait_for_quiet(Duration::ZERO); // most tests are not about that
    db
}

/// Configuration of properties over databases: some cases each, more with PROPTEST_CASES.
pub(crate) fn cases() -> ProptestConfig {
    let chosen = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|n| n.parse().ok());
    ProptestConfig {
        failure_persistence: None,
        cases: chosen.unwrap_or(64),
        max_shrink_iters: 2000,
        ..ProptestConfig::default()
    }
}

pub(crate) fn cluster(count: u64, schema: &str) -> Vec<Node> {
    (1..=count).map(|id| Node::new(id, schema)).collect()
}

/// Every node reads every node's frames, each in an order of its own.
pub(crate) fn exchange(nodes: &mut [Node]) {
    let all: Vec<Vec<Outgoing>> = nodes.iter_mut().map(Node::publish).collect();
    for (i, node) in nodes.iter_mut().enumerate() {
        for k in 0..all.len() {
            node.apply(&all[(i + k) % all.len()]);
        }
    }
}

/// Exchanges, then asserts that all nodes have the same tables, by class and bits.
pub(crate) fn converge(nodes: &mut [Node]) -> String {
    exchange(nodes);
    exchange(nodes); // tombstones that are told again: nobody here has heard what time it is
    nodes.iter_mut().for_each(Node::check);
    let first = nodes[0].dump();
    for node in nodes.iter() {
        assert_same(&first, &node.dump());
        assert_same(&nodes[0].versions(), &node.versions());
    }
    first
}

/// Asserts that a query gives the same rows on all nodes; returns them.
pub(crate) fn assert_equal(nodes: &[Node], query: &str) -> String {
    let first = nodes[0].rows(query);
    for node in nodes {
        assert_eq!(node.rows(query), first, "{query}");
    }
    first
}
