//! A pull that brings no messages: is there none, is the server late, or is the consumer dead?
//!
//! The stream is asked for its end. A consumer that brings nothing although there is more, at two
//! answers, is dead; so is one that shows no life between two answers. Only an answer that stays
//! out as well says that the connection is of no use.

use std::time::Duration;

use crossbeam_channel::after;
use serde_json::Value;

use super::super::StreamError;
use super::super::client::API_TIMEOUT;
use super::{Arrival, JetStreamReader, NOWHERE};

/// The server sends a sign of life this often while it has no messages.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(3);
/// How late that may be before the stream is asked.
const LATE: Duration = Duration::from_secs(1);
/// The end of the reply subject of such a question.
pub(super) const ANSWER: &str = ".end-of-stream";

/// After an answer that there is more, so long for it to arrive.
const MORE: Duration = Duration::from_secs(1);

/// Questions and answers since the last sign of life.
#[derive(Default)]
pub(super) struct Silence {
    /// Questions without an answer.
    asked: u32,
    more: u32,
    nothing: u32,
}

/// What an answer means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Ask again after this time.
    Wait(Duration),
    /// The consumer is dead, and messages wait.
    Missing,
    /// It is dead, and there was nothing to bring.
    Gone,
    /// An answer to an earlier question.
    Late,
}

impl Silence {
    /// The time is over. True: ask the stream, once more if it was asked before `each`: a question
    /// may have met a server that was just started. False: it does not answer for `patience`.
    pub(super) fn asks(&mut self, each: Duration, patience: Duration) -> bool {
        let asks = self.asked == 0 || each * self.asked < patience;
        self.asked += 1;
        asks
    }

    /// The stream says whether it has more than was read; a sign of life is due within `heartbeat`.
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
    /// A sign of life of the consumer.
    pub(super) fn heard(&mut self) {
        self.silence = Silence::default();
        self.silent = after(HEARTBEAT + LATE);
    }

    /// Asks the stream for its end. False: it was asked before, and does not answer.
    pub(super) fn look_at_silence(&mut self) -> Result<bool, StreamError> {
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

    /// The stream's answer to that, where `next` is the sequence that is due.
    pub(super) fn told_of_the_end(&mut self, next: u64, answer: &[u8]) -> Arrival {
        let answer: Value = serde_json::from_slice(answer).unwrap_or_default();
        let last = answer["state"]["last_seq"].as_u64().unwrap_or(0);
        match self.silence.answered(last >= next, HEARTBEAT + LATE) {
            Verdict::Late => {}
            Verdict::Wait(time) => self.silent = after(time),
            Verdict::Missing => {
                let text = format!("nothing arrives from {next} on, but it holds up to {last}");
                log::warn!(
                    "stream {}: {text}: reading it by a new consumer",
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
