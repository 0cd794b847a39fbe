//! HarmonyLite comes to a large table while an application writes: that never sees SQLITE_BUSY.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::Result;
use crate::check;
use crate::cluster::Cluster;

/// What an impatient application waits for a lock.
const BUSY_TIMEOUT: Duration = Duration::from_millis(1000);

/// Installs on `rows` rows; the application goes on for `time` after that began.
pub fn run(folder: &Path, limit: &Path, seed: u64, rows: u64, time: Duration) -> Result<()> {
    let mut cluster = Cluster::new(&folder.join("big"), seed, 1)?;
    std::fs::create_dir_all(&cluster.nodes[0].folder)?;
    let conn = Connection::open(cluster.nodes[0].db())?;
    conn.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    conn.execute_batch(&format!(
        "CREATE TABLE large(k INTEGER PRIMARY KEY, v);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
         INSERT INTO large SELECT i, hex(i) FROM n;
         PRAGMA wal_checkpoint(TRUNCATE)"
    ))?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    cluster.nodes[0].daemon_prefix = vec![limit.display().to_string()];
    cluster.start_broker()?;
    cluster.start_daemon(0)?;
    let began = Instant::now();
    let (mut writes, mut longest) = (0_u64, Duration::ZERO);
    while began.elapsed() < time {
        let start = Instant::now();
        let k = (writes * 7919) % rows + 1;
        let done = conn.execute("UPDATE large SET v = 'again' WHERE k = ?1", [k]);
        longest = longest.max(start.elapsed());
        done.map_err(|e| format!("large table: write {writes} of the application: {e}"))?;
        writes += 1;
        std::thread::sleep(Duration::from_millis(1));
    }
    cluster.all_alive()?;
    check::pending(&cluster.nodes[0].db())?; // an error if it is not even installed
    let peak = cluster.nodes[0]
        .daemon
        .as_ref()
        .map_or(0, |d| d.memory_kb("VmHWM"));
    println!(
        "a table of {rows} rows: {writes} writes beside the installation, none saw SQLITE_BUSY, the \
         slowest took {:.0} ms; peak RSS {:.1} MB",
        longest.as_secs_f64() * 1000.0,
        peak as f64 / 1024.0
    );
    Ok(())
}
