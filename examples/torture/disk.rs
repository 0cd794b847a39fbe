//! A disk that is full, and one that answers with errors: the daemon says so, stays, and goes on by
//! itself when the disk is well again.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::check::{self, Content};
use crate::cluster::Cluster;
use crate::process::Process;
use crate::{Options, Result};

const PATIENCE: Duration = Duration::from_secs(60);
const TROUBLE: Duration = Duration::from_secs(4);

/// System calls of the daemon that fail, as strace injects it; and whether the log must tell.
///
/// Not with EIO from reading: SQLite calls that a malformed database, and the daemon ends.
const ERRORS: [(&str, bool); 4] = [
    ("fsync,fdatasync:error=EIO", false),
    ("pwrite64:error=ENOSPC:when=3+", true),
    ("pwrite64:error=EIO:when=2+3", true),
    ("ftruncate,unlink,openat:error=ENOSPC:when=2+2", false),
];

pub fn run(mut options: Options) -> Result<()> {
    let small: PathBuf = options.rest.value_from_str("--small-disk")?;
    let (from, to) = (small.join("node-1"), options.folder.join("node-1"));
    // The small disk goes with its namespace: what somebody has to look at is saved.
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
    round(&mut cluster, &mut base, "full disk", true, |cluster| {
        let filler = small.join("filler");
        fill(&filler)?;
        std::thread::sleep(TROUBLE);
        cluster.all_alive()?;
        Ok(fs::remove_file(filler)?)
    })?;
    for (error, must_tell) in ERRORS.iter().filter(|_| injecting) {
        round(&mut cluster, &mut base, error, *must_tell, |cluster| {
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
            let strace = Process::spawn("strace", &words, &cluster.folder.join("log-strace"))?;
            std::thread::sleep(TROUBLE);
            // A daemon that ended takes it along; one that lives is let go by SIGTERM.
            let _ = strace.stop();
            cluster.all_alive()
        })?;
    }
    println!("all equal, nothing lost, all databases sound, no daemon restarted");
    Ok(())
}

fn round(
    cluster: &mut Cluster,
    base: &mut Content,
    name: &str,
    must_tell: bool,
    trouble: impl FnOnce(&mut Cluster) -> Result<()>,
) -> Result<()> {
    let log = cluster.nodes[0].log.clone();
    let told_before = told(&log)?.len();
    cluster.forget_records();
    cluster.start_apps()?;
    std::thread::sleep(Duration::from_millis(500));
    trouble(cluster).map_err(|e| format!("{name}: {e}"))?;
    std::thread::sleep(Duration::from_millis(500));
    let healed = check::healed(cluster, base, PATIENCE).map_err(|e| format!("{name}: {e}"))?;
    println!("{name}: {healed}");
    let told = told(&log)?;
    if must_tell && told.len() == told_before {
        return Err(format!("{name}: the daemon says nothing").into());
    }
    let texts = told[told_before..].iter().filter(|l| !l.contains("NATS"));
    texts.take(2).for_each(|line| println!("  {line}"));
    Ok(())
}

/// Until nothing more fits.
fn fill(file: &Path) -> Result<()> {
    let mut file = File::create(file)?;
    for size in [1 << 20, 4096, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
    Ok(())
}

/// Errors and warnings of a log.
fn told(log: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(log)?;
    let bad = text
        .lines()
        .filter(|l| l.contains(" ERROR ") || l.contains(" WARN "));
    Ok(bad.map(String::from).collect())
}
