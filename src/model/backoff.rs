//! The wait before the next try.

use std::time::Duration;

/// Fails if an attempt failed more often than `nats.connect_retries` allows; never if that is none.
pub fn check_retries(failures: u32, retries: Option<u32>, text: &str) -> Result<(), String> {
    match retries.filter(|&most| failures > most) {
        Some(most) => Err(format!(
            "gave up after {failures} tries, the first and {most} (nats.connect_retries) more: \
             {text}"
        )),
        None => Ok(()),
    }
}

/// A wait that doubles from `first` to `longest`. There is no randomness, because the things that
/// are retried here (a broker that is away, a full disk) do not suffer from a few dozen nodes at
/// once.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Waits of `first`, then of twice as much each time, up to `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Backoff {
            first,
            longest,
            next: first,
        }
    }

    /// The wait before the next try.
    pub fn wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = (self.next * 2).min(self.longest);
        wait
    }

    /// Must be called after a success: the next wait is the first again.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_the_longest_and_begins_anew() {
        let mut b = Backoff::new(Duration::from_millis(100), Duration::from_millis(350));
        let waits: Vec<_> = (0..4).map(|_| b.wait().as_millis()).collect();
        assert_eq!(waits, [100, 200, 350, 350]);
        b.reset();
        assert_eq!(b.wait().as_millis(), 100);
    }
}
