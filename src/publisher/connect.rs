//! The thread that connects for the publisher.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::{CONNECTING, ConnectPauses, SETTINGS};
use crate::clock::{Clock, SystemClock};
use crate::cluster::broker::Broker;
use crate::cluster::stream_continuity::{self, ContinuityError};
use crate::logging::RepeatedFailure;
use crate::model::backoff::{Backoff, check_retries};
use crate::shared::Shared;
use crate::stream::{StreamError, Writer};
use crate::thread::{Exited, spawn_brief};

/// Asks for a connection, and tells how the last one ended.
#[derive(Default)]
pub(super) struct ConnectRequest {
    /// Whether at some time everything sent on the last connection was stored.
    pub worked: bool,
    /// Whether that connection ended because the broker did not store a message. Such a broker
    /// still accepts connections.
    pub refused: bool,
}

/// Connects for the publisher, on a thread that exists only meanwhile: connecting may take seconds,
/// and capture goes on.
pub(super) struct Connector {
    shared: Arc<Shared>,
    broker: Arc<dyn Broker>,
    /// None: this node publishes nothing, and needs no connection for that.
    pauses: Option<ConnectPauses>,
    stop: Receiver<()>,
    exits: Sender<Exited>,
    offer: Sender<Box<dyn Writer>>,
    writers: Receiver<Box<dyn Writer>>,
    is_connecting: bool,
    /// Whether there was a connection before.
    worked: bool,
    thread: Option<JoinHandle<()>>,
}

impl Connector {
    pub(super) fn new(
        shared: Arc<Shared>,
        broker: Arc<dyn Broker>,
        pauses: Option<ConnectPauses>,
        stop: Receiver<()>,
        exits: &Sender<Exited>,
    ) -> Connector {
        let (offer, writers) = bounded(1);
        Connector {
            shared,
            broker,
            pauses,
            stop,
            exits: exits.clone(),
            offer,
            writers,
            is_connecting: false,
            worked: false,
            thread: None,
        }
    }

    /// Receives a new connection after [`Connector::connect`].
    pub(super) fn writers(&self) -> &Receiver<Box<dyn Writer>> {
        &self.writers
    }

    /// Notes that a connection was received.
    pub(super) fn has_connected(&mut self) {
        (self.is_connecting, self.worked) = (false, true);
    }

    /// Begins to connect, unless that is under way.
    pub(super) fn connect(&mut self, ask: ConnectRequest) {
        let Some(pauses) = self.pauses.as_mut().filter(|_| !self.is_connecting) else {
            return;
        };
        if ask.worked || !ask.refused {
            pauses.refused.reset();
        }
        let attempts = Attempts {
            shared: self.shared.clone(),
            broker: self.broker.clone(),
            stop: self.stop.clone(),
            offer: self.offer.clone(),
            worked: self.worked,
            first: ask.refused.then(|| pauses.refused.wait()),
            backoff: pauses.backoff.clone(),
            retries: pauses.retries,
        };
        match spawn_brief("publisher-link", &self.exits, move || attempts.run()) {
            Ok(thread) => (self.thread, self.is_connecting) = (Some(thread), true),
            Err(e) => log::warn!("connecting to NATS: {e}"),
        }
    }

    /// Waits for the end of the thread, which `stop` ends: it may write positions, which must not
    /// happen after the end of the publisher.
    pub(super) fn finish(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One thread's attempts to connect.
struct Attempts {
    shared: Arc<Shared>,
    broker: Arc<dyn Broker>,
    stop: Receiver<()>,
    offer: Sender<Box<dyn Writer>>,
    worked: bool,
    /// Wait before the first attempt.
    first: Option<Duration>,
    backoff: Backoff,
    retries: Option<u32>,
}

impl Attempts {
    fn run(mut self) -> Result<(), String> {
        if let Some(wait) = self.first
            && !self.broker.pause(wait, &self.stop)
        {
            return Ok(());
        }
        let health = &self.shared.health;
        let (mut failures, mut failure) = (0, RepeatedFailure::default());
        loop {
            let text = match connect(&*self.broker, &self.shared) {
                Ok(writer) => {
                    match self.broker.settings_differ() {
                        Some(text) => health.report_failing(SETTINGS, &text),
                        None => health.report_ok(SETTINGS),
                    }
                    let _ = self.offer.send(writer);
                    return Ok(());
                }
                Err(StreamError::Fatal(text)) => return Err(text),
                Err(StreamError::Denied(text)) if !self.worked => return Err(text),
                Err(StreamError::Stopped) => return Ok(()),
                Err(StreamError::Offline(_)) => {
                    self.backoff.reset();
                    if !self.broker.pause(self.backoff.wait(), &self.stop) {
                        return Ok(());
                    }
                    self.backoff.reset();
                    continue;
                }
                Err(e) => e.to_string(),
            };
            failures += 1;
            health.report_failing(CONNECTING, &text);
            check_retries(failures, self.retries, &text)?;
            if let Some(level) = failure.fails(&text, SystemClock.uptime()) {
                let text = format!("connecting to NATS: {text}");
                log::log!(level, "{text}; changes are captured and kept meanwhile");
            }
            if !self.broker.pause(self.backoff.wait(), &self.stop) {
                return Ok(());
            }
        }
    }
}

/// Connects, after checking that the streams are still the ones that were read before.
fn connect(broker: &dyn Broker, shared: &Shared) -> Result<Box<dyn Writer>, StreamError> {
    let writer = broker.writer()?;
    for shard in 1..=broker.shards() {
        let mut reader = broker.reader(shard)?;
        let state = reader.state()?;
        stream_continuity::verify_position(shared, &broker.stream(shard), &mut *reader, &state)
            .map_err(|e| match e {
                ContinuityError::Stream(e) => e,
                ContinuityError::Database(e) => StreamError::Disconnected(format!("database: {e}")),
            })?;
    }
    Ok(writer)
}
