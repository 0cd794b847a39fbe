//! Appends frames to the shards' streams.
//!
//! ```text
//! owner -- send, flush --> nats-writer --> server
//! owner <---- acks ------- nats-writer <-- acknowledgements --- server
//!                          nats-writer -- wake --> nats-flush
//! ```
//!
//! The owner never touches the socket, so a server that stopped reading cannot block it. The second
//! thread exists because the crate's `flush` waits for the server's answer. Both threads end when
//! nothing was sent for [`RESTS_AFTER`], and the next message starts them again. The reply subject
//! of a message carries its token, so nothing is stored per message in flight. The owner's timeout
//! detects a lost acknowledgement. When the connection ends, the channel of acknowledgements is
//! closed. Dropping the writer ends both threads.
#![allow(deprecated)]

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, select, unbounded};

use super::bandwidth;
use super::client::{ApiError, Client, Inbox};
use super::delivery::status;
use super::domains::{self, AckedTokens, Foreign, HEADER};
use super::jetstream::{self, StreamOptions, code};
use super::link::Link;
use super::{Ack, Refusal, StreamError, Writer};
use crate::seal::{Seal, SealPlace};
use crate::thread::{OnDemand, spawn_detached};

/// Bytes reserved for `Nats-Msg-Id` and the header line; ids are about 40 bytes long.
const HEADER_ROOM: usize = 256;
const PLAIN_WINDOW: usize = 8 * 1024 * 1024;
/// Over TLS the crate loses the connection when the socket's send buffer fills: one 300 KB message
/// on a slow link was enough. So few bytes may be under way.
const TLS_WINDOW: usize = 128 * 1024;
/// Usual limit of a message in bytes. A server drops a client that does not read within 10 s what
/// the server sends (`write_deadline`), and connections are slowest in the direction of reading. A
/// link of 256 kbit/s carries three times as much in that time, so several connections may share
/// it. A message of this size also fits into the first window, with all bytes that the server
/// counts for it.
const MESSAGE: usize = 100 * 1024;
/// Most parts of a frame, unless its parts must be smaller to be accepted. All parts must fit into
/// a stream together.
const PARTS: usize = 64;
/// Jobs queued between owner and thread. The owner's byte window is the real limit. This one bounds
/// the number of small messages: about as many as a fast broker takes in the 5 ms between two
/// flushes.
const QUEUE: usize = 1024;
/// How long one write of a flush may take. When it is exceeded, the crate leaves this limit on the
/// socket. A slow link takes half a minute to make room in a full buffer.
const WRITE_WAIT: Duration = Duration::from_secs(120);
/// How long the queue may stay full before the broker counts as gone.
const STUCK: Duration = Duration::from_millis(250);
/// The threads end after this long without a message or an acknowledgement. That is longer than an
/// acknowledgement takes, on all but the slowest connections: there, the owner connects anew.
const RESTS_AFTER: Duration = Duration::from_secs(20);

/// Where acknowledgements go; none once the connection has ended.
type Done = Arc<Mutex<Option<Sender<Ack>>>>;

enum WriterJob {
    Publish {
        subject: String,
        id: String,
        data: Vec<u8>,
        token: u64,
    },
    Flush,
}

/// [`Writer`] on JetStream.
pub struct JetStreamWriter {
    jobs: Sender<WriterJob>,
    thread: Arc<OnDemand<WriterDesk>>,
    acks: Receiver<Ack>,
    subjects: StreamOptions,
    seal: Arc<Seal>,
    address: String,
    max_message_bytes: usize,
    window_bytes: usize,
    foreign: Foreign,
    link: Link,
}

impl JetStreamWriter {
    /// Takes over `client` to publish to the streams of `options`, which must exist. Returns an
    /// error if the connection ends meanwhile.
    pub fn new(client: Client, options: &StreamOptions) -> Result<JetStreamWriter, StreamError> {
        let seal = client.seal().clone();
        let room = HEADER_ROOM + seal.overhead();
        let limit = client.max_payload().saturating_sub(room);
        let (max_message_bytes, window_bytes) = match client.is_tls() {
            true => (limit.min(MESSAGE), TLS_WINDOW),
            false => (limit, PLAIN_WINDOW),
        };
        let address = client.address().to_string();
        let stream = jetstream::stream_name(options, 1);
        let domain = match jetstream::stream_info(&client, &stream) {
            Ok(info) => Some(domains::named(&info)),
            // The stream is gone: no stream acknowledges messages, or only a newly created one
            // does.
            Err(StreamError::Refused(_)) => None,
            Err(error) => return Err(error),
        };
        let foreign = Foreign::default();
        let streams = Streams {
            domain,
            stream,
            foreign: foreign.clone(),
            seen: AckedTokens::default(),
        };
        let inbox = client.inbox()?;
        let link = client.link().clone();
        let (jobs, todo) = bounded(QUEUE);
        // Holds as many as the owner has messages in flight, which the owner bounds itself.
        let (done, acks) = unbounded();
        let done: Done = Arc::new(Mutex::new(Some(done)));
        let ended = Arc::downgrade(&done);
        link.at_end(move || {
            if let Some(done) = ended.upgrade() {
                done.lock().unwrap_or_else(PoisonError::into_inner).take();
            }
        });
        let desk = WriterDesk {
            client,
            inbox,
            streams,
            todo,
            done,
        };
        let subjects = options.clone();
        Ok(JetStreamWriter {
            jobs,
            thread: OnDemand::new("nats-writer", &unbounded().0, desk, write),
            acks,
            subjects,
            seal,
            address,
            max_message_bytes,
            window_bytes,
            foreign,
            link,
        })
    }
}

impl Writer for JetStreamWriter {
    fn max_message_bytes(&self, bytes: usize) -> usize {
        MESSAGE
            .max(bytes.div_ceil(PARTS))
            .min(self.max_message_bytes)
    }

    fn message_id(&self, shard: u32, of: [u8; 16]) -> [u8; 16] {
        let stream = jetstream::stream_name(&self.subjects, shard);
        self.seal.message_id(&stream, of)
    }

    fn window_bytes(&self) -> usize {
        self.window_bytes
    }

    fn send(&mut self, shard: u32, id: &str, data: &[u8], token: u64) -> Result<(), StreamError> {
        let subject = jetstream::subject(&self.subjects, shard);
        let stream = &jetstream::stream_name(&self.subjects, shard);
        let sealed = self.seal.seal(SealPlace::Message { stream, id }, data);
        let job = WriterJob::Publish {
            subject,
            id: id.to_string(),
            data: sealed.into_owned(),
            token,
        };
        let sent = self.jobs.send_timeout(job, STUCK);
        self.thread.wake();
        sent.map_err(|refusal| {
            let why = if refusal.is_timeout() {
                "takes no more data"
            } else {
                "is disconnected"
            };
            StreamError::Disconnected(format!("publish to {}: it {why}", self.address))
        })
    }

    fn flush(&mut self) {
        // If the queue is full, the crate's own clock flushes it within 5 ms.
        let _ = self.jobs.try_send(WriterJob::Flush);
    }

    fn acks(&self) -> &Receiver<Ack> {
        &self.acks
    }

    fn doubt(&self) {
        self.link.doubt();
    }

    fn complaint(&self) -> String {
        self.link.complaint()
    }

    fn other_streams(&self) -> Option<String> {
        self.foreign.get()
    }
}

pub(super) fn start(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), StreamError> {
    spawn_detached(name, body)
        .map_err(|e| StreamError::Disconnected(format!("start thread {name}: {e}")))
}

/// Body of `nats-flush`.
fn flush_when_woken(link: &Link, woken: &Receiver<()>) {
    for () in woken {
        // A failure shows as missing acknowledgements, which the owner's timeout detects.
        let Ok(connection) = link.connection() else {
            return;
        };
        let _ = connection.flush_timeout(WRITE_WAIT);
    }
}

/// All that the thread `nats-writer` works with.
struct WriterDesk {
    client: Client,
    inbox: Inbox,
    streams: Streams,
    todo: Receiver<WriterJob>,
    done: Done,
}

/// Body of `nats-writer`. It drops the desk when the owner or the connection is gone.
fn write(mut desk: WriterDesk, thread: &OnDemand<WriterDesk>) {
    let done = desk
        .done
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    let Some(done) = done else { return };
    // One waiting wake-up covers all messages published before it.
    let (wake, woken) = bounded(1);
    let link = desk.client.link().clone();
    let flush = start("nats-flush", move || flush_when_woken(&link, &woken));
    if flush.is_err() {
        log::debug!("nats-writer: no thread to flush"); // the crate flushes by itself within 5 ms
    }
    while desk.works(&done, &wake) {
        match thread.rest(desk, |desk| desk.todo.is_empty()) {
            Some(again) => desk = again,
            None => return,
        }
    }
}

impl WriterDesk {
    /// Returns true when nothing was to be done for a while, and false when the owner or the
    /// connection is gone.
    fn works(&mut self, done: &Sender<Ack>, wake: &Sender<()>) -> bool {
        let is_on = self.send_and_receive(done, wake);
        if !is_on {
            // Acknowledgements that are under way are lost for the owner.
            self.done
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
        }
        is_on
    }

    fn send_and_receive(&mut self, done: &Sender<Ack>, wake: &Sender<()>) -> bool {
        let WriterDesk {
            client,
            inbox,
            streams,
            todo,
            ..
        } = self;
        loop {
            select! {
                recv(todo) -> job => match job {
                    Ok(WriterJob::Publish { subject, id, data, token }) => {
                        let reply = format!("{}.{token}", inbox.subject);
                        let told = streams.told();
                        let headers = [("Nats-Msg-Id", Some(id.as_str())), (HEADER, told)];
                        let headers: Vec<_> = headers
                            .iter()
                            .filter_map(|(name, value)| Some((*name, (*value)?)))
                            .collect();
                        match client.publish(&subject, Some(&reply), &headers, &data) {
                            Ok(()) => keep_to_limit(client, data.len()),
                            // Too large: the connection is not affected.
                            Err(StreamError::Refused(text)) => {
                                let (result, duplicate) = (refusal(&text, false), false);
                                let _ = done.send(Ack { token, result, duplicate });
                            }
                            Err(error) => {
                                log::debug!("nats-writer: {error}");
                                client.closer().close(); // for the other threads, too
                                return false;
                            }
                        }
                    }
                    Ok(WriterJob::Flush) => drop(wake.try_send(())),
                    Err(_) => return false,
                },
                recv(inbox.messages) -> message => match message {
                    Ok(message) => if let Some(ack) = streams.own(&message) {
                        let _ = done.send(ack);
                    },
                    Err(_) => return false,
                },
                default(RESTS_AFTER) => return true,
            }
        }
    }
}

/// Waits as long as the bytes of a message take at the limit.
fn keep_to_limit(client: &Client, bytes: usize) {
    if let Some(limit) = client.bandwidth() {
        std::thread::sleep(limit.sent(bandwidth::of_message(bytes)));
    }
}

/// The streams whose acknowledgements count.
struct Streams {
    /// Domain of the streams in use. The inner None: they have no domain; the outer None: not
    /// known.
    domain: Option<Option<String>>,
    /// Name of the first stream, for texts.
    stream: String,
    foreign: Foreign,
    seen: AckedTokens,
}

impl Streams {
    fn told(&self) -> Option<&str> {
        domains::told(self.domain.as_ref()?.as_deref())
    }

    /// The acknowledgement, if it comes from the stream in use. A different stream's
    /// acknowledgement proves nothing about that one.
    fn own(&mut self, message: &nats::Message) -> Option<Ack> {
        let (ack, theirs) = read_acknowledgement(message)?;
        if ack.result.is_err() {
            return Some(ack);
        }
        let is_second = self.seen.is_second(ack.token);
        let is_foreign = self.domain.as_ref().is_some_and(|ours| theirs != *ours);
        if is_foreign || (is_second && self.seen.has_many()) {
            let ours = self.domain.as_ref().and_then(|ours| ours.as_deref());
            self.foreign.note(&self.stream, ours, theirs.as_deref());
        }
        (!is_foreign).then_some(ack)
    }
}

/// The stream's reply to a publication.
#[derive(serde::Deserialize)]
struct PublishReply {
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    domain: Option<String>,
    error: Option<ApiError>,
}

/// Reads an acknowledgement, which arrives at the reply subject `<inbox>.<token>`.
pub(super) fn acknowledgement(message: &nats::Message) -> Option<Ack> {
    read_acknowledgement(message).map(|(ack, _)| ack)
}

fn refusal(text: &str, is_passing: bool) -> Result<u64, Refusal> {
    let text = text.to_owned();
    Err(Refusal { text, is_passing })
}

/// Reads an acknowledgement, and the domain of the stream that sent it.
fn read_acknowledgement(message: &nats::Message) -> Option<(Ack, Option<String>)> {
    let token = message.subject.rsplit('.').next()?.parse().ok()?;
    let (mut duplicate, mut domain) = (false, None);
    let result = match status(message) {
        Some((503, _)) => refusal("no stream takes this subject, or JetStream is away", true),
        Some((_, text)) => refusal(&text, false),
        None => match serde_json::from_slice::<PublishReply>(&message.data) {
            Ok(PublishReply {
                error: Some(error), ..
            }) => refusal(&error.to_string(), error.err_code == code::UNAVAILABLE),
            Ok(PublishReply { seq: 0, .. }) => refusal("acknowledged without a sequence", false),
            Ok(reply) => {
                duplicate = reply.duplicate;
                domain = reply.domain.filter(|name| !name.is_empty());
                Ok(reply.seq)
            }
            Err(error) => refusal(&format!("unreadable acknowledgement: {error}"), false),
        },
    };
    let ack = Ack {
        token,
        result,
        duplicate,
    };
    Some((ack, domain))
}
