//! A connection to the streams, and which message on it belongs to which frame.
//!
//! Acknowledgements tell a slow connection from a broken one. The longest wait is proportional to
//! the bytes in flight, so the window starts small and grows while acknowledgements come quickly.

use std::collections::{BTreeMap, HashMap};
use std::iter::Peekable;
use std::time::{Duration, Instant};

use crate::model::frame::{self, Messages, PackedFrame};
use crate::shared::Shared;
use crate::stream::{FIRST_WINDOW, QUICK, StreamError, Writer, at_slowest};

/// Largest number of messages in flight: enough to hide the broker's latency.
const MAX_IN_FLIGHT: usize = 512;

/// An acknowledgement counts as lost after this long, once its message had time to get through.
const ACK_WAIT: Duration = Duration::from_secs(10);

/// An acknowledgement that takes longer than this says that too much is in flight.
const SLOW: Duration = Duration::from_secs(5);

/// A connection and the messages under way on it.
pub(super) struct PublisherLink {
    pub writer: Box<dyn Writer>,
    /// Messages in flight by their tokens: the first is the oldest.
    messages: BTreeMap<u64, LinkMessage>,
    /// Frame -> its transaction, and the number of its messages that are not acknowledged.
    frames: HashMap<u64, (i64, usize)>,
    /// Messages of the last frame that are not handed over yet: a frame may be larger than the
    /// window.
    rest: Option<Rest>,
    in_flight_bytes: usize,
    window_bytes: usize,
    next: u64,
    /// Since when the oldest message is the oldest: every message sent before it has arrived.
    oldest_since: Instant,
    /// Whether at some time everything sent on this connection was stored.
    pub worked: bool,
}

pub(super) struct LinkMessage {
    frame: u64,
    pub stream: String,
    pub id: [u8; 16],
    bytes: usize,
    pub sent: Instant,
}

/// Properties of a frame that is about to become messages.
pub(super) struct Sending<'a> {
    pub local_tx: i64,
    pub shard: u32,
    pub stream: &'a str,
    pub salt: u64,
}

struct Rest {
    frame: u64,
    shard: u32,
    stream: String,
    salt: u64,
    messages: Peekable<Messages>,
}

impl PublisherLink {
    pub(super) fn new(writer: Box<dyn Writer>, now: Instant) -> Self {
        let (messages, frames) = (BTreeMap::new(), HashMap::new());
        PublisherLink {
            window_bytes: FIRST_WINDOW.min(writer.window_bytes()),
            writer,
            messages,
            frames,
            rest: None,
            in_flight_bytes: 0,
            next: 0,
            oldest_since: now,
            worked: false,
        }
    }

    /// Whether another frame may be sent.
    pub(super) fn has_room(&self) -> bool {
        self.rest.is_none() && self.has_room_for(1)
    }

    fn has_room_for(&self, bytes: usize) -> bool {
        self.messages.is_empty()
            || (self.messages.len() < MAX_IN_FLIGHT
                && self.in_flight_bytes + bytes <= self.window_bytes)
    }

    /// Number of messages that are not acknowledged.
    pub(super) fn in_flight(&self) -> usize {
        self.messages.len()
    }

    /// Number of messages handed over so far.
    pub(super) fn handed_over(&self) -> u64 {
        self.next
    }

    /// Whether every message sent is acknowledged.
    pub(super) fn is_idle(&self) -> bool {
        self.messages.is_empty() && self.rest.is_none()
    }

    /// When the next acknowledgement is late. An acknowledgement out of turn says nothing about the
    /// messages before it.
    pub(super) fn deadline(&self) -> Option<Instant> {
        // A window that has grown says how fast the connection was.
        let faster = (self.window_bytes / FIRST_WINDOW).max(1);
        let (_, oldest) = self.messages.first_key_value()?;
        // All messages sent before the oldest have arrived. Messages sent since wait for the
        // oldest; it does not wait for them.
        let before = self.in_flight_bytes.min(FIRST_WINDOW.max(oldest.bytes));
        Some(self.oldest_since + ACK_WAIT + at_slowest(before / faster))
    }

    /// Sends one frame, in parts if it is too large for one message. Call it only if there is room.
    pub(super) fn send(
        &mut self,
        shared: &Shared,
        sending: &Sending<'_>,
        packed: PackedFrame,
        now: Instant,
    ) -> Result<(), StreamError> {
        debug_assert!(self.rest.is_none());
        let most = self.writer.max_message_bytes(packed.len());
        let messages = packed.messages(sending.salt, most);
        let frame = self.next;
        self.frames
            .insert(frame, (sending.local_tx, messages.len()));
        self.rest = Some(Rest {
            frame,
            shard: sending.shard,
            stream: sending.stream.to_owned(),
            salt: sending.salt,
            messages: messages.peekable(),
        });
        self.send_rest(shared, now)
    }

    /// Hands over as many messages of the current frame as may be in flight.
    pub(super) fn send_rest(&mut self, shared: &Shared, now: Instant) -> Result<(), StreamError> {
        while let Some(mut rest) = self.rest.take() {
            let Some(bytes) = rest.messages.next_if(|next| self.has_room_for(next.len())) else {
                self.rest = rest.messages.peek().is_some().then_some(rest);
                break;
            };
            let id = frame::message_id(&bytes, rest.salt);
            let id = self.writer.message_id(rest.shard, id);
            let token = self.next;
            self.next += 1;
            if self.messages.is_empty() {
                self.oldest_since = now;
            }
            let message = LinkMessage {
                frame: rest.frame,
                stream: rest.stream.clone(),
                id,
                bytes: bytes.len(),
                sent: now,
            };
            self.messages.insert(token, message);
            self.in_flight_bytes += bytes.len();
            shared.remember_own(&id, &bytes);
            let shard = rest.shard;
            self.rest = Some(rest);
            self.writer
                .send(shard, &frame::id_text(&id), &bytes, token)?;
        }
        Ok(())
    }

    /// Removes an acknowledged message and returns it. If that completes its frame, returns the
    /// frame's transaction, too.
    pub(super) fn acknowledged(
        &mut self,
        token: u64,
        now: Instant,
    ) -> Option<(LinkMessage, Option<i64>)> {
        let oldest = self.messages.keys().next().copied();
        let message = self.messages.remove(&token)?;
        self.in_flight_bytes -= message.bytes;
        if oldest == Some(token) {
            self.oldest_since = now;
        }
        self.window_bytes = match now.saturating_duration_since(message.sent) {
            took if took < QUICK => self.window_bytes + message.bytes,
            took if took > SLOW => (self.window_bytes / 2).max(FIRST_WINDOW),
            _ => self.window_bytes,
        }
        .min(self.writer.window_bytes());
        let (local_tx, left) = self.frames.get_mut(&message.frame)?;
        let local_tx = *local_tx;
        *left -= 1;
        if *left > 0 {
            return Some((message, None));
        }
        self.frames.remove(&message.frame);
        Some((message, Some(local_tx)))
    }
}

#[cfg(test)]
mod tests;
