//! Thread, one per shard: applies the messages of a stream to the database.
//!
//! The consumer pulls messages from its position on, decodes them without the lock and applies
//! them under it, in transactions of a few milliseconds with pauses between, so that an application
//! that writes at the same time gets its turn. Nothing is acknowledged to the broker: the node
//! stores the position itself.

use std::borrow::Cow;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use log::Level;

use crate::apply::{Arrived, Content};
use crate::clock::{Clock, SystemClock};
use crate::cluster::broker::Broker;
use crate::cluster::stream_continuity;
use crate::database::DatabaseError;
use crate::logging::{Repeated, RepeatedFailure};
use crate::model::backoff::{Backoff, check_retries};
use crate::model::frame::unpack;
use crate::shared::Shared;
use crate::stream::{Message, Reader, StreamError, StreamState};
use crate::thread::{Exited, spawn};

/// How long a fetch waits for messages: an idle consumer wakes this often.
const FETCH_WAIT: Duration = Duration::from_secs(20);

/// Unpacked frames are kept in memory up to about this many bytes, or one frame that is larger.
const UNPACKED_BYTES: usize = 4 << 20;

/// State of a consumer's thread. The thread ends when `stop` is closed.
pub struct Consumer {
    shared: Arc<Shared>,
    broker: Arc<dyn Broker>,
    shard: u32,
    stream: String,
    /// Name of the reading in [`crate::health`]; `one_stream` names the state in which all nodes
    /// read one stream.
    subject: String,
    one_stream: String,
    stop: Receiver<()>,
    backoff: Backoff,
    /// Number of attempts to connect that may fail in a row; `None`: no limit.
    retries: Option<u32>,
}

/// Starts the consumer of `shard`; it ends when `stop` is closed.
pub fn start(
    shared: Arc<Shared>,
    broker: Arc<dyn Broker>,
    shard: u32,
    stop: Receiver<()>,
    backoff: Backoff,
    retries: Option<u32>,
    exits: &Sender<Exited>,
) -> JoinHandle<()> {
    let stream = broker.stream(shard);
    let subject = format!("reading {stream}");
    let one_stream = format!("{stream}, one for all");
    let consumer = Consumer {
        shared,
        broker,
        shard,
        stream,
        subject,
        one_stream,
        stop,
        backoff,
        retries,
    };
    spawn(&format!("consumer-{shard:02}"), exits, move || {
        consumer.run()
    })
}

/// A message's unpacked bytes, from which a decoded frame borrows.
enum Unpacked<'m> {
    /// Nothing of it is to be applied: this process sent it, or its seal was refused.
    Done,
    Frame(Cow<'m, [u8]>),
    Bad(String),
}

impl Unpacked<'_> {
    fn bytes(&self) -> usize {
        match self {
            Unpacked::Frame(raw) => raw.len(),
            _ => 0,
        }
    }

    fn arrived<'a>(&'a self, message: &'a Message) -> Arrived<'a> {
        let data = &message.data[..];
        let content = match self {
            Unpacked::Done => Content::Own,
            Unpacked::Frame(raw) => Content::decode(raw, data),
            Unpacked::Bad(reason) => Content::Bad {
                reason: reason.clone(),
                data,
            },
        };
        Arrived {
            seq: message.sequence,
            id: message.id.as_deref().unwrap_or_default(),
            time_ms: message.time_ms,
            content,
        }
    }
}

/// Why reading stopped for now.
enum Pause {
    Stopped,
    /// The connection failed, or the database was locked.
    TryAgain(String),
    /// The disk or the memory here failed.
    Machine(String),
    Fatal(String),
}

impl From<stream_continuity::ContinuityError> for Pause {
    fn from(e: stream_continuity::ContinuityError) -> Self {
        match e {
            stream_continuity::ContinuityError::Stream(e) => e.into(),
            stream_continuity::ContinuityError::Database(e) => e.into(),
        }
    }
}

impl From<StreamError> for Pause {
    fn from(e: StreamError) -> Self {
        match e {
            StreamError::Stopped => Pause::Stopped,
            StreamError::Fatal(text) => Pause::Fatal(text),
            other => Pause::TryAgain(other.to_string()),
        }
    }
}

impl From<DatabaseError> for Pause {
    fn from(e: DatabaseError) -> Self {
        match e {
            DatabaseError::Stopped => Pause::Stopped,
            e if e.is_of_machine() => Pause::Machine(format!("database: {e}")),
            e if e.is_temporary() => Pause::TryAgain(format!("database: {e}")),
            e => Pause::Fatal(format!("database: {e}")),
        }
    }
}

impl Consumer {
    fn run(mut self) -> Result<(), String> {
        let mut failures = 0;
        let mut failure = RepeatedFailure::default();
        let mut of_machine = Repeated::default();
        let mut worked = false;
        loop {
            let pause = match self.broker.reader(self.shard) {
                Ok(mut reader) => {
                    self.shared.measures.reads(worked);
                    (failures, worked) = (0, true);
                    failure.ends();
                    let read = self.read(&mut *reader);
                    self.shared.measures.reads_no_more();
                    read
                }
                // The permissions may be changing right now, if the connection worked before.
                Err(StreamError::Denied(text)) if !worked => Err(Pause::Fatal(text)),
                Err(e) => Err(e.into()),
            };
            let now = SystemClock.uptime();
            let (text, level) = match pause {
                // What was read to its end remains so, for the publisher sends what is left.
                Ok(()) | Err(Pause::Stopped) => return Ok(()),
                Err(Pause::Fatal(text)) => return Err(text),
                Err(Pause::TryAgain(text)) => {
                    let level = failure.fails(&text, now);
                    (text, level)
                }
                Err(Pause::Machine(text)) => (text, of_machine.rings(now).map(|_| Level::Warn)),
            };
            self.shared.set_at_end(self.shard, false);
            if self.shared.health.offline().is_some() {
                self.backoff.reset();
                if !self.broker.pause(self.backoff.wait(), &self.stop) {
                    return Ok(());
                }
                continue;
            }
            failures += 1;
            self.shared.health.report_failing(&self.subject, &text);
            check_retries(failures, self.retries, &text)?;
            if let Some(level) = level {
                log::log!(level, "{}: {text}; trying again", self.subject);
            }
            if !self.broker.pause(self.backoff.wait(), &self.stop) {
                return Ok(());
            }
        }
    }

    /// Reads until something breaks: it always ends with an error.
    fn read(&mut self, reader: &mut dyn Reader) -> Result<(), Pause> {
        let mut state = self.state(reader)?;
        let mut from = self.resume_from(reader, &state)?;
        loop {
            if from > state.last {
                self.backoff.reset();
                self.shared.set_at_end(self.shard, true);
                self.shared.health.report_ok(&self.subject);
            }
            if from != self.shared.lock().database.position(&self.stream).seq + 1 {
                // A snapshot moved the position, perhaps beyond the end of this stream, or another
                // thread found that the stream is a different one.
                state = self.state(reader)?;
                from = self.resume_from(reader, &state)?;
            }
            let messages = match reader.fetch(from, FETCH_WAIT, &self.stop) {
                Err(StreamError::ConsumerForgotten) => {
                    // A server that lost its memory may have lost the end of the stream. This node
                    // would then take the next messages there for ones that it read already.
                    self.shared.set_at_end(self.shard, false);
                    let why = "the broker lost this node's consumer: a new one reads on from the \
                               position";
                    self.shared.health.report_failing(&self.subject, why);
                    state = self.state(reader)?;
                    from = self.resume_from(reader, &state)?;
                    continue;
                }
                fetched => fetched?,
            };
            if let Some(text) = reader.other_streams() {
                self.shared.health.report_failing(&self.one_stream, &text);
            }
            if !messages.is_empty() && !self.shared.may_read(&self.stop) {
                return Err(Pause::Stopped);
            }
            if let Some(first) = messages.first()
                && first.sequence > from
            {
                self.note_gap(from, first.sequence)?;
            }
            if let Some(last) = messages.last() {
                let remaining = reader.remaining();
                let unread = messages.len() as u64 + remaining;
                self.shared.note_behind(self.shard, unread);
                self.apply(&messages, state.last)?;
                self.shared.note_behind(self.shard, remaining);
                self.shared.health.report_ok(&self.subject);
                from = last.sequence + 1;
                self.shared.has_read(&messages);
            }
        }
    }

    fn state(&self, reader: &mut dyn Reader) -> Result<StreamState, Pause> {
        let state = reader.state()?;
        self.shared.heard_of(&state);
        self.shared.health.report_ok(&self.one_stream);
        if let Some(now_ms) = state.now_ms {
            self.shared.lock().database.heard_broker_time(now_ms);
        }
        Ok(state)
    }

    /// Returns where to read on, after checking that the stream is still the one that was read
    /// before.
    fn resume_from(&self, reader: &mut dyn Reader, state: &StreamState) -> Result<u64, Pause> {
        let next = stream_continuity::verify_position(&self.shared, &self.stream, reader, state)?;
        if state.first > next {
            self.note_gap(next, state.first)?;
        }
        Ok(next.max(state.first))
    }

    /// Notes a gap: the broker dropped the messages from `from` to before `first` unread.
    fn note_gap(&self, from: u64, first: u64) -> Result<(), Pause> {
        let mut locked = self.shared.lock();
        let is_new = from <= 1 && locked.database.position(&self.stream).seq == 0;
        if !locked.database.miss(&self.stream, first)? {
            return Ok(());
        }
        if !is_new {
            log::error!(
                "{}: messages {from} to {} were dropped by the broker before this node read them: \
                 this node lacks changes until a snapshot brings them",
                self.stream,
                first - 1
            );
        }
        drop(locked);
        self.shared.notify_scheduler();
        Ok(())
    }

    /// Applies all messages, in as many transactions as it takes. Messages up to `old` were in the
    /// stream before this connection, so their times say nothing about the time now: they may be
    /// months old.
    fn apply(&self, messages: &[Message], old: u64) -> Result<(), Pause> {
        let new = messages.iter().filter(|m| m.sequence > old);
        if let Some(newest) = new.map(|m| m.time_ms).max() {
            self.shared.lock().database.heard_broker_time(newest);
        }
        let mut rest = messages;
        while !rest.is_empty() {
            let mut bytes = 0;
            let unpack = |message| {
                let fits = bytes < UNPACKED_BYTES;
                let unpacked = fits.then(|| self.unpack(message))?;
                bytes += unpacked.bytes();
                Some((message, unpacked))
            };
            let unpacked: Vec<_> = rest.iter().map_while(unpack).collect();
            rest = &rest[unpacked.len()..];
            let arrived: Vec<_> = unpacked.iter().map(|(m, u)| u.arrived(m)).collect();
            let mut left = &arrived[..];
            while !left.is_empty() {
                let turn = self.shared.take_turn();
                let (done, held) = self.apply_some(left)?;
                left = &left[done..];
                if !left.is_empty() || !rest.is_empty() {
                    self.pause(self.shared.rest(turn, held))?;
                }
            }
        }
        Ok(())
    }

    fn unpack<'m>(&self, message: &'m Message) -> Unpacked<'m> {
        let id = message.id.as_deref().unwrap_or_default();
        if message.is_refused || self.shared.is_own(id, &message.data) {
            return Unpacked::Done;
        }
        unpack(&message.data).map_or_else(|e| Unpacked::Bad(e.to_string()), Unpacked::Frame)
    }

    /// Applies one transaction; messages that are all our own need none. Returns the number of
    /// messages done, and how long the database was held.
    fn apply_some(&self, arrived: &[Arrived<'_>]) -> Result<(usize, Duration), Pause> {
        let own = arrived
            .iter()
            .take_while(|a| matches!(a.content, Content::Own))
            .count();
        if own > 0 {
            let last = &arrived[own - 1];
            let mut locked = self.shared.lock();
            locked.database.read_up_to(&self.stream, last.seq, last.id);
            return Ok((own, Duration::ZERO));
        }
        let mut locked = self.shared.lock_to_write();
        let mut applied = locked.database.apply(&self.stream, arrived)?;
        locked.hand_over(&mut applied.captured);
        let wake = locked.outbox.has_queued() || applied.captured.more;
        let held = locked.began.elapsed();
        drop(locked);
        self.shared.measures.applied(held);
        if applied.captured.changes > 0 {
            self.shared.note_written();
        }
        if applied.rows > 0 {
            self.shared.note_change();
        }
        if wake {
            self.shared.wake_publisher();
        }
        Ok((applied.messages, held))
    }

    /// Leaves the write lock to others. An application that waits for the lock sleeps between its
    /// attempts, and must find it free at one of them.
    fn pause(&self, time: Duration) -> Result<(), Pause> {
        match self.stop.recv_timeout(time) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            _ => Err(Pause::Stopped),
        }
    }
}
