//! The life of a connection: it opens and ends once.
//!
//! The `nats` crate would reconnect by itself, and nobody would know which messages were lost in
//! between. So the crate's disconnect callback and any user of the connection can
//! [`end`](Link::end) it. This stops the crate's threads and closes every [`Inbox`], so all waiting
//! threads notice at once.
#![allow(deprecated)]

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::Receiver;

use super::StreamError;
use crate::address::server::Address;
use crate::thread::spawn_detached;

/// The crate's connection and everything that depends on it.
struct Life {
    wake: String,
    // The order of these three matters, see `drop`.
    connection: nats::Connection,
    _woken: nats::Subscription,
    subscriptions: BTreeMap<u64, nats::Subscription>,
    next: u64,
    at_end: Vec<Box<dyn FnOnce() + Send>>,
}

impl Life {
    fn begin(connection: nats::Connection) -> io::Result<Life> {
        let wake = format!("{}.end", connection.new_inbox());
        Ok(Life {
            _woken: connection.subscribe(&wake)?,
            wake,
            connection,
            subscriptions: BTreeMap::new(),
            next: 0,
            at_end: Vec::new(),
        })
    }

    /// The messages below `subject`, and the number of their subscription. Beyond `limit`, messages
    /// are dropped.
    fn subscribe(
        &mut self,
        subject: &str,
        limit: Option<usize>,
    ) -> io::Result<(u64, Receiver<nats::Message>)> {
        let subscription = self.connection.subscribe(&format!("{subject}.*"))?;
        if let Some(limit) = limit {
            subscription.set_message_limits(limit);
        }
        let messages = subscription.receiver().clone();
        self.next += 1;
        self.subscriptions.insert(self.next, subscription);
        Ok((self.next, messages))
    }
}

impl Drop for Life {
    /// The crate's `close` waits for the server, which may be gone. Dropping `connection` only sets
    /// the crate's stop flag. Dropping a subscription then wakes the crate's flush thread, which
    /// flushes the message to ourselves, and that message wakes the crate's reader thread. Both
    /// threads see the flag and end.
    fn drop(&mut self) {
        let _ = self.connection.publish(&self.wake, b"");
        self.at_end.drain(..).for_each(|told| told());
    }
}

/// State of a connection.
enum LinkState {
    Opening,
    Open(Life),
    Ended,
}

/// The part of a connection that the crate's callbacks and helper threads share.
#[derive(Clone)]
pub(super) struct Link {
    state: Arc<Mutex<LinkState>>,
    /// The server's last complaint, which tells why it closed the connection.
    complaint: Arc<Mutex<Option<String>>>,
    /// A request on the connection failed, so that no further thread is to use it.
    is_doubted: Arc<AtomicBool>,
    /// For error texts.
    pub(super) address: Arc<str>,
}

impl Link {
    pub(super) fn new(address: &Address) -> Link {
        Link {
            state: Arc::new(Mutex::new(LinkState::Opening)),
            complaint: Arc::default(),
            is_doubted: Arc::default(),
            address: address.to_string().into(),
        }
    }

    /// Takes over a new connection and returns its first inbox.
    pub(super) fn begin(&self, connection: nats::Connection) -> Result<Inbox, StreamError> {
        let life = Life::begin(connection).map_err(|_| self.lost())?;
        let mut state = lock(&self.state);
        if let LinkState::Ended = *state {
            drop(state);
            return Err(self.lost());
        }
        *state = LinkState::Open(life);
        drop(state);
        self.inbox(None)
    }

    /// Creates an inbox: with a new subject, or for all messages below the given subject.
    pub(super) fn inbox(&self, below: Option<&str>) -> Result<Inbox, StreamError> {
        let mut state = lock(&self.state);
        if let LinkState::Open(life) = &mut *state {
            let subject = below.map_or_else(|| life.connection.new_inbox(), str::to_owned);
            let limit = below.map(|_| WATCHED);
            if let Ok((number, messages)) = life.subscribe(&subject, limit) {
                let link = self.clone();
                return Ok(Inbox {
                    subject,
                    messages,
                    link,
                    number,
                });
            }
        }
        drop(state);
        Err(self.lost())
    }

    /// Calls `told` when the connection ends; at once if it has ended.
    pub(super) fn at_end(&self, told: impl FnOnce() + Send + 'static) {
        let mut state = lock(&self.state);
        match &mut *state {
            LinkState::Open(life) => life.at_end.push(Box::new(told)),
            _ => {
                drop(state);
                told();
            }
        }
    }

    /// Lets no further thread use the connection: a request on it failed. Those that use it go on.
    pub(super) fn doubt(&self) {
        self.is_doubted.store(true, Ordering::Relaxed);
    }

    /// Whether the connection is open, and no request on it failed.
    pub(super) fn is_sound(&self) -> bool {
        !self.is_doubted.load(Ordering::Relaxed) && self.connection().is_ok()
    }

    /// Runs on the crate's reader thread, so it must not wait for the server.
    pub(super) fn complain(&self, error: &io::Error) {
        let text = error.to_string();
        let level = match is_new(&text) {
            true => log::Level::Warn,
            false => log::Level::Debug,
        };
        log::log!(level, "nats server {} says: {text}", self.address);
        *lock(&self.complaint) = Some(text);
    }

    /// The server's complaint as a suffix for an error text; empty if it made none.
    pub(super) fn complaint(&self) -> String {
        match &*lock(&self.complaint) {
            Some(complaint) => format!(", the server said: {complaint}"),
            None => String::new(),
        }
    }

    /// Ends the connection for good, from any thread.
    pub(super) fn end(&self) {
        let ended = std::mem::replace(&mut *lock(&self.state), LinkState::Ended);
        drop(ended); // after the lock is released: dropping a life writes to the socket
    }

    /// The crate's connection. Callers must drop it soon: the connection cannot end while a copy
    /// exists.
    pub(super) fn connection(&self) -> Result<nats::Connection, StreamError> {
        match &*lock(&self.state) {
            LinkState::Open(life) => Ok(life.connection.clone()),
            _ => Err(self.lost()),
        }
    }

    /// The error for every thread that waits on a connection that has ended.
    pub(super) fn lost(&self) -> StreamError {
        let why = self.complaint();
        StreamError::Disconnected(format!("connection to {} lost{why}", self.address))
    }
}

/// A subject of this process with its messages; closed when the connection ends.
pub struct Inbox {
    /// Replies are requested at `<subject>.<anything>`.
    pub subject: String,
    /// The messages that arrive at it.
    pub messages: Receiver<nats::Message>,
    link: Link,
    number: u64,
}

impl Drop for Inbox {
    /// The connection may live on with other threads. The crate tells the server that nobody
    /// listens any more, which must not block the caller if the server stopped reading.
    fn drop(&mut self) {
        let gone = match &mut *lock(&self.link.state) {
            LinkState::Open(life) => life.subscriptions.remove(&self.number),
            _ => None,
        };
        if let Some(gone) = gone {
            let _ = spawn_detached("nats-close", move || drop(gone));
        }
    }
}

/// Most messages that wait in the inbox of a watched subject; later ones are dropped. Anybody may
/// write there, in messages of a megabyte.
pub const WATCHED: usize = 32;

/// Number of complaints remembered.
const REMEMBERED: usize = 64;

/// Whether no connection of this process has received this complaint yet. Otherwise a missing
/// permission would be logged at every attempt.
fn is_new(complaint: &str) -> bool {
    static SAID: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());
    // Consumers and inboxes have new names each time.
    let kind = complaint
        .split_once("_INBOX.")
        .map_or(complaint, |(kind, _)| kind);
    let kind: Vec<_> = kind.split('.').take(6).collect();
    let kind = kind.join(".");
    let mut said = lock(&SAID);
    if said.contains(&kind) {
        return false;
    }
    if said.len() == REMEMBERED {
        said.pop_front();
    }
    said.push_back(kind);
    true
}

/// The mutexes here guard plain values that are always consistent, so a panic in a different thread
/// does no harm.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_right_is_new_once() {
        let text = |subject: &str| format!("Permissions Violation for Publish to \"{subject}\"");
        assert!(is_new(&text("$JS.API.CONSUMER.MSG.NEXT.test-1.abc")));
        assert!(!is_new(&text("$JS.API.CONSUMER.MSG.NEXT.test-1.def")));
        assert!(is_new(&text("$JS.API.STREAM.INFO.test-1")));
        assert!(is_new(&text("_INBOX.a.end")));
        assert!(!is_new(&text("_INBOX.b.end")));
    }
}
