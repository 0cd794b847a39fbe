//! The main thread waits for the thread that tells the others of this node, which exists only while
//! it has something to do.

use std::sync::Weak;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, never};

use crate::shared::Shared;
use crate::status::thread::Waits;

/// See the module's head.
pub(super) struct StatusWaits {
    shared: Weak<Shared>,
    /// Receives the events to wait for.
    pub told: Receiver<Waits>,
    pub waits: Waits,
    /// Whether the thread rests, and `waits` is its next wait.
    rests: bool,
}

impl StatusWaits {
    pub(super) fn new(shared: Weak<Shared>) -> StatusWaits {
        let told = shared.upgrade().map(|shared| shared.status.waits());
        StatusWaits {
            shared,
            told: told.unwrap_or_else(never),
            ..StatusWaits::none()
        }
    }

    pub(super) fn none() -> StatusWaits {
        StatusWaits {
            shared: Weak::new(),
            told: never(),
            waits: nothing(),
            rests: false,
        }
    }

    /// Time until the thread is due; none if there is nothing to wait for.
    pub(super) fn within(&self) -> Option<Duration> {
        let due = self.rests.then_some(self.waits.due)?;
        Some(due.saturating_duration_since(Instant::now()))
    }

    /// The thread rests, and waits for this; none: there will be no thread again.
    pub(super) fn rest(&mut self, waits: Option<Waits>) {
        match waits {
            Some(waits) => (self.waits, self.rests) = (waits, true),
            None => *self = StatusWaits::none(),
        }
    }

    /// Something changed: the thread notes it.
    pub(super) fn changed(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.status.note_change();
        }
        self.wake(None);
    }

    /// Starts the thread, for this message of another node if there is one. It tells when it rests
    /// again.
    pub(super) fn wake(&mut self, word: Option<String>) {
        (self.waits, self.rests) = (nothing(), false);
        if let Some(shared) = self.shared.upgrade() {
            shared.status.wake(word);
        }
    }

    pub(super) fn wake_if_due(&mut self) {
        if self.within().is_some_and(|wait| wait.is_zero()) {
            self.wake(None);
        }
    }
}

fn nothing() -> Waits {
    Waits {
        changes: never(),
        words: never(),
        called: never(),
        due: Instant::now(),
    }
}
