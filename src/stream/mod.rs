//! The streams that carry frames between nodes.
//!
//! A shard is one stream: an append-only sequence of messages, numbered from 1, from which the
//! broker drops old messages. [`Writer`] appends messages and reports acknowledgements. [`Reader`]
//! reads one shard in order from a given sequence. Simulations implement both on their own. The
//! JetStream implementation is here, bottom up:
//!
//! ```text
//! delivery     headers of messages
//! client       one connection (link: its one life; connect: its beginning; credentials: what it
//!              presents), requests
//! jetstream    the shards' streams: names, settings, state    limits   of the account
//! domains      several streams that take one subject    bandwidth  limit of bytes a second
//! writer       impl Writer: publish and acknowledge     reader   impl Reader: pull in order
//! key_value    a NATS KV bucket                         server   the supervised nats-server
//! object_store a NATS object-store bucket
//! ```
//!
//! Nothing here reconnects. When a connection ends, every call on it returns
//! [`StreamError::Disconnected`] at once. Its owner waits for a while and builds a new one.

use std::time::Duration;

use crossbeam_channel::Receiver;

pub mod bandwidth;
pub mod client;
mod connect;
mod credentials;
mod delivery;
mod domains;
pub mod jetstream;
pub mod key_value;
pub(crate) mod limits;
pub mod link;
pub mod newer_key;
pub mod object_store;
pub mod reader;
pub mod server;
pub mod writer;

/// Bytes per second of the slowest connection that counts as working. The 256 kbit/s uplink of a
/// small device is several times as fast, but its connections share it.
const SLOWEST: u64 = 9_000;

/// The longest that `bytes` may take, once all bytes before them have arrived.
pub(crate) const fn at_slowest(bytes: usize) -> Duration {
    Duration::from_millis(bytes as u64 * 1000 / SLOWEST)
}

/// Bytes that may be under way on a connection of unknown speed. On a slow connection they take
/// seconds and delay everything behind them. More would only fill the buffers on the way.
pub(crate) const FIRST_WINDOW: usize = 128 * 1024;

/// A window that passes within this time is small enough: the next one may be larger.
pub(crate) const QUICK: Duration = Duration::from_secs(1);

/// A message as it stands in a shard's stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Position in the stream, from 1.
    pub sequence: u64,
    /// `Nats-Msg-Id`, if the message has one.
    pub id: Option<String>,
    /// When the broker stored it, in unix milliseconds of the broker's clock.
    pub time_ms: i64,
    /// The frame, or a part of one.
    pub data: Vec<u8>,
    /// Its seal is not right: it is counted, `data` is empty, and nothing of it is to be applied.
    pub is_refused: bool,
}

/// State of a stream at the moment of the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamState {
    /// Sequence of the oldest message kept (`last + 1` when the stream is empty).
    pub first: u64,
    /// Sequence of the newest message ever stored, 0 if none.
    pub last: u64,
    /// When the stream was created, as the broker writes it (RFC 3339). A different value shows
    /// that the stream was deleted and created again.
    pub created: String,
    /// The broker's clock in unix milliseconds; none from a server before 2.10.
    pub now_ms: Option<i64>,
    /// When it drops old messages.
    pub retention: Retention,
}

/// When the broker drops old messages of a stream. None: not for that reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retention {
    /// Most bytes.
    pub max_bytes: Option<u64>,
    /// Most messages.
    pub max_messages: Option<u64>,
    /// Greatest age of a message.
    pub max_age: Option<Duration>,
    /// Average bytes of the messages that are there; none if it holds none.
    pub message_bytes: Option<u64>,
}

/// Result of one message passed to [`Writer::send`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// The token given to `send`.
    pub token: u64,
    /// Sequence in the stream, or the reason why it was not stored.
    pub result: Result<u64, Refusal>,
    /// The stream had the message already; the sequence is that of the earlier copy.
    pub duplicate: bool,
}

/// Why the broker did not store a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// The reason, for people.
    pub text: String,
    /// Whether the broker takes the message in a moment: its stream has no leader just now.
    pub is_passing: bool,
}

/// Why a request to the broker failed.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The connection is gone or the broker is silent: build a new connection, after a wait.
    #[error("{0}")]
    Disconnected(String),
    /// The broker answered with an error that another attempt may not see.
    #[error("{0}")]
    Refused(String),
    /// A person must change something, for example because the stream exists with different
    /// subjects.
    #[error("{0}")]
    Fatal(String),
    /// The login, a certificate or one of their files was refused. It was wrong from the start, or
    /// a person is changing it and it will be accepted again.
    #[error("{0}")]
    Denied(String),
    /// Returned by [`Reader::fetch`] only. The broker lost our consumer, and so perhaps messages
    /// too. The owner verifies that the stream is still the same; then the reader can continue.
    #[error("the broker lost this node's consumer")]
    ConsumerForgotten,
    /// This node does not connect on purpose; the reason.
    #[error("offline on purpose: {0}")]
    Offline(String),
    /// `stop` was closed while waiting.
    #[error("stopped")]
    Stopped,
}

/// Whether an error tells that the login lacks a right. The right stays missing until a person
/// grants it.
pub fn names_a_right(error: &str) -> bool {
    error.contains("Permissions Violation")
}

/// Appends frames to the shards' streams, with many in flight.
pub trait Writer: Send {
    /// Largest message to use for a frame of `bytes`, in bytes.
    fn max_message_bytes(&self, bytes: usize) -> usize;
    /// The id under which a message goes to `shard`; `of` is the id of its content.
    fn message_id(&self, shard: u32, of: [u8; 16]) -> [u8; 16] {
        let _ = shard;
        of
    }
    /// Limit of unacknowledged bytes. One message is always allowed.
    fn window_bytes(&self) -> usize;
    /// Sends a message to `shard` (from 1) under `id` (`Nats-Msg-Id`), without waiting for the
    /// acknowledgement. `token` identifies the message in its [`Ack`]. Returns `Disconnected` if
    /// the connection ended or takes no more data.
    fn send(&mut self, shard: u32, id: &str, data: &[u8], token: u64) -> Result<(), StreamError>;
    /// Puts queued messages on the wire now. Does not block.
    fn flush(&mut self);
    /// Delivers acknowledgements. Closed when the connection is gone.
    fn acks(&self) -> &Receiver<Ack>;
    /// Lets no further thread use the connection: it is to be given up.
    fn doubt(&self) {}
    /// The broker's last complaint on this connection, as a suffix for an error's text. May be
    /// empty.
    fn complaint(&self) -> String {
        String::new()
    }
    /// The problem of other streams that take the same messages as well; none if no such stream is
    /// known.
    fn other_streams(&self) -> Option<String> {
        None
    }
}

/// Reads one shard's stream in order. It does not acknowledge messages: the reader keeps the
/// position itself.
pub trait Reader: Send {
    /// Reads the current state of the stream.
    fn state(&mut self) -> Result<StreamState, StreamError>;
    /// Returns messages from sequence `from` on, in order: at most a few hundred, and at most about
    /// 8 MiB of data. Blocks until there is at least one, until `wait` has passed (then the result
    /// is empty), or until `stop` is closed (then `Stopped`).
    ///
    /// The first sequence is above `from` if the stream no longer holds `from`. After
    /// [`StreamError::ConsumerForgotten`] the next call continues.
    fn fetch(
        &mut self,
        from: u64,
        wait: Duration,
        stop: &Receiver<()>,
    ) -> Result<Vec<Message>, StreamError>;
    /// Like [`Writer::other_streams`], from messages that arrived since the last call of `state`.
    fn other_streams(&self) -> Option<String> {
        None
    }
    /// How many messages the stream held after the last one that `fetch` returned, when the broker
    /// sent that one.
    fn remaining(&self) -> u64 {
        0
    }
    /// `Nats-Msg-Id` of the message at `sequence`: `Ok(None)` if there is no such message.
    fn message_id(&mut self, sequence: u64) -> Result<Option<String>, StreamError>;
}
