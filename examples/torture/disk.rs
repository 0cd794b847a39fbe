//! A full disk, and a disk that answers with errors: the daemon says so, stays, and goes on by
//! itself when the disk is well again.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::check::{self, Content};
use crate::cluster::{Cluster, Node};
use crate::process::Process;
use crate::{Options, Result};

const PATIENCE: Duration = Duration::from_secs(60);
const TROUBLE: Duration = Duration::from_secs(4);

/// After EIO from reading, SQLite calls the file malformed and the daemon ends; a supervisor may
/// start it again at once.
const READ_ERROR: &str = "pread64:error=EIO:when=1+3";

/// System calls of the daemon that fail, as strace injects it.
const ERRORS: [&str; 5] = [
    READ_ERROR,
    "fsync,fdatasync:error=EIO",
    "pwrite64:error=ENOSPC:when=3+",
    "pwrite64:error=EIO:when=2+3",
    "ftruncate,unlink,openat:error=ENOSPC:when=2+2",
];

pub fn run(mut options: Options) -> Result<()> {
    let small: PathBuf = options.rest.value_from_str("--small-disk")?;
    let (from, to) = (small.join("node-1"), options.folder.join("node-1"));
    // The small disk goes away with its namespace: the files of a failure are saved.
    run_on(options, &small).inspect_err(|_| {
        let _ = Command::new("cp").arg("-r").args([from, to]).status();
    })
}

fn run_on(mut options: Options, small: &Path) -> Result<()> {
    let embedded = options.rest.contains("--embedded");
    let injecting = !options.rest.contains("--no-strace");
    options.nothing_left()?;
    let mut cluster = Cluster::new(&options.folder, options.seed, 2)?;
    cluster.nodes[0].folder = small.join("node-1");
    cluster.nodes[0].embedded = embedded;
    cluster.nodes[0].endures = true;
    cluster.pause = 10;
    cluster.start()?;
    let mut base = Content::new();
    round(&mut cluster, &mut base, "full disk", |cluster| {
        let filler = small.join("filler");
        fill(&filler)?;
        std::thread::sleep(TROUBLE);
        cluster.all_alive()?;
        Ok(fs::remove_file(filler)?)
    })?;
    for error in ERRORS.iter().filter(|_| injecting) {
        round(&mut cluster, &mut base, error, |c| inject(c, error))?;
    }
    println!("all equal, nothing lost, all databases sound");
    Ok(())
}

fn round(
    cluster: &mut Cluster,
    base: &mut Content,
    name: &str,
    trouble: impl FnOnce(&mut Cluster) -> Result<()>,
) -> Result<()> {
    let told_before = told(&cluster.nodes[0])?.len();
    cluster.forget_records();
    cluster.start_apps()?;
    std::thread::sleep(Duration::from_millis(500));
    trouble(cluster).map_err(|e| format!("{name}: {e}"))?;
    std::thread::sleep(Duration::from_millis(500));
    let healed = check::healed(cluster, base, PATIENCE).map_err(|e| format!("{name}: {e}"))?;
    println!("{name}: {healed}");
    if told(&cluster.nodes[0])?.len() == told_before {
        // A warning that was given within the last minute is counted, and logged at the end.
        if let Some(daemon) = cluster.nodes[0].daemon.take() {
            daemon.stop()?;
        }
        cluster.start_daemon(0)?;
    }
    let told = told(&cluster.nodes[0])?;
    if told.len() == told_before {
        return Err(format!("{name}: the daemon does not say what is wrong").into());
    }
    let texts = told[told_before..].iter().take(2);
    texts.for_each(|line| println!("  {line}"));
    Ok(())
}

/// Lets system calls of the daemon fail for a while, and makes sure that some did.
fn inject(cluster: &mut Cluster, error: &str) -> Result<()> {
    let daemon = cluster.nodes[0].daemon.as_ref().ok_or("no daemon")?;
    let (calls, _) = error.split_once(':').ok_or("no calls")?;
    let words = [
        "strace".to_owned(),
        "-f".into(),
        "-qq".into(),
        format!("--trace={calls}"),
        format!("--inject={error}"),
        "-p".into(),
        daemon.id().to_string(),
    ];
    let log = cluster.folder.join("log-strace");
    let _ = fs::remove_file(&log);
    let mut strace = Process::spawn("strace", &words, &log)?;
    std::thread::sleep(TROUBLE);
    // If the daemon ended, strace ended with it; else SIGTERM makes strace let the daemon go.
    match cluster.all_alive() {
        Err(e) if error == READ_ERROR => {
            println!("  {e}");
            cluster.start_daemon(0)?;
        }
        other => {
            other?;
            strace.must_run()?;
        }
    }
    let _ = strace.stop();
    match fs::read_to_string(&log)?.matches("(INJECTED)").count() {
        0 => Err("no system call failed".into()),
        _ => Ok(()),
    }
}

/// Fills the disk with a file until nothing more fits.
fn fill(file: &Path) -> Result<()> {
    let mut file = File::create(file)?;
    for size in [1 << 20, 4096, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
    Ok(())
}

/// Errors and warnings of a daemon about its database or a file beside it.
fn told(node: &Node) -> Result<Vec<String>> {
    let folder = node.folder.display().to_string();
    let is_bad = |l: &&str| l.contains(" ERROR ") || l.contains(" WARN ");
    let is_ours = |l: &&str| l.contains("database: ") || l.contains(&folder);
    let is_server = |l: &&str| l.contains("nats-server: ");
    let text = fs::read_to_string(&node.log)?;
    let lines = text.lines().filter(is_bad).filter(is_ours);
    Ok(lines.filter(|l| !is_server(l)).map(String::from).collect())
}
