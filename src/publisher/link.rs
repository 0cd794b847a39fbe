//! A connection to the streams, and which message on it is part of which frame.

use std::collections::HashMap;
use std::time::Instant;

use crate::gate::Gate;
use crate::model::frame;
use crate::stream::{StreamError, Writer};

/// Messages in flight: enough to hide the broker's latency.
const MAX_IN_FLIGHT: usize = 512;

/// A connection and what is under way on it.
pub(super) struct Link {
    pub writer: Box<dyn Writer>,
    /// Token of a message -> the frame it belongs to.
    pub messages: HashMap<u64, Message>,
    /// Frame -> transaction, and messages of it that are not acknowledged.
    frames: HashMap<u64, (i64, usize)>,
    in_flight_bytes: usize,
    next: u64,
    /// All that was sent was stored, at some time.
    pub worked: bool,
}

pub(super) struct Message {
    frame: u64,
    pub stream: String,
    pub id: [u8; 16],
    bytes: usize,
    sent: Instant,
}

/// A frame on its way into messages.
pub(super) struct Sending<'a> {
    pub at: i64,
    pub shard: u32,
    pub stream: &'a str,
    pub salt: u64,
}

impl Link {
    pub fn new(writer: Box<dyn Writer>) -> Self {
        let (messages, frames) = (HashMap::new(), HashMap::new());
        Link {
            writer,
            messages,
            frames,
            in_flight_bytes: 0,
            next: 0,
            worked: false,
        }
    }

    pub fn has_room(&self) -> bool {
        self.messages.is_empty()
            || (self.messages.len() < MAX_IN_FLIGHT
                && self.in_flight_bytes < self.writer.window_bytes())
    }

    pub fn oldest(&self) -> Option<Instant> {
        self.messages.values().map(|m| m.sent).min()
    }

    /// Sends one frame, in parts if it is too large for one message.
    pub fn send(
        &mut self,
        gate: &Gate,
        sending: &Sending<'_>,
        packed: &frame::Packed,
    ) -> Result<(), StreamError> {
        let frame = self.next;
        let mut messages = packed.messages(sending.salt, self.writer.max_message_bytes());
        self.frames.insert(frame, (sending.at, messages.len()));
        messages.try_for_each(|bytes| self.send_message(gate, frame, sending, &bytes))
    }

    fn send_message(
        &mut self,
        gate: &Gate,
        frame: u64,
        sending: &Sending<'_>,
        bytes: &[u8],
    ) -> Result<(), StreamError> {
        let id = frame::message_id(bytes, sending.salt);
        let token = self.next;
        self.next += 1;
        let stream = sending.stream.to_owned();
        let message = Message {
            frame,
            stream,
            id,
            bytes: bytes.len(),
            sent: Instant::now(),
        };
        self.messages.insert(token, message);
        self.in_flight_bytes += bytes.len();
        gate.remember_own(&id);
        self.writer
            .send(sending.shard, &frame::id_text(&id), bytes, token)
    }

    /// A message arrived; the transaction of its frame, if that is complete with it.
    pub fn acknowledged(&mut self, message: &Message) -> Option<i64> {
        self.in_flight_bytes -= message.bytes;
        let (at, left) = self.frames.get_mut(&message.frame)?;
        let at = *at;
        *left -= 1;
        if *left > 0 {
            return None;
        }
        self.frames.remove(&message.frame);
        Some(at)
    }
}
