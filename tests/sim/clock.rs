//! A node's clock: set by the simulation, and made to run while the core works, so that its time
//! boxes end where the seed says.

use std::sync::Mutex;
use std::time::Duration;

use harmonylite::clock::Clock;

pub struct SimClock(Mutex<State>);

#[derive(Default)]
struct State {
    now_ms: i64,
    uptime: Duration,
    boot: u64,
    /// What every look at the uptime takes.
    tick: Duration,
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

    pub fn set(&self, now_ms: i64) {
        self.with(|s| s.now_ms = now_ms);
    }

    pub fn reboot(&self) {
        self.with(|s| s.boot += 1);
    }

    pub fn tick(&self, tick: Duration) {
        self.with(|s| s.tick = tick);
    }
}

impl Clock for SimClock {
    fn now_ms(&self) -> i64 {
        self.with(|s| s.now_ms)
    }

    fn uptime(&self) -> Duration {
        self.with(|s| {
            s.uptime += s.tick;
            s.uptime
        })
    }

    fn boot_id(&self) -> String {
        self.with(|s| format!("boot-{}", s.boot))
    }
}
