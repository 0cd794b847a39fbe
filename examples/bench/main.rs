//! Measures the costs and the speed of HarmonyLite, beside plain SQLite and plain NATS in the same
//! run, and prints markdown tables. `scripts/bench.sh` builds everything and starts this.
//!
//! Each run has directories, a nats-server and two daemons of its own. A printed number is the
//! median of the runs. The program waits for events, and by the clock only where a load has pauses.
#![allow(unreachable_pub)] // no other crate uses any of it

use std::time::Duration;

mod app;
mod cluster;
mod courtesy;
mod flash;
mod idle;
mod measure;
mod node;
mod process;
mod report;
mod sealed;
mod snapshot;
mod stall;
mod verify;

use report::Report;

/// Any error ends the measurement.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The parts of the table that is printed unless something else is asked for.
const PARTS: &str = "throughput,latency,app,wal,idle";

/// Parts that take long, with a table of their own.
const OWN_TABLES: &str = "snapshot,courtesy";

struct Options {
    runs: usize,
    idle: Duration,
    only: Vec<String>,
    /// Length of a cell of the table of courtesy, or of the slowest load of flash.
    seconds: Option<u64>,
    /// `edge.publish_interval` for flash.
    interval: Option<String>,
    /// Size of the database for snapshots.
    mb: u64,
    stores: Vec<String>,
    /// Of the table that is compared.
    rows: u64,
}

impl Options {
    fn parse() -> Result<Options> {
        let mut args = pico_args::Arguments::from_env();
        let runs: Option<usize> = args.opt_value_from_str("--runs")?;
        let idle: Option<u64> = args.opt_value_from_str("--idle")?;
        let only: Option<String> = args.opt_value_from_str("--only")?;
        let seconds: Option<u64> = args.opt_value_from_str("--seconds")?;
        let interval: Option<String> = args.opt_value_from_str("--publish-interval")?;
        let mb: Option<u64> = args.opt_value_from_str("--mb")?;
        let stores: Option<String> = args.opt_value_from_str("--stores")?;
        let rows: Option<u64> = args.opt_value_from_str("--rows")?;
        let all = args.contains("--all");
        if let [unknown, ..] = &args.finish()[..] {
            return Err(format!("unknown argument {}", unknown.display()).into());
        }
        let (mut parts, mut usual_stores) = (list(PARTS), "file,nats");
        if all {
            parts.extend(list(OWN_TABLES));
            usual_stores = "file";
        }
        let only = only.map_or(parts, |only| list(&only));
        let known = format!("{PARTS},{OWN_TABLES},flash,sealed,verify");
        if let Some(unknown) = only.iter().find(|part| !list(&known).contains(part)) {
            return Err(format!("--only {unknown}: the parts are {known}").into());
        }
        Ok(Options {
            runs: runs.unwrap_or(3).max(1),
            idle: Duration::from_secs(idle.unwrap_or(60)),
            only,
            seconds,
            interval,
            mb: mb.unwrap_or(1000).max(1),
            stores: list(stores.as_deref().unwrap_or(usual_stores)),
            rows: rows.unwrap_or(1_000_000).max(2),
        })
    }

    fn has(&self, what: &str) -> bool {
        self.only.iter().any(|o| o == what)
    }
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(Into::into).collect()
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, rest @ ..] = &arguments[..]
        && first == courtesy::APPLICATION
    {
        return courtesy::application(rest);
    }
    let options = Options::parse()?;
    println!("{}\n", machine()?);
    if list(PARTS).iter().any(|part| options.has(part)) {
        let mut report = Report::default();
        for run in 1..=options.runs {
            eprintln!("run {run} of {}", options.runs);
            let last = run == options.runs;
            one_run(&options, last, &mut report)?;
        }
        report.print(options.runs, options.idle);
        println!();
    }
    if options.has("snapshot") {
        snapshot::measure(options.mb, &options.stores)?;
        println!();
    }
    if options.has("courtesy") {
        courtesy::measure(options.seconds.unwrap_or(4).max(1))?;
    }
    if options.has("sealed") {
        sealed::measure(options.runs)?;
    }
    if options.has("verify") {
        verify::measure(options.rows)?;
    }
    if options.has("flash") {
        let seconds = options.seconds.unwrap_or(120).max(4);
        flash::measure(seconds, options.idle, options.interval.as_deref())?;
    }
    Ok(())
}

/// The release and the machine that were measured.
fn machine() -> Result<String> {
    let server = std::process::Command::new(cluster::server_program())
        .arg("--version")
        .output()?;
    Ok(format!(
        "harmonylite {}, {}, {} processor(s), Linux {}",
        env!("CARGO_PKG_VERSION"),
        String::from_utf8_lossy(&server.stdout).trim(),
        std::thread::available_parallelism()?,
        std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
    ))
}

fn one_run(options: &Options, last: bool, report: &mut Report) -> Result<()> {
    if options.has("app") {
        measure::application(report)?;
    }
    let cluster = cluster::Cluster::start()?;
    cluster.settle()?;
    report.add("rss idle", cluster.rss_mb()?);
    if options.has("wal") {
        measure::wal_of_nodes(&cluster, report)?;
    }
    if options.has("latency") {
        measure::latency(&cluster, report)?;
    }
    if options.has("throughput") {
        measure::throughput(&cluster, report)?;
    }
    cluster.settle()?;
    report.add("rss after", cluster.rss_mb()?);
    if last && options.has("idle") {
        idle::measure(&cluster, options.idle, report)?;
    }
    cluster.stop()
}
