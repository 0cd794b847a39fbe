//! Nodes that exchange frames by hand, and what must hold for all of them.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use proptest::prelude::ProptestConfig;
use rusqlite::Connection;
use rusqlite::types::ValueRef;

use crate::apply::{Arrived, Content};
use crate::capture::Outgoing;
use crate::clock::{Clock, ManualClock};
use crate::database::rows::{Rows, row_values};
use crate::database::schema::{Schema, quote};
use crate::database::table::{Table, versions_table};
use crate::database::{Database, Settings, values};
use crate::model::frame::Frame;
use crate::model::value::{OwnedValue, Value};
use crate::model::version::Version;

/// A database with the daemon's core, and an application's connection to it.
pub struct Node {
    pub db: Database,
    pub app: Connection,
    pub clock: Arc<ManualClock>,
    id: u64,
    read: u64,
    dir: tempfile::TempDir,
}

/// Nodes begin in 2023: what the machine's clock gave the triggers is later than this.
const REAL_TIME: i64 = 1_750_000_000_000;

/// What most nodes are started with.
pub fn settings() -> Settings {
    Settings {
        path: "app.db".into(),
        node_id: None,
        publish: true,
        shards: 2,
        scan_max_changes: 512,
        max_transaction_bytes: 1 << 20,
        max_clock_drift: Duration::from_secs(60),
        allow_rowid_tables: true,
        selects: Box::new(|_| true),
        apply_triggers: vec![],
    }
}

impl Node {
    pub fn new(id: u64, schema: &str) -> Self {
        Node::with(id, schema, |_| {})
    }

    /// With settings of its own. The path and the node's id are put in.
    pub fn with(id: u64, schema: &str, change: impl FnOnce(&mut Settings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let app = Connection::open(&path).unwrap();
        app.execute_batch("PRAGMA foreign_keys = ON; PRAGMA trusted_schema = OFF")
            .unwrap();
        app.execute_batch(schema).unwrap();
        let mut settings = settings();
        (settings.path, settings.node_id) = (path, Some(id));
        change(&mut settings);
        let clock = Arc::new(ManualClock::at(1_700_000_000_000));
        let db = open(settings, &clock);
        Node {
            db,
            app,
            clock,
            id,
            read: 0,
            dir,
        }
    }

    /// As after kill -9: what was only in memory is gone.
    pub fn restart(&mut self) {
        self.restart_with(|_| {});
    }

    pub fn restart_with(&mut self, change: impl FnOnce(&mut Settings)) {
        let mut settings = settings();
        (settings.path, settings.node_id) = (self.dir.path().join("app.db"), Some(self.id));
        change(&mut settings);
        self.db = open(settings, &self.clock);
    }

    /// Writes as the application, at the time of the node's clock.
    pub fn run(&self, sql: &str) {
        self.app
            .execute_batch(sql)
            .unwrap_or_else(|e| panic!("{e}: {sql}"));
        self.app
            .execute(
                "UPDATE __harmonylite___change_log_global SET created_at = ?1 WHERE created_at > ?2",
                [self.clock.now_ms(), REAL_TIME],
            )
            .unwrap();
    }

    /// The same, if the constraints allow it.
    pub fn try_run(&self, sql: &str) {
        match self.app.prepare(sql).and_then(|mut s| s.execute([])) {
            Err(e) if e.sqlite_error_code() != Some(rusqlite::ErrorCode::ConstraintViolation) => {
                panic!("{e}: {sql}")
            }
            _ => {}
        }
        self.run("");
    }

    /// Captures all there is. Returns how many rows changed.
    pub fn capture(&mut self) -> usize {
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

    /// Captures and encodes all there is.
    pub fn publish(&mut self) -> Vec<Outgoing> {
        self.capture();
        self.send()
    }

    /// Encodes what is marked.
    pub fn send(&mut self) -> Vec<Outgoing> {
        let mut all = Vec::new();
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

    pub fn apply(&mut self, frames: &[Outgoing]) {
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
            let done = (0..10_000).any(|_| self.db.apply("s", &arrived).unwrap().messages == 1);
            assert!(done, "apply never comes to an end");
        }
    }

    /// Rows of a query, a line each: class and bits of every value.
    pub fn rows(&self, query: &str) -> String {
        let mut statement = self.app.prepare(query).unwrap();
        let count = statement.column_count();
        let mut rows = statement.query([]).unwrap();
        let mut out = Vec::new();
        while let Some(row) = rows.next().unwrap() {
            let values = (0..count).map(|i| show(row.get_ref(i).unwrap()));
            out.push(values.collect::<Vec<_>>().join(" "));
        }
        out.join("\n")
    }

    fn texts(&self, query: &str) -> Vec<String> {
        let mut statement = self.app.prepare(query).unwrap();
        let rows = statement.query_map([], |r| r.get(0)).unwrap();
        rows.collect::<rusqlite::Result<_>>().unwrap()
    }

    /// Every user table, generated columns and the rowids of tables without a key included.
    pub fn dump(&self) -> String {
        let mut out = String::new();
        for table in self.texts(
            "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'table'
             AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND name NOT GLOB '__harmonylite__*'
             ORDER BY name",
        ) {
            let columns = self.texts(&format!(
                "SELECT name FROM pragma_table_xinfo('{}') ORDER BY name",
                table.replace('\'', "''")
            ));
            let columns: Vec<String> = columns.iter().map(|c| quote(c)).collect();
            let rows = self.rows(&format!(
                "SELECT {} FROM {}",
                columns.join(", "),
                quote(&table)
            ));
            let mut lines: Vec<String> = rows.lines().map(|l| format!("{table}: {l}")).collect();
            lines.sort_unstable();
            out += &format!("{table}({})\n{}\n", columns.join(", "), lines.join("\n"));
        }
        out
    }

    /// The versions of every row: what nodes must agree on beyond the rows.
    pub fn versions(&self) -> String {
        let mut out = String::new();
        for table in self.texts("SELECT name FROM __harmonylite___tables ORDER BY name") {
            let Some(known) = self.db.tables().get(&table.to_ascii_lowercase()) else {
                continue;
            };
            let mut statement = self
                .db
                .conn
                .prepare(&format!(
                    "SELECT v.*, s.node FROM {} v JOIN __harmonylite___sites s USING (site)",
                    versions_table(&table)
                ))
                .unwrap();
            let n = known.key_len();
            let read = |row: &rusqlite::Row<'_>| {
                let key = known.key_bytes((0..n).map(|i| values::column(row, i)));
                let rest = [n, n + 6, n + 2].map(|i| show(row.get_ref(i).unwrap()));
                let mut rows = Rows::new(&self.db.conn, known).unwrap();
                let values: Vec<Value<'_>> = (0..n).map(|i| values::column(row, i)).collect();
                let stored = rows.version(&self.db.sites, &values).unwrap().unwrap();
                let mut own = stored.state.exceptions;
                // A column that was never written may be noted as such, or simply be younger.
                own.retain(|_, version| *version != Version::NEVER);
                Ok(format!("{} {rest:?} {own:?}", key.escape_ascii()))
            };
            let lines = statement.query_map([], read).unwrap();
            let mut lines: Vec<String> = lines.collect::<rusqlite::Result<_>>().unwrap();
            lines.sort_unstable();
            out += &format!("{table}\n{}\n", lines.join("\n"));
        }
        out
    }

    /// Rows and versions fit each other, and nothing is left over.
    pub fn check(&mut self) {
        assert_eq!(self.capture(), 0, "what was applied is taken for a change");
        assert_eq!(
            self.db.unsent().unwrap(),
            0,
            "what was applied is published"
        );
        let tables: Vec<Arc<Table>> = self.db.tables().values().cloned().collect();
        for table in tables {
            self.check_table(&table);
        }
        let integrity = self.texts("PRAGMA integrity_check");
        assert_eq!(integrity, ["ok"]);
    }

    fn check_table(&self, table: &Table) {
        let schema: &Schema = &table.schema;
        let mut rows = Rows::new(&self.db.conn, table).unwrap();
        let not_null: Vec<String> = (0..table.key_len())
            .map(|i| format!("{} IS NOT NULL", schema.column_sql(i)))
            .collect();
        let columns: Vec<String> = (0..schema.columns.len())
            .map(|i| schema.column_sql(i))
            .collect();
        let text = format!(
            "SELECT {} FROM {} WHERE {}",
            columns.join(", "),
            quote(table.name()),
            not_null.join(" AND ")
        );
        let mut statement = self.db.conn.prepare(&text).unwrap();
        let mut all = statement.query([]).unwrap();
        let mut live = 0;
        while let Some(row) = all.next().unwrap() {
            live += 1;
            let key: Vec<Value<'_>> = (0..table.key_len())
                .map(|i| values::column(row, i))
                .collect();
            let stored = rows.version(&self.db.sites, &key).unwrap();
            let stored =
                stored.unwrap_or_else(|| panic!("{}: no version of {key:?}", table.name()));
            assert!(
                !stored.state.deleted,
                "{}: {key:?} is there, but deleted",
                table.name()
            );
            let hash = table.content_hash(row_values(row, columns.len()));
            assert_eq!(stored.hash, hash, "{}: hash of {key:?}", table.name());
        }
        let count = |text: &str| -> i64 {
            self.db
                .conn
                .query_row(text, [], |r| r.get(0))
                .unwrap_or_else(|e| panic!("{e}: {text}"))
        };
        let versions = count(&format!(
            "SELECT count(*) FROM {} WHERE deleted = 0",
            versions_table(table.name())
        ));
        let displaced = count(&format!(
            "SELECT count(*) FROM __harmonylite___displaced WHERE table_id = {}",
            table.id
        ));
        assert_eq!(versions, live + displaced, "{}: live rows", table.name());
    }
}

fn open(settings: Settings, clock: &Arc<ManualClock>) -> Database {
    Database::open(settings, clock.clone(), Arc::new(AtomicBool::new(false))).unwrap()
}

fn show(value: ValueRef<'_>) -> String {
    match values::value(value).to_owned() {
        OwnedValue::Real(r) => format!("r{:016x}({r:?})", r.to_bits()),
        OwnedValue::Null => "null".into(),
        OwnedValue::Integer(i) => format!("i{i}"),
        OwnedValue::Text(t) => format!("t'{}'", t.escape_ascii()),
        OwnedValue::Blob(b) => format!("x'{}'", b.escape_ascii()),
    }
}

/// Properties over databases: some cases each time, more with PROPTEST_CASES.
pub fn cases() -> ProptestConfig {
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

pub fn cluster(count: u64, schema: &str) -> Vec<Node> {
    (1..=count).map(|id| Node::new(id, schema)).collect()
}

/// Everybody reads what everybody publishes, in an order of each one's own.
pub fn exchange(nodes: &mut [Node]) {
    let all: Vec<Vec<Outgoing>> = nodes.iter_mut().map(Node::publish).collect();
    for (i, node) in nodes.iter_mut().enumerate() {
        for k in 0..all.len() {
            node.apply(&all[(i + k) % all.len()]);
        }
    }
}

/// Exchanges, and then all nodes are the same in every table, by class and bits.
pub fn converge(nodes: &mut [Node]) -> String {
    exchange(nodes);
    nodes.iter_mut().for_each(Node::check);
    let first = nodes[0].dump();
    for node in nodes.iter() {
        assert_same(&first, &node.dump());
        assert_same(&nodes[0].versions(), &node.versions());
    }
    first
}

/// With the lines that differ, only.
fn assert_same(left: &str, right: &str) {
    let only = |a: &str, b: &str| -> Vec<String> {
        let of_b: Vec<&str> = b.lines().collect();
        a.lines()
            .filter(|l| !of_b.contains(l))
            .map(Into::into)
            .collect()
    };
    assert_eq!(only(left, right), only(right, left));
    assert_eq!(left, right);
}

/// The same rows for a query on all nodes.
pub fn assert_equal(nodes: &[Node], query: &str) -> String {
    let first = nodes[0].rows(query);
    for node in nodes {
        assert_eq!(node.rows(query), first, "{query}");
    }
    first
}
