//! One connection to a NATS server, used until it ends.
//!
//! A `Client` does not reconnect (see `link`). When the connection is lost, every call returns
//! [`StreamError::Disconnected`] and every [`Inbox`] is closed. The owner waits for a while and
//! opens a new `Client`.
//!
//! A `Client` belongs to one thread (it is `Send`, not `Sync`). The publisher, the readers and the
//! registry have one each, and share one connection, which costs two threads ([`Client::beside`]).
//! Where a request fails, the connection gets no further users ([`Client::doubt`]): the next
//! attempt makes a new one. It ends with its last user. Requests have deadlines. `publish` blocks
//! while the server takes no bytes and the socket buffers are full.
#![allow(deprecated)] // the whole crate is: its authors prefer their asynchronous one

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use crossbeam_channel::{after, never, select};
use nats::HeaderMap;
use serde_json::Value;

use super::StreamError;
use super::bandwidth::Bandwidth;
use super::connect::{self, Greeting};
use super::delivery::{self, status};
use super::limits;
pub use super::link::Inbox;
use super::link::Link;
use crate::address::server::Address;
use crate::seal::Seal;
use crate::thread::spawn_detached;

/// Deadline of a request to the JetStream API. A cluster needs seconds to elect a leader.
pub const API_TIMEOUT: Duration = Duration::from_secs(5);

/// A JetStream request may reach no server while a cluster elects a leader. It is sent again after
/// this time, then after twice as long, and so on.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// Number of calls of [`Client::api_many`] that are under way at once.
const AT_ONCE: usize = 64;

/// Kind of message that answers a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum AnswerKind<'a> {
    /// A reply.
    Reply,
    /// A reply. The request may be carried out twice without harm.
    ReplyOrAskAgain,
    /// A reply, or a message that the named consumer delivers. A delivered message carries the
    /// subject it was published to.
    From(&'a str),
}

impl AnswerKind<'_> {
    fn is_delivery(self, message: &nats::Message) -> bool {
        matches!(self, AnswerKind::From(consumer) if delivery::is_of(consumer, message))
    }
}

/// Addresses of the broker and credentials for it.
#[derive(Clone, Default)]
pub struct ClientOptions {
    /// Shown in the server's connection list.
    pub name: String,
    /// Tried in turn, beginning with a random one. Credentials in a URL take precedence over
    /// `user`.
    pub urls: Vec<String>,
    /// Name and password.
    pub user: Option<(String, String)>,
    /// File with an nkey seed as `nk -gen user` writes it, or a `.creds` file with a JWT as well.
    pub seed_file: Option<PathBuf>,
    /// PEM file. When given, only its authorities are trusted, and TLS is required.
    pub ca_file: Option<PathBuf>,
    /// PEM file of the client certificate; requires `key_file`.
    pub cert_file: Option<PathBuf>,
    /// PEM file of the private key of `cert_file`.
    pub key_file: Option<PathBuf>,
    /// JetStream domain to use, if it is not the server's own.
    pub domain: Option<String>,
    /// How often the server says that an idle reader's connection is alive; none: every 10 s, or
    /// every 3 s where another server may take over.
    pub heartbeat: Option<Duration>,
    /// Limit of bytes a second; none: no limit.
    pub bandwidth: Option<Arc<Bandwidth>>,
    /// The cluster key; by default none.
    pub seal: Arc<Seal>,
    /// The bucket in which the nodes tell of newer keys; empty: none.
    pub meta_bucket: String,
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
            .field("domain", &self.domain)
            .field("heartbeat", &self.heartbeat)
            .field("bandwidth", &self.bandwidth)
            .field("seal", &self.seal)
            .field("meta_bucket", &self.meta_bucket)
            .finish()
    }
}

/// An error reply of the JetStream API.
#[derive(Debug, serde::Deserialize)]
pub struct ApiError {
    /// HTTP-like class of the error, such as 404 or 503.
    #[serde(default)]
    pub code: u16,
    /// Exact reason, for example 10059 for "stream not found"; 0 if the server gave none.
    #[serde(default)]
    pub err_code: u32,
    /// The server's text.
    #[serde(default)]
    pub description: String,
}

impl ApiError {
    /// Turns this error into [`StreamError::Refused`], for callers that need success. `tried` names
    /// the request.
    pub fn refused(&self, tried: impl fmt::Display) -> StreamError {
        StreamError::Refused(format!("{tried}: {self}"))
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let advice = limits::advice(self.err_code, &self.description);
        write!(
            f,
            "{} (error {}/{}){advice}",
            self.description, self.code, self.err_code
        )
    }
}

/// Ends a connection of which another thread has the [`Client`].
pub struct Closer(Link);

impl Closer {
    /// Whether the connection has not ended.
    pub fn is_open(&self) -> bool {
        self.0.connection().is_ok()
    }

    /// Ends the connection, soon.
    pub fn close(&self) {
        end_aside(&self.0);
    }
}

/// Ends a connection on a separate thread: a server that stopped reading must not block the caller.
fn end_aside(link: &Link) {
    let ended = link.clone();
    if spawn_detached("nats-close", move || ended.end()).is_err() {
        link.end();
    }
}

/// A connection, with requests and replies.
pub struct Client {
    link: Link,
    greeting: Greeting,
    replies: Inbox,
    next_request: Cell<u64>,
    /// See [`ClientOptions::domain`].
    domain: Option<String>,
    heartbeat: Option<Duration>,
    bandwidth: Option<Arc<Bandwidth>>,
    seal: Arc<Seal>,
    meta_bucket: String,
    /// Ends the connection with its last client.
    owners: Arc<Owners>,
}

/// Shared by the clients of a connection.
struct Owners(Link);

impl Drop for Owners {
    fn drop(&mut self) {
        end_aside(&self.0);
    }
}

impl Client {
    /// Connects to the first server that accepts this client, within `timeout` in total.
    ///
    /// Returns `Denied` if every server was reached, and a server refused the login (wrong
    /// password) or this client refused a server (bad certificate), or if a file of `options`
    /// cannot be read. Returns `Fatal` if the options are invalid, and `Disconnected` if another
    /// attempt may succeed.
    pub fn connect(options: &ClientOptions, timeout: Duration) -> Result<Client, StreamError> {
        connect::connect(options, timeout)
    }

    /// Takes over a new connection.
    pub(super) fn open(
        link: Link,
        connection: nats::Connection,
        greeting: Greeting,
        options: &ClientOptions,
    ) -> Result<Client, StreamError> {
        let replies = link.begin(connection)?;
        Ok(Client {
            owners: Arc::new(Owners(link.clone())),
            link,
            greeting,
            replies,
            next_request: Cell::new(0),
            domain: options.domain.clone(),
            heartbeat: options.heartbeat,
            bandwidth: options.bandwidth.clone(),
            seal: options.seal.clone(),
            meta_bucket: options.meta_bucket.clone(),
        })
    }

    /// The subject of a JetStream API call such as `STREAM.INFO.x`.
    pub(super) fn api_subject(&self, call: &str) -> String {
        match &self.domain {
            Some(domain) => format!("$JS.{domain}.API.{call}"),
            None => format!("$JS.API.{call}"),
        }
    }

    /// Subject for a write to `subject`, which is below `$KV`. That prefix does not cross domains.
    pub(super) fn key_subject(&self, subject: &str) -> String {
        match self.domain {
            Some(_) => self.api_subject(subject),
            None => subject.to_owned(),
        }
    }

    /// Whether this client uses a different domain than the server's own.
    pub fn is_elsewhere(&self) -> bool {
        self.domain.is_some()
    }

    /// Largest message that the server accepts, in bytes, headers included.
    pub fn max_payload(&self) -> usize {
        self.greeting.max_payload
    }

    /// Whether the connection uses TLS.
    pub fn is_tls(&self) -> bool {
        self.greeting.tls_required
    }

    /// Server address without secrets, for error texts.
    pub fn address(&self) -> &str {
        &self.link.address
    }

    /// See [`ClientOptions::heartbeat`].
    pub(super) fn heartbeat(&self) -> Option<Duration> {
        self.heartbeat
    }

    /// See [`ClientOptions::bandwidth`].
    pub(super) fn bandwidth(&self) -> Option<&Bandwidth> {
        self.bandwidth.as_deref()
    }

    /// Seals and opens what is sent and read on this connection.
    pub fn seal(&self) -> &Arc<Seal> {
        &self.seal
    }

    /// See [`ClientOptions::meta_bucket`].
    pub(super) fn meta_bucket(&self) -> &str {
        &self.meta_bucket
    }

    /// Ends this connection from any thread.
    pub fn closer(&self) -> Closer {
        Closer(self.link.clone())
    }

    /// For helper threads: a link can flush and notices the end, but does not keep the connection
    /// alive.
    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    /// Whether the connection has not ended.
    pub fn is_open(&self) -> bool {
        self.link.connection().is_ok()
    }

    /// Whether further threads may use the connection.
    pub fn is_sound(&self) -> bool {
        self.link.is_sound()
    }

    /// Lets no further thread use the connection, see [`Client::beside`].
    pub fn doubt(&self) {
        self.link.doubt();
    }

    /// The error to return when an [`Inbox`] is closed.
    pub fn lost(&self) -> StreamError {
        self.link.lost()
    }

    /// Creates an inbox, which lasts as long as the connection. Returns `Disconnected` if it has
    /// ended.
    pub fn inbox(&self) -> Result<Inbox, StreamError> {
        self.link.inbox(None)
    }

    /// Receives every message that is published to `<subject>.<one word>` from now on.
    pub fn watch(&self, subject: &str) -> Result<Inbox, StreamError> {
        self.link.inbox(Some(subject))
    }

    /// Passes a message to the crate, which writes it to the socket within 5 ms. Nothing reports
    /// its delivery. Returns `Refused` if it is larger than [`max_payload`](Client::max_payload).
    pub fn publish(
        &self,
        subject: &str,
        reply: Option<&str>,
        headers: &[(&str, &str)],
        data: &[u8],
    ) -> Result<(), StreamError> {
        // The server would close the connection on a message that is too large.
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

    /// Publishes a message and waits for one answer. A status reply such as 503 counts as an
    /// answer. Returns `Disconnected` if none arrives within `timeout`.
    pub fn request_message(
        &self,
        subject: &str,
        headers: &[(&str, &str)],
        data: &[u8],
        timeout: Duration,
        answer: AnswerKind<'_>,
    ) -> Result<nats::Message, StreamError> {
        self.next_request.set(self.next_request.get() + 1);
        let reply = format!("{}.{}", self.replies.subject, self.next_request.get());
        self.publish(subject, Some(&reply), headers, data)?;
        let deadline = after(timeout);
        let mut wait = ASK_AGAIN;
        let mut again = match answer {
            AnswerKind::ReplyOrAskAgain => after(wait),
            AnswerKind::Reply | AnswerKind::From(_) => never(),
        };
        loop {
            select! {
                recv(self.replies.messages) -> message => match message {
                    Ok(message) if message.subject == reply || answer.is_delivery(&message) => {
                        return Ok(message);
                    }
                    Ok(_) => {} // the answer to an earlier request, after its deadline
                    Err(_) => return Err(self.lost()),
                },
                recv(again) -> _ => {
                    self.publish(subject, Some(&reply), headers, data)?;
                    wait *= 2;
                    again = after(wait);
                }
                recv(deadline) -> _ => {
                    self.doubt();
                    let (address, waited) = (self.address(), timeout.as_millis());
                    let why = self.link.complaint();
                    let text =
                        format!("no answer from {address} to {subject} within {waited} ms{why}");
                    return Err(StreamError::Disconnected(text));
                }
            }
        }
    }

    /// Like `request_message`, for JSON replies. An error in the reply is the inner `Err`.
    pub fn ask(
        &self,
        subject: &str,
        headers: &[(&str, &str)],
        data: &[u8],
        timeout: Duration,
    ) -> Result<Result<Value, ApiError>, StreamError> {
        let message = self.request_message(subject, headers, data, timeout, AnswerKind::Reply)?;
        self.read_reply(subject, message)
    }

    fn read_reply(
        &self,
        subject: &str,
        message: nats::Message,
    ) -> Result<Result<Value, ApiError>, StreamError> {
        if let Some((code, text)) = status(&message) {
            let address = self.address();
            let description = match code {
                503 => format!("{address} offers no JetStream, or its part of the cluster is away"),
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

    /// A request whose error replies matter only as text: they become `Refused`.
    pub fn request(
        &self,
        subject: &str,
        body: &Value,
        timeout: Duration,
    ) -> Result<Value, StreamError> {
        self.ask(subject, &[], body.to_string().as_bytes(), timeout)?
            .map_err(|error| error.refused(subject))
    }

    /// Calls the JetStream API, for example `STREAM.INFO.x`, within [`API_TIMEOUT`]. The call may
    /// be carried out twice, so it must be harmless when repeated.
    pub fn api(&self, call: &str, body: &Value) -> Result<Result<Value, ApiError>, StreamError> {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let (subject, answer) = (self.api_subject(call), AnswerKind::ReplyOrAskAgain);
        let message = self.request_message(&subject, &[], body.as_bytes(), API_TIMEOUT, answer)?;
        self.read_reply(&subject, message)
    }

    /// Makes several JetStream API calls that change nothing, at most 64 at once. The answers are
    /// in the order of `calls`.
    pub fn api_many(
        &self,
        calls: &[(String, Value)],
    ) -> Result<Vec<Result<Value, ApiError>>, StreamError> {
        let mut answers = Vec::with_capacity(calls.len());
        for some in calls.chunks(AT_ONCE) {
            answers.extend(self.api_at_once(some)?);
        }
        Ok(answers)
    }

    fn api_at_once(
        &self,
        calls: &[(String, Value)],
    ) -> Result<Vec<Result<Value, ApiError>>, StreamError> {
        let first = self.next_request.get() + 1;
        self.next_request.set(first - 1 + calls.len() as u64);
        let mut answers: Vec<Option<Result<Value, ApiError>>> = Vec::new();
        answers.resize_with(calls.len(), || None);
        self.send_unanswered(calls, &answers, first)?;
        let deadline = after(API_TIMEOUT);
        let (mut wait, mut again) = (ASK_AGAIN, after(ASK_AGAIN));
        let number = |subject: &str| subject.rsplit('.').next()?.parse::<u64>().ok();
        while answers.iter().any(Option::is_none) {
            select! {
                recv(self.replies.messages) -> message => {
                    let message = message.map_err(|_| self.lost())?;
                    let at = number(&message.subject).and_then(|n| n.checked_sub(first));
                    let at = at.map_or(calls.len(), |at| at as usize);
                    if let (Some((call, _)), Some(answer)) = (calls.get(at), answers.get_mut(at)) {
                        *answer = Some(self.read_reply(call, message)?);
                    }
                }
                recv(again) -> _ => {
                    self.send_unanswered(calls, &answers, first)?;
                    wait *= 2;
                    again = after(wait);
                }
                recv(deadline) -> _ => {
                    self.doubt();
                    let (address, waited) = (self.address(), API_TIMEOUT.as_millis());
                    let text = format!("no answer from {address} within {waited} ms");
                    return Err(StreamError::Disconnected(text));
                }
            }
        }
        Ok(answers.into_iter().flatten().collect())
    }

    /// Sends those of `calls` that have no answer yet. The number of the first is `first`.
    fn send_unanswered(
        &self,
        calls: &[(String, Value)],
        answers: &[Option<Result<Value, ApiError>>],
        first: u64,
    ) -> Result<(), StreamError> {
        let numbered = (first..).zip(calls).zip(answers);
        for ((number, (call, body)), _) in numbered.filter(|(_, answer)| answer.is_none()) {
            let reply = format!("{}.{number}", self.replies.subject);
            let (subject, body) = (self.api_subject(call), body.to_string());
            self.publish(&subject, Some(&reply), &[], body.as_bytes())?;
        }
        Ok(())
    }

    /// The same connection for one more thread. It ends when its last client is dropped.
    pub fn beside(&self) -> Result<Client, StreamError> {
        Ok(Client {
            link: self.link.clone(),
            greeting: self.greeting.clone(),
            replies: self.link.inbox(None)?,
            next_request: Cell::new(0),
            domain: self.domain.clone(),
            heartbeat: self.heartbeat,
            bandwidth: self.bandwidth.clone(),
            seal: self.seal.clone(),
            meta_bucket: self.meta_bucket.clone(),
            owners: self.owners.clone(),
        })
    }

    fn failed(&self, tried: impl fmt::Display, error: &io::Error) -> StreamError {
        StreamError::Disconnected(format!("{tried} at {}: {error}", self.address()))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({})", self.address())
    }
}

/// `NATS/1.0` and the line ends around the headers.
const HEADER_LINE_BYTES: usize = 12;
