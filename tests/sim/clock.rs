//! A node's clock: set by the simulation, and made to run while the core works, so that its time
//! boxes end where the seed says. The core looks at it before, between and inside of its
//! transactions: where a process ends by kill -9 is told by the number of looks.

use std::panic::resume_unwind;
use std::sync::Mutex;
use std::time::Duration;

use harmonylite::clock::Clock;

/// What unwinds when a process is killed.
pub struct Killed;

pub struct SimClock(Mutex<State>);

#[derive(Default)]
struct State {
    now_ms: i64,
    uptime: Duration,
    boot: u64,
    /// What every look at the uptime takes.
    tick: Duration,
    /// Looks until the process is killed.
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

    /// For the application, which does not die with the daemon.
    pub fn time_ms(&self) -> i64 {
        self.with(|s| s.now_ms)
    }

    pub fn set(&self, now_ms: i64) {
        self.with(|s| s.now_ms = now_ms);
    }

    pub fn reboot(&self) {
        self.with(|s| s.boot += 1);
    }

    /// The process is killed by its look after so many; none: it is left alone.
    pub fn kill_after(&self, looks: Option<usize>) {
        self.with(|s| s.looks_left = looks);
    }

    /// As [`Self::with`], for the core.
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
