//! A pull brings no messages: the stream holds none, the server is late, or the consumer is dead.
//!
//! The reader asks the stream for its last sequence. A consumer is dead if two answers show that
//! the stream holds more and it delivers nothing. It is also dead if it sends no sign of life
//! between two answers. The reader gives up the connection only if the stream does not answer
//! either.

use std::time::Duration;

use crossbeam_channel::after;
use serde_json::Value;

use super::super::StreamError;
use super::super::client::API_TIMEOUT;
use super::{Arrival, JetStreamReader, NOWHERE};

/// Usual interval at which a server of a cluster sends a heartbeat while it has no messages.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// The same for a server alone: its consumers end with its connections, which then are closed. Only
/// a network that swallows everything is noticed late.
const HEARTBEAT_ALONE: Duration = Duration::from_secs(10);
/// How late a heartbeat may be before the reader asks the stream.
const LATE: Duration = Duration::from_secs(1);
/// Last token of the reply subject of such a request.
pub(super) const ANSWER: &str = ".end-of-stream";

/// After an answer that shows more messages, how long they may take to arrive.
const MORE: Duration = Duration::from_secs(1);

/// Requests and answers since the last sign of life.
#[derive(Default)]
pub(super) struct Silence {
    /// Requests without an answer.
    asked: u32,
    /// Answers that showed more messages than were read.
    more: u32,
    /// Answers that showed no more messages.
    nothing: u32,
}

/// Conclusion from an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Ask again after this time.
    Wait(Duration),
    /// The consumer is dead, and messages are waiting.
    Missing,
    /// The consumer is dead, and there is nothing to deliver.
    Gone,
    /// The answer to an earlier request.
    Late,
}

impl Silence {
    /// Called when the time is over. True: ask the stream, again if needed, since an earlier
    /// request may have reached a server that had just started. `each` is the time between two
    /// requests. False: the stream has not answered for `patience`.
    pub(super) fn asks(&mut self, each: Duration, patience: Duration) -> bool {
        let asks = self.asked == 0 || each * self.asked < patience;
        self.asked += 1;
        asks
    }

    /// Records an answer. `has_more`: the stream holds messages after the last one read. The next
    /// sign of life is due within `heartbeat`.
    pub(super) fn answered(&mut self, has_more: bool, heartbeat: Duration) -> Verdict {
        if std::mem::take(&mut self.asked) == 0 {
            return Verdict::Late;
        }
        match has_more {
            true => self.more += 1,
            false => self.nothing += 1,
        }
        match (self.more, self.nothing) {
            (2.., _) => Verdict::Missing,
            (_, 2..) => Verdict::Gone,
            _ if has_more => Verdict::Wait(MORE),
            _ => Verdict::Wait(heartbeat),
        }
    }
}

impl JetStreamReader {
    /// Interval of the server's heartbeats.
    pub(super) fn heartbeat(&self) -> Duration {
        let is_alone = |c: &super::PullConsumer| !c.is_clustered && !self.client.is_elsewhere();
        let usual = match self.consumer.as_ref().is_some_and(is_alone) {
            true => HEARTBEAT_ALONE,
            false => HEARTBEAT,
        };
        self.heartbeat.unwrap_or(usual)
    }

    /// The longest that [`Self::heartbeat`] may be.
    pub(super) fn rarest_heartbeat(&self) -> Duration {
        self.heartbeat.unwrap_or(HEARTBEAT_ALONE)
    }

    /// Records a sign of life of the consumer.
    pub(super) fn heard(&mut self) {
        self.silence = Silence::default();
        self.silent = after(self.heartbeat() + LATE);
    }

    /// Asks the stream for its last sequence. False: earlier requests got no answer.
    pub(super) fn check_silence(&mut self) -> Result<bool, StreamError> {
        let pull = self.consumer.as_ref().and_then(|c| c.pull.as_ref());
        let patience = API_TIMEOUT + pull.map_or(Duration::ZERO, |pull| pull.passes);
        if !self.silence.asks(API_TIMEOUT, patience) {
            return Ok(false);
        }
        self.silent = after(API_TIMEOUT);
        let subject = self
            .client
            .api_subject(&format!("STREAM.INFO.{}", self.stream));
        let reply = format!("{}{}", self.inbox.subject, ANSWER);
        self.client.publish(&subject, Some(&reply), &[], b"")?;
        Ok(true)
    }

    /// Handles the stream's answer; `next` is the sequence that is due.
    pub(super) fn told_of_the_end(&mut self, next: u64, answer: &[u8]) -> Arrival {
        let answer: Value = serde_json::from_slice(answer).unwrap_or_default();
        let last = answer["state"]["last_seq"].as_u64().unwrap_or(0);
        match self.silence.answered(last >= next, self.heartbeat() + LATE) {
            Verdict::Late => {}
            Verdict::Wait(time) => self.silent = after(time),
            Verdict::Missing => {
                let text =
                    format!("no message arrives from {next} on, but the stream holds up to {last}");
                log::warn!(
                    "stream {}: {text}: this node reads it with a new consumer",
                    self.stream
                );
                return Arrival::Odd(text);
            }
            Verdict::Gone => {
                if let Some(consumer) = &mut self.consumer {
                    consumer.next = NOWHERE;
                }
            }
        }
        Arrival::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEAT: Duration = Duration::from_secs(4);

    fn asks(silence: &mut Silence) -> bool {
        silence.asks(Duration::from_secs(5), Duration::from_secs(12))
    }

    #[test]
    fn a_consumer_counts_as_dead_at_the_second_answer() {
        let mut silence = Silence::default();
        assert_eq!(silence.answered(true, BEAT), Verdict::Late);
        assert!(asks(&mut silence));
        assert_eq!(silence.answered(false, BEAT), Verdict::Wait(BEAT));
        assert!(asks(&mut silence));
        assert_eq!(silence.answered(true, BEAT), Verdict::Wait(MORE));
        assert!(asks(&mut silence));
        assert_eq!(silence.answered(true, BEAT), Verdict::Missing);
        let mut idle = Silence::default();
        for verdict in [Verdict::Wait(BEAT), Verdict::Gone] {
            assert!(asks(&mut idle));
            assert_eq!(idle.answered(false, BEAT), verdict);
        }
    }

    #[test]
    fn no_answer_is_told_from_a_first_silence() {
        let mut silence = Silence::default();
        assert_eq!(
            [(); 4].map(|()| asks(&mut silence)),
            [true, true, true, false]
        );
    }
}
