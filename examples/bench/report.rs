//! Numbers by name, and the table made of their medians.

use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Default)]
pub struct Report {
    numbers: BTreeMap<String, Vec<f64>>,
}

impl Report {
    pub fn add(&mut self, name: impl Into<String>, number: f64) {
        self.numbers.entry(name.into()).or_default().push(number);
    }

    /// The median; NaN, printed as such, if it was not measured.
    pub fn median(&self, name: &str) -> f64 {
        let mut numbers = self.numbers.get(name).cloned().unwrap_or_default();
        numbers.sort_by(f64::total_cmp);
        numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
    }

    pub fn print(&self, runs: usize, idle: Duration) {
        let m = |name: &str| self.median(name);
        let line = |what: &str, number: String, goal: &str, plain: String| {
            println!("| {what} | {number} | {goal} | {plain} |");
        };
        println!("| what | median of {runs} | goal | beside plain SQLite or NATS |");
        println!("|---|---|---|---|");
        line(
            "rows/s one way, 2 nodes, 100-byte rows in 100-row transactions, 100,000 rows, from \
             first insert to last row visible",
            thousands(m("rows/s")),
            "50,000 (aim 100,000)",
            format!(
                "{:.2} of plain SQLite's {}",
                m("rows/s") / m("plain rows/s"),
                thousands(m("plain rows/s"))
            ),
        );
        line(
            "latency of a one-row transaction, commit to visible on the peer, p50 / p99",
            format!("{:.2} / {:.2} ms", m("latency p50"), m("latency p99")),
            "2 / 8 ms",
            format!(
                "{:.1} / {:.1} × a plain NATS message ({:.2} / {:.2} ms)",
                m("latency p50") / m("nats p50"),
                m("latency p99") / m("nats p99"),
                m("nats p50"),
                m("nats p99")
            ),
        );
        line(
            "WAL bytes written by the application per one-row transaction",
            kilobytes(m("app wal triggers")),
            "8.6 KB",
            ratio(m("app wal triggers"), m("app wal plain"), kilobytes),
        );
        line(
            "CPU of the application per row in 100-row transactions, against no triggers",
            format!("{:.2} µs", m("app cpu triggers")),
            "1.6 ×",
            ratio(m("app cpu triggers"), m("app cpu plain"), |v| {
                format!("{v:.2} µs")
            }),
        );
        line(
            "WAL bytes of the whole writing node per one-row transaction at 20/s, application and \
             daemon",
            kilobytes(m("one-row writing")),
            "21 KB",
            ratio(m("one-row writing"), m("app wal plain"), kilobytes),
        );
        line(
            "the same per row in 100-row transactions, writing node / receiving node",
            pair(m("100-row writing"), m("100-row receiving")),
            "900 / 900 B",
            format!(
                "{:.1} / {:.1} × ({:.0} B); {} written at full speed",
                m("100-row writing") / m("app wal/row plain"),
                m("100-row receiving") / m("app wal/row plain"),
                m("app wal/row plain"),
                pair(m("100-row at once writing"), m("100-row at once receiving")),
            ),
        );
        line(
            "RSS idle / after the above",
            format!("{:.1} / {:.1} MB", m("rss idle"), m("rss after")),
            "8 / 16 MB",
            format!(
                "{:.0} threads, binary {:.1} MB",
                m("threads"),
                m("binary MB")
            ),
        );
        line(
            &format!("idle over {} s: CPU, wake-ups", idle.as_secs()),
            format!("{:.3} %, {:.2}/s", m("idle cpu"), m("idle wakes")),
            "< 0.1 %, 0.6/s",
            "0".into(),
        );
        line(
            "wake-ups while another file in the database's directory is written ten times a second",
            format!("{:.2}/s", m("beside wakes")),
            "0.6/s",
            "0".into(),
        );
        line(
            "RSS idle / at 1,000 rows/s / more after a snapshot than before",
            format!(
                "{:.1} / {:.1} / {:+.1} MB",
                m("rss quiet"),
                m("rss load"),
                m("rss snapshot")
            ),
            "6 / 9.5 / 1 MB",
            String::new(),
        );
    }
}

fn ratio(ours: f64, plain: f64, show: impl Fn(f64) -> String) -> String {
    format!("{:.2} × plain SQLite's {}", ours / plain, show(plain))
}

fn kilobytes(bytes: f64) -> String {
    format!("{:.1} KB", bytes / 1e3)
}

fn pair(writing: f64, receiving: f64) -> String {
    format!("{writing:.0} / {receiving:.0} B")
}

fn thousands(number: f64) -> String {
    if number < 1000.0 || number.is_nan() {
        return format!("{number:.0}");
    }
    format!("{:.0},{:03.0}", (number / 1e3).floor(), number % 1e3)
}
