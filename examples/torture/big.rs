//! HarmonyLite is installed on a large table while an application writes, which must never see
//! SQLITE_BUSY.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::Result;
use crate::check;
use crate::cluster::Cluster;

/// Time that an impatient application waits for a lock.
const BUSY_TIMEOUT: Duration = Duration::from_millis(1000);
/// Time after the application's last write within which everything is sent. A large table gets
/// more, by the rows a second of a slow machine that runs other programs, too.
const PATIENCE: Duration = Duration::from_secs(60);
const ROWS_PER_SECOND: u64 = 5_000;

/// Installs HarmonyLite on `rows` rows; the application goes on for `time` after the beginning.
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
    let (mut writes, mut waits) = (0_u64, Vec::new());
    while began.elapsed() < time {
        let start = Instant::now();
        let k = (writes * 7919) % rows + 1;
        let done = conn.execute("UPDATE large SET v = 'again' WHERE k = ?1", [k]);
        waits.push(start.elapsed());
        done.map_err(|e| format!("large table: write {writes} of the application: {e}"))?;
        writes += 1;
        std::thread::sleep(Duration::from_millis(1));
    }
    let wrote = Instant::now();
    let patience = PATIENCE + Duration::from_secs(rows / ROWS_PER_SECOND);
    // This fails if HarmonyLite is not even installed.
    while check::pending(&cluster.nodes[0].db())? > 0 {
        cluster.all_alive()?;
        if wrote.elapsed() > patience {
            return Err("large table: not all writes are sent".into());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let sent = wrote.elapsed();
    waits.sort_unstable();
    let wait = |at: usize| waits.get(at).map_or(0, |w| w.as_millis());
    let peak = cluster.nodes[0]
        .daemon
        .as_ref()
        .map_or(0, |d| d.memory_kb("VmHWM"));
    println!(
        "a table of {rows} rows: {writes} writes beside the installation, none saw SQLITE_BUSY, \
         they took p99 {} ms, longest {} ms; all sent {:.1} s after the last; peak RSS {:.1} MB",
        wait(waits.len() * 99 / 100),
        wait(waits.len() - 1),
        sent.as_secs_f64(),
        peak as f64 / 1024.0
    );
    Ok(())
}
