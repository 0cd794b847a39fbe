//! The facts of one moment, and the metrics with one value each.

use std::collections::BTreeMap;
use std::time::Duration;

use super::process;
use crate::database::{Counts, Database, Result};
use crate::shared::{Locked, Shared};
use crate::status::local::lag;
use crate::status::verify::worker::WORK;
use crate::{health, progress};

/// Rows are counted up to this number, so that neither the client nor the node waits.
const COUNTED: u64 = 10_000;

/// Most unpublished rows that are counted, by one read of an index.
const BACKLOG_COUNTED: u64 = 100_000;

/// How long a client waits for the database, which an application may have locked.
const PATIENCE: Duration = Duration::from_secs(2);

/// Facts of one moment.
#[derive(Default)]
pub(super) struct MetricFacts {
    pub counts: Counts,
    pub backlog_rows: u64,
    pub backlog_bytes: u64,
    pub held: u64,
    pub held_bytes: u64,
    pub displaced: u64,
    pub rejected: u64,
    pub quarantined: u64,
    pub refused: u64,
    pub tables: u64,
    /// Bytes of the database file and of its WAL.
    pub database: u64,
    pub wal: u64,
    /// Bytes that this process wrote to disks; none if the system does not say.
    pub written: Option<u64>,
    pub resident: Option<u64>,
    /// Lag by origin, in milliseconds.
    pub lag_ms: BTreeMap<u64, u64>,
    /// Sequence of the last applied message, and the messages not applied yet, by shard.
    pub positions: Vec<u64>,
    pub behind: Vec<u64>,
    /// Age of the newest snapshot in seconds, and its bytes.
    pub snapshot: Option<(f64, u64)>,
    pub snapshot_failures: u64,
    pub is_connected: bool,
    pub is_healthy: bool,
    pub is_ready: bool,
    /// Number of failing subjects in `/health`.
    pub problems: u64,
    /// Tables whose rows are still being compared.
    pub comparing: u64,
    /// How far long work has come, 0 to 1: with a snapshot, and with tables.
    pub restore: f64,
    pub install: f64,
    /// The same of a comparison of rows.
    pub verify: f64,
}

impl MetricFacts {
    /// None if the database stays locked for two seconds.
    pub(super) fn gather(shared: &Shared) -> Option<MetricFacts> {
        let locked = shared.lock_within(PATIENCE)?;
        let of_database = MetricFacts::of_database(shared, &locked).ok()?;
        drop(locked);
        let measures = &shared.measures;
        Some(MetricFacts {
            written: process::written_bytes(),
            resident: process::resident_bytes(),
            behind: shared.behind(),
            snapshot_failures: measures.snapshot_failures(),
            is_connected: measures.is_connected(),
            is_ready: shared.is_ready(),
            restore: ratio(|what| !is_table(what) && what != WORK),
            verify: ratio(|what| what == WORK),
            install: ratio(is_table),
            ..of_database
        })
    }

    fn of_database(shared: &Shared, locked: &Locked) -> Result<MetricFacts> {
        let db: &Database = &locked.database;
        let heard_ms = db.newest_by_origin().collect();
        let is_at_end = shared.is_caught_up() || !shared.reads();
        let streams = shared.status.about().streams;
        let report = health::report(&shared.health, Some(db))?;
        let problems = report["problems"].as_object().map_or(0, |p| p.len() as u64);
        let measures = &shared.measures;
        let age_ms = measures.snapshot_age_ms(db.clock.now_ms());
        let newest = measures.newest_snapshot().zip(age_ms);
        Ok(MetricFacts {
            counts: db.counts(),
            backlog_rows: db.unsent_up_to(BACKLOG_COUNTED)?,
            backlog_bytes: locked.outbox.queued_bytes() as u64,
            held: db.held_up_to(COUNTED)?,
            held_bytes: db.held_bytes(),
            displaced: db.displaced_up_to(COUNTED)?,
            rejected: db.rejected(),
            quarantined: db.quarantined()?,
            refused: shared.health.refused(),
            tables: db.tables().len() as u64,
            database: std::fs::metadata(db.path()).map_or(0, |data| data.len()),
            wal: db.wal_bytes(),
            lag_ms: lag(&heard_ms, db.broker_time_ms(), is_at_end),
            positions: streams.iter().map(|s| db.position(s).seq).collect(),
            snapshot: newest.map(|((_, bytes), age_ms)| (age_ms as f64 / 1e3, bytes)),
            is_healthy: problems == 0,
            problems,
            comparing: db.comparing() as u64,
            ..MetricFacts::default()
        })
    }
}

/// How far the slowest long work has come whose name `is_meant`; 1 if there is none.
fn ratio(is_meant: impl Fn(&str) -> bool) -> f64 {
    let works = progress::running();
    let meant = works.iter().filter(|work| is_meant(&work.what));
    let ratios = meant.map(|work| work.done as f64 / work.total.max(1) as f64);
    ratios.fold(1.0, f64::min)
}

fn is_table(what: &str) -> bool {
    what == "tables"
}

/// A metric's value. None if it is unknown: the metric then keeps its last value.
pub(super) type Reading = fn(&MetricFacts) -> Option<f64>;

/// A metric with one value.
pub(super) struct Described {
    pub name: &'static str,
    pub help: &'static str,
    pub is_counter: bool,
    pub value: Reading,
}

const fn gauge(name: &'static str, help: &'static str, value: Reading) -> Described {
    Described {
        name,
        help,
        is_counter: false,
        value,
    }
}

const fn counter(name: &'static str, help: &'static str, value: Reading) -> Described {
    Described {
        is_counter: true,
        ..gauge(name, help, value)
    }
}

fn flag(is: bool) -> Option<f64> {
    Some(if is { 1.0 } else { 0.0 })
}

/// All of them; those of the Go version first.
pub(super) const SIMPLE: [Described; 34] = [
    gauge(
        "published",
        "Rows published since the start (as in the Go version; published_rows_total is a counter).",
        |f| Some(f.counts.published as f64),
    ),
    gauge(
        "pending_publish",
        "Rows that are not published yet, counted up to 100,000 (as in the Go version).",
        |f| Some(f.backlog_rows as f64),
    ),
    gauge(
        "schema_mismatch_paused",
        "1 while changes wait because they do not fit the tables here; others go on.",
        |f| flag(f.held > 0),
    ),
    counter(
        "published_rows_total",
        "Rows whose newest version the broker acknowledged.",
        |f| Some(f.counts.published as f64),
    ),
    counter(
        "applied_rows_total",
        "Arriving rows that changed a row here.",
        |f| Some(f.counts.won as f64),
    ),
    counter(
        "superseded_rows_total",
        "Arriving rows that changed nothing: the row here is as new, or newer.",
        |f| Some(f.counts.lost as f64),
    ),
    counter(
        "deferred_rows_total",
        "Arriving rows that were held, because they did not fit the tables here.",
        |f| Some(f.counts.held as f64),
    ),
    counter(
        "let_go_rows_total",
        "Arriving rows that are not stored: their table is excluded, or max_held_bytes is reached.",
        |f| Some(f.counts.let_go as f64),
    ),
    counter(
        "kept_here_rows_total",
        "Rows that the application wrote on a node with publish = false: no other node gets them.",
        |f| Some(f.counts.kept_here as f64),
    ),
    counter(
        "conflicts_total",
        "Rows that are not in their table, or left it, because another row has their UNIQUE \
         values.",
        |f| Some(f.counts.conflicts as f64),
    ),
    counter(
        "rejected_rows_total",
        "Rejected changes of the application: too large, NULL in a key.",
        |f| Some(f.rejected as f64),
    ),
    gauge(
        "held_rows",
        "Rows that are held until they fit the tables here, counted up to 10,000.",
        |f| Some(f.held as f64),
    ),
    gauge("held_bytes", "Bytes of the held rows, at most.", |f| {
        Some(f.held_bytes as f64)
    }),
    gauge(
        "displaced_rows",
        "Rows displaced by another row under a UNIQUE index, counted up to 10,000.",
        |f| Some(f.displaced as f64),
    ),
    gauge(
        "quarantined_messages",
        "Messages that this release cannot read.",
        |f| Some(f.quarantined as f64),
    ),
    counter(
        "refused_total",
        "Messages, keys and objects that were refused because of their seal.",
        |f| Some(f.refused as f64),
    ),
    gauge(
        "backlog_rows",
        "Rows that are not published yet, counted up to 100,000.",
        |f| Some(f.backlog_rows as f64),
    ),
    gauge(
        "backlog_bytes",
        "Bytes of frames in memory that wait to be sent; a longer backlog is encoded later.",
        |f| Some(f.backlog_bytes as f64),
    ),
    gauge("lag_max_seconds", "The largest of lag_seconds.", |f| {
        Some(f.lag_ms.values().max().map_or(0.0, |ms| *ms as f64 / 1e3))
    }),
    gauge("replicated_tables", "Tables that take part.", |f| {
        Some(f.tables as f64)
    }),
    gauge(
        "install_tables_left",
        "Tables that are still walked through, as at the first start on a large database.",
        |f| Some(f.comparing as f64),
    ),
    gauge("database_size_bytes", "Size of the database file.", |f| {
        Some(f.database as f64)
    }),
    gauge("wal_size_bytes", "Size of the WAL file.", |f| {
        Some(f.wal as f64)
    }),
    counter(
        "written_bytes_total",
        "Bytes that this process had written to disks, its nats-server not included.",
        |f| f.written.map(|bytes| bytes as f64),
    ),
    gauge(
        "resident_memory_bytes",
        "Memory of this process, its nats-server not included.",
        |f| f.resident.map(|bytes| bytes as f64),
    ),
    gauge(
        "snapshot_age_seconds",
        "Since the newest snapshot known here was made, by its maker's clock; -1: none is known.",
        |f| Some(f.snapshot.map_or(-1.0, |(age, _)| age)),
    ),
    gauge(
        "snapshot_size_bytes",
        "Size of the newest snapshot known here.",
        |f| Some(f.snapshot.map_or(0.0, |(_, bytes)| bytes as f64)),
    ),
    gauge("up", "1 while the broker is reached.", |f| {
        flag(f.is_connected)
    }),
    gauge("healthy", "1 while /health is 200.", |f| flag(f.is_healthy)),
    gauge("ready", "1 once /ready is 200.", |f| flag(f.is_ready)),
    gauge("problems", "Subjects that /health names.", |f| {
        Some(f.problems as f64)
    }),
    gauge(
        "restore_progress_ratio",
        "How far a snapshot that is fetched, merged or saved is in its step; 1 while none is.",
        |f| Some(f.restore),
    ),
    gauge(
        "install_progress_ratio",
        "How far the walk through a table is, as at the first start; 1 while there is none.",
        |f| Some(f.install),
    ),
    gauge(
        "verify_progress_ratio",
        "About how far verify is; 1 while none runs.",
        |f| Some(f.verify),
    ),
];
