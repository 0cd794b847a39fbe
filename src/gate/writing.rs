//! Entering to write: the wait for a gap between the application's readers happens outside of the
//! gate.

use std::ops::{Deref, DerefMut};
use std::sync::MutexGuard;
use std::time::Instant;

use super::{Gate, Inside, locked};

/// The inside of the gate, entered by a thread that will write.
pub struct Writing<'g> {
    inside: MutexGuard<'g, Inside>,
    _alone: MutexGuard<'g, ()>,
    /// When the gate was entered.
    pub began: Instant,
}

impl Gate {
    /// As [`Gate::enter`], for work that is long enough to be worth it: threads that do not write
    /// are not held up while the first write transaction waits for its turn.
    pub fn enter_to_write(&self) -> Writing<'_> {
        let alone = locked(&self.writing);
        let gap = self.fence.wait(Instant::now());
        let mut inside = self.enter();
        inside.database.gap = Some(gap);
        Writing {
            inside,
            _alone: alone,
            began: Instant::now(),
        }
    }
}

impl Deref for Writing<'_> {
    type Target = Inside;

    fn deref(&self) -> &Inside {
        &self.inside
    }
}

impl DerefMut for Writing<'_> {
    fn deref_mut(&mut self) -> &mut Inside {
        &mut self.inside
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        if self.database.gap.take().is_some() {
            self.database.fence.let_go(); // nothing was written
        }
    }
}
