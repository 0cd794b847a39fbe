//! The only place that reads clocks.

use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// The times that the other modules may use. The simulation has its own.
pub trait Clock: Send + Sync {
    /// Unix milliseconds; may jump in both directions, and be wrong.
    fn now_ms(&self) -> i64;
    /// Time since an unspecified moment. It never goes back, and includes suspension of the
    /// machine.
    fn uptime(&self) -> Duration;
    /// Differs after every start of the operating system; empty if unknown. While it is the same,
    /// no committed data can have been lost to a power cut.
    fn boot_id(&self) -> String;
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> i64 {
        let now = SystemTime::now();
        match now.duration_since(UNIX_EPOCH) {
            Ok(since) => since.as_millis() as i64,
            Err(before) => -(before.duration().as_millis() as i64),
        }
    }

    fn uptime(&self) -> Duration {
        // `Instant` stops while the machine is suspended, so the broker's time would lag behind.
        let since_boot = clock_gettime(ClockId::Boottime);
        Duration::new(since_boot.tv_sec as u64, since_boot.tv_nsec as u32)
    }

    fn boot_id(&self) -> String {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        id.trim().to_owned()
    }
}

/// Seconds since midnight, by the local time of this machine (`TZ`, or /etc/localtime).
pub fn local_second_of_day() -> u32 {
    let now = SystemClock.now_ms().div_euclid(1000);
    // SAFETY: both are plain values of ours; all bytes zero is a valid `tm`.
    let local = unsafe {
        let (now, mut local) = (now as libc::time_t, std::mem::zeroed::<libc::tm>());
        libc::localtime_r(&now, &mut local);
        local
    };
    (local.tm_hour * 3600 + local.tm_min * 60 + local.tm_sec).clamp(0, 86_399) as u32
}

/// A clock for tests that is set by hand.
#[derive(Debug, Default)]
pub struct ManualClock {
    state: Mutex<ManualState>,
}

#[derive(Debug, Default, Clone)]
struct ManualState {
    now_ms: i64,
    uptime: Duration,
    boot: u64,
}

impl ManualClock {
    /// A clock at these Unix milliseconds, with an uptime of zero.
    pub fn at(now_ms: i64) -> Self {
        ManualClock {
            state: Mutex::new(ManualState {
                now_ms,
                ..ManualState::default()
            }),
        }
    }

    fn with<T>(&self, f: impl FnOnce(&mut ManualState) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(|e| e.into_inner()))
    }

    /// Advances the wall clock and the uptime.
    pub fn advance(&self, by: Duration) {
        self.with(|s| {
            s.now_ms += by.as_millis() as i64;
            s.uptime += by;
        });
    }

    /// Sets the wall clock alone.
    pub fn set(&self, now_ms: i64) {
        self.with(|s| s.now_ms = now_ms);
    }

    /// Changes the boot id.
    pub fn reboot(&self) {
        self.with(|s| s.boot += 1);
    }
}

impl Clock for ManualClock {
    fn now_ms(&self) -> i64 {
        self.with(|s| s.now_ms)
    }

    fn uptime(&self) -> Duration {
        self.with(|s| s.uptime)
    }

    fn boot_id(&self) -> String {
        self.with(|s| format!("boot-{}", s.boot))
    }
}
