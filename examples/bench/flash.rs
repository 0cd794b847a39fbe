//! The cost of a row in flash: bytes that reach an ext4 disk, of a plain database, of a node that
//! writes and of a node that receives, at the same time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::Result;
use crate::app::App;
use crate::cluster::{directory, start_daemon, start_server};

/// Loads: name, rows in a transaction, pause between transactions, and the divisor of the command
/// line's seconds.
const LOADS: [(&str, i64, u64, u64); 4] = [
    ("one row a second", 1, 1000, 1),
    ("20 rows a second, one by one", 1, 50, 4),
    ("20 transactions of ten a second", 10, 50, 4),
    ("20 transactions of a hundred a second", 100, 50, 4),
];

/// Prints the table; `interval` is `edge.publish_interval`, none for the default.
pub fn measure(seconds: u64, idle: Duration, interval: Option<&str>) -> Result<()> {
    let dir = directory()?;
    let disks = ["plain", "writing", "receiving"].map(|name| Disk::new(&dir.path().join(name)));
    let [plain, writing, receiving] = disks;
    let disks = [plain?, writing?, receiving?];
    let (server, address) = start_server(dir.path())?;
    let paths = disks.each_ref().map(|disk| disk.mount().join("app.db"));
    let mut apps = [App::open(&paths[0])?, App::open(&paths[1])?];
    let reader = App::open(&paths[2])?;
    let edge = interval.map(|i| format!("[edge]\npublish_interval = \"{i}\"\n"));
    let edge = edge.unwrap_or_default();
    let mut daemons = Vec::new();
    for id in 1..=2 {
        daemons.push(start_daemon(
            &paths[id as usize],
            id,
            &address,
            ("", &edge),
        )?);
    }
    let mut next = 1;
    insert(&mut apps, &mut next, 100)?;
    reader.wait_for(next - 1)?;
    println!("| load | device bytes a row: plain / writing / receiving | times plain |");
    println!("|---|---|---|");
    for (name, rows, pause_ms, part) in LOADS {
        let before = written(&disks)?;
        let (first, began) = (next, Instant::now());
        let mut due = began;
        while began.elapsed() < Duration::from_secs(seconds / part) {
            insert(&mut apps, &mut next, rows)?;
            due += Duration::from_millis(pause_ms);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        let count = (next - first) as f64;
        if interval.is_none() {
            reader.wait_for(next - 1)?;
        }
        let bytes = written(&disks)?;
        let [plain, writing, receiving] = [0, 1, 2].map(|i| (bytes[i] - before[i]) as f64 / count);
        println!(
            "| {name} | {plain:.0} / {writing:.0} / {receiving:.0} | {:.2} / {:.2} |",
            writing / plain,
            receiving / plain
        );
    }
    // The daemon cuts the WAL, and stores everything that waits for a pause.
    std::thread::sleep(Duration::from_secs(70));
    let before = written(&disks)?;
    std::thread::sleep(idle);
    let bytes = written(&disks)?;
    let [_, writing, receiving] = [0, 1, 2].map(|i| bytes[i] - before[i]);
    println!(
        "| idle for {} s, bytes | 0 / {writing} / {receiving} | |",
        idle.as_secs()
    );
    daemons.into_iter().try_for_each(|daemon| daemon.stop())?;
    server.stop()
}

fn insert(apps: &mut [App; 2], next: &mut i64, rows: i64) -> Result<()> {
    for app in apps {
        app.insert(*next, rows)?;
    }
    *next += rows;
    Ok(())
}

/// Bytes that have reached each disk, after a sync of all.
fn written(disks: &[Disk; 3]) -> Result<[u64; 3]> {
    let mut bytes = [0; 3];
    for (disk, bytes) in disks.iter().zip(&mut bytes) {
        rustix::fs::syncfs(fs::File::open(disk.mount())?)?;
        *bytes = disk.written()?;
    }
    Ok(bytes)
}

/// A disk of `scripts/loop-disk.sh`.
struct Disk {
    folder: PathBuf,
    /// The disk's counters in `/sys`.
    stat: PathBuf,
}

impl Disk {
    fn new(folder: &Path) -> Result<Disk> {
        let mut disk = Disk {
            folder: folder.to_owned(),
            stat: PathBuf::new(),
        };
        disk.run("new")?;
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let mount = disk.mount();
        let is_ours = |line: &&str| {
            line.split(' ')
                .nth(4)
                .is_some_and(|m| Path::new(m) == mount)
        };
        let line = mounts
            .lines()
            .find(is_ours)
            .ok_or("the disk is not mounted")?;
        let number = line.split(' ').nth(2).unwrap_or_default();
        disk.stat = format!("/sys/dev/block/{number}/stat").into();
        Ok(disk)
    }

    fn run(&self, what: &str) -> Result<()> {
        let mut script = Command::new("scripts/loop-disk.sh");
        match script.arg(what).arg(&self.folder).status()?.success() {
            true => Ok(()),
            false => Err("scripts/loop-disk.sh failed: it needs root and loop devices".into()),
        }
    }

    fn mount(&self) -> PathBuf {
        self.folder.join("mnt")
    }

    fn written(&self) -> Result<u64> {
        let text = fs::read_to_string(&self.stat)?;
        let sectors: u64 = text
            .split_whitespace()
            .nth(6)
            .ok_or("no counter")?
            .parse()?;
        Ok(sectors * 512)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.run("drop");
    }
}
