//! The lock for a write: the wait for a gap between the application's readers comes before it.

use std::ops::{Deref, DerefMut};
use std::sync::MutexGuard;
use std::time::Instant;

use super::{Locked, Shared, locked};

/// The locked state, for a thread that will write.
pub struct Writing<'g> {
    locked: MutexGuard<'g, Locked>,
    _alone: MutexGuard<'g, ()>,
    /// When the lock was taken.
    pub began: Instant,
}

impl Shared {
    /// As [`Shared::lock`], for work that is long enough to be worth it: threads that do not write
    /// are not held up while the first write transaction waits for its turn.
    pub fn lock_to_write(&self) -> Writing<'_> {
        let alone = locked(&self.writing);
        let gap = self.fence.wait(Instant::now());
        let mut locked = self.lock();
        locked.database.gap = Some(gap);
        Writing {
            locked,
            _alone: alone,
            began: Instant::now(),
        }
    }
}

impl Deref for Writing<'_> {
    type Target = Locked;

    fn deref(&self) -> &Locked {
        &self.locked
    }
}

impl DerefMut for Writing<'_> {
    fn deref_mut(&mut self) -> &mut Locked {
        &mut self.locked
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        if self.database.gap.take().is_some() {
            self.database.fence.let_go(); // nothing was written
        }
    }
}
