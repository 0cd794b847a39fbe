//! The streams that carry frames between nodes.
//!
//! A shard is one stream: an append-only sequence of messages, numbered from 1, old ones dropped by
//! the broker. [`Writer`] appends and reports acknowledgements, [`Reader`] reads one shard in order
//! from a given sequence. Simulations bring their own; the real one is here, bottom up:
//!
//! ```text
//! timestamp    RFC 3339                                 delivery   headers of messages
//! client       one connection (link: its one life; connect: its beginning; credentials: what it
//!              presents), requests
//! jetstream    the shards' streams: names, settings, state    limits   of the account
//! domains      several streams that take one subject
//! writer       impl Writer: publish and acknowledge     reader   impl Reader: pull in order
//! key_value    a NATS KV bucket                         server   the supervised nats-server
//! object_store a NATS object-store bucket
//! ```
//!
//! Nothing here reconnects. When a connection ends, every call on it returns
//! [`StreamError::Disconnected`] at once, and its owner builds a new one after a wait of its own.

use std::time::Duration;

use crossbeam_channel::Receiver;

pub mod client;
mod connect;
mod credentials;
mod delivery;
mod domains;
pub mod jetstream;
pub mod key_value;
pub(crate) mod limits;
pub mod link;
pub mod object_store;
pub mod reader;
pub mod server;
pub(crate) mod timestamp;
pub mod writer;

/// Bytes per second of the slowest connection that counts as working. The uplink of a gadget, 256
/// kbit/s, has a multiple of it, which its connections share.
const SLOWEST: u64 = 9_000;

/// How long so many bytes take at most, once those before them are through.
pub(crate) const fn at_slowest(bytes: usize) -> Duration {
    Duration::from_millis(bytes as u64 * 1000 / SLOWEST)
}

/// How many bytes may be under way on a connection of which nothing is known yet. On a slow one
/// they take seconds, behind which all else waits, and more would only fill the buffers on the way.
pub(crate) const FIRST_WINDOW: usize = 128 * 1024;

/// A window that passes within this time is no burden: a larger one is tried.
pub(crate) const QUICK: Duration = Duration::from_secs(1);

/// A message as it stands in a shard's stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Position in the stream, from 1.
    pub sequence: u64,
    /// `Nats-Msg-Id`, if the message has one.
    pub id: Option<String>,
    /// When the broker stored it, unix milliseconds on the broker's clock.
    pub time_ms: i64,
    /// The frame.
    pub data: Vec<u8>,
}

/// What a stream holds at the moment of asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamState {
    /// Sequence of the oldest message kept (`last + 1` when the stream is empty).
    pub first: u64,
    /// Sequence of the newest message ever stored, 0 if none.
    pub last: u64,
    /// When the stream was created, as the broker writes it (RFC 3339): tells a wiped stream.
    pub created: String,
    /// The broker's clock, unix milliseconds; none from a server before 2.10.
    pub now_ms: Option<i64>,
    /// How many bytes the stream keeps; none if they are not limited.
    pub max_bytes: Option<u64>,
}

/// What became of one message handed to [`Writer::send`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// The token given to `send`.
    pub token: u64,
    /// Sequence in the stream, or why it was not stored.
    pub result: Result<u64, String>,
    /// The stream had the message already, and the sequence is the one that it got then.
    pub duplicate: bool,
}

/// Why the broker could not be asked or did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The connection is gone or the broker silent: build a new one, after a wait.
    #[error("{0}")]
    Disconnected(String),
    /// The broker answered with an error that another try may not see.
    #[error("{0}")]
    Refused(String),
    /// A person must change something (a stream is set up otherwise).
    #[error("{0}")]
    Fatal(String),
    /// The login, a certificate or a file for them is refused: wrong from the start, or, where it
    /// was right before, perhaps only until a person is done with changing it.
    #[error("{0}")]
    Denied(String),
    /// From [`Reader::fetch`] alone: the broker forgot where we read, and so perhaps what it held.
    /// The reader is ready to go on, once its owner looked whether the stream is still the same.
    #[error("the broker forgot where we read")]
    LookAgain,
    /// `stop` was closed while waiting.
    #[error("stopped")]
    Stopped,
}

/// Appends frames to the shards' streams, many in flight.
pub trait Writer: Send {
    /// How large the messages of a frame of `bytes` are to be at the most, in bytes.
    fn max_message_bytes(&self, bytes: usize) -> usize;
    /// How many bytes may be unacknowledged at a time (one message is always allowed).
    fn window_bytes(&self) -> usize;
    /// Hands over a message for `shard` (from 1) under `id` (`Nats-Msg-Id`). Does not wait for the
    /// acknowledgement; `token` names the message in its [`Ack`].
    fn send(&mut self, shard: u32, id: &str, data: &[u8], token: u64) -> Result<(), StreamError>;
    /// Gets what was sent onto the wire, now. Does not block.
    fn flush(&mut self);
    /// Where acknowledgements arrive. Closed when the connection is gone.
    fn acks(&self) -> &Receiver<Ack>;
    /// What the broker complained of on this connection, to go behind an error's text; may be
    /// empty.
    fn complaint(&self) -> String {
        String::new()
    }
    /// What is wrong if other streams take the same messages as well; nothing if none was heard of.
    fn other_streams(&self) -> Option<String> {
        None
    }
}

/// Reads one shard's stream in order. Does not acknowledge: the position is the reader's own.
pub trait Reader: Send {
    /// What the stream holds now.
    fn state(&mut self) -> Result<StreamState, StreamError>;
    /// Messages from sequence `from` on, in order, at most a few hundred and at most about 8 MiB
    /// of data. Blocks until there is at least one, `wait` has passed (then empty) or `stop` is
    /// closed.
    /// The first sequence may be above `from` when the stream no longer holds it. After
    /// [`StreamError::LookAgain`] the next call goes on.
    fn fetch(
        &mut self,
        from: u64,
        wait: Duration,
        stop: &Receiver<()>,
    ) -> Result<Vec<Message>, StreamError>;
    /// As [`Writer::other_streams`], from messages that came since the last look at the state.
    fn other_streams(&self) -> Option<String> {
        None
    }
    /// How many messages the stream held beyond the last one that `fetch` gave, when the broker
    /// sent that one.
    fn remaining(&self) -> u64 {
        0
    }
    /// `Nats-Msg-Id` of the message at `sequence`: `Ok(None)` if there is no such message.
    fn message_id(&mut self, sequence: u64) -> Result<Option<String>, StreamError>;
}
