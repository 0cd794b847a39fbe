//! Reads one shard's stream in order.
//!
//! A pull consumer without acknowledgements: the position is ours alone, and the consumer is
//! throwaway. Whenever anything about it is odd (an unknown status, silence, a jump in the
//! sequence), a new one is made from the next sequence on; and because what made it odd may have
//! taken messages along, whose numbers then go to others, the owner is told to look at the stream
//! before that one is read. What a *new* consumer delivers first is
//! what the stream really holds there, so a jump at its start is a purge and is passed on; a jump
//! later may be a loss, and is asked again. Push consumers were tried and die silently.
//!
//! One pull is outstanding at all times, also while the owner applies what it got, so a message
//! arrives when it is stored. It is limited in bytes, and so is then the memory behind it; and so
//! is what may be under way on a slow connection, before which no answer arrives. It begins with
//! little, and asks for more where that comes at once.
//!
//! A server that is killed takes the consumers that it had along, without a word, also those of
//! nodes that are connected elsewhere; and one that followed in a change of the stream's leader may
//! show signs of life and deliver nothing. So an idle pull has the server say every few seconds
//! that it is there. Where that stays out, and each time where several servers hold the stream, the
//! stream is asked for its end (see `silence`): its answer comes behind all that is under way on a
//! slow connection.
#![allow(deprecated)]

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, after, never, select_biased};
use serde_json::{Value, json};

use super::client::{Client, Inbox};
use super::delivery::{self, Origin, status};
use super::domains::{self, Foreign};
use super::jetstream::{message_id, state_in, stream_info};
use super::{FIRST_WINDOW, Message, QUICK, Reader, StreamError, StreamState, at_slowest};
use crate::model::frame::MAX_MESSAGE_BYTES;
use silence::{HEARTBEAT, Silence};

mod placement;
mod silence;

/// Messages per fetch. It ends at `PULL_BYTES`, too, and the message that goes beyond.
const FETCH: usize = 256;
/// Messages per pull. The crate may hold a request back for 5 ms, so it is this many in 5 ms.
const PULL: usize = 1024;
/// Bytes per pull, at the most; one more pull may wait behind a fetch that is being applied.
const PULL_BYTES: usize = 4 * 1024 * 1024;
/// What the server counts of a message besides its payload: subjects, at the most.
const OVERHEAD: usize = 64 * 1024;
/// An idle reader asks again this often.
const EXPIRES: Duration = Duration::from_secs(30);
/// The server forgets a consumer that nobody pulls from for so long: longer than an apply takes.
const INACTIVE: Duration = Duration::from_secs(300);

/// So many servers are tried for one that has all that the stream has. Which one it will be is
/// theirs to say, at random.
const TRIES: usize = 8;

/// Not a sequence: a consumer that stands there is not to be trusted any more.
const NOWHERE: u64 = 0;

/// The consumer in use and the pull outstanding on it.
struct PullConsumer {
    name: String,
    /// The next sequence expected.
    next: u64,
    /// Nothing has come yet: the first message may have any sequence from `next` on.
    fresh: bool,
    /// The server is one of several, and another may lead the stream.
    is_clustered: bool,
    /// The pull outstanding; none yet where the owner is to look at the stream first.
    pull: Option<Pull>,
}

struct Pull {
    /// The end of its reply subject.
    number: u64,
    /// How many messages it may bring, and may still bring.
    batch: usize,
    remaining: usize,
    began: Instant,
    /// How long what is under way may take to pass.
    passes: Duration,
}

enum Arrival {
    Message(Message),
    /// Left over from an earlier pull or consumer, or the orderly end of a pull.
    Nothing,
    /// The consumer is not to be trusted any more, for this reason.
    Odd(String),
}

/// [`Reader`] on JetStream; has a connection of its own.
pub struct JetStreamReader {
    client: Client,
    stream: String,
    inbox: Inbox,
    consumer: Option<PullConsumer>,
    pulls: u64,
    /// For the next pull.
    pull_bytes: usize,
    /// The stream's domain and last message when its state was asked: what is older may be from
    /// when the domain had another name.
    domain: Option<String>,
    old: u64,
    foreign: Foreign,
    /// Messages that the stream held beyond the last that came.
    remaining: u64,
    /// Consumers given up since the last message.
    oddities: usize,
    silence: Silence,
    /// Fires when that is to be looked at.
    silent: Receiver<Instant>,
}

impl JetStreamReader {
    /// Takes over `client` to read `stream`, see [`stream_name`](super::jetstream::stream_name).
    pub fn new(client: Client, stream: String) -> Result<JetStreamReader, StreamError> {
        let inbox = client.inbox()?;
        Ok(JetStreamReader {
            client,
            stream,
            inbox,
            consumer: None,
            pulls: 0,
            pull_bytes: FIRST_WINDOW,
            domain: None,
            old: u64::MAX,
            foreign: Foreign::default(),
            remaining: 0,
            oddities: 0,
            silence: Silence::default(),
            silent: never(),
        })
    }

    /// The connection, for further questions about the stream.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// A new consumer that begins at `from`, on a server that has what the stream has.
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

    /// Spares the server five minutes of keeping a consumer; whether that arrives does not matter.
    fn forget(&self, consumer: &str) -> Result<(), StreamError> {
        let call = format!("CONSUMER.DELETE.{}.{consumer}", self.stream);
        let subject = self.client.api_subject(&call);
        self.client.publish(&subject, None, &[], b"")
    }

    /// The same in place of one that failed. Made first and looked at the stream then: what happens
    /// to the stream after the look happens to this consumer, too.
    fn replace(&mut self, from: u64) -> Result<Vec<Message>, StreamError> {
        self.start(from)?;
        Err(StreamError::LookAgain)
    }

    /// Has the broker make a consumer that begins at `from`, on one server that answers. Servers up
    /// to 2.9 may give it to one that is away: spread over all the stream's servers, those that are
    /// there answer.
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

    /// Has the broker make a consumer that begins at `from`.
    fn create(&self, from: u64, replicas: u64) -> Result<Value, StreamError> {
        let stream = &self.stream;
        let config = json!({
            "deliver_policy": "by_start_sequence", "opt_start_seq": from.max(1),
            "ack_policy": "none", "replay_policy": "instant",
            // In memory, on one server: it is made anew sooner than it would be recovered.
            "mem_storage": true, "num_replicas": replicas,
            "inactive_threshold": INACTIVE.as_nanos() as u64,
        });
        let body = json!({ "stream_name": stream, "config": config });
        self.client
            .api(&format!("CONSUMER.CREATE.{stream}"), &body)?
            .map_err(|error| error.refused(format_args!("read stream {stream} from {from}")))
    }

    /// Asks the consumer for the next batch.
    fn pull(&mut self) -> Result<(), StreamError> {
        self.pull_up_to(PULL, self.pull_bytes)
    }

    /// The next message is larger than the pull: for it alone.
    fn pull_large(&mut self) -> Result<(), StreamError> {
        // Must have room for the largest message, or it would never come: also one from when the
        // server took larger ones.
        let largest = self.client.max_payload().max(MAX_MESSAGE_BYTES);
        self.pull_up_to(1, largest + OVERHEAD)
    }

    fn pull_up_to(&mut self, batch: usize, bytes: usize) -> Result<(), StreamError> {
        let Some(consumer) = &mut self.consumer else {
            return Ok(());
        };
        self.pulls += 1;
        // A window that has grown says how fast the connection was.
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
            "batch": batch, "max_bytes": bytes, "expires": EXPIRES.as_nanos() as u64,
            "idle_heartbeat": HEARTBEAT.as_nanos() as u64,
        });
        self.heard();
        let name = self.consumer.as_ref().map_or("", |c| c.name.as_str());
        let call = format!("CONSUMER.MSG.NEXT.{}.{name}", self.stream);
        let subject = self.client.api_subject(&call);
        let reply = format!("{}.{}", self.inbox.subject, self.pulls);
        self.client
            .publish(&subject, Some(&reply), &[], body.to_string().as_bytes())
    }

    /// The pull brought all that it may.
    fn pull_again(&mut self, began: Instant) -> Result<(), StreamError> {
        if began.elapsed() < QUICK {
            self.pull_bytes = (2 * self.pull_bytes).min(PULL_BYTES);
        }
        self.pull()
    }

    /// Takes `first` and whatever else has arrived, without waiting. The second value says why the
    /// consumer had to be given up, if it had.
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
                Arrival::Odd(why) => {
                    log::debug!("stream {}: reading anew: {why}", self.stream);
                    if let Some(consumer) = &mut self.consumer {
                        consumer.next = NOWHERE;
                    }
                    return Ok((batch, Some(why)));
                }
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

    /// Sorts one message from the inbox, and asks for more when it was the last of its pull.
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
                    self.look_at_silence()?;
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
        Ok(Arrival::Message(Message {
            sequence,
            id: delivery::id(&message),
            time_ms,
            data: message.data,
        }))
    }
}

impl Reader for JetStreamReader {
    fn state(&mut self) -> Result<StreamState, StreamError> {
        let info = stream_info(&self.client, &self.stream)?;
        let state = state_in(&info);
        (self.domain, self.old) = (domains::named(&info), state.last);
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
        let from = from.max(1);
        let deadline = after(wait);
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
                        return Ok(batch);
                    }
                    // Twice without a message between is a fault of the broker, not of a consumer.
                    self.oddities += usize::from(odd.is_some());
                    if let (2.., Some(why)) = (self.oddities, odd) {
                        let text = format!("read stream {} from {from}: {why}", self.stream);
                        return Err(StreamError::Refused(text));
                    }
                }
                recv(self.silent) -> _ => if !self.look_at_silence()? {
                    return self.replace(from);
                },
                recv(deadline) -> _ => return Ok(Vec::new()),
            }
        }
    }

    fn remaining(&self) -> u64 {
        self.remaining
    }

    fn message_id(&mut self, sequence: u64) -> Result<Option<String>, StreamError> {
        message_id(&self.client, &self.stream, sequence)
    }
}
