//! The measurements.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use harmonylite::clock::SystemClock;
use harmonylite::database::{Database, Settings};
use rustix::time::{ClockId, clock_gettime};

use crate::Result;
use crate::app::App;
use crate::cluster::{Cluster, directory};
use crate::report::Report;

/// Rows of the throughput, and in one transaction.
const ROWS: i64 = 100_000;
const BATCH: i64 = 100;
/// Transactions whose latency is measured.
const ROUNDS: usize = 1000;
/// Transactions whose WAL is counted, and the pause between them.
const PACED: i64 = 200;
const PACE: Duration = Duration::from_millis(50);

/// Sends 100,000 rows in transactions of 100, from the first insert until the last is visible at
/// the other node, and writes as many into a plain database.
pub fn throughput(cluster: &Cluster, report: &mut Report) -> Result<()> {
    let (mut writer, reader) = (cluster.app(0)?, cluster.app(1)?);
    let first = writer.next_id()?;
    let began = Instant::now();
    insert_all(&mut writer, first, ROWS)?;
    report.add("writer rows/s", ROWS as f64 / began.elapsed().as_secs_f64());
    let done = reader.wait_for(first + ROWS - 1)?;
    report.add("rows/s", ROWS as f64 / (done - began).as_secs_f64());

    let dir = directory()?;
    let mut plain = App::open(&dir.path().join("plain.db"))?;
    let began = Instant::now();
    insert_all(&mut plain, 1, ROWS)?;
    report.add("plain rows/s", ROWS as f64 / began.elapsed().as_secs_f64());
    Ok(())
}

fn insert_all(app: &mut App, first: i64, count: i64) -> Result<()> {
    (first..first + count)
        .step_by(BATCH as usize)
        .try_for_each(|id| app.insert(id, BATCH).map(drop))
}

/// Measures one-row transactions of an application with SQLite's default, `synchronous = FULL`:
/// from the end of the commit until a reader at the other node sees the row. The fsync lies between
/// the write that the daemon notices and the end of the commit. Beside it, messages of the same
/// size through the same nats-server, from publishing to receiving.
pub fn latency(cluster: &Cluster, report: &mut Report) -> Result<()> {
    let (mut writer, reader) = (cluster.app(0)?, cluster.app(1)?);
    writer.conn.pragma_update(None, "synchronous", "FULL")?;
    let mut nats = NatsRound::connect(&cluster.address)?;
    let first = writer.next_id()?;
    let (mut ours, mut plain) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let id = first + round as i64;
        writer.insert(id, 1)?;
        let committed = Instant::now();
        ours.push((reader.wait_for(id)? - committed).as_secs_f64() * 1e3);
        // A pause between 5 and 15 ms, so that no clock of the daemon keeps step.
        std::thread::sleep(Duration::from_micros(5000 + (round as u64 * 7919) % 10_000));
        plain.push(nats.round()?.as_secs_f64() * 1e3);
    }
    for (name, mut times) in [("latency", ours), ("nats", plain)] {
        times.sort_by(f64::total_cmp);
        report.add(format!("{name} p50"), times[ROUNDS / 2]);
        report.add(format!("{name} p99"), times[ROUNDS * 99 / 100]);
    }
    Ok(())
}

/// NATS without any code of ours.
struct NatsRound {
    publish: TcpStream,
    receive: BufReader<TcpStream>,
}

impl NatsRound {
    fn connect(address: &str) -> Result<NatsRound> {
        let open = |after: &[u8]| -> Result<BufReader<TcpStream>> {
            let mut stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            let mut read = BufReader::new(stream.try_clone()?);
            let mut line = String::new();
            read.read_line(&mut line)?;
            stream.write_all(b"CONNECT {\"verbose\":false}\r\n")?;
            stream.write_all(after)?;
            stream.write_all(b"PING\r\n")?;
            while line != "PONG\r\n" {
                line.clear();
                read.read_line(&mut line)?;
            }
            Ok(read)
        };
        Ok(NatsRound {
            publish: open(b"")?.into_inner(),
            receive: open(b"SUB bench 1\r\n")?,
        })
    }

    fn round(&mut self) -> Result<Duration> {
        let began = Instant::now();
        let mut message = b"PUB bench 150\r\n".to_vec();
        message.extend([b'x'; 150]);
        message.extend(b"\r\n");
        self.publish.write_all(&message)?;
        let mut line = String::new();
        loop {
            line.clear();
            self.receive.read_line(&mut line)?;
            if line.starts_with("MSG") {
                self.receive.read_exact(&mut [0; 152])?;
                return Ok(began.elapsed());
            }
            self.receive.get_ref().write_all(b"PONG\r\n")?;
        }
    }
}

/// The cost of the triggers for the application; no daemon runs.
pub fn application(report: &mut Report) -> Result<()> {
    const ROWS: i64 = 10_000;
    for _ in 0..10 {
        for (name, triggers) in [("plain", false), ("triggers", true)] {
            let dir = directory()?;
            let path = dir.path().join("app.db");
            let mut app = App::open(&path)?;
            app.conn.pragma_update(None, "wal_autocheckpoint", 0)?;
            if triggers {
                install(&path)?;
            }
            app.insert(1, 1)?;
            let wal = app.pin_wal(&path)?;
            for id in 2..2 + PACED {
                app.insert(id, 1)?;
            }
            let bytes = wal.written()? / PACED as f64;
            report.add(format!("app wal {name}"), bytes);
            let (wal, began) = (app.pin_wal(&path)?, clock_gettime(ClockId::ThreadCPUTime));
            insert_all(&mut app, 1_000, ROWS)?;
            let ended = clock_gettime(ClockId::ThreadCPUTime);
            let ns = (ended.tv_sec - began.tv_sec) * 1_000_000_000 + ended.tv_nsec - began.tv_nsec;
            report.add(format!("app cpu {name}"), ns as f64 / 1e3 / ROWS as f64);
            report.add(format!("app wal/row {name}"), wal.written()? / ROWS as f64);
        }
    }
    Ok(())
}

/// Puts the triggers in place, as a daemon's start does.
fn install(path: &Path) -> Result<()> {
    let settings = Settings {
        path: path.to_owned(),
        node_id: Some(1),
        publish: true,
        shards: 1,
        streams: Default::default(),
        cache_size: 2000,
        cleanup_interval: Duration::from_secs(5),
        scan_max_changes: 512,
        max_transaction_bytes: 1 << 20,
        max_clock_drift: Duration::from_secs(60),
        courtesy: Duration::ZERO,
        tombstone_retention: Duration::from_secs(30 * 24 * 3600),
        births: false,
        births_later: false,
        allow_rowid_tables: true,
        joins_by_snapshot: false,
        seq_map_path: None,
        tables: Default::default(),
        apply_triggers: Vec::new(),
    };
    let never = Arc::new(AtomicBool::new(false));
    Database::open(settings, Arc::new(SystemClock), never)?;
    Ok(())
}

/// Bytes that application and daemon together write to the WAL of each node.
pub fn wal_of_nodes(cluster: &Cluster, report: &mut Report) -> Result<()> {
    let (mut writer, reader) = (cluster.app(0)?, cluster.app(1)?);
    let mut load = |name: &str, batch: i64, pace: Duration| -> Result<()> {
        let first = writer.next_id()?;
        writer.insert(first, 1)?;
        reader.wait_for(first)?;
        let sent = writer.pin_wal(&cluster.nodes[0].db)?;
        let received = reader.pin_wal(&cluster.nodes[1].db)?;
        let mut next = Instant::now();
        for i in 0..PACED {
            writer.insert(first + 1 + i * batch, batch)?;
            next += pace;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        reader.wait_for(first + PACED * batch)?;
        cluster.settle()?;
        let per_row = (PACED * batch) as f64;
        report.add(format!("{name} writing"), sent.written()? / per_row);
        report.add(format!("{name} receiving"), received.written()? / per_row);
        Ok(())
    };
    load("one-row", 1, PACE)?;
    load("100-row", BATCH, PACE)?;
    load("100-row at once", BATCH, Duration::ZERO)
}
