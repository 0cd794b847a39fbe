//! Offline writes: the entries that the change log held when the daemon started. They were written
//! while no daemon ran.
//!
//! Such an entry keeps the time of its write, however late it is read. A start raises the floor of
//! the [`super::reservation`], but a write does not become newer because it is read after that.
//! This holds even after a power cut, which may undo the capture of an entry that is still there.
//! Then the same entry gets the same stamp again, and a later write of another node to that row
//! stays above it. So the stamp is bounded as it was then, by the last time that was certain. A
//! time well before that is not used: it comes from a clock that was not set (a box that boots in
//! 1970).
//!
//! A backlog takes many transactions. The bound is stored with the reservation that would move it,
//! and deleted with the last of the entries, so that a crash in between changes nothing. These
//! transactions are synced. Otherwise a power cut could bring back an entry that was already sent.

use rusqlite::Connection;

use crate::database::meta::{Meta, delete_meta, get_meta, set_meta};
use crate::database::triggers::LOG;

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct OfflineWrites {
    /// Id of the last entry that was there at the start. Ids begin again once the log is empty.
    last_id: i64,
    /// Last certain time of the previous run, unix milliseconds.
    base_ms: i64,
    is_stored: bool,
    /// The transaction under way takes the last of these entries.
    is_done: bool,
}

impl OfflineWrites {
    /// `base_ms` is the last certain time of the previous run, in unix milliseconds.
    pub(crate) fn load(conn: &Connection, base_ms: i64) -> rusqlite::Result<Self> {
        let last_id = conn.query_row(&format!("SELECT max(id) FROM {LOG}"), [], |r| {
            r.get::<_, Option<i64>>(0)
        })?;
        let stored: Option<i64> = get_meta(conn, Meta::NotedBase)?;
        let stored = stored.filter(|_| last_id.is_some());
        Ok(OfflineWrites {
            last_id: last_id.unwrap_or_default(),
            base_ms: stored.unwrap_or(base_ms),
            is_stored: stored.is_some(),
            is_done: false,
        })
    }

    /// The bound for the stamp of entry `id` in unix milliseconds, if it is an offline write.
    pub(crate) fn base_ms(&self, id: i64) -> Option<i64> {
        (id <= self.last_id).then_some(self.base_ms)
    }

    /// Whether offline writes are left.
    pub(crate) fn waits(&self) -> bool {
        self.last_id > 0
    }

    /// Stores the bound if offline writes are left. Runs inside the transaction that moves the
    /// bound of the clock.
    pub(crate) fn store(&mut self, conn: &Connection) -> rusqlite::Result<()> {
        if self.waits() {
            set_meta(conn, Meta::NotedBase, self.base_ms)?;
            self.is_stored = true;
        }
        Ok(())
    }

    /// Notes that the transaction under way removes the entries up to `id` from the log.
    pub(crate) fn dropped(&mut self, conn: &Connection, id: i64) -> rusqlite::Result<()> {
        if !self.waits() || id < self.last_id {
            return Ok(());
        }
        self.is_done = true;
        if self.is_stored {
            delete_meta(conn, Meta::NotedBase)?;
        }
        Ok(())
    }

    /// Notes the end of the transaction.
    pub(crate) fn ended(&mut self, committed: bool) {
        if self.is_done && committed {
            *self = OfflineWrites::default();
        }
        self.is_done = false;
    }

    pub(crate) fn lower(&mut self, bound_ms: i64) {
        self.base_ms = self.base_ms.min(bound_ms);
    }
}
