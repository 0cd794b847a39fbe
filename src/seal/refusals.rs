//! What was refused because of its seal: counted, and logged now and then.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{SealPlace, Unopened};

/// Health names the last refusal for so long.
const NAMED_FOR: Duration = Duration::from_secs(600);

/// The log names one refusal in this time, with the number of those left out.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// Refused values and objects that are remembered: they are read again and again.
const REMEMBERED: usize = 4096;

/// See the module's head.
#[derive(Debug, Default)]
pub struct Refusals {
    counted: Mutex<Counted>,
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct Counted {
    count: u64,
    last: Option<(Instant, String)>,
    said: Option<Instant>,
    hushed: u64,
    known: HashSet<u64>,
}

impl Refusals {
    /// Tells a value or an object from others; none for a message, which is read once.
    pub(crate) fn fingerprint(&self, context: SealPlace<'_>, bytes: &[u8]) -> Option<u64> {
        match context {
            SealPlace::Message { .. } => None,
            _ => Some(self.hasher.hash_one((context.bytes(), bytes))),
        }
    }

    /// Counts a text that does not open, unless it was counted before.
    pub(crate) fn note(&self, context: SealPlace<'_>, why: Unopened, fingerprint: Option<u64>) {
        let mut counted = self.counted();
        if counted.known.len() >= REMEMBERED {
            counted.known.clear();
        }
        if fingerprint.is_some_and(|of| !counted.known.insert(of)) {
            return;
        }
        let text = format!("{context}: {why}");
        counted.count += 1;
        let now = Instant::now();
        if counted.said.is_some_and(|said| now - said < SAID_EVERY) {
            counted.hushed += 1;
        } else {
            match std::mem::take(&mut counted.hushed) {
                0 => log::error!("refused: {text}"),
                more => log::error!("refused, after {more} others: {text}"),
            }
            counted.said = Some(now);
        }
        counted.last = Some((now, text));
    }

    /// How many there were since the start.
    pub fn count(&self) -> u64 {
        self.counted().count
    }

    /// The problem for health; none if the last refusal was long ago.
    pub fn problem(&self) -> Option<String> {
        let counted = self.counted();
        let (at, text) = counted.last.as_ref()?;
        let count = counted.count;
        (at.elapsed() < NAMED_FOR)
            .then(|| format!("{count} message(s), keys and objects were refused, the last: {text}"))
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
