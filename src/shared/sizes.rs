//! How much the streams keep, in messages: the limit that is reached first counts.
//!
//! How far a node may publish ahead, and when a snapshot is due, is counted in messages. Where a
//! stream is limited in bytes, the limit is divided by the average size of the messages read
//! lately. The limits are those that the broker tells of the streams: an existing stream may keep
//! less than the configuration of this node asks for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::stream::limits::MESSAGE_BYTES;
use crate::stream::{Message, StreamState};

/// Bytes that the broker keeps per message besides its data: subject, headers and its own record.
const OVERHEAD: u64 = 200;
/// The newest batch of messages is one part in this many of the average.
const PARTS: u64 = 8;

/// Limits and sizes of all shards together, because they share the load.
#[derive(Debug)]
pub(super) struct Sizes {
    /// The smallest limit of any stream, in bytes.
    bytes: AtomicU64,
    /// The smallest limit of any stream, in messages.
    messages: AtomicU64,
    /// The smallest limit of any stream, in milliseconds.
    age_ms: AtomicU64,
    /// Average size of a message in bytes; 0 until the first is known.
    average: AtomicU64,
}

/// How much a stream keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keeps {
    /// Number of messages, by whichever limit is reached first.
    pub messages: u64,
    /// Average bytes of a message; none until one is known.
    pub message_bytes: Option<u64>,
    /// Greatest age of a message; none if any age is kept.
    pub age: Option<Duration>,
}

impl Default for Sizes {
    fn default() -> Sizes {
        Sizes {
            bytes: AtomicU64::new(u64::MAX),
            messages: AtomicU64::new(u64::MAX),
            age_ms: AtomicU64::new(u64::MAX),
            average: AtomicU64::new(0),
        }
    }
}

impl Sizes {
    /// Notes the limits that the broker tells of a stream, and the sizes of its messages.
    pub(super) fn heard(&self, state: &StreamState) {
        let told = &state.retention;
        let age_ms = told.max_age.map(|age| age.as_millis() as u64);
        for (smallest, limit) in [
            (&self.bytes, told.max_bytes),
            (&self.messages, told.max_messages),
            (&self.age_ms, age_ms),
        ] {
            smallest.fetch_min(limit.unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        if let (None, Some(average)) = (self.average(), told.message_bytes) {
            self.average.store(average, Ordering::Relaxed);
        }
    }

    pub(super) fn read(&self, messages: &[Message]) {
        let Some(count) = u64::try_from(messages.len()).ok().filter(|&n| n > 0) else {
            return;
        };
        let bytes: u64 = messages.iter().map(|m| m.data.len() as u64).sum();
        let newest = bytes / count + OVERHEAD;
        let before = self.average().unwrap_or(newest);
        let average = (before * (PARTS - 1) + newest) / PARTS;
        self.average.store(average, Ordering::Relaxed);
    }

    fn average(&self) -> Option<u64> {
        Some(self.average.load(Ordering::Relaxed)).filter(|&average| average > 0)
    }

    /// How much a stream keeps, with at most `max_entries` messages.
    pub(super) fn keeps(&self, max_entries: u64) -> Keeps {
        let message_bytes = self.average();
        // Messages count as the largest ones until their size is known.
        let average = message_bytes.unwrap_or(MESSAGE_BYTES);
        let by_bytes = (self.bytes.load(Ordering::Relaxed) / average).max(1);
        let by_number = self.messages.load(Ordering::Relaxed).max(1);
        let age_ms = Some(self.age_ms.load(Ordering::Relaxed)).filter(|&age| age < u64::MAX);
        Keeps {
            messages: max_entries.min(by_number).min(by_bytes),
            message_bytes,
            age: age_ms.map(Duration::from_millis),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::Retention;

    fn state(retention: Retention) -> StreamState {
        let (first, last, created, now_ms) = (1, 0, String::new(), None);
        StreamState {
            first,
            last,
            created,
            now_ms,
            retention,
        }
    }

    fn of_bytes(bytes: u64) -> StreamState {
        state(Retention {
            max_bytes: Some(bytes),
            ..Retention::default()
        })
    }

    #[test]
    fn bytes_count_where_they_are_limited() {
        let sizes = Sizes::default();
        let holds = |most| sizes.keeps(most).messages;
        sizes.heard(&state(Retention::default()));
        assert_eq!(holds(5_000_000), 5_000_000);
        sizes.heard(&of_bytes(100 * MESSAGE_BYTES));
        sizes.heard(&state(Retention::default()));
        assert_eq!(holds(5_000_000), 100);
        assert_eq!(holds(64), 64);
        let message = Message {
            is_refused: false,
            sequence: 1,
            id: None,
            time_ms: 0,
            data: vec![0; 800],
        };
        for _ in 0..100 {
            sizes.read(std::slice::from_ref(&message));
        }
        let found = holds(5_000_000);
        assert!((9_000..=10_300).contains(&found), "{found}");
    }

    /// The configuration of this node may ask for more, or for less: the snapshots must be in time
    /// either way.
    #[test]
    fn the_limits_of_the_stream_count_beside_those_that_are_configured() {
        let sizes = Sizes::default();
        sizes.heard(&state(Retention {
            max_messages: Some(1024),
            max_age: Some(Duration::from_secs(3600)),
            message_bytes: Some(300),
            ..Retention::default()
        }));
        let expected = Keeps {
            messages: 1024,
            message_bytes: Some(300),
            age: Some(Duration::from_secs(3600)),
        };
        assert_eq!(sizes.keeps(65_536), expected);
        assert_eq!(sizes.keeps(100).messages, 100);
    }
}
