//! Appends frames to the shards' streams.
//!
//! ```text
//! owner -- send, flush --> nats-writer (has the connection) --> server
//! owner <---- acks ------- nats-writer <-- acknowledgements --- server
//!                          nats-writer -- wake --> nats-flush
//! ```
//!
//! The owner never touches the socket, so a server that stopped reading cannot hold it up. The
//! second thread is there because the crate's `flush` waits for the server's answer. The reply
//! subject of a message carries its token: nothing is kept per message in flight, and a lost
//! acknowledgement is for the owner's timeout to find. When the connection ends, `nats-writer`
//! ends, and with it the channel of acknowledgements. Dropping the writer ends both threads.
#![allow(deprecated)]

use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, select, unbounded};

use super::client::{ApiError, Client, Inbox};
use super::delivery::status;
use super::domains::{self, Foreign, HEADER, Seen};
use super::jetstream::{self, StreamOptions};
use super::link::Link;
use super::{Ack, StreamError, Writer};

/// Room for `Nats-Msg-Id` and the header line: ids are some 40 bytes long.
const HEADER_ROOM: usize = 256;
const PLAIN_WINDOW: usize = 8 * 1024 * 1024;
/// Over TLS the crate loses the connection when the socket's send buffer fills (one 300 KB message
/// on a slow link was enough), so that little may be on its way.
const TLS_WINDOW: usize = 128 * 1024;
/// A server drops whoever does not take in 10 s what it sends (`write_deadline`), and reading is
/// where connections are slowest: 256 kbit/s take three times as much, so that connections may
/// share them. It goes into the first window, with all that the server counts of a message.
const MESSAGE: usize = 100 * 1024;
/// Into more parts a frame is cut only if they must be small: they are to fit into a stream
/// together.
const PARTS: usize = 64;
/// Jobs between owner and thread. The owner's byte window is the real limit; this bounds the count
/// of small messages, and is about what a fast broker takes in the 5 ms between two flushes.
const QUEUE: usize = 1024;
/// How long a single write of a flush may take: the crate leaves this limit on the socket when it
/// is exceeded, and a slow link takes half a minute to make room in a buffer that is full.
const WRITE_WAIT: Duration = Duration::from_secs(120);
/// How long a full queue may stay full before the broker counts as gone.
const STUCK: Duration = Duration::from_millis(250);

enum Job {
    Publish {
        subject: String,
        id: String,
        data: Vec<u8>,
        token: u64,
    },
    Flush,
}

/// [`Writer`] on JetStream; has a connection of its own.
pub struct JetStreamWriter {
    jobs: Sender<Job>,
    acks: Receiver<Ack>,
    subjects: StreamOptions,
    address: String,
    max_message_bytes: usize,
    window_bytes: usize,
    foreign: Foreign,
    link: Link,
}

impl JetStreamWriter {
    /// Takes over `client` to publish to the streams of `options`, which must exist.
    pub fn new(client: Client, options: &StreamOptions) -> Result<JetStreamWriter, StreamError> {
        let limit = client.max_payload().saturating_sub(HEADER_ROOM);
        let (max_message_bytes, window_bytes) = match client.is_tls() {
            true => (limit.min(MESSAGE), TLS_WINDOW),
            false => (limit, PLAIN_WINDOW),
        };
        let address = client.address().to_string();
        let stream = jetstream::stream_name(options, 1);
        let domain = match jetstream::stream_info(&client, &stream) {
            Ok(info) => Some(domains::named(&info)),
            // It is gone: nothing will be acknowledged, or by one that is made anew.
            Err(StreamError::Refused(_)) => None,
            Err(error) => return Err(error),
        };
        let foreign = Foreign::default();
        let streams = Streams {
            domain,
            stream,
            foreign: foreign.clone(),
            seen: Seen::default(),
        };
        let inbox = client.inbox()?;
        let link = client.link().clone();
        let ours = link.clone();
        let (jobs, todo) = bounded(QUEUE);
        // As many as the owner has messages in flight: it bounds that itself.
        let (done, acks) = unbounded();
        // One wake-up waiting is enough for all that was published before it.
        let (wake, woken) = bounded(1);
        start("nats-flush", move || flush_when_woken(&link, &woken))?;
        start("nats-writer", move || {
            write(&client, &inbox, streams, (&todo, &done, &wake));
        })?;
        let subjects = options.clone();
        Ok(JetStreamWriter {
            jobs,
            acks,
            subjects,
            address,
            max_message_bytes,
            window_bytes,
            foreign,
            link: ours,
        })
    }
}

impl Writer for JetStreamWriter {
    fn max_message_bytes(&self, bytes: usize) -> usize {
        MESSAGE
            .max(bytes.div_ceil(PARTS))
            .min(self.max_message_bytes)
    }

    fn window_bytes(&self) -> usize {
        self.window_bytes
    }

    fn send(&mut self, shard: u32, id: &str, data: &[u8], token: u64) -> Result<(), StreamError> {
        let subject = jetstream::subject(&self.subjects, shard);
        let job = Job::Publish {
            subject,
            id: id.to_string(),
            data: data.to_vec(),
            token,
        };
        self.jobs.send_timeout(job, STUCK).map_err(|refusal| {
            let why = if refusal.is_timeout() {
                "takes no more data"
            } else {
                "is disconnected"
            };
            StreamError::Disconnected(format!("publish to {}: it {why}", self.address))
        })
    }

    fn flush(&mut self) {
        // A queue that is full gets flushed by the crate's own clock, 5 ms at most from here.
        let _ = self.jobs.try_send(Job::Flush);
    }

    fn acks(&self) -> &Receiver<Ack> {
        &self.acks
    }

    fn complaint(&self) -> String {
        self.link.complaint()
    }

    fn other_streams(&self) -> Option<String> {
        self.foreign.get()
    }
}

pub(super) fn start(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), StreamError> {
    let thread = thread::Builder::new().name(name.into()).spawn(body);
    thread
        .map(drop)
        .map_err(|e| StreamError::Disconnected(format!("start thread {name}: {e}")))
}

/// Body of `nats-flush`.
fn flush_when_woken(link: &Link, woken: &Receiver<()>) {
    for () in woken {
        // A failure here shows as missing acknowledgements, which is where it is looked for.
        let Ok(connection) = link.connection() else {
            return;
        };
        let _ = connection.flush_timeout(WRITE_WAIT);
    }
}

/// Body of `nats-writer`: returns, closing `done`, when the owner or the connection is gone.
fn write(
    client: &Client,
    inbox: &Inbox,
    mut streams: Streams,
    (todo, done, wake): (&Receiver<Job>, &Sender<Ack>, &Sender<()>),
) {
    loop {
        select! {
            recv(todo) -> job => match job {
                Ok(Job::Publish { subject, id, data, token }) => {
                    let reply = format!("{}.{token}", inbox.subject);
                    let headers = [("Nats-Msg-Id", Some(id.as_str())), (HEADER, streams.told())];
                    let headers: Vec<_> = headers
                        .iter()
                        .filter_map(|(name, value)| Some((*name, (*value)?)))
                        .collect();
                    match client.publish(&subject, Some(&reply), &headers, &data) {
                        Ok(()) => {}
                        // Too large: the connection is none the worse for it.
                        Err(StreamError::Refused(text)) => {
                            let (result, duplicate) = (Err(text), false);
                            let _ = done.send(Ack { token, result, duplicate });
                        }
                        Err(error) => return log::debug!("nats-writer: {error}"),
                    }
                }
                Ok(Job::Flush) => drop(wake.try_send(())),
                Err(_) => return,
            },
            recv(inbox.messages) -> message => match message {
                Ok(message) => if let Some(ack) = streams.own(&message) {
                    let _ = done.send(ack);
                },
                Err(_) => return,
            },
        }
    }
}

/// Whose acknowledgements count.
struct Streams {
    /// Of the streams in use, which may have none; none if that is not known.
    domain: Option<Option<String>>,
    /// The first, for texts.
    stream: String,
    foreign: Foreign,
    seen: Seen,
}

impl Streams {
    fn told(&self) -> Option<&str> {
        domains::told(self.domain.as_ref()?.as_deref())
    }

    /// The acknowledgement, if it is of the stream in use. Another one's says nothing of that.
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

/// What the stream answers to a publication.
#[derive(serde::Deserialize)]
struct PublishReply {
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    domain: Option<String>,
    error: Option<ApiError>,
}

/// What an answer to a reply subject `<inbox>.<token>` says.
pub(super) fn acknowledgement(message: &nats::Message) -> Option<Ack> {
    read_acknowledgement(message).map(|(ack, _)| ack)
}

/// The same, and the domain of the stream that answers.
fn read_acknowledgement(message: &nats::Message) -> Option<(Ack, Option<String>)> {
    let token = message.subject.rsplit('.').next()?.parse().ok()?;
    let (mut duplicate, mut domain) = (false, None);
    let result = match status(message) {
        Some((503, _)) => Err("no stream takes this subject, or jetstream is away".to_string()),
        Some((_, text)) => Err(text),
        None => match serde_json::from_slice::<PublishReply>(&message.data) {
            Ok(PublishReply {
                error: Some(error), ..
            }) => Err(error.to_string()),
            Ok(PublishReply { seq: 0, .. }) => Err("acknowledged without a sequence".to_string()),
            Ok(reply) => {
                duplicate = reply.duplicate;
                domain = reply.domain.filter(|name| !name.is_empty());
                Ok(reply.seq)
            }
            Err(error) => Err(format!("unreadable acknowledgement: {error}")),
        },
    };
    let ack = Ack {
        token,
        result,
        duplicate,
    };
    Some((ack, domain))
}
