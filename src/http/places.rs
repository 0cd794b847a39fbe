//! How many connections there are at a time, and which one gives way to a new one.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::connection::Connection;

/// Most connections at a time.
pub(super) const MOST: usize = 16;

/// Most of them that come by TCP, so that strangers cannot shut out the commands of this machine.
pub(super) const MOST_TCP: usize = 12;

/// A connection that is told to give way ends within this time. The thread that waits for it has
/// other work.
const GIVES_WAY: Duration = Duration::from_millis(20);

/// The connections at present.
#[derive(Default)]
pub(super) struct Connections {
    taken: Mutex<Taken>,
    freed: Condvar,
}

#[derive(Default)]
struct Taken {
    local: usize,
    /// By TCP, in the order of their beginnings.
    tcp: Vec<Arc<Connection>>,
}

impl Taken {
    fn is_full(&self, is_local: bool) -> bool {
        self.local + self.tcp.len() >= MOST || (!is_local && self.tcp.len() >= MOST_TCP)
    }
}

/// The place of one connection, until it is dropped.
pub(super) struct ConnectionSlot {
    places: Arc<Connections>,
    connection: Arc<Connection>,
}

impl Connections {
    /// None if there are too many. Only one thread calls it. A TCP connection that waits for its
    /// client ends in favour of a new one: a client that sends its request at once is answered,
    /// however many are silent.
    pub(super) fn take(
        places: &Arc<Connections>,
        connection: &Arc<Connection>,
    ) -> Option<ConnectionSlot> {
        let is_local = connection.is_local();
        let mut taken = places.taken();
        if taken.is_full(is_local) {
            taken.tcp.iter().find(|c| c.is_waiting())?.end();
            let is_full = |taken: &mut Taken| taken.is_full(is_local);
            let waited = places.freed.wait_timeout_while(taken, GIVES_WAY, is_full);
            taken = waited.unwrap_or_else(PoisonError::into_inner).0;
            if taken.is_full(is_local) {
                return None;
            }
        }
        match is_local {
            true => taken.local += 1,
            false => taken.tcp.push(connection.clone()),
        }
        Some(ConnectionSlot {
            places: places.clone(),
            connection: connection.clone(),
        })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        match self.connection.is_local() {
            true => taken.local -= 1,
            false => taken.tcp.retain(|c| !Arc::ptr_eq(c, &self.connection)),
        }
        self.places.freed.notify_one();
    }
}
