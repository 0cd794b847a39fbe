//! An application that writes small transactions all the time, and its wait for each.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use crate::app::App;

/// The pause between two transactions.
const PACE: Duration = Duration::from_millis(2);

/// The application's waits, in milliseconds.
pub struct Stalls {
    times: Vec<f64>,
    /// Of the longest wait, the part until its row was written, which takes the lock. The rest is
    /// the commit.
    lock: f64,
    /// The longest WAL, in bytes.
    wal: u64,
}

impl Stalls {
    pub fn p99(&self) -> f64 {
        self.times
            .get(self.times.len() * 99 / 100)
            .copied()
            .unwrap_or(f64::NAN)
    }

    pub fn longest(&self) -> f64 {
        self.times.last().copied().unwrap_or(f64::NAN)
    }

    pub fn shown(&self) -> String {
        format!(
            "{:.1} / {:.0} ms ({:.0} of it for the lock) of {} transactions, WAL up to {} MB",
            self.p99(),
            self.longest(),
            self.lock,
            self.times.len(),
            self.wal >> 20
        )
    }
}

/// A running application.
pub struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Stalls, String>>,
}

impl Writer {
    /// Inserts rows from `first` on, one each, and updates the row before; `busy_timeout` is 5000.
    pub fn start(db: &Path, first: i64) -> Writer {
        let stop = Arc::new(AtomicBool::new(false));
        let (db, ends) = (db.to_owned(), stop.clone());
        let thread = std::thread::spawn(move || {
            write(&db, first, &ends).map_err(|e| format!("the application failed: {e}"))
        });
        Writer { stop, thread }
    }

    /// Ends the application.
    pub fn stop(self) -> crate::Result<Stalls> {
        self.stop.store(true, Ordering::Relaxed);
        let stalls = self.thread.join().map_err(|_| "the application panicked")?;
        Ok(stalls?)
    }
}

fn write(db: &Path, first: i64, ends: &AtomicBool) -> crate::Result<Stalls> {
    let mut app = App::open(db)?;
    let wal = wal_of(db);
    let mut stalls = Stalls {
        times: Vec::new(),
        lock: 0.0,
        wal: 0,
    };
    let (mut id, mut longest) = (first, 0.0);
    while !ends.load(Ordering::Relaxed) {
        let began = Instant::now();
        let lock = app.insert(id, 1)?.duration_since(began).as_secs_f64() * 1e3;
        let took = began.elapsed().as_secs_f64() * 1e3;
        stalls.times.push(took);
        if took > longest {
            (longest, stalls.lock) = (took, lock);
        }
        if id % 64 == 0 {
            stalls.wal = stalls.wal.max(std::fs::metadata(&wal)?.len());
        }
        id += 1;
        sleep(PACE);
    }
    stalls.times.sort_by(f64::total_cmp);
    Ok(stalls)
}

fn wal_of(db: &Path) -> PathBuf {
    let mut wal = db.as_os_str().to_owned();
    wal.push("-wal");
    wal.into()
}
