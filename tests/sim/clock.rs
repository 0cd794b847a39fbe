//! A node's clock. The simulation sets it, and it runs while the core works, so that time boxes end
//! where the seed says. The core reads it before, between and inside of its transactions: a kill -9
//! strikes at a given number of reads.

use std::panic::resume_unwind;
use std::sync::Mutex;
use std::time::Duration;

use harmonylite::clock::Clock;

/// The payload of the panic that kills a process.
pub struct Killed;

pub struct SimClock(Mutex<State>);

#[derive(Default)]
struct State {
    now_ms: i64,
    uptime: Duration,
    boot: u64,
    /// Time that each read of the uptime takes.
    tick: Duration,
    /// Reads of the clock until the process is killed.
    looks_left: Option<usize>,
}

impl SimClock {
    pub fn at(now_ms: i64) -> Self {
        SimClock(Mutex::new(State {
            now_ms,
            ..State::default()
        }))
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.0.lock().expect("one thread"))
    }

    pub fn advance(&self, ms: i64) {
        self.with(|s| {
            s.now_ms += ms;
            s.uptime += Duration::from_millis(ms as u64);
        });
    }

    /// The time for the application, which does not die with the daemon.
    pub fn time_ms(&self) -> i64 {
        self.with(|s| s.now_ms)
    }

    pub fn set(&self, now_ms: i64) {
        self.with(|s| s.now_ms = now_ms);
    }

    pub fn reboot(&self) {
        self.with(|s| s.boot += 1);
    }

    /// Kills the process at the read after so many; none: never.
    pub fn kill_after(&self, looks: Option<usize>) {
        self.with(|s| s.looks_left = looks);
    }

    /// Like [`Self::with`], for the core: it counts as a read.
    fn look<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let left = self.with(|s| {
            let left = s.looks_left;
            s.looks_left = left.and_then(|n| n.checked_sub(1));
            left
        });
        if left == Some(0) {
            resume_unwind(Box::new(Killed)); // says nothing, as kill -9 does
        }
        self.with(f)
    }

    pub fn tick(&self, tick: Duration) {
        self.with(|s| s.tick = tick);
    }
}

impl Clock for SimClock {
    fn now_ms(&self) -> i64 {
        self.look(|s| s.now_ms)
    }

    fn uptime(&self) -> Duration {
        self.look(|s| {
            s.uptime += s.tick;
            s.uptime
        })
    }

    fn boot_id(&self) -> String {
        self.look(|s| format!("boot-{}", s.boot))
    }
}
