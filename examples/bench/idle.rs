//! Idle daemons, and their memory after a load.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::Result;
use crate::cluster::Cluster;
use crate::process::Activity;
use crate::report::Report;

/// The load before "RSS under load" is read: rows a second, and its length.
const RATE: u64 = 1000;
const LOAD: Duration = Duration::from_secs(10);

/// Both daemons idle, alone and beside a program that writes a file in the database's directory ten
/// times a second; the worse daemon counts. Then the memory of the writing node.
pub fn measure(cluster: &Cluster, time: Duration, report: &mut Report) -> Result<()> {
    let quiet = watch(cluster, time, || Ok(()))?;
    report.add("idle cpu", quiet.cpu);
    report.add("idle wakes", quiet.wakes);
    report.add("threads", quiet.threads);
    let files = cluster.nodes.iter().map(|n| n.db.with_file_name("beside"));
    let files: Vec<_> = files.collect();
    let write = || files.iter().try_for_each(|file| Ok(fs::write(file, "x")?));
    report.add("beside wakes", watch(cluster, time, write)?.wakes);
    report.add("rss quiet", cluster.rss_mb()?);
    report.add("rss load", under_load(cluster)?);
    cluster.settle()?;
    let before = cluster.nodes[0].daemon.rss_mb()?;
    save(cluster)?;
    report.add("rss snapshot", cluster.nodes[0].daemon.rss_mb()? - before);
    let binary = fs::metadata(crate::cluster::binary("harmonylite")?)?.len();
    report.add("binary MB", binary as f64 / 1e6);
    Ok(())
}

#[derive(Default)]
struct Worst {
    /// CPU in percent.
    cpu: f64,
    /// Wake-ups per second.
    wakes: f64,
    threads: f64,
}

/// Counts for so long, and calls `beside` ten times a second.
fn watch(cluster: &Cluster, time: Duration, beside: impl Fn() -> Result<()>) -> Result<Worst> {
    cluster.settle()?;
    let began = Instant::now();
    let activity = || cluster.nodes.iter().map(|n| n.daemon.activity());
    let before: Vec<Activity> = activity().collect::<Result<_>>()?;
    while began.elapsed() < time {
        beside()?;
        std::thread::sleep(Duration::from_millis(100));
    }
    let (seconds, mut worst) = (began.elapsed().as_secs_f64(), Worst::default());
    for (after, before) in activity().zip(before) {
        let active = after?.since(&before);
        let wakes = active.switches() as f64 / seconds;
        let cpu = active.cpu_ns() as f64 / 1e7 / seconds;
        worst.cpu = worst.cpu.max(cpu);
        worst.threads = worst.threads.max(active.threads() as f64);
        if wakes >= worst.wakes {
            worst.wakes = wakes;
            eprintln!("wake-ups by thread: {active}");
        }
    }
    Ok(worst)
}

/// The larger daemon's memory at the end of the load.
fn under_load(cluster: &Cluster) -> Result<f64> {
    let mut app = cluster.app(0)?;
    let (first, began) = (app.next_id()?, Instant::now());
    for n in 0..LOAD.as_secs() * RATE {
        app.insert(first + n as i64, 1)?;
        let due = began + Duration::from_secs(1) * n as u32 / RATE as u32;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    cluster.rss_mb()
}

/// Asks the first node for a snapshot, and waits until it is made and the daemon rests.
fn save(cluster: &Cluster) -> Result<()> {
    let node = &cluster.nodes[0];
    let log = node.db.with_file_name("log");
    let made = |log: &Path| {
        Ok::<_, std::io::Error>(fs::read_to_string(log)?.matches(" made, because ").count())
    };
    let before = made(&log)?;
    node.daemon.signal(Signal::USR1)?;
    let began = Instant::now();
    while made(&log)? == before {
        if began.elapsed() > Duration::from_secs(60) {
            return Err("no snapshot within 60 s".into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    cluster.settle()
}
