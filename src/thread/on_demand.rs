//! A thread that exists only while it has something to do.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crossbeam_channel::Sender;

use super::{Exited, spawn_brief};

/// The state `S` of a thread, kept here while the thread does not exist.
pub struct OnDemand<S> {
    name: &'static str,
    exits: Sender<Exited>,
    work: fn(S, &OnDemand<S>),
    slot: Mutex<ThreadSlot<S>>,
}

struct ThreadSlot<S> {
    /// None while the thread runs, and once it has ended for good.
    idle: Option<S>,
    thread: Option<JoinHandle<()>>,
}

impl<S: Send + 'static> OnDemand<S> {
    /// `work` is the body of the thread. It hands the state back with [`OnDemand::rest`], or drops
    /// it: then there is no further thread. Only a panic is reported to `exits`.
    pub fn new(
        name: &'static str,
        exits: &Sender<Exited>,
        state: S,
        work: fn(S, &OnDemand<S>),
    ) -> Arc<OnDemand<S>> {
        let slot = ThreadSlot {
            idle: Some(state),
            thread: None,
        };
        Arc::new(OnDemand {
            name,
            exits: exits.clone(),
            work,
            slot: Mutex::new(slot),
        })
    }

    /// Starts the thread, if it does not exist. The caller has put the work where `is_idle` of
    /// [`OnDemand::rest`] finds it.
    pub fn wake(self: &Arc<Self>) {
        let mut slot = self.slot();
        let Some(state) = slot.idle.take() else {
            return;
        };
        let (own, state) = (self.clone(), Arc::new(Mutex::new(Some(state))));
        let taken = state.clone();
        let take = |state: &Mutex<Option<S>>| {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            state.take()
        };
        let body = move || {
            if let Some(state) = take(&taken) {
                (own.work)(state, &own);
            }
            Ok(())
        };
        match spawn_brief(self.name, &self.exits, body) {
            Ok(thread) => slot.thread = Some(thread),
            Err(e) => {
                log::warn!("{e}");
                slot.idle = take(&state);
            }
        }
    }

    /// Takes the state back at the end of the thread. Returns it if there is work again.
    pub fn rest(&self, state: S, is_idle: impl FnOnce(&S) -> bool) -> Option<S> {
        let mut slot = self.slot();
        if !is_idle(&state) {
            return Some(state);
        }
        slot.idle = Some(state);
        None
    }

    /// The newest thread, if there is or was one, for the end of the process.
    pub fn thread(&self) -> Option<JoinHandle<()>> {
        self.slot().thread.take()
    }

    fn slot(&self) -> MutexGuard<'_, ThreadSlot<S>> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crossbeam_channel::{Receiver, unbounded};

    use super::*;

    /// Each number is passed on by a thread that ends when there is no further one.
    #[test]
    fn no_work_is_lost_between_two_threads() {
        type Pass = (Receiver<u32>, Sender<u32>);
        fn work(mut pass: Pass, own: &OnDemand<Pass>) {
            loop {
                for n in pass.0.try_iter() {
                    let _ = pass.1.send(n);
                }
                match own.rest(pass, |pass| pass.0.is_empty()) {
                    Some(again) => pass = again,
                    None => return,
                }
            }
        }
        let ((give, given), (pass, passed)) = (unbounded(), unbounded());
        let thread = OnDemand::new("test", &unbounded().0, (given, pass), work);
        for n in 0..1000 {
            give.send(n).unwrap();
            thread.wake();
            assert_eq!(passed.recv_timeout(Duration::from_secs(10)), Ok(n));
        }
        assert!(thread.thread().is_some_and(|t| t.join().is_ok()));
    }
}
