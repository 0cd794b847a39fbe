//! Turns: between pieces of long work, all threads together leave the write lock to the
//! application.

use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use super::{Shared, locked};
use crate::database::TIME_BOX;

/// An application that wrote within this time is likely to want the write lock now.
const WRITES: Duration = Duration::from_secs(1);

/// SQLite's busy handler sleeps at most 100 ms, so every waiting application gets the lock in a
/// pause of this length, and a longer one is of no use.
pub const SURE_PAUSE: Duration = Duration::from_millis(120);

/// One pause in this time is a sure one. In the shorter pauses the application gets the lock by
/// luck. Once in some 30,000 writes that luck fails fifteen times in a row, and the application
/// would have waited for a second.
const SURE_EVERY: Duration = Duration::from_millis(700);

/// See [`Shared::take_turn`].
pub type Turn<'a> = MutexGuard<'a, Pauses>;

#[derive(Debug)]
pub struct Pauses {
    /// When the last pause ends.
    end: Instant,
    /// When the last sure pause ended.
    sure: Instant,
}

impl Pauses {
    pub(super) fn from(now: Instant) -> Self {
        let (end, sure) = (now, now);
        Pauses { end, sure }
    }

    fn begin_turn(&mut self, now: Instant) {
        if now.saturating_duration_since(self.end) >= SURE_PAUSE {
            self.sure = now; // nobody had a turn for so long
        }
    }
}

impl Shared {
    /// Held over a piece of long work by every thread that does any: a pause of one thread is of no
    /// use to the application while another works. Waits for the end of the pause under way. Call
    /// it before [`Shared::lock`].
    pub fn take_turn(&self) -> Turn<'_> {
        loop {
            let mut turn = locked(&self.turn);
            let now = Instant::now();
            let left = turn.end.saturating_duration_since(now);
            if left.is_zero() {
                turn.begin_turn(now);
                return turn;
            }
            drop(turn);
            std::thread::sleep(left);
        }
    }

    /// As [`Shared::take_turn`] without waiting, so it may be called under the lock, too. An error
    /// gives the time to try again.
    pub fn try_turn(&self) -> Result<Turn<'_>, Instant> {
        let now = Instant::now();
        match self.turn.try_lock() {
            Ok(mut turn) if turn.end <= now => {
                turn.begin_turn(now);
                Ok(turn)
            }
            Ok(turn) => Err(turn.end),
            Err(_) => Err(now + TIME_BOX),
        }
    }

    /// Ends a turn in which the lock was held for `held`. Returns the pause before the next turn.
    pub fn rest(&self, mut turn: Turn<'_>, held: Duration) -> Duration {
        let now = Instant::now();
        let is_sure = now.saturating_duration_since(turn.sure) >= SURE_EVERY;
        let pause = match self.counted(held) / 2 {
            pause if pause < SURE_PAUSE && !is_sure => pause,
            _ => SURE_PAUSE,
        };
        turn.end = now + pause;
        if pause == SURE_PAUSE {
            turn.sure = turn.end;
        }
        pause
    }

    /// Notes that the application wrote just now.
    pub fn note_written(&self) {
        *locked(&self.written) = Some(Instant::now());
    }

    /// The time that counts for the pause after `held`. An application that waits for the lock
    /// tries more and more seldom. If it writes, it gets the lock for half of the time: with a
    /// third, one write in a hundred would wait for 200 ms.
    fn counted(&self, held: Duration) -> Duration {
        match *locked(&self.written) {
            Some(at) if at.elapsed() < WRITES => held * 2,
            _ => held,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::tests::support::Node;

    #[test]
    fn nobody_has_the_next_turn_before_the_pause_is_over() {
        let shared = Shared::new(Node::unmet(1, "").db, 1).0;
        let turn = shared.take_turn();
        assert!(shared.try_turn().is_err(), "somebody works");
        let pause = shared.rest(turn, Duration::from_secs(60));
        assert_eq!(pause, SURE_PAUSE);
        let over = shared
            .try_turn()
            .expect_err("the application has its pause");
        drop(shared.take_turn());
        assert!(Instant::now() >= over && shared.try_turn().is_ok());
    }

    #[test]
    fn an_application_that_writes_has_the_lock_for_as_long_as_we_had_it() {
        let shared = Shared::new(Node::unmet(1, "").db, 1).0;
        let held = Duration::from_millis(2);
        assert_eq!(shared.rest(shared.take_turn(), held), held / 2);
        shared.note_written();
        assert_eq!(shared.rest(shared.take_turn(), held), held);
    }

    #[test]
    fn long_work_has_pauses_that_nobody_can_miss() {
        let shared = Shared::new(Node::unmet(1, "").db, 1).0;
        let held = Duration::from_millis(2);
        let turn = shared.take_turn();
        shared.rest(turn, held);
        let mut turn = shared.take_turn();
        turn.sure -= SURE_EVERY;
        assert_eq!(shared.rest(turn, held), SURE_PAUSE);
        assert_eq!(shared.rest(shared.take_turn(), held), held / 2);
        // No thread worked meanwhile.
        let mut turn = shared.take_turn();
        (turn.end, turn.sure) = (turn.end - SURE_PAUSE, turn.sure - SURE_EVERY);
        drop(turn);
        assert_eq!(shared.rest(shared.take_turn(), held), held / 2);
    }
}
