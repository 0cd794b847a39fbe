//! One connection to a NATS server, for one life.
//!
//! The `nats` crate would reconnect by itself, and then nobody knows which messages were lost in
//! between. So a lost connection is ended for good: the crate's disconnect callback drops the
//! [`Life`], which stops the crate's threads and closes every [`Inbox`]. Whoever waits on one
//! notices at once, and the owner opens a new `Client` after a wait of its own.
//!
//! A `Client` belongs to one thread (it is `Send`, not `Sync`): publisher, each reader, leases and
//! objects have their own. Requests have deadlines. `publish` can block for as long as the server
//! takes no bytes, when more is in flight than the socket buffers hold.
#![allow(deprecated)] // the whole crate is: its authors prefer their asynchronous one

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fmt, io, thread};

use crossbeam_channel::{Receiver, after, select};
use nats::HeaderMap;
use serde_json::Value;

use super::StreamError;
use super::address::Address;
use super::connect::{self, Greeting};

/// How long a request to the JetStream API may take. A cluster that elects a leader needs seconds.
pub const API_TIMEOUT: Duration = Duration::from_secs(5);

/// How to reach the broker, and as whom.
#[derive(Clone, Default)]
pub struct ClientOptions {
    /// Shown in the server's connection list.
    pub name: String,
    /// Tried in turn, from a random one on. A user part in a URL goes before `user`.
    pub urls: Vec<String>,
    pub user: Option<(String, String)>,
    /// nkey seed, as `nk -gen user` writes it.
    pub seed_file: Option<PathBuf>,
    /// PEM; when given, only these authorities count and TLS is demanded.
    pub ca_file: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
}

impl fmt::Debug for ClientOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses: Vec<_> = self.urls.iter().map(|url| url.parse::<Address>()).collect();
        f.debug_struct("ClientOptions")
            .field("name", &self.name)
            .field("urls", &addresses)
            .field("user", &self.user.as_ref().map(|(user, _)| user))
            .field("seed_file", &self.seed_file)
            .field("ca_file", &self.ca_file)
            .field("cert_file", &self.cert_file)
            .field("key_file", &self.key_file)
            .finish()
    }
}

/// An error reply of the JetStream API.
#[derive(Debug, serde::Deserialize)]
pub struct ApiError {
    #[serde(default)]
    pub code: u16,
    /// The exact reason: 10059 is "stream not found", for one.
    #[serde(default)]
    pub err_code: u32,
    #[serde(default)]
    pub description: String,
}

impl ApiError {
    /// The error of a caller for whom no reply but success will do.
    pub fn refused(&self, tried: impl fmt::Display) -> StreamError {
        StreamError::Refused(format!("{tried}: {self}"))
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} (error {}/{})",
            self.description, self.code, self.err_code
        )
    }
}

/// The crate's connection with everything that hangs on it.
struct Life {
    wake: String,
    // The order of these two matters, see `drop`.
    connection: nats::Connection,
    subscriptions: Vec<nats::Subscription>,
}

impl Drop for Life {
    /// The crate's `close` waits for the server, which may be gone. Instead: dropping `connection`
    /// only raises the crate's stop flag; dropping a subscription then wakes its flush thread, and
    /// the message to ourselves, flushed by it, wakes its reader thread. Both see the flag and end.
    fn drop(&mut self) {
        let _ = self.connection.publish(&self.wake, b"");
    }
}

/// Where a connection stands.
enum State {
    Opening,
    Open(Life),
    Ended,
}

/// The part of a connection that the crate's callbacks and helper threads share.
#[derive(Clone)]
pub(super) struct Link {
    state: Arc<Mutex<State>>,
    /// What the server last complained of: tells why it hung up.
    complaint: Arc<Mutex<Option<String>>>,
    /// For error texts.
    pub(super) address: Arc<str>,
}

impl Link {
    pub(super) fn new(address: &Address) -> Link {
        Link {
            state: Arc::new(Mutex::new(State::Opening)),
            complaint: Arc::default(),
            address: address.to_string().into(),
        }
    }

    /// Runs on the crate's reader thread: may take no part in a conversation with the server.
    pub(super) fn complain(&self, error: &io::Error) {
        log::warn!("nats server {} says: {error}", self.address);
        *lock(&self.complaint) = Some(error.to_string());
    }

    /// Ends the connection, from any thread, once and for all.
    pub(super) fn end(&self) {
        let ended = std::mem::replace(&mut *lock(&self.state), State::Ended);
        drop(ended); // after the lock is released: dropping a life writes to the socket
    }

    /// The crate's connection. To be given back soon: it cannot end while a copy of it exists.
    pub(super) fn connection(&self) -> Result<nats::Connection, StreamError> {
        match &*lock(&self.state) {
            State::Open(life) => Ok(life.connection.clone()),
            _ => Err(self.lost()),
        }
    }

    /// The error of everyone who waits on a connection that ended.
    pub(super) fn lost(&self) -> StreamError {
        let why = match &*lock(&self.complaint) {
            Some(complaint) => format!(", the server said: {complaint}"),
            None => String::new(),
        };
        StreamError::Disconnected(format!("connection to {} lost{why}", self.address))
    }
}

/// A subject of our own with its messages; closed when the connection ends.
pub struct Inbox {
    /// Replies are asked for at `<subject>.<anything>`.
    pub subject: String,
    pub messages: Receiver<nats::Message>,
}

/// A connection, and requests on it.
pub struct Client {
    link: Link,
    greeting: Greeting,
    replies: Inbox,
    next_request: Cell<u64>,
}

impl Client {
    /// Connects to the first of the servers that takes us, within `timeout` altogether.
    ///
    /// `Fatal` if every server was reached and refused us for good (wrong password, bad
    /// certificate), `Disconnected` if another try may work.
    pub fn connect(options: &ClientOptions, timeout: Duration) -> Result<Client, StreamError> {
        connect::connect(options, timeout)
    }

    /// Takes over a connection that was just made.
    pub(super) fn open(
        link: Link,
        connection: nats::Connection,
        greeting: Greeting,
    ) -> Result<Client, StreamError> {
        let subject = connection.new_inbox();
        let subscription = connection
            .subscribe(&format!("{subject}.*"))
            .map_err(|_| link.lost())?;
        let messages = subscription.receiver().clone();
        let wake = format!("{subject}.end");
        let life = Life {
            wake,
            connection,
            subscriptions: vec![subscription],
        };

        let mut state = lock(&link.state);
        if let State::Ended = *state {
            drop(state);
            return Err(link.lost());
        }
        *state = State::Open(life);
        drop(state);
        let replies = Inbox { subject, messages };
        Ok(Client {
            link,
            greeting,
            replies,
            next_request: Cell::new(0),
        })
    }

    /// Largest message the server takes, headers included, in bytes.
    pub fn max_payload(&self) -> usize {
        self.greeting.max_payload
    }

    pub fn is_tls(&self) -> bool {
        self.greeting.tls_required
    }

    /// Address without secrets, for error texts.
    pub fn address(&self) -> &str {
        &self.link.address
    }

    /// What helper threads use: it flushes and sees the end, and does not keep the connection alive.
    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    /// The error to return when an [`Inbox`] is found closed.
    pub fn lost(&self) -> StreamError {
        self.link.lost()
    }

    /// A new inbox; it lasts as long as the connection.
    pub fn inbox(&self) -> Result<Inbox, StreamError> {
        let mut state = lock(&self.link.state);
        let State::Open(life) = &mut *state else {
            drop(state);
            return Err(self.lost());
        };
        let subject = life.connection.new_inbox();
        let subscription = life
            .connection
            .subscribe(&format!("{subject}.*"))
            .map_err(|error| self.failed("subscribe to an inbox", &error))?;
        let messages = subscription.receiver().clone();
        life.subscriptions.push(subscription);
        Ok(Inbox { subject, messages })
    }

    /// Hands a message to the crate, which writes it out within 5 ms. No word on its delivery.
    pub fn publish(
        &self,
        subject: &str,
        reply: Option<&str>,
        headers: &[(&str, &str)],
        data: &[u8],
    ) -> Result<(), StreamError> {
        // The server would answer a message that is too large by hanging up.
        let overhead: usize = headers
            .iter()
            .map(|(name, value)| name.len() + value.len() + 4)
            .sum();
        let size = overhead + HEADER_LINE_BYTES + data.len();
        if size > self.max_payload() {
            let (limit, address) = (self.max_payload(), self.address());
            let text = format!("message of {size} bytes to {subject}: {address} takes {limit}");
            return Err(StreamError::Refused(text));
        }
        let headers: HeaderMap = headers.iter().collect();
        let headers = (!headers.is_empty()).then_some(&headers);
        self.link
            .connection()?
            .publish_with_reply_or_headers(subject, reply, headers, data)
            .map_err(|error| self.failed(format_args!("publish to {subject}"), &error))
    }

    /// Publishes and waits for the one reply. A status reply such as 503 is a reply.
    pub fn request_message(
        &self,
        subject: &str,
        headers: &[(&str, &str)],
        data: &[u8],
        timeout: Duration,
    ) -> Result<nats::Message, StreamError> {
        self.next_request.set(self.next_request.get() + 1);
        let reply = format!("{}.{}", self.replies.subject, self.next_request.get());
        self.publish(subject, Some(&reply), headers, data)?;
        let deadline = after(timeout);
        loop {
            select! {
                recv(self.replies.messages) -> message => match message {
                    Ok(message) if message.subject == reply => return Ok(message),
                    Ok(_) => {} // the answer to an earlier request, after its deadline
                    Err(_) => return Err(self.lost()),
                },
                recv(deadline) -> _ => {
                    let (address, waited) = (self.address(), timeout.as_millis());
                    let text = format!("no answer from {address} to {subject} within {waited} ms");
                    return Err(StreamError::Disconnected(text));
                }
            }
        }
    }

    /// As `request_message`, for replies in JSON: an error in it is the inner `Err`.
    pub fn ask(
        &self,
        subject: &str,
        headers: &[(&str, &str)],
        data: &[u8],
        timeout: Duration,
    ) -> Result<Result<Value, ApiError>, StreamError> {
        let message = self.request_message(subject, headers, data, timeout)?;
        if let Some((code, text)) = status(&message) {
            let address = self.address();
            let description = match code {
                503 => format!("{address} offers no jetstream, or its part of the cluster is away"),
                _ => format!("{address} answers {text}"),
            };
            return Ok(Err(ApiError {
                code,
                err_code: 0,
                description,
            }));
        }
        let odd = |why: &dyn fmt::Display| {
            StreamError::Refused(format!("answer of {} to {subject}: {why}", self.address()))
        };
        let mut reply: Value = serde_json::from_slice(&message.data).map_err(|e| odd(&e))?;
        match reply.get_mut("error").map(Value::take) {
            Some(error) => Ok(Err(serde_json::from_value(error).map_err(|e| odd(&e))?)),
            None => Ok(Ok(reply)),
        }
    }

    /// A request whose error replies are of no interest beyond their text.
    pub fn request(
        &self,
        subject: &str,
        body: &Value,
        timeout: Duration,
    ) -> Result<Value, StreamError> {
        self.ask(subject, &[], body.to_string().as_bytes(), timeout)?
            .map_err(|error| error.refused(subject))
    }

    /// A JetStream API call, e.g. `STREAM.INFO.x`, within [`API_TIMEOUT`].
    pub fn api(&self, call: &str, body: &Value) -> Result<Result<Value, ApiError>, StreamError> {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        self.ask(
            &format!("$JS.API.{call}"),
            &[],
            body.as_bytes(),
            API_TIMEOUT,
        )
    }

    fn failed(&self, tried: impl fmt::Display, error: &io::Error) -> StreamError {
        StreamError::Disconnected(format!("{tried} at {}: {error}", self.address()))
    }
}

impl Drop for Client {
    /// On a thread of its own: a server that stopped reading must not hold up its client's owner.
    fn drop(&mut self) {
        let link = self.link.clone();
        let closer = thread::Builder::new()
            .name("nats-close".into())
            .spawn(move || link.end());
        if closer.is_err() {
            self.link.end();
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({})", self.address())
    }
}

/// `NATS/1.0`, and the line ends around the headers.
const HEADER_LINE_BYTES: usize = 12;

/// Code and text of a message that is only a status line.
pub(super) fn status(message: &nats::Message) -> Option<(u16, String)> {
    let headers = message.headers.as_ref()?;
    let code = headers.get("Status")?;
    let description = headers.get("Description").map_or("", String::as_str);
    Some((
        code.parse().unwrap_or(0),
        format!("{code} {description}").trim_end().to_string(),
    ))
}

/// The mutexes here guard plain values, whole at any time: a panic elsewhere spoils nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
