//! Power cuts of one node: its database and the broker's store lose unflushed writes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::check::{self, Content, Seen};
use crate::cluster::Cluster;
use crate::random::Random;
use crate::{Options, Result};

const PATIENCE: Duration = Duration::from_secs(60);

pub fn run(mut options: Options) -> Result<()> {
    let disk: PathBuf = options.rest.value_from_str("--disk")?;
    let rounds = options.option("--rounds", 4)?;
    options.nothing_left()?;
    let mut random = Random::new(options.seed, 0);
    let mut cluster = Cluster::new(&options.folder, options.seed, 2)?;
    cluster.nodes[0].folder = disk.join("mnt/node-1");
    cluster.nodes[0].embedded = true;
    cluster.nodes[0].endures = true;
    cluster.start()?;
    let mut base = Content::new();
    for round in 1..=rounds {
        let sync = ["FULL", "NORMAL"][(round + options.seed as usize) % 2];
        cluster.nodes[0].sync = sync.into();
        cluster.forget_records();
        cluster.pause = [1, 8, 40][random.below(3) as usize];
        cluster.start_apps()?;
        // In this time the server may sync and the other side may read much, or nothing.
        run_for(&mut cluster, 500 + random.below(12_000))?;
        if random.chance(50) {
            // The application stands still, while the other one writes over its last rows.
            cluster.nodes[0].app = None;
            run_for(&mut cluster, random.below(3000))?;
        }
        let mut seen = Seen::new();
        check::look(&cluster.nodes[1].db(), &mut seen)?;
        let before = check::content(&cluster.nodes[0].db())?;
        loop_disk("cut", &disk)?;
        new_boot_id(&mut random)?;
        let daemon = cluster.nodes[0].daemon.take().ok_or("no daemon")?;
        cluster.nodes[0].app = None;
        end_with_children(daemon);
        run_for(&mut cluster, random.below(2000))?;
        back(&disk)?;
        let sound = sound(&cluster.nodes[0].db())?;
        if sound != "ok" {
            return Err(format!("round {round}: after the cut: {sound}").into());
        }
        let after = check::content(&cluster.nodes[0].db())?;
        let undone = before
            .iter()
            .filter(|(k, v)| after.get(*k) != Some(v))
            .count();
        cluster.start_daemon(0)?;
        if random.chance(50) {
            cluster.start_app(0)?;
            run_for(&mut cluster, random.below(4000))?;
        }
        cluster.kill_apps()?;
        let healing = Instant::now();
        let content = check::converged(&mut cluster, PATIENCE)?;
        let mut records = [cluster.nodes[0].records()?, cluster.nodes[1].records()?];
        if sync == "NORMAL" {
            records[0].doubt_all();
        }
        check::check(&cluster, &base, &records, &seen, &content)?;
        println!(
            "round {round}: synchronous={sync}, {} transactions, {undone} rows undone by the cut, \
             equal after {:.1} s",
            records.iter().map(|r| r.transactions).sum::<usize>(),
            healing.elapsed().as_secs_f64()
        );
        base = content;
    }
    println!("all equal, nothing lost, all databases sound: {rounds} power cuts");
    Ok(())
}

fn run_for(cluster: &mut Cluster, ms: u64) -> Result<()> {
    std::thread::sleep(Duration::from_millis(ms));
    cluster.all_alive()
}

fn sound(db: &Path) -> Result<String> {
    let conn = rusqlite::Connection::open(db)?;
    Ok(conn.query_row("PRAGMA integrity_check(3)", [], |r| r.get(0))?)
}

/// Kills a daemon and waits for its nats-server, which must be gone before the disk is.
fn end_with_children(daemon: crate::process::Process) {
    let children = daemon.children();
    children.iter().for_each(|child| daemon.kill_child(*child));
    drop(daemon);
    let until = Instant::now() + Duration::from_secs(5);
    let is_there = |pid: &i32| Path::new(&format!("/proc/{pid}")).exists();
    while children.iter().any(is_there) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn loop_disk(verb: &str, disk: &Path) -> Result<()> {
    let status = Command::new("scripts/loop-disk.sh")
        .arg(verb)
        .arg(disk)
        .status()?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("scripts/loop-disk.sh {verb}: {status}").into()),
    }
}

/// A program that looks at the disk (an indexer, a monitor) may hold it for a moment.
fn back(disk: &Path) -> Result<()> {
    for _ in 0..20 {
        if loop_disk("back", disk).is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Err("the disk cannot be mounted again".into())
}

/// Makes a new boot id, as a machine that lost power has.
fn new_boot_id(random: &mut Random) -> Result<()> {
    let file = std::env::var("HARMONYLITE_TORTURE_BOOT_ID")?;
    let (a, b) = (random.next(), random.next());
    Ok(std::fs::write(file, format!("{a:016x}-{b:016x}\n"))?)
}
