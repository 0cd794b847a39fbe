//! Metrics for Prometheus as text: the threads' measurements ([`crate::measures`]) and facts of the
//! database. Facts are read only on a request; without requests only the measurements are kept.
//!
//! Metrics that the Go version has come first, under its names. No metric has a label per table,
//! and labels per origin of changes are limited in number.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use prometheus::{Counter, Gauge, GaugeVec, Opts, Registry, TextEncoder};

use crate::shared::Shared;
use facts::{MetricFacts, Reading};

mod facts;
mod process;

/// Most origins of changes with a label of their own: those with the largest lags.
const ORIGINS: usize = 32;

/// The configuration of the metrics.
pub struct MetricsOptions<'a> {
    /// First part of every name; may be empty.
    pub namespace: &'a str,
    /// Second part of every name; may be empty.
    pub subsystem: &'a str,
    /// This node's id, a label of every metric.
    pub node: u64,
    /// The kind of the snapshot store.
    pub store: &'a str,
}

/// The metrics of this process.
pub struct Exporter {
    registry: Registry,
    /// Locked over a whole answer, so that each answer is of one moment.
    known: Mutex<Known>,
}

/// Metrics that are set on each request; `simple` is in the order of [`facts::SIMPLE`].
struct Known {
    simple: Vec<Simple>,
    failures: Counter,
    lag: GaugeVec,
    position: GaugeVec,
    distance: GaugeVec,
}

enum Simple {
    Gauge(Gauge),
    Counter(Counter),
}

impl Exporter {
    /// Registers all metrics. Fails if the configured names are not allowed.
    pub fn new(options: &MetricsOptions<'_>, shared: &Shared) -> prometheus::Result<Exporter> {
        let parts = [options.namespace, options.subsystem];
        let prefix = parts.into_iter().filter(|part| !part.is_empty());
        let prefix = prefix.collect::<Vec<_>>().join("_");
        let labels = HashMap::from([("node_id".to_owned(), options.node.to_string())]);
        let registry = Registry::new_custom(Some(prefix).filter(|p| !p.is_empty()), Some(labels))?;
        for collector in shared.measures.collectors() {
            registry.register(collector)?;
        }
        build_info(&registry)?;
        let known = Known::register(&registry, options.store)?;
        Ok(Exporter {
            registry,
            known: Mutex::new(known),
        })
    }

    /// The text format of Prometheus. If an application keeps the database locked, facts of the
    /// database are those of the last request.
    pub fn text(&self, shared: &Shared) -> prometheus::Result<String> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(facts) = MetricFacts::gather(shared) {
            known.set(&facts);
        }
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

fn build_info(registry: &Registry) -> prometheus::Result<()> {
    let help = "The release that runs, and the SQLite in it; always 1.";
    let info = GaugeVec::new(Opts::new("build_info", help), &["version", "sqlite"])?;
    let labels = [env!("CARGO_PKG_VERSION"), rusqlite::version()];
    info.with_label_values(&labels).set(1.0);
    registry.register(Box::new(info))
}

impl Known {
    fn register(registry: &Registry, store: &str) -> prometheus::Result<Known> {
        let mut simple = Vec::new();
        for described in facts::SIMPLE {
            let (name, help) = (described.name, described.help);
            simple.push(match described.is_counter {
                true => {
                    let counter = Counter::new(name, help)?;
                    registry.register(Box::new(counter.clone()))?;
                    Simple::Counter(counter)
                }
                false => {
                    let gauge = Gauge::new(name, help)?;
                    registry.register(Box::new(gauge.clone()))?;
                    Simple::Gauge(gauge)
                }
            });
        }
        let failures = Counter::with_opts(
            Opts::new(
                "snapshot_failures_total",
                "Tries to save or fetch a snapshot that failed, by the kind of store.",
            )
            .const_label("store", store),
        )?;
        registry.register(Box::new(failures.clone()))?;
        let by = |name: &str, help: &str, label: &str| {
            let vec = GaugeVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(vec.clone()))?;
            Ok::<_, prometheus::Error>(vec)
        };
        Ok(Known {
            simple,
            failures,
            lag: by(
                "lag_seconds",
                "How far this node is behind the changes of an origin, by the broker's clock; 0 at \
                 the end of all streams. Of 32 origins, those with the largest lags.",
                "origin",
            )?,
            position: by(
                "shard_position",
                "Sequence of the last message that is applied here, by shard.",
                "shard",
            )?,
            distance: by(
                "shard_distance",
                "Messages in the stream that are not applied here, as far as known, by shard.",
                "shard",
            )?,
        })
    }

    fn set(&self, facts: &MetricFacts) {
        for (metric, described) in self.simple.iter().zip(facts::SIMPLE) {
            let value: Option<f64> = (described.value as Reading)(facts);
            match (metric, value) {
                (Simple::Gauge(gauge), Some(value)) => gauge.set(value),
                (Simple::Counter(counter), Some(value)) => raise(counter, value),
                (_, None) => {}
            }
        }
        raise(&self.failures, facts.snapshot_failures as f64);
        self.lag.reset();
        let mut lags: Vec<_> = facts.lag_ms.iter().collect();
        lags.sort_by_key(|(node, ms)| (std::cmp::Reverse(**ms), **node));
        for (node, ms) in lags.into_iter().take(ORIGINS) {
            let gauge = self.lag.with_label_values(&[node.to_string()]);
            gauge.set(*ms as f64 / 1e3);
        }
        for (vec, values) in [
            (&self.position, &facts.positions),
            (&self.distance, &facts.behind),
        ] {
            for (at, value) in values.iter().enumerate() {
                let gauge = vec.with_label_values(&[(at + 1).to_string()]);
                gauge.set(*value as f64);
            }
        }
    }
}

/// Raises a counter to `value`.
fn raise(counter: &Counter, value: f64) {
    counter.inc_by((value - counter.get()).max(0.0));
}

#[cfg(test)]
mod tests;
