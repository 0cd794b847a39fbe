//! The only place that reads clocks.

use std::sync::Mutex;
use std::time::Duration;

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
        wall_clock_ms()
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
    // Days, and summer time, are the same 28 years earlier, which a `time_t` of 32 bits can hold.
    const CYCLE: i64 = 10_227 * 24 * 3600;
    let mut now = SystemClock.now_ms().div_euclid(1000);
    while now > i64::from(i32::MAX) {
        now -= CYCLE;
    }
    // SAFETY: both are plain values of ours; all bytes zero is a valid `tm`.
    let local = unsafe {
        let mut local = std::mem::zeroed::<libc::tm>();
        libc::localtime_r(&(now as _), &mut local);
        local
    };
    (local.tm_hour * 3600 + local.tm_min * 60 + local.tm_sec).clamp(0, 86_399) as u32
}

/// With musl on 32 bits, `SystemTime` ends in 2038 ([`time_of_32_bits`]); the kernel's time does
/// not.
#[cfg(all(target_env = "musl", target_pointer_width = "32"))]
fn wall_clock_ms() -> i64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec.saturating_mul(1000) + now.tv_nsec as i64 / 1_000_000
}

#[cfg(not(all(target_env = "musl", target_pointer_width = "32")))]
fn wall_clock_ms() -> i64 {
    use std::time::{SystemTime, UNIX_EPOCH};

    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_millis() as i64,
        Err(before) => -(before.duration().as_millis() as i64),
    }
}

/// Takes the place of the call by which Rust's standard library asks musl for the time on 32 bits.
/// musl's own refuses times from 2038 on, and the standard library then panics, in TLS and anywhere
/// else: a clock that lost its battery could end the process. This one stops at the last moment
/// that fits, so TLS judges certificates as of then. C code and [`SystemClock`] ask in 64 bits.
#[cfg(all(
    target_env = "musl",
    target_pointer_width = "32",
    target_endian = "little"
))]
#[allow(deprecated)] // time_t, which libc will widen
mod time_of_32_bits {
    use libc::{c_int, clockid_t, time_t, timespec};

    #[repr(C)]
    struct Timespec64 {
        seconds: i64,
        /// The kernel's, of 64 bits; on these little-endian machines its first half has it all.
        nanoseconds: [i32; 2],
    }

    unsafe extern "C" {
        fn __clock_gettime64(clock: clockid_t, time: *mut Timespec64) -> c_int;
    }

    /// # Safety
    /// As clock_gettime(2): `time` may be written.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
        let mut full = Timespec64 {
            seconds: 0,
            nanoseconds: [0; 2],
        };
        // SAFETY: the struct is musl's on these machines.
        let result = unsafe { __clock_gettime64(clock, &mut full) };
        if result == 0 {
            let seconds = full.seconds.clamp(time_t::MIN.into(), time_t::MAX.into());
            // SAFETY: the caller's promise.
            unsafe {
                (*time).tv_sec = seconds as time_t;
                (*time).tv_nsec = full.nanoseconds[0] as _;
            }
        }
        result
    }
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
