//! Converts a limit in bytes to a number of messages.
//!
//! How far a node may publish ahead, and when a snapshot is due, is counted in messages. Where a
//! stream is limited in bytes, the limit is divided by the average size of the messages read
//! lately.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::stream::limits::MESSAGE_BYTES;
use crate::stream::{Message, StreamState};

/// Bytes that the broker keeps per message besides its data: subject, headers and its own record.
const OVERHEAD: u64 = 200;
/// The newest batch of messages is one part in this many of the average.
const PARTS: u64 = 8;

/// Sizes of all shards together, because they share the load.
#[derive(Debug)]
pub(super) struct Sizes {
    /// The smallest limit of any stream, in bytes.
    limit: AtomicU64,
    /// Average size of a message in bytes; the usual maximum until the first message is read.
    average: AtomicU64,
}

impl Default for Sizes {
    fn default() -> Sizes {
        Sizes {
            limit: AtomicU64::new(u64::MAX),
            average: AtomicU64::new(MESSAGE_BYTES),
        }
    }
}

impl Sizes {
    /// Notes the limit that the broker tells of a stream.
    pub(super) fn heard(&self, state: &StreamState) {
        let limit = state.max_bytes.unwrap_or(u64::MAX);
        self.limit.fetch_min(limit, Ordering::Relaxed);
    }

    pub(super) fn read(&self, messages: &[Message]) {
        let Some(count) = u64::try_from(messages.len()).ok().filter(|&n| n > 0) else {
            return;
        };
        let bytes: u64 = messages.iter().map(|m| m.data.len() as u64).sum();
        let newest = bytes / count + OVERHEAD;
        let before = self.average.load(Ordering::Relaxed);
        let average = (before * (PARTS - 1) + newest) / PARTS;
        self.average.store(average, Ordering::Relaxed);
    }

    /// Number of messages that a stream can hold, at most `max_entries`.
    pub(super) fn holds(&self, max_entries: u64) -> u64 {
        let by_bytes = self.limit.load(Ordering::Relaxed) / self.average.load(Ordering::Relaxed);
        max_entries.min(by_bytes.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(max_bytes: Option<u64>) -> StreamState {
        let (first, last, created, now_ms) = (1, 0, String::new(), None);
        StreamState {
            first,
            last,
            created,
            now_ms,
            max_bytes,
        }
    }

    #[test]
    fn bytes_count_where_they_are_limited() {
        let sizes = Sizes::default();
        sizes.heard(&state(None));
        assert_eq!(sizes.holds(5_000_000), 5_000_000);
        sizes.heard(&state(Some(100 * MESSAGE_BYTES)));
        sizes.heard(&state(None));
        assert_eq!(sizes.holds(5_000_000), 100);
        assert_eq!(sizes.holds(64), 64);
        let message = Message {
            sequence: 1,
            id: None,
            time_ms: 0,
            data: vec![0; 800],
        };
        for _ in 0..100 {
            sizes.read(std::slice::from_ref(&message));
        }
        let holds = sizes.holds(5_000_000);
        assert!((9_000..=10_300).contains(&holds), "{holds}");
    }
}
