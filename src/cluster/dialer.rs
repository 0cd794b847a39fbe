//! When a thread may try to connect: one decision for all threads.
//!
//! The time between two attempts grows with the time that the broker is away: it is a fifth of
//! that, so an outage of ten seconds is over two seconds after the broker is back, and a broker
//! that is away for days costs an attempt in five minutes. A first success, a change of this
//! machine's network and a signal call all waiting threads at once. While this node is offline on
//! purpose, no thread connects, and the connections of before are ended.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, after, bounded, select};

use crate::stream::StreamError;
use crate::stream::client::Closer;

/// The wait is the time since the first failure divided by this.
const PART: u32 = 5;

/// While this node is offline on purpose, threads wait for a call, or so long.
const AT_EVERY: Duration = Duration::from_secs(24 * 3600);

/// See the module's head.
pub struct Dialer {
    /// The shortest and the longest wait between two attempts.
    waits: (Duration, Duration),
    state: Mutex<DialerState>,
    /// Held by the one thread that tries a broker which was away.
    turn: Mutex<()>,
}

struct DialerState {
    away: Option<Away>,
    /// Why this node is offline on purpose.
    shut: Option<String>,
    /// The connections of this process, perhaps ended by now.
    connections: Vec<Closer>,
    /// Closed to call all threads that wait.
    call: Sender<()>,
    called: Receiver<()>,
}

/// Attempts in vain.
struct Away {
    /// When the first of them ended, or since when waits are short again.
    since: Instant,
    /// When the last of them ended.
    tried: Instant,
    /// When the next may begin.
    next: Instant,
    why: String,
}

impl Dialer {
    /// The first wait between two attempts, and the longest.
    pub fn new(first: Duration, longest: Duration) -> Dialer {
        let (call, called) = bounded(0);
        Dialer {
            waits: (first, longest.max(first)),
            state: Mutex::new(DialerState {
                away: None,
                shut: None,
                connections: Vec::new(),
                call,
                called,
            }),
            turn: Mutex::new(()),
        }
    }

    /// Runs one attempt. Returns `Disconnected` without an attempt if it is too early for one.
    pub fn attempt<T>(
        &self,
        connect: impl FnOnce() -> Result<T, StreamError>,
    ) -> Result<T, StreamError> {
        let is_away = self.state().away.is_some();
        let _turn = is_away.then(|| self.turn.lock().unwrap_or_else(PoisonError::into_inner));
        let began = Instant::now();
        self.permit()?;
        let result = connect();
        match &result {
            Ok(_) => self.succeeded(),
            Err(StreamError::Fatal(_) | StreamError::Offline(_)) => {}
            Err(e) => self.failed(began, Instant::now(), &e.to_string()),
        }
        result
    }

    /// Returns `Disconnected` if it is too early for an attempt, `Offline` if this node is offline
    /// on purpose.
    pub(super) fn permit(&self) -> Result<(), StreamError> {
        let state = self.state();
        if let Some(why) = &state.shut {
            return Err(StreamError::Offline(why.clone()));
        }
        match &state.away {
            Some(away) if Instant::now() < away.next => {
                Err(StreamError::Disconnected(away.why.clone()))
            }
            _ => Ok(()),
        }
    }

    fn succeeded(&self) {
        let mut state = self.state();
        if state.away.take().is_some() {
            state.call_all();
        }
    }

    /// Notes an attempt in vain. Threads that tried at the same time count as one.
    fn failed(&self, began: Instant, now: Instant, why: &str) {
        let mut state = self.state();
        let since = match &state.away {
            Some(away) if away.tried > began => return,
            Some(away) => away.since,
            None => now,
        };
        let (first, longest) = self.waits;
        let wait = (now.saturating_duration_since(since) / PART).clamp(first, longest);
        state.away = Some(Away {
            since,
            tried: now,
            next: now + varied(wait),
            why: why.to_owned(),
        });
    }

    /// Notes a new connection. Ends it and returns `Offline` if this node went offline meanwhile.
    pub(super) fn keep(&self, connection: Closer) -> Result<(), StreamError> {
        let mut state = self.state();
        if let Some(why) = state.shut.clone() {
            drop(state);
            connection.close();
            return Err(StreamError::Offline(why));
        }
        state.connections.retain(Closer::is_open);
        state.connections.push(connection);
        Ok(())
    }

    /// Lets no thread connect for this reason, and ends all connections; with `None`, lets them
    /// connect again. Returns false if that was so before.
    pub(super) fn shut(&self, why: Option<String>) -> bool {
        let mut state = self.state();
        if state.shut == why {
            return false;
        }
        (state.shut, state.away) = (why, None);
        let ended = match &state.shut {
            Some(_) => std::mem::take(&mut state.connections),
            None => Vec::new(),
        };
        state.call_all();
        drop(state);
        ended.iter().for_each(Closer::close);
        true
    }

    /// Lets all threads try now, and makes their waits short again: the network changed, or a
    /// person asks for it.
    pub fn try_now(&self) {
        let mut state = self.state();
        if let Some(away) = &mut state.away {
            let now = Instant::now();
            (away.since, away.next) = (now, now);
            state.call_all();
        }
    }

    /// When to try again after a failure, and a channel that is closed if that may be earlier.
    /// `least` is the shortest wait, because not every failure is one of connecting.
    pub fn next(&self, least: Duration) -> (Instant, Receiver<()>) {
        let state = self.state();
        let at = Instant::now() + varied(least);
        if state.shut.is_some() {
            return (at + AT_EVERY, state.called.clone());
        }
        let next = state.away.as_ref().map(|away| away.next);
        (next.map_or(at, |next| next.max(at)), state.called.clone())
    }

    /// Waits until the next attempt, see [`Dialer::next`]. Returns false if `stop` is closed first.
    pub fn wait(&self, least: Duration, stop: &Receiver<()>) -> bool {
        let (next, called) = self.next(least);
        let due = after(next.saturating_duration_since(Instant::now()));
        select! {
            recv(stop) -> _ => false,
            recv(called) -> _ => true,
            recv(due) -> _ => true,
        }
    }

    fn state(&self) -> MutexGuard<'_, DialerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DialerState {
    fn call_all(&mut self) {
        (self.call, self.called) = bounded(0);
    }
}

/// A time that is up to a fifth shorter or longer, so that the nodes of a fleet do not all try at
/// the same moment.
fn varied(wait: Duration) -> Duration {
    let random = RandomState::new().hash_one(0) % 401;
    wait.mul_f64(0.8 + random as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(500);
    const LONGEST: Duration = Duration::from_secs(300);

    fn fail(dialer: &Dialer, now: Instant) {
        dialer.failed(now, now, "no route");
    }

    /// The wait after a failure at this moment.
    fn wait_at(dialer: &Dialer, now: Instant) -> Duration {
        fail(dialer, now);
        dialer.state().away.as_ref().unwrap().next - now
    }

    #[test]
    fn waits_grow_with_the_time_away() {
        let dialer = Dialer::new(FIRST, LONGEST);
        let began = Instant::now();
        let mut tries = 0;
        let mut now = began;
        let mut tries_in = |seconds: u64| {
            while now < began + Duration::from_secs(seconds) {
                let wait = wait_at(&dialer, now);
                let expected = ((now - began) / PART).clamp(FIRST, LONGEST);
                assert!(wait >= expected.mul_f64(0.79) && wait <= expected.mul_f64(1.21));
                (now, tries) = (now + wait, tries + 1);
            }
            tries
        };
        let (minute, hour, day) = (tries_in(60), tries_in(3600), tries_in(86_400));
        assert!((10..30).contains(&minute), "{minute} tries in a minute");
        assert!((hour - minute) < 40, "{hour} tries in an hour");
        assert!((day - hour) < 400, "{day} tries in a day");
    }

    #[test]
    fn it_is_too_early_for_all_threads_and_a_success_calls_them() {
        let dialer = Dialer::new(Duration::from_secs(60), LONGEST);
        let away = || Err::<(), _>(StreamError::Disconnected("no route".into()));
        assert!(dialer.attempt(away).is_err());
        let early = dialer.attempt(|| -> Result<(), _> { panic!("it is too early") });
        assert_eq!(early.unwrap_err().to_string(), "no route");
        let (next, called) = dialer.next(Duration::ZERO);
        assert!(next > Instant::now() + Duration::from_secs(40));
        dialer.try_now();
        assert!(
            called
                .recv_timeout(LONGEST)
                .is_err_and(|e| e.is_disconnected())
        );
        let (_, called) = dialer.next(Duration::ZERO);
        assert!(dialer.attempt(|| Ok(())).is_ok());
        assert!(
            called
                .recv_timeout(LONGEST)
                .is_err_and(|e| e.is_disconnected())
        );
        let (next, _) = dialer.next(Duration::ZERO);
        assert!(next <= Instant::now(), "nothing failed since");
    }

    #[test]
    fn threads_that_failed_together_failed_once() {
        let dialer = Dialer::new(FIRST, LONGEST);
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        dialer.failed(at(0), at(1), "a");
        dialer.failed(at(0), at(2), "b");
        let state = dialer.state();
        let away = state.away.as_ref().unwrap();
        assert_eq!((away.tried, &*away.why), (at(1), "a"));
    }

    #[test]
    fn different_settings_reach_no_other_node() {
        let dialer = Dialer::new(FIRST, LONGEST);
        let fatal = || Err::<(), _>(StreamError::Fatal("shards".into()));
        assert!(dialer.attempt(fatal).is_err());
        assert!(dialer.attempt(|| Ok(())).is_ok(), "no thread waits for it");
    }

    #[test]
    fn offline_on_purpose_no_thread_tries_until_it_is_called() {
        let dialer = Dialer::new(FIRST, LONGEST);
        fail(&dialer, Instant::now());
        assert!(dialer.shut(Some("paused".into())) && !dialer.shut(Some("paused".into())));
        let refused = dialer.attempt(|| -> Result<(), _> { panic!("it is paused") });
        assert!(matches!(refused, Err(StreamError::Offline(why)) if why == "paused"));
        let (next, called) = dialer.next(FIRST);
        assert!(next > Instant::now() + LONGEST);
        assert!(dialer.shut(None));
        assert!(called.try_recv().is_err_and(|e| e.is_disconnected()));
        assert!(
            dialer.attempt(|| Ok(())).is_ok(),
            "nothing is remembered of before"
        );
    }

    #[test]
    fn a_closed_stop_ends_the_wait() {
        let dialer = Dialer::new(LONGEST, LONGEST);
        fail(&dialer, Instant::now());
        let (stop, stopped) = bounded::<()>(0);
        drop(stop);
        assert!(!dialer.wait(Duration::ZERO, &stopped));
    }
}
