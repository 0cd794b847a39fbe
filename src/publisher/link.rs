//! A connection to the streams, and which message on it is part of which frame.
//!
//! A slow connection is told from a broken one by what is acknowledged on it. The longest wait is
//! for what may be in flight, so that starts small, and grows where acknowledgements come at once.

use std::collections::{BTreeMap, HashMap};
use std::iter::Peekable;
use std::time::{Duration, Instant};

use crate::gate::Gate;
use crate::model::frame::{self, Messages, Packed};
use crate::stream::{FIRST_WINDOW, QUICK, StreamError, Writer, at_slowest};

/// Messages in flight: enough to hide the broker's latency.
const MAX_IN_FLIGHT: usize = 512;

/// An acknowledgement that takes longer, once its message is through, is lost.
const ACK_WAIT: Duration = Duration::from_secs(10);

/// Acknowledgements that take so long say that too much is in flight.
const SLOW: Duration = Duration::from_secs(5);

/// A connection and what is under way on it.
pub(super) struct PublisherLink {
    pub writer: Box<dyn Writer>,
    /// By their tokens: the first is the oldest.
    messages: BTreeMap<u64, LinkMessage>,
    /// Frame -> transaction, and messages of it that are not acknowledged.
    frames: HashMap<u64, (i64, usize)>,
    /// What is not handed over yet of the last frame, which may be larger than what may be in
    /// flight.
    rest: Option<Rest>,
    in_flight_bytes: usize,
    window_bytes: usize,
    next: u64,
    /// Since when the oldest message is the oldest: all that was sent before it has arrived.
    oldest_since: Instant,
    /// All that was sent was stored, at some time.
    pub worked: bool,
}

pub(super) struct LinkMessage {
    frame: u64,
    pub stream: String,
    pub id: [u8; 16],
    bytes: usize,
    pub sent: Instant,
}

/// A frame on its way into messages.
pub(super) struct Sending<'a> {
    pub at: i64,
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

    /// Messages that are not acknowledged.
    pub(super) fn in_flight(&self) -> usize {
        self.messages.len()
    }

    /// How many messages were handed over.
    pub(super) fn handed_over(&self) -> u64 {
        self.next
    }

    /// Whether all that was sent is acknowledged.
    pub(super) fn is_idle(&self) -> bool {
        self.messages.is_empty() && self.rest.is_none()
    }

    /// When the next acknowledgement is late. What is acknowledged out of turn says nothing of
    /// those before it.
    pub(super) fn deadline(&self) -> Option<Instant> {
        // A window that has grown says how fast the connection was.
        let faster = (self.window_bytes / FIRST_WINDOW).max(1);
        let (_, oldest) = self.messages.first_key_value()?;
        // All that was sent before the oldest is there; what was sent since waits for it, not it
        // for that.
        let before = self.in_flight_bytes.min(FIRST_WINDOW.max(oldest.bytes));
        Some(self.oldest_since + ACK_WAIT + at_slowest(before / faster))
    }

    /// Sends one frame, in parts if it is too large for one message. To be called if there is room.
    pub(super) fn send(
        &mut self,
        gate: &Gate,
        sending: &Sending<'_>,
        packed: Packed,
        now: Instant,
    ) -> Result<(), StreamError> {
        debug_assert!(self.rest.is_none());
        let most = self.writer.max_message_bytes(packed.len());
        let messages = packed.messages(sending.salt, most);
        let frame = self.next;
        self.frames.insert(frame, (sending.at, messages.len()));
        self.rest = Some(Rest {
            frame,
            shard: sending.shard,
            stream: sending.stream.to_owned(),
            salt: sending.salt,
            messages: messages.peekable(),
        });
        self.send_rest(gate, now)
    }

    /// Hands over as much as may be in flight of the frame that is being sent.
    pub(super) fn send_rest(&mut self, gate: &Gate, now: Instant) -> Result<(), StreamError> {
        while let Some(mut rest) = self.rest.take() {
            let Some(bytes) = rest.messages.next_if(|next| self.has_room_for(next.len())) else {
                self.rest = rest.messages.peek().is_some().then_some(rest);
                break;
            };
            let id = frame::message_id(&bytes, rest.salt);
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
            gate.remember_own(&id);
            let shard = rest.shard;
            self.rest = Some(rest);
            self.writer
                .send(shard, &frame::id_text(&id), &bytes, token)?;
        }
        Ok(())
    }

    /// A message arrived, and the transaction of its frame, if that is complete with it.
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
        let (at, left) = self.frames.get_mut(&message.frame)?;
        let at = *at;
        *left -= 1;
        if *left > 0 {
            return Some((message, None));
        }
        self.frames.remove(&message.frame);
        Some((message, Some(at)))
    }
}

#[cfg(test)]
mod tests;
