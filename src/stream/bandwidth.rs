//! A limit of the bytes a second in each direction, for all connections of this process together.
//!
//! It counts messages with changes and the bytes of snapshots. A thread that sent or received some
//! waits, before the next, as long as they take within the limit.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Bytes of a message besides its data: subjects, headers, and the answer to it.
const BESIDE: usize = 300;

/// See the module's head.
#[derive(Debug)]
pub struct Bandwidth {
    /// Bytes a second.
    each: u64,
    /// The time until which the bytes sent so far take, and those received so far.
    up: Mutex<Instant>,
    down: Mutex<Instant>,
}

impl Bandwidth {
    /// A limit of so many bytes a second in each direction, at least 1.
    pub fn new(each: u64) -> Bandwidth {
        let now = Instant::now();
        Bandwidth {
            each: each.max(1),
            up: Mutex::new(now),
            down: Mutex::new(now),
        }
    }

    /// Notes bytes that are sent, and returns how long to wait before more may follow.
    pub fn sent(&self, bytes: usize) -> Duration {
        self.count(&self.up, bytes, Instant::now())
    }

    /// Counts bytes that arrived, in the same way.
    pub fn received(&self, bytes: usize) -> Duration {
        self.count(&self.down, bytes, Instant::now())
    }

    fn count(&self, until: &Mutex<Instant>, bytes: usize, now: Instant) -> Duration {
        let takes = Duration::from_secs_f64(bytes as f64 / self.each as f64);
        let mut until = until.lock().unwrap_or_else(PoisonError::into_inner);
        *until = (*until).max(now) + takes;
        *until - now
    }
}

/// Bytes that count for a message with so many bytes of data.
pub(super) fn of_message(data: usize) -> usize {
    data + BESIDE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_wait_for_those_before_them() {
        let limit = Bandwidth::new(1000);
        let now = Instant::now();
        let count = |bytes, at| limit.count(&limit.up, bytes, at);
        assert_eq!(count(500, now), Duration::from_millis(500));
        assert_eq!(count(1000, now), Duration::from_millis(1500));
        let later = now + Duration::from_secs(60);
        assert_eq!(
            count(100, later),
            Duration::from_millis(100),
            "nothing is saved up"
        );
        assert!(
            limit.received(1000) <= Duration::from_secs(1),
            "each direction for itself"
        );
    }
}
