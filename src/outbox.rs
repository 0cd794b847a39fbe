//! Frames between capture and their acknowledgements, and which marks those cover.
//!
//! Frames enter in the order of their transactions and under the same lock as the capture that made
//! them. So the outbox never reports "everything up to transaction n is acknowledged" too early.

use std::collections::{BTreeMap, VecDeque};

use crate::capture::{MAX_QUEUED_BYTES, Outgoing};
use crate::mutation::{self, Mutation};

/// See the module's head.
#[derive(Debug, Default)]
pub struct Outbox {
    queue: VecDeque<Outgoing>,
    queued_bytes: usize,
    /// Transaction -> number of its frames that are not acknowledged yet, queued ones included.
    outstanding: BTreeMap<i64, usize>,
    /// The last transaction whose frames entered.
    last: i64,
}

impl Outbox {
    /// Adds captured frames. Returns false if too many bytes are queued now: then capture must only
    /// mark rows until the outbox is empty.
    #[must_use]
    pub fn push(&mut self, frames: Vec<Outgoing>) -> bool {
        for frame in frames {
            debug_assert!(
                frame.local_tx >= self.last || mutation::is(Mutation::OutboxRemembers),
                "frames enter in order"
            );
            self.last = self.last.max(frame.local_tx);
            *self.outstanding.entry(frame.local_tx).or_default() += 1;
            self.queued_bytes += frame.raw.len();
            self.queue.push_back(frame);
        }
        self.queued_bytes <= MAX_QUEUED_BYTES
    }

    /// The next frame to send.
    pub fn pop(&mut self) -> Option<Outgoing> {
        let frame = self.queue.pop_front()?;
        self.queued_bytes -= frame.raw.len();
        Some(frame)
    }

    /// Bytes of frames that wait to be sent.
    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Whether any frame waits to be sent.
    pub fn has_queued(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Whether nothing is queued or in flight.
    pub fn is_empty(&self) -> bool {
        self.outstanding.is_empty()
    }

    /// Notes that a frame of transaction `local_tx` is acknowledged. Returns the transaction up to
    /// which everything is acknowledged, if that moved.
    pub fn acknowledged(&mut self, local_tx: i64) -> Option<i64> {
        let first = self.outstanding.keys().next().copied();
        let left = self.outstanding.get_mut(&local_tx)?;
        *left -= 1;
        if *left > 0 {
            return None;
        }
        self.outstanding.remove(&local_tx);
        if first != Some(local_tx) {
            return mutation::is(Mutation::AckCoversEarlier).then_some(local_tx);
        }
        Some(
            self.outstanding
                .keys()
                .next()
                .map_or(self.last, |next| next - 1),
        )
    }

    /// Forgets all frames: the marks still say which rows are to be published. The next frames may
    /// belong to earlier transactions again, so their acknowledgement must not cover the forgotten
    /// ones.
    pub fn clear(&mut self) {
        let last = self.last;
        *self = Outbox::default();
        if mutation::is(Mutation::OutboxRemembers) {
            self.last = last;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(local_tx: i64) -> Outgoing {
        Outgoing {
            local_tx,
            shard: 1,
            salt: 0,
            raw: vec![0; 10],
        }
    }

    #[test]
    fn nothing_counts_as_acknowledged_before_all_before_it_is() {
        let mut outbox = Outbox::default();
        assert!(outbox.push(vec![frame(1), frame(1), frame(4), frame(7)]));
        while outbox.pop().is_some() {}
        assert_eq!(outbox.acknowledged(4), None);
        assert_eq!(outbox.acknowledged(1), None);
        assert_eq!(outbox.acknowledged(1), Some(6));
        assert_eq!(outbox.acknowledged(1), None, "one too many");
        assert_eq!(outbox.acknowledged(7), Some(7));
        assert!(outbox.is_empty());
    }

    #[test]
    fn forgotten_frames_do_not_count_as_acknowledged() {
        let mut outbox = Outbox::default();
        assert!(outbox.push(vec![frame(5), frame(9)]));
        outbox.clear();
        assert!(outbox.push(vec![frame(5)])); // as much of the backlog as is sent at a time
        assert_eq!(outbox.acknowledged(5), Some(5));
    }

    #[test]
    fn a_full_outbox_says_so() {
        let mut outbox = Outbox::default();
        let large = Outgoing {
            local_tx: 1,
            shard: 1,
            salt: 0,
            raw: vec![0; MAX_QUEUED_BYTES],
        };
        assert!(outbox.push(vec![large]));
        assert!(!outbox.push(vec![frame(2)]));
        outbox.clear();
        assert!(outbox.is_empty() && !outbox.has_queued());
    }
}
