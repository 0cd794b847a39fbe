//! Waiting with a deadline, and ports.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// Longest wait for a condition. Every condition comes far sooner; only a failing test waits so
/// long.
pub const PATIENCE: Duration = match option_env!("HARMONYLITE_EMULATED") {
    None => Duration::from_secs(60),
    Some(_) => Duration::from_secs(400), // an emulated node is ten times as slow
};

/// Repeats `attempt` until it gives a result.
pub fn until<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(result) = attempt() {
            return result;
        }
        pause(10);
    }
    panic!("in vain: {what}");
}

/// The pause between two attempts, and between two steps of a load.
pub fn pause(milliseconds: u64) {
    std::thread::park_timeout(Duration::from_millis(milliseconds));
}

/// A port on which nobody listens. The system gives it to no process by itself, so it stays free
/// while its server is down.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = 20_000 + (std::process::id() % 100) as u16 * 100;
    loop {
        let port = base + NEXT.fetch_add(1, Ordering::Relaxed) % 1000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
