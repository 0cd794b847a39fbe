//! HarmonyLite comes to a large table while an application writes: that never sees SQLITE_BUSY.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::Result;
use crate::check;
use crate::cluster::Cluster;

const ROWS: u64 = 10_000_000;
/// How long the application goes on after the installation began.
const TIME: Duration = Duration::from_secs(60);
/// What an impatient application waits for a lock.
const BUSY_TIMEOUT: Duration = Duration::from_millis(1000);
/// Within what time after that everything written is sent.
const PATIENCE: Duration = Duration::from_secs(120);

pub fn run(folder: &Path, limit: &Path, seed: u64) -> Result<()> {
    let mut cluster = Cluster::new(&folder.join("big"), seed, 1)?;
    std::fs::create_dir_all(&cluster.nodes[0].folder)?;
    let conn = Connection::open(cluster.nodes[0].db())?;
    conn.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    conn.execute_batch(&format!(
        "CREATE TABLE large(k INTEGER PRIMARY KEY, v);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
         INSERT INTO large SELECT i, hex(i) FROM n;
         PRAGMA wal_checkpoint(TRUNCATE)"
    ))?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    cluster.nodes[0].daemon_prefix = vec![limit.display().to_string()];
    cluster.start_broker()?;
    cluster.start_daemon(0)?;
    let began = Instant::now();
    let (mut writes, mut longest) = (0_u64, Duration::ZERO);
    while began.elapsed() < TIME {
        let start = Instant::now();
        let k = (writes * 7919) % ROWS + 1;
        let done = conn.execute("UPDATE large SET v = 'again' WHERE k = ?1", [k]);
        longest = longest.max(start.elapsed());
        done.map_err(|e| format!("large table: write {writes} of the application: {e}"))?;
        writes += 1;
        std::thread::sleep(Duration::from_millis(1));
    }
    let wrote = Instant::now();
    // An error if it is not even installed.
    while check::pending(&cluster.nodes[0].db())? > 0 {
        cluster.all_alive()?;
        if wrote.elapsed() > PATIENCE {
            return Err("large table: not all writes are sent".into());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let peak = cluster.nodes[0]
        .daemon
        .as_ref()
        .map_or(0, |d| d.memory_kb("VmHWM"));
    println!(
        "a table of {ROWS} rows: {writes} writes beside the installation, none saw SQLITE_BUSY, the \
         slowest took {:.0} ms; all sent {:.1} s after the last; peak RSS {:.1} MB",
        longest.as_secs_f64() * 1000.0,
        wrote.elapsed().as_secs_f64(),
        peak as f64 / 1024.0
    );
    Ok(())
}
