//! The threads' measurements: the part of the metrics that the database does not know. They lie in
//! [`crate::shared::Shared`], and cost nothing while no thread works.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{Gauge, Histogram, HistogramOpts, IntCounter};

/// Upper bounds in microseconds, as in the Go version: from a poll without changes to a stall.
const MICROSECONDS: [f64; 10] = [
    20.0,
    50.0,
    100.0,
    200.0,
    500.0,
    1_000.0,
    5_000.0,
    20_000.0,
    100_000.0,
    1_000_000.0,
];

/// Upper bounds in seconds: our transactions should last 10 ms, a publication lasts as long as the
/// way to the broker and back.
const SECONDS: [f64; 11] = [
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0, 10.0,
];

/// The measurements. Names lack the namespace, which the registry adds.
pub struct Measures {
    count_changes: Histogram,
    scan_changes: Histogram,
    publish: Histogram,
    apply: Histogram,
    reconnects: IntCounter,
    snapshot_seconds: Gauge,
    snapshot_failures: AtomicU64,
    /// The newest known snapshot: Unix milliseconds when it was made, and its bytes.
    newest_snapshot: Mutex<Option<(i64, u64)>>,
    /// Whether the publisher has a connection, and whether it had one before.
    publishes: AtomicBool,
    published_before: AtomicBool,
    /// Consumers that have a connection.
    readers: AtomicUsize,
    /// Unix milliseconds of the broker's last acknowledgement; 0: none yet.
    last_published_ms: AtomicI64,
}

fn histogram(name: &str, help: &str, bounds: &[f64]) -> Histogram {
    let options = HistogramOpts::new(name, help).buckets(bounds.to_vec());
    Histogram::with_opts(options).expect("name and bounds are sound")
}

impl Default for Measures {
    fn default() -> Self {
        Measures {
            count_changes: histogram(
                "count_changes",
                "How long a poll for changes takes, in microseconds (as in the Go version).",
                &MICROSECONDS,
            ),
            scan_changes: histogram(
                "scan_changes",
                "How long a capture of changed rows takes, in microseconds (as in the Go version).",
                &MICROSECONDS,
            ),
            publish: histogram(
                "publish_duration_seconds",
                "From sending a message until the broker acknowledges it.",
                &SECONDS,
            ),
            apply: histogram(
                "apply_duration_seconds",
                "How long a transaction that applies changes of others holds the database.",
                &SECONDS,
            ),
            reconnects: IntCounter::new(
                "reconnects_total",
                "Connections to the broker that took the place of a broken one.",
            )
            .expect("the name is sound"),
            snapshot_seconds: Gauge::new(
                "snapshot_duration_seconds",
                "How long this node took for the last snapshot that it saved; 0: none yet.",
            )
            .expect("the name is sound"),
            snapshot_failures: AtomicU64::new(0),
            newest_snapshot: Mutex::new(None),
            publishes: AtomicBool::new(false),
            published_before: AtomicBool::new(false),
            readers: AtomicUsize::new(0),
            last_published_ms: AtomicI64::new(0),
        }
    }
}

impl Measures {
    /// The metrics that need no conversion, for a registry.
    pub fn collectors(&self) -> Vec<Box<dyn Collector>> {
        let histograms = [
            &self.count_changes,
            &self.scan_changes,
            &self.publish,
            &self.apply,
        ];
        let mut all: Vec<Box<dyn Collector>> = Vec::new();
        all.extend(histograms.map(|h| Box::new(h.clone()) as Box<dyn Collector>));
        all.push(Box::new(self.reconnects.clone()));
        all.push(Box::new(self.snapshot_seconds.clone()));
        all
    }

    /// The publisher polled the database for changes.
    pub fn polled(&self, took: Duration) {
        self.count_changes.observe(took.as_micros() as f64);
    }

    /// The publisher captured changes.
    pub fn captured(&self, took: Duration) {
        self.scan_changes.observe(took.as_micros() as f64);
    }

    /// A consumer applied a transaction.
    pub fn applied(&self, took: Duration) {
        self.apply.observe(took.as_secs_f64());
    }

    /// The broker acknowledged a message at `now_ms`.
    pub fn acknowledged(&self, took: Duration, now_ms: i64) {
        self.publish.observe(took.as_secs_f64());
        self.last_published_ms.store(now_ms, Ordering::Relaxed);
    }

    /// The publisher has a connection (true) or lost it.
    pub fn publishes(&self, does: bool) {
        self.publishes.store(does, Ordering::Relaxed);
        if does && self.published_before.swap(true, Ordering::Relaxed) {
            self.reconnects.inc();
        }
    }

    /// A consumer has a connection; `is_again`: in place of a broken one.
    pub fn reads(&self, is_again: bool) {
        self.readers.fetch_add(1, Ordering::Relaxed);
        if is_again {
            self.reconnects.inc();
        }
    }

    /// A consumer lost its connection.
    pub fn reads_no_more(&self) {
        self.readers.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether any thread has a connection to the broker.
    pub fn is_connected(&self) -> bool {
        self.publishes.load(Ordering::Relaxed) || self.readers.load(Ordering::Relaxed) > 0
    }

    /// Unix milliseconds of the broker's last acknowledgement; none if there was none.
    pub fn last_published_ms(&self) -> Option<i64> {
        Some(self.last_published_ms.load(Ordering::Relaxed)).filter(|ms| *ms != 0)
    }

    /// This node saved a snapshot.
    pub fn saved_snapshot(&self, took: Duration) {
        self.snapshot_seconds.set(took.as_secs_f64());
    }

    /// A snapshot could not be saved or fetched.
    pub fn snapshot_failed(&self) {
        self.snapshot_failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Snapshots since the start that could not be saved or fetched.
    pub fn snapshot_failures(&self) -> u64 {
        self.snapshot_failures.load(Ordering::Relaxed)
    }

    /// Stores the newest snapshot in the store: Unix milliseconds when it was made, and its bytes.
    pub fn heard_of_snapshot(&self, newest: Option<(i64, u64)>) {
        let mut known = self.newest();
        *known = newest.or(*known); // it is not looked up while the store fails
    }

    /// The newest known snapshot: Unix milliseconds when it was made, and its bytes.
    pub fn newest_snapshot(&self) -> Option<(i64, u64)> {
        *self.newest()
    }

    /// Milliseconds since the newest known snapshot was made by its maker's clock. `now_ms` is that
    /// of this machine.
    pub fn snapshot_age_ms(&self, now_ms: i64) -> Option<u64> {
        let made_ms = self.newest_snapshot()?.0;
        Some(now_ms.saturating_sub(made_ms).max(0) as u64)
    }

    fn newest(&self) -> std::sync::MutexGuard<'_, Option<(i64, u64)>> {
        let newest = self.newest_snapshot.lock();
        newest.unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
