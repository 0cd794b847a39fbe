//! How often SQLite refuses transactions that read before they write, beside a daemon and without
//! one.
//!
//! The applications are processes of their own, because SQLite's locks belong to processes.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rusqlite::{Connection, params};

use crate::Result;
use crate::app::App;
use crate::cluster::{Cluster, directory};

/// The first argument of such a process; database, loop and seconds follow.
pub const APPLICATION: &str = "--application";

/// Rows of the other node have higher ids than those of applications.
const FIRST_OF_OTHERS: i64 = 1 << 60;

/// One application's loop.
#[derive(Debug, Clone, Copy)]
struct Loop {
    /// Time between the SELECT and the INSERT; none: the INSERT alone, which commits itself.
    think_ms: Option<u64>,
    gap_ms: u64,
}

/// The counts of an application.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    transactions: u64,
    refused: u64,
    longest_select_ms: f64,
    longest_insert_ms: f64,
}

impl Seen {
    fn refused(&self) -> String {
        let percent = 100.0 * self.refused as f64 / self.transactions.max(1) as f64;
        format!("{percent:.1} % of {}", self.transactions)
    }
}

/// Prints a table. A cell takes `seconds`, or twice that where gaps are long.
pub fn measure(seconds: u64) -> Result<()> {
    println!(
        "| one application: think / gap | without us | alone | 5 rows/s from a peer | 50 rows/s |"
    );
    println!("|---|---|---|---|---|");
    let cluster = Cluster::start()?;
    for think_ms in [Some(1), Some(5), Some(20), None] {
        for gap_ms in [0, 10, 50, 200] {
            let work = Loop { think_ms, gap_ms };
            let mut cells = vec![without(work, 1, seconds)?];
            for rate in [0, 5, 50] {
                cells.push(beside(&cluster, work, 1, rate, seconds)?);
            }
            let texts: Vec<_> = cells.iter().map(|s| cell(work, s)).collect();
            println!("| {} | {} |", name(work), texts.join(" | "));
        }
    }
    println!("\n| applications: think / gap | without us | beside us, 50 rows/s |");
    println!("|---|---|---|");
    for count in [2, 4] {
        for gap_ms in [0, 10, 50] {
            let work = Loop {
                think_ms: Some(5),
                gap_ms,
            };
            let plain = without(work, count, seconds)?;
            let ours = beside(&cluster, work, count, 50, seconds)?;
            let (plain, ours) = (plain.refused(), ours.refused());
            println!("| {count}: {} | {plain} | {ours} |", name(work));
        }
    }
    cluster.stop()
}

fn name(work: Loop) -> String {
    let gap = work.gap_ms;
    match work.think_ms {
        Some(think) => format!("{think} / {gap} ms"),
        None => format!("autocommit / {gap} ms"),
    }
}

fn cell(work: Loop, seen: &Seen) -> String {
    let (kind, longest) = match work.think_ms {
        Some(_) => ("SELECT", seen.longest_select_ms),
        None => ("INSERT", seen.longest_insert_ms),
    };
    format!("{}, {kind} ≤ {longest:.1} ms", seen.refused())
}

/// Runs applications on the first node, while the second one writes `rate` rows a second.
fn beside(cluster: &Cluster, work: Loop, count: usize, rate: u64, seconds: u64) -> Result<Seen> {
    cluster.settle()?;
    let mut other = cluster.app(1)?;
    let text = "SELECT coalesce(max(id), ?1) + 1 FROM items WHERE id >= ?1";
    let first = other
        .conn
        .query_row(text, [FIRST_OF_OTHERS], |r| r.get(0))?;
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| -> std::result::Result<i64, String> {
            let mut next: i64 = first;
            let mut due = Instant::now();
            while rate > 0 && !is_over.load(Ordering::Relaxed) {
                other.insert(next, 1).map_err(|e| e.to_string())?;
                next += 1;
                due += Duration::from_secs(1) / rate as u32;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            Ok(next)
        });
        let seen = run_all(&cluster.nodes[0].db, work, count, seconds);
        is_over.store(true, Ordering::Relaxed);
        let next = writer.join().map_err(|_| "the writer panicked")??;
        if next > first {
            cluster.app(0)?.wait_for(next - 1)?;
        }
        seen
    })
}

fn without(work: Loop, count: usize, seconds: u64) -> Result<Seen> {
    let dir = directory()?;
    let db = dir.path().join("app.db");
    App::open(&db)?;
    run_all(&db, work, count, seconds)
}

fn run_all(db: &Path, work: Loop, count: usize, seconds: u64) -> Result<Seen> {
    let seconds = if work.gap_ms >= 50 {
        2 * seconds
    } else {
        seconds
    };
    let think = work.think_ms.map_or("none".to_owned(), |ms| ms.to_string());
    let start = || {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(APPLICATION).arg(db).arg(&think);
        command.args([work.gap_ms.to_string(), seconds.to_string()]);
        command.stdout(Stdio::piped()).spawn()
    };
    let children = (0..count)
        .map(|_| start())
        .collect::<std::io::Result<Vec<_>>>()?;
    let mut all = Seen::default();
    for child in children {
        let output = child.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let numbers: Vec<f64> = text.split_whitespace().flat_map(str::parse).collect();
        let [transactions, refused, select, insert] = numbers[..] else {
            return Err(format!("an application failed: {text}").into());
        };
        all.transactions += transactions as u64;
        all.refused += refused as u64;
        all.longest_select_ms = all.longest_select_ms.max(select);
        all.longest_insert_ms = all.longest_insert_ms.max(insert);
    }
    Ok(all)
}

/// Runs as one of the applications that [`run_all`] starts.
pub fn application(arguments: &[String]) -> Result<()> {
    let [db, think, gap, seconds] = arguments else {
        return Err("database, think, gap and seconds".into());
    };
    let (think, gap, seconds): (_, u64, u64) = (think.parse().ok(), gap.parse()?, seconds.parse()?);
    let conn = Connection::open(db)?;
    conn.busy_timeout(Duration::from_secs(5))?;
    conn.pragma_update(None, "synchronous", "NORMAL")?;
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut jitter = Jitter(std::process::id());
    let mut id = i64::from(std::process::id()) << 32;
    let mut seen = Seen::default();
    while Instant::now() < end {
        id += 1;
        seen.transactions += 1;
        let done = match think {
            Some(ms) => deferred(&conn, id, jitter.around(ms), &mut seen),
            None => insert(&conn, id, &mut seen),
        };
        match done {
            Ok(()) => {}
            Err(e) if e.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) => {
                seen.refused += 1;
                if !conn.is_autocommit() {
                    conn.execute_batch("ROLLBACK")?;
                }
            }
            Err(e) => return Err(e.into()),
        }
        std::thread::sleep(jitter.around(gap));
    }
    let (select, insert) = (seen.longest_select_ms, seen.longest_insert_ms);
    println!(
        "{} {} {select:.3} {insert:.3}",
        seen.transactions, seen.refused
    );
    Ok(())
}

fn deferred(conn: &Connection, id: i64, think: Duration, seen: &mut Seen) -> rusqlite::Result<()> {
    conn.prepare_cached("BEGIN")?.execute([])?;
    let began = Instant::now();
    conn.prepare_cached("SELECT count(*) FROM (SELECT * FROM items ORDER BY id DESC LIMIT 20)")?
        .query_row([], |_| Ok(()))?;
    note(&mut seen.longest_select_ms, began);
    std::thread::sleep(think);
    insert(conn, id, seen)?;
    conn.prepare_cached("COMMIT")?.execute([])?;
    Ok(())
}

fn insert(conn: &Connection, id: i64, seen: &mut Seen) -> rusqlite::Result<()> {
    let began = Instant::now();
    let done = conn
        .prepare_cached("INSERT INTO items(id, data) VALUES (?1, ?2)")?
        .execute(params![id, "a row of an application"]);
    note(&mut seen.longest_insert_ms, began);
    done.map(drop)
}

fn note(longest_ms: &mut f64, began: Instant) {
    *longest_ms = longest_ms.max(began.elapsed().as_secs_f64() * 1e3);
}

/// Random factors, so that no loop keeps step with a different one.
struct Jitter(u32);

impl Jitter {
    /// A time between 0.8 and 1.2 times `ms`.
    fn around(&mut self, ms: u64) -> Duration {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Duration::from_secs_f64(
            ms as f64 / 1e3 * (0.8 + 0.4 * f64::from(self.0 >> 8) / f64::from(1 << 24)),
        )
    }
}
