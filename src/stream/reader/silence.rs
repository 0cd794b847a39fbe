//! A pull that brings no messages: is there none, is the server late, or is the consumer dead?
//!
//! The stream is asked for its end. A consumer that brings nothing although there is more, at two
//! answers, is dead; so is one that shows no life between two answers. Only an answer that stays out
//! as well says that the connection is of no use.

use std::time::Duration;

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
