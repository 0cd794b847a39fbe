//! Reads one shard's stream in order.
//!
//! The reader uses a pull consumer without acknowledgements: the reader keeps its position itself,
//! and the consumer is disposable. After an unknown status, silence or a jump in the sequence, the
//! reader creates a new consumer at the next sequence. The event behind that may also have lost
//! messages, and the broker may give their sequences to other messages. So the owner is told to
//! verify the stream before it reads from the new consumer. The first message of a *new* consumer
//! shows what the stream holds there: a jump before it is a purge and is passed on. A later jump
//! may be a loss, so the reader asks again. Push consumers were tried; they die silently.
//!
//! One pull is outstanding at all times, also while the owner applies the last batch, so a message
//! arrives as soon as it is stored. A pull is limited in bytes. This bounds the memory behind it,
//! and the bytes under way on a slow connection, which delay every answer. The limit starts small
//! and doubles when a full pull arrives quickly.
//!
//! When a server is killed, the consumers on it vanish without a message, also those of nodes that
//! are connected to other servers. A consumer that survives a change of the stream's leader may
//! send heartbeats and deliver nothing. So an idle pull asks the server for a heartbeat every few
//! seconds. If a heartbeat is late, the reader asks the stream for its last sequence (see
//! `silence`). On a server of a cluster it asks at every heartbeat as well. The answer arrives
//! behind all bytes that are under way on a slow connection.
#![allow(deprecated)]

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, after, never, select_biased};
use serde_json::{Value, json};

use super::bandwidth;
use super::client::{Client, Inbox};
use super::delivery::{self, Origin, status};
use super::domains::{self, Foreign};
use super::jetstream::{message_id, state_in, stream_info};
use super::newer_key;
use super::{FIRST_WINDOW, Message, QUICK, Reader, StreamError, StreamState, at_slowest};
use crate::model::frame::MAX_MESSAGE_BYTES;
use crate::seal::Received;
use silence::Silence;

mod placement;
mod silence;

/// Messages per fetch. A fetch also ends once it holds `PULL_BYTES`, with the message that crosses
/// that limit.
const FETCH: usize = 256;
/// Messages per pull. The crate may hold a request back for 5 ms, so this also limits the messages
/// per 5 ms.
const PULL: usize = 1024;
/// Largest size of a pull, in bytes. One more pull may wait while the owner applies a fetch.
const PULL_BYTES: usize = 4 * 1024 * 1024;
/// Upper bound of the bytes that the server counts for a message besides its payload: the subjects.
const OVERHEAD: usize = 64 * 1024;
/// Lifetime of a pull in heartbeats: an idle reader sends a new one this often.
const EXPIRES: u32 = 10;
/// The server deletes a consumer without pulls after this time, or after three lifetimes of a pull.
/// An apply takes less.
const INACTIVE: Duration = Duration::from_secs(300);

/// Attempts to get a consumer on a server that is up to date with the stream. The broker picks the
/// server at random.
const TRIES: usize = 8;

/// In `next`, instead of a sequence: the consumer is no longer trusted.
const NOWHERE: u64 = 0;

/// The consumer in use and the pull outstanding on it.
struct PullConsumer {
    /// Name that the broker gave the consumer.
    name: String,
    /// The next sequence expected.
    next: u64,
    /// Nothing has arrived yet: the first message may have any sequence from `next` on.
    fresh: bool,
    /// The server is part of a cluster, so a different server may lead the stream.
    is_clustered: bool,
    /// The outstanding pull. None until the owner has verified the stream.
    pull: Option<Pull>,
}

struct Pull {
    /// Last token of its reply subject.
    number: u64,
    /// How many messages it may bring in total, and how many of those are still to come.
    batch: usize,
    remaining: usize,
    began: Instant,
    /// How long the bytes already under way may take to arrive, on the slowest connection.
    passes: Duration,
}

enum Arrival {
    Message(Message),
    /// A leftover of an earlier pull or consumer, or the regular end of a pull.
    Nothing,
    /// The consumer is no longer trusted, for this reason.
    Odd(String),
    /// A message that this node cannot open now, for this reason. It must not be passed over.
    Waits(String),
}

/// [`Reader`] on JetStream.
pub struct JetStreamReader {
    client: Client,
    stream: String,
    inbox: Inbox,
    consumer: Option<PullConsumer>,
    pulls: u64,
    /// Byte limit of the next pull.
    pull_bytes: usize,
    /// Domain and last sequence of the stream when its state was read. Messages up to that sequence
    /// may date from before the domain was renamed.
    domain: Option<String>,
    old: u64,
    /// When the stream was created, as its state said.
    created: String,
    foreign: Foreign,
    /// Messages that the stream held after the last one received.
    remaining: u64,
    /// Consumers given up since the last message.
    oddities: usize,
    silence: Silence,
    /// Fires when `silence` is to be checked.
    silent: Receiver<Instant>,
    /// Interval of the server's heartbeats, if it is configured.
    heartbeat: Option<Duration>,
    /// The limit of bytes a second lets nothing be fetched before this time.
    rests_until: Option<Instant>,
}

impl JetStreamReader {
    /// Takes over `client` to read `stream` (see [`stream_name`](super::jetstream::stream_name)).
    /// Returns `Disconnected` if the connection has ended.
    pub fn new(client: Client, stream: String) -> Result<JetStreamReader, StreamError> {
        let inbox = client.inbox()?;
        Ok(JetStreamReader {
            heartbeat: client.heartbeat(),
            rests_until: None,
            client,
            stream,
            inbox,
            consumer: None,
            pulls: 0,
            pull_bytes: FIRST_WINDOW,
            domain: None,
            old: u64::MAX,
            created: String::new(),
            foreign: Foreign::default(),
            remaining: 0,
            oddities: 0,
            silence: Silence::default(),
            silent: never(),
        })
    }

    /// The connection, for other requests about the stream.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Creates a consumer that begins at `from`, on a server that is up to date with the stream.
    fn start(&mut self, from: u64) -> Result<(), StreamError> {
        if let Some(old) = self.consumer.take() {
            self.forget(&old.name)?;
        }
        let mut tries = 0;
        loop {
            let created = self.create_somewhere(from)?;
            let name = created["name"].as_str().unwrap_or_default().to_string();
            let is_clustered = created["cluster"].is_object();
            tries += 1;
            if is_clustered
                && tries < TRIES
                && placement::lags(&created, &stream_info(&self.client, &self.stream)?)
            {
                self.forget(&name)?;
                continue;
            }
            self.consumer = Some(PullConsumer {
                name,
                next: from,
                fresh: true,
                is_clustered,
                pull: None,
            });
            self.silent = never();
            return Ok(());
        }
    }

    /// Deletes the consumer, so that the server does not keep it for five minutes. The request may
    /// get lost.
    fn forget(&self, consumer: &str) -> Result<(), StreamError> {
        let call = format!("CONSUMER.DELETE.{}.{consumer}", self.stream);
        let subject = self.client.api_subject(&call);
        self.client.publish(&subject, None, &[], b"")
    }

    /// Creates a consumer in place of a failed one and returns `ConsumerForgotten`. The consumer is
    /// created before the owner verifies the stream, so later changes of the stream also happen to
    /// this consumer.
    fn replace(&mut self, from: u64) -> Result<Vec<Message>, StreamError> {
        self.start(from)?;
        Err(StreamError::ConsumerForgotten)
    }

    /// Creates a consumer that begins at `from`, on a server that answers. nats-server up to 2.9
    /// may place it on a server that is down. Then the consumer is spread over all servers of the
    /// stream, and a server that is up answers.
    fn create_somewhere(&self, from: u64) -> Result<Value, StreamError> {
        match self.create(from, 1) {
            Err(silence @ StreamError::Disconnected(_)) => {
                let info = stream_info(&self.client, &self.stream)?;
                match info["config"]["num_replicas"].as_u64() {
                    Some(replicas @ 2..) => self.create(from, replicas),
                    _ => Err(silence),
                }
            }
            created => created,
        }
    }

    /// Creates a consumer that begins at `from`.
    fn create(&self, from: u64, replicas: u64) -> Result<Value, StreamError> {
        let stream = &self.stream;
        let inactive = INACTIVE.max(self.rarest_heartbeat() * EXPIRES * 3);
        let config = json!({
            "deliver_policy": "by_start_sequence", "opt_start_seq": from.max(1),
            "ack_policy": "none", "replay_policy": "instant",
            // In memory on one server: a new consumer is faster than the recovery of an old one.
            "mem_storage": true, "num_replicas": replicas,
            "inactive_threshold": inactive.as_nanos() as u64,
        });
        let body = json!({ "stream_name": stream, "config": config });
        self.client
            .api(&format!("CONSUMER.CREATE.{stream}"), &body)?
            .map_err(|error| error.refused(format_args!("read stream {stream} from {from}")))
    }

    /// Requests the next batch.
    fn pull(&mut self) -> Result<(), StreamError> {
        self.pull_up_to(PULL, self.pull_bytes)
    }

    /// Requests one message that is larger than a usual pull.
    fn pull_large(&mut self) -> Result<(), StreamError> {
        // The largest message must fit, or it would never arrive. It may date from a time when the
        // server accepted larger messages.
        let largest = self.client.max_payload().max(MAX_MESSAGE_BYTES);
        self.pull_up_to(1, largest + OVERHEAD)
    }

    fn pull_up_to(&mut self, batch: usize, bytes: usize) -> Result<(), StreamError> {
        let heartbeat = self.heartbeat();
        let Some(consumer) = &mut self.consumer else {
            return Ok(());
        };
        self.pulls += 1;
        // A window that has grown shows how fast the connection was.
        let largest = bytes.min(self.client.max_payload().min(MAX_MESSAGE_BYTES) + OVERHEAD);
        let faster = (self.pull_bytes / FIRST_WINDOW).max(1);
        consumer.pull = Some(Pull {
            number: self.pulls,
            batch,
            remaining: batch,
            began: Instant::now(),
            passes: at_slowest(largest / faster),
        });
        let body = json!({
            "batch": batch, "max_bytes": bytes,
            "expires": (heartbeat * EXPIRES).as_nanos() as u64,
            "idle_heartbeat": heartbeat.as_nanos() as u64,
        });
        self.heard();
        let name = self.consumer.as_ref().map_or("", |c| c.name.as_str());
        let call = format!("CONSUMER.MSG.NEXT.{}.{name}", self.stream);
        let subject = self.client.api_subject(&call);
        let reply = format!("{}.{}", self.inbox.subject, self.pulls);
        self.client
            .publish(&subject, Some(&reply), &[], body.to_string().as_bytes())
    }

    /// Notes the bytes of messages that arrived, for the limit.
    fn count(&mut self, batch: &[Message]) {
        let each = batch.iter().map(|m| bandwidth::of_message(m.data.len()));
        let bytes = each.sum();
        let rest = self.client.bandwidth().map(|limit| limit.received(bytes));
        self.rests_until = rest.map(|rest| Instant::now() + rest);
    }

    /// Waits until the limit lets more be fetched. Until then the pull under way may be filled, but
    /// no further one is sent.
    fn keep_to_limit(&mut self, stop: &Receiver<()>) -> Result<(), StreamError> {
        let Some(until) = self.rests_until.take() else {
            return Ok(());
        };
        match stop.recv_deadline(until) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            _ => Err(StreamError::Stopped),
        }
    }

    /// Requests more after a pull that was used up, with twice the bytes if that pull was quick.
    fn pull_again(&mut self, began: Instant) -> Result<(), StreamError> {
        if began.elapsed() < QUICK && self.client.bandwidth().is_none() {
            self.pull_bytes = (2 * self.pull_bytes).min(PULL_BYTES);
        }
        self.pull()
    }

    /// Takes `first` and all other messages that have arrived, without waiting. The second value is
    /// the reason why the consumer was given up, if it was.
    fn drain(
        &mut self,
        first: nats::Message,
    ) -> Result<(Vec<Message>, Option<String>), StreamError> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let mut next = Some(first);
        while let Some(message) = next {
            match self.take(message)? {
                Arrival::Message(message) => {
                    bytes += message.data.len();
                    batch.push(message);
                }
                Arrival::Nothing => {}
                Arrival::Odd(why) => return Ok((batch, Some(self.give_up(why)))),
                Arrival::Waits(why) if batch.is_empty() => {
                    let text = format!("read stream {}: {why}", self.stream);
                    return Err(StreamError::Refused(text));
                }
                Arrival::Waits(why) => return Ok((batch, Some(self.give_up(why)))),
            }
            let full = batch.len() >= FETCH || bytes >= PULL_BYTES;
            next = if full {
                None
            } else {
                self.inbox.messages.try_recv().ok()
            };
        }
        Ok((batch, None))
    }

    /// Trusts the consumer no longer, for the reason that it returns.
    fn give_up(&mut self, why: String) -> String {
        log::debug!("stream {}: reading again: {why}", self.stream);
        if let Some(consumer) = &mut self.consumer {
            consumer.next = NOWHERE;
        }
        why
    }

    /// Classifies one message from the inbox, and requests more when it was the last of its pull.
    fn take(&mut self, message: nats::Message) -> Result<Arrival, StreamError> {
        let Some(consumer) = &mut self.consumer else {
            return Ok(Arrival::Nothing);
        };
        let Some(pull) = &mut consumer.pull else {
            return Ok(Arrival::Nothing);
        };
        if message.subject.ends_with(silence::ANSWER) {
            let next = consumer.next;
            return Ok(self.told_of_the_end(next, &message.data));
        }
        if let Some((code, text)) = status(&message) {
            let number = message
                .subject
                .rsplit('.')
                .next()
                .and_then(|pull| pull.parse().ok());
            if number != Some(pull.number) {
                return Ok(Arrival::Nothing);
            }
            if code == 100 {
                let asks = consumer.is_clustered;
                self.heard();
                if asks {
                    self.check_silence()?;
                }
                return Ok(Arrival::Nothing);
            }
            let full =
                code == 409 && (text.contains("MaxBytes") || text.contains("Batch Completed"));
            let began = pull.began;
            match pull.remaining < pull.batch {
                true if full => self.pull_again(began)?,
                false if full && pull.batch > 1 => self.pull_large()?,
                _ if code == 404 || code == 408 => self.pull()?,
                _ => return Ok(Arrival::Odd(text)),
            }
            return Ok(Arrival::Nothing);
        }
        let Some(origin) = message.reply.as_deref().and_then(Origin::parse) else {
            return Ok(Arrival::Odd("a message without its position".to_string()));
        };
        if origin.consumer != consumer.name || origin.sequence < consumer.next {
            return Ok(Arrival::Nothing);
        }
        if origin.sequence > consumer.next && !consumer.fresh {
            let jump = format!("{} came where {} was due", origin.sequence, consumer.next);
            return Ok(Arrival::Odd(jump));
        }
        let (sequence, time_ms) = (origin.sequence, origin.time_ms);
        self.remaining = origin.pending;
        consumer.fresh = false;
        consumer.next = sequence + 1;
        pull.remaining = pull.remaining.saturating_sub(1);
        if pull.remaining == 0 {
            let began = pull.began;
            self.pull_again(began)?;
        }
        if sequence > self.old
            && let Some(theirs) = delivery::text(&message, domains::HEADER)
            && Some(theirs) != self.domain.as_deref()
        {
            let ours = self.domain.as_deref();
            self.foreign.note(&self.stream, ours, Some(theirs));
        }
        let id = delivery::id(&message);
        let named = (&*self.stream, id.as_deref().unwrap_or_default());
        let seal = self.client.seal();
        let place = (sequence, &*self.created);
        let look = || newer_key::look(&self.client, seal);
        let (data, is_refused) = match seal.receive_message(named, place, message.data, look) {
            Ok(Received::Opened(data)) => (data, false),
            Ok(Received::Refused) => (Vec::new(), true),
            Ok(Received::Waits(why)) | Err(StreamError::Refused(why)) => {
                return Ok(Arrival::Waits(format!("message {sequence}: {why}")));
            }
            Err(e) => return Err(e),
        };
        Ok(Arrival::Message(Message {
            sequence,
            id,
            time_ms,
            data,
            is_refused,
        }))
    }
}

impl Reader for JetStreamReader {
    fn state(&mut self) -> Result<StreamState, StreamError> {
        let info = stream_info(&self.client, &self.stream);
        let info = info.inspect_err(|_| self.client.doubt())?;
        let state = state_in(&info);
        (self.domain, self.old) = (domains::named(&info), state.last);
        self.created.clone_from(&state.created);
        self.foreign = Foreign::default();
        Ok(state)
    }

    fn other_streams(&self) -> Option<String> {
        self.foreign.get()
    }

    fn fetch(
        &mut self,
        from: u64,
        wait: Duration,
        stop: &Receiver<()>,
    ) -> Result<Vec<Message>, StreamError> {
        let fetched = self.fetch_from(from, wait, stop);
        if let Err(StreamError::Disconnected(_) | StreamError::Refused(_)) = &fetched {
            self.client.doubt(); // another server may do better
        }
        fetched
    }

    fn remaining(&self) -> u64 {
        self.remaining
    }

    fn message_id(&mut self, sequence: u64) -> Result<Option<String>, StreamError> {
        message_id(&self.client, &self.stream, sequence)
    }
}

impl JetStreamReader {
    fn fetch_from(
        &mut self,
        from: u64,
        wait: Duration,
        stop: &Receiver<()>,
    ) -> Result<Vec<Message>, StreamError> {
        let from = from.max(1);
        let deadline = after(wait);
        self.keep_to_limit(stop)?;
        loop {
            match self.consumer.as_ref().map(|consumer| consumer.next) {
                Some(NOWHERE) => return self.replace(from),
                Some(next) if next == from => {}
                _ => self.start(from)?, // the owner went elsewhere, and looked for that
            }
            if self.consumer.as_ref().is_some_and(|c| c.pull.is_none()) {
                self.pull()?;
            }
            select_biased! {
                recv(stop) -> _ => return Err(StreamError::Stopped),
                recv(self.inbox.messages) -> message => {
                    let message = message.map_err(|_| self.client.lost())?;
                    let (batch, odd) = self.drain(message)?;
                    if !batch.is_empty() {
                        if odd.is_none() {
                            self.heard();
                        }
                        self.oddities = 0;
                        self.count(&batch);
                        return Ok(batch);
                    }
                    // Two failures without a message in between are the broker's fault, not a
                    // consumer's.
                    self.oddities += usize::from(odd.is_some());
                    if let (2.., Some(why)) = (self.oddities, odd) {
                        let text = format!("read stream {} from {from}: {why}", self.stream);
                        return Err(StreamError::Refused(text));
                    }
                }
                recv(self.silent) -> _ => if !self.check_silence()? {
                    return self.replace(from);
                },
                recv(deadline) -> _ => return Ok(Vec::new()),
            }
        }
    }
}
