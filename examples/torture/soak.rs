//! Full speed for long: memory and files stay flat. Many tables, and a huge transaction.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::app::BUSY_TIMEOUT;
use crate::check::{self, Content};
use crate::cluster::Cluster;
use crate::{Options, Result, big};

const PATIENCE: Duration = Duration::from_secs(120);
const LIMIT_KB: u64 = 64 << 10;
const TABLES: usize = 200;
/// Memory grows in the first minutes, until each thread has had its largest batch. In a run that is
/// shorter than this it may grow more.
const WARM: Duration = Duration::from_secs(20 * 60);
const WARMING_KB: u64 = 8 << 10;

/// The watched sizes, and how many kB each may grow from the second quarter to the last. Memory: in
/// an hour, a leak of 6 MB. A WAL keeps the size of its worst moment. nats-server frees dropped
/// messages of a stream in blocks of 8 MB, and two streams are large: changes and snapshots.
const WATCHED: [(&str, u64); 4] = [
    ("RSS", 3 << 10),
    ("database", 2048),
    ("WAL", 32 << 10),
    ("NATS store", 16 << 10),
];

pub fn run(mut options: Options) -> Result<()> {
    let limit: PathBuf = options.rest.value_from_str("--limit")?;
    let rows: u64 = options.option("--rows", 1_000_000)?;
    let with_big = options.rest.contains("--big");
    options.nothing_left()?;
    let (large, time) = if with_big {
        (10_000_000, 60)
    } else {
        (300_000, 10)
    };
    let time = Duration::from_secs(time);
    big::run(&options.folder, &limit, options.seed, large, time)?;
    let mut cluster = Cluster::new(&options.folder, options.seed, 3)?;
    cluster.pause = 0;
    for node in &mut cluster.nodes {
        node.daemon_prefix = vec![limit.display().to_string()];
        // The store grows until the stream is full, so that must be soon.
        node.max_entries = 1024;
        std::fs::create_dir_all(&node.folder)?;
        many_tables(&node.db())?;
    }
    cluster.start()?;
    let began = Instant::now();
    let mut samples: Vec<[u64; 4]> = Vec::new();
    let (mut base, mut transactions, mut peak) = (Content::new(), 0, 0);
    while began.elapsed() < options.time {
        cluster.forget_records();
        cluster.start_apps()?;
        let until = Instant::now() + Duration::from_secs(30).min(options.time / 4);
        while Instant::now() < until {
            std::thread::sleep(Duration::from_millis(250));
            cluster.all_alive()?;
            samples.push(sample(&cluster)?);
        }
        let healed = check::healed(&mut cluster, &mut base, PATIENCE)?;
        transactions += healed.transactions;
        println!(
            "{:>5.0} s: {healed}; {}",
            began.elapsed().as_secs_f64(),
            in_words(samples.last().unwrap_or(&[0; 4]))
        );
    }
    flat(&samples, options.time)?;
    for node in &cluster.nodes {
        let daemon = node.daemon.as_ref().ok_or("no daemon")?;
        peak = peak.max(daemon.memory_kb("VmHWM"));
    }
    println!("peak RSS {:.1} MB while soaking", peak as f64 / 1024.0);
    write_many_tables(&mut cluster)?;
    huge_transaction(&mut cluster, rows)?;
    println!("all equal, nothing lost, all databases sound: {transactions} transactions");
    Ok(())
}

fn many_tables(db: &Path) -> Result<()> {
    let tables =
        (0..TABLES).map(|i| format!("CREATE TABLE IF NOT EXISTS many_{i}(k PRIMARY KEY, v);"));
    let mut text = tables.collect::<String>();
    text.push_str("CREATE TABLE IF NOT EXISTS huge(k INTEGER PRIMARY KEY, v);");
    let conn = Connection::open(db)?;
    conn.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    Ok(conn.execute_batch(&text)?)
}

/// The largest sizes of all nodes, in kB.
fn sample(cluster: &Cluster) -> Result<[u64; 4]> {
    let mut largest = [0; 4];
    let size = |path: PathBuf| std::fs::metadata(path).map_or(0, |m| m.len() / 1024);
    for node in &cluster.nodes {
        let daemon = node.daemon.as_ref().ok_or("no daemon")?;
        let now = [
            daemon.memory_kb("VmRSS"),
            size(node.db()),
            size(node.folder.join("app.db-wal")),
            0,
        ];
        largest
            .iter_mut()
            .zip(now)
            .for_each(|(l, n)| *l = n.max(*l));
    }
    largest[3] = size_of_folder(&cluster.store);
    Ok(largest)
}

/// Size of a folder; files come and go meanwhile.
fn size_of_folder(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(m) if m.is_dir() => size_of_folder(&entry.path()),
        Ok(m) => m.len() / 1024,
        Err(_) => 0,
    });
    sizes.sum()
}

fn in_words(sample: &[u64; 4]) -> String {
    let words = WATCHED.iter().zip(sample);
    let words = words.map(|((name, _), kb)| format!("{name} {:.1} MB", *kb as f64 / 1024.0));
    words.collect::<Vec<_>>().join(", ")
}

/// Checks that the median of the last quarter is not above that of the second by more than is
/// allowed.
fn flat(samples: &[[u64; 4]], time: Duration) -> Result<()> {
    let quarter = samples.len() / 4;
    if quarter < 10 {
        println!("too short to tell whether memory and files are flat");
        return Ok(());
    }
    let median = |from: usize| -> [u64; 4] {
        std::array::from_fn(|what| {
            let mut all: Vec<u64> = samples[from..from + quarter]
                .iter()
                .map(|s| s[what])
                .collect();
            all.sort_unstable();
            all[all.len() / 2]
        })
    };
    let (second, last) = (median(quarter), median(3 * quarter));
    println!(
        "second quarter: {}\nlast quarter:   {}",
        in_words(&second),
        in_words(&last)
    );
    for (what, (name, tolerance)) in WATCHED.iter().enumerate() {
        let tolerance = match *name {
            "RSS" if time < WARM => WARMING_KB,
            _ => *tolerance,
        };
        if last[what] > second[what] + tolerance {
            return Err(format!("{name} grows").into());
        }
    }
    Ok(())
}

/// Writes one row to each table; all must arrive.
fn write_many_tables(cluster: &mut Cluster) -> Result<()> {
    let conn = Connection::open(cluster.nodes[0].db())?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    for i in 0..TABLES {
        conn.execute_batch(&format!("INSERT INTO many_{i} VALUES ({i}, 'here')"))?;
    }
    let parts: Vec<String> = (0..TABLES)
        .map(|i| format!("(SELECT count(*) FROM many_{i})"))
        .collect();
    let count = format!("SELECT {}", parts.join(" + "));
    let took = arrives(cluster, &count, TABLES as u64)?;
    println!(
        "{TABLES} tables: a row each arrives after {:.1} s",
        took.as_secs_f64()
    );
    Ok(())
}

fn huge_transaction(cluster: &mut Cluster, rows: u64) -> Result<()> {
    let conn = Connection::open(cluster.nodes[0].db())?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    let began = Instant::now();
    conn.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
         INSERT INTO huge SELECT i, hex(i * 1103515245) FROM n",
        [rows],
    )?;
    let wrote = began.elapsed();
    let took = arrives(cluster, "SELECT count(*) + sum(k) * 0 FROM huge", rows)?;
    check::converged(cluster, PATIENCE)?;
    let mut peak = 0;
    for node in &cluster.nodes {
        peak = peak.max(node.daemon.as_ref().map_or(0, |d| d.memory_kb("VmHWM")));
    }
    println!(
        "a transaction of {rows} rows: written in {:.1} s, on all nodes {:.1} s later, peak RSS \
         {:.1} MB",
        wrote.as_secs_f64(),
        took.as_secs_f64(),
        peak as f64 / 1024.0
    );
    if peak > LIMIT_KB {
        return Err("a daemon took more than 64 MB".into());
    }
    Ok(())
}

fn arrives(cluster: &mut Cluster, count: &str, wanted: u64) -> Result<Duration> {
    let began = Instant::now();
    loop {
        cluster.all_alive()?;
        let counts = cluster.nodes.iter().map(|node| -> Result<u64> {
            Ok(check::open(&node.db())?
                .query_row(count, [], |r| r.get::<_, Option<u64>>(0))?
                .unwrap_or(0))
        });
        let counts = counts.collect::<Result<Vec<_>>>()?;
        if counts.iter().all(|c| *c == wanted) {
            return Ok(began.elapsed());
        }
        if began.elapsed() > 3 * PATIENCE {
            return Err(format!("{wanted} rows do not arrive: {counts:?}").into());
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Samples of so many minutes, with an RSS of so many kB and a store of so many MB in each.
    fn grows(minutes: u64, rss: impl Fn(u64) -> u64, store: impl Fn(u64) -> u64) -> bool {
        let sample = |n| [rss(n), 3 << 10, 10 << 10, store(n) << 10];
        let samples: Vec<_> = (0..240 * minutes).map(sample).collect();
        flat(&samples, Duration::from_secs(60 * minutes)).is_err()
    }

    #[test]
    fn what_grows_is_found_and_blocks_that_come_and_go_are_not() {
        assert!(grows(10, |_| 30_000, |n| n / 20));
        assert!(!grows(
            10,
            |_| 30_000,
            |n| 3 + n % 240 / 30 + n % 1900 / 240
        ));
    }

    #[test]
    fn memory_that_warms_up_is_told_from_a_leak() {
        let leak = |kb_per_hour: u64| move |n| 27_000 + n * kb_per_hour / (240 * 60);
        assert!(grows(60, leak(7_000), |_| 10));
        assert!(!grows(60, leak(5_000), |_| 10));
        // Measured values: 24.6 MB after half a minute, 30.5 after four, 31.4 after ten.
        let warms = |n: u64| 32_200 - 7_000 * 240 / (240 + n);
        assert!(!grows(60, warms, |_| 10));
        assert!(!grows(20, warms, |_| 10));
        assert!(!grows(2, warms, |_| 10));
        assert!(grows(2, |n| 25_000 + n * 40, |_| 10));
    }
}
