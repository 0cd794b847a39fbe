//! The thread that connects for the publisher.

use crossbeam_channel::{Receiver, Sender};

use super::{CONNECTING, ConnectPauses};
use crate::clock::{Clock, SystemClock};
use crate::cluster::broker::Broker;
use crate::cluster::stream_continuity::{self, ContinuityError};
use crate::logging::RepeatedFailure;
use crate::model::backoff::check_retries;
use crate::shared::Shared;
use crate::stream::{StreamError, Writer};

/// Asks for a connection, and tells how the last one ended.
#[derive(Default)]
pub(super) struct ConnectRequest {
    /// Whether at some time everything sent on the last connection was stored.
    pub worked: bool,
    /// Whether that connection ended because the broker did not store a message. Such a broker
    /// still accepts connections.
    pub refused: bool,
}

/// Connects for the publisher, on a thread of its own: connecting may take seconds, and capture
/// goes on meanwhile.
pub(super) fn connect_when_asked(
    broker: &dyn Broker,
    shared: &Shared,
    mut pauses: ConnectPauses,
    asked: &Receiver<ConnectRequest>,
    offer: &Sender<Box<dyn Writer>>,
    stop: &Receiver<()>,
) -> Result<(), String> {
    let mut worked = false;
    while let Ok(ask) = asked.recv() {
        pauses.backoff.reset();
        if ask.worked || !ask.refused {
            pauses.refused.reset();
        }
        if ask.refused && !broker.pause(pauses.refused.wait(), stop) {
            return Ok(());
        }
        let (mut failures, mut failure) = (0, RepeatedFailure::default());
        loop {
            let text = match connect(broker, shared) {
                Ok(writer) => {
                    worked = true;
                    let _ = offer.send(writer);
                    break;
                }
                Err(StreamError::Fatal(text)) => return Err(text),
                Err(StreamError::Denied(text)) if !worked => return Err(text),
                Err(StreamError::Stopped) => return Ok(()),
                Err(StreamError::Offline(_)) => {
                    pauses.backoff.reset();
                    if !broker.pause(pauses.backoff.wait(), stop) {
                        return Ok(());
                    }
                    pauses.backoff.reset();
                    continue;
                }
                Err(e) => e.to_string(),
            };
            failures += 1;
            shared.health.report_failing(CONNECTING, &text);
            check_retries(failures, pauses.retries, &text)?;
            if let Some(level) = failure.fails(&text, SystemClock.uptime()) {
                let text = format!("connecting to NATS: {text}");
                log::log!(level, "{text}; changes are captured and kept meanwhile");
            }
            if !broker.pause(pauses.backoff.wait(), stop) {
                return Ok(());
            }
        }
    }
    Ok(())
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
