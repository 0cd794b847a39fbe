//! The one life of a connection: it opens, and it ends once.
//!
//! The `nats` crate would reconnect by itself, and then nobody knows which messages were lost in
//! between. So the crate's disconnect callback, and whoever has had enough, [`end`](Link::end)s it:
//! that stops the crate's threads and closes every [`Inbox`], which all who wait notice at once.
#![allow(deprecated)]

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::Receiver;

use super::StreamError;
use crate::address::server::Address;

/// The crate's connection with everything that hangs on it.
struct Life {
    wake: String,
    // The order of these two matters, see `drop`.
    connection: nats::Connection,
    subscriptions: Vec<nats::Subscription>,
}

impl Life {
    fn subscribe(&mut self, subject: String) -> io::Result<Inbox> {
        let subscription = self.connection.subscribe(&format!("{subject}.*"))?;
        let messages = subscription.receiver().clone();
        self.subscriptions.push(subscription);
        Ok(Inbox { subject, messages })
    }
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
enum LinkState {
    Opening,
    Open(Life),
    Ended,
}

/// The part of a connection that the crate's callbacks and helper threads share.
#[derive(Clone)]
pub(super) struct Link {
    state: Arc<Mutex<LinkState>>,
    /// What the server last complained of: tells why it hung up.
    complaint: Arc<Mutex<Option<String>>>,
    /// For error texts.
    pub(super) address: Arc<str>,
}

impl Link {
    pub(super) fn new(address: &Address) -> Link {
        Link {
            state: Arc::new(Mutex::new(LinkState::Opening)),
            complaint: Arc::default(),
            address: address.to_string().into(),
        }
    }

    /// Takes over a connection that was just made, and gives its first inbox.
    pub(super) fn begin(&self, connection: nats::Connection) -> Result<Inbox, StreamError> {
        let wake = connection.new_inbox();
        let mut life = Life {
            wake: format!("{wake}.end"),
            connection,
            subscriptions: Vec::new(),
        };
        let inbox = life.subscribe(wake).map_err(|_| self.lost())?;
        let mut state = lock(&self.state);
        if let LinkState::Ended = *state {
            drop(state);
            return Err(self.lost());
        }
        *state = LinkState::Open(life);
        Ok(inbox)
    }

    /// One more inbox: a new one, or messages to what is below a subject.
    pub(super) fn inbox(&self, below: Option<&str>) -> Result<Inbox, StreamError> {
        let mut state = lock(&self.state);
        if let LinkState::Open(life) = &mut *state {
            let subject = below.map_or_else(|| life.connection.new_inbox(), str::to_owned);
            if let Ok(inbox) = life.subscribe(subject) {
                return Ok(inbox);
            }
        }
        drop(state);
        Err(self.lost())
    }

    /// Runs on the crate's reader thread: may take no part in a conversation with the server.
    pub(super) fn complain(&self, error: &io::Error) {
        let text = error.to_string();
        let level = match is_new(&text) {
            true => log::Level::Warn,
            false => log::Level::Debug,
        };
        log::log!(level, "nats server {} says: {text}", self.address);
        *lock(&self.complaint) = Some(text);
    }

    /// For the text of an error, what the server complained of, if it did.
    pub(super) fn complaint(&self) -> String {
        match &*lock(&self.complaint) {
            Some(complaint) => format!(", the server said: {complaint}"),
            None => String::new(),
        }
    }

    /// Ends the connection, from any thread, once and for all.
    pub(super) fn end(&self) {
        let ended = std::mem::replace(&mut *lock(&self.state), LinkState::Ended);
        drop(ended); // after the lock is released: dropping a life writes to the socket
    }

    /// The crate's connection. To be given back soon: it cannot end while a copy of it exists.
    pub(super) fn connection(&self) -> Result<nats::Connection, StreamError> {
        match &*lock(&self.state) {
            LinkState::Open(life) => Ok(life.connection.clone()),
            _ => Err(self.lost()),
        }
    }

    /// The error of everyone who waits on a connection that ended.
    pub(super) fn lost(&self) -> StreamError {
        let why = self.complaint();
        StreamError::Disconnected(format!("connection to {} lost{why}", self.address))
    }
}

/// A subject of our own with its messages; closed when the connection ends.
pub struct Inbox {
    /// Replies are asked for at `<subject>.<anything>`.
    pub subject: String,
    pub messages: Receiver<nats::Message>,
}

/// So many complaints are remembered.
const REMEMBERED: usize = 64;

/// Whether no connection of this process has heard that yet. A right that is missing would else be
/// named at every try.
fn is_new(complaint: &str) -> bool {
    static SAID: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());
    // Consumers and inboxes have names of their own each time.
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

/// The mutexes here guard plain values, whole at any time: a panic elsewhere spoils nothing.
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
