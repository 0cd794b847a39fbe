//! What the change log held when the daemon started: written while no daemon ran.
//!
//! Such an entry keeps the time of its write, however late it is read: a start raises the floor of
//! the [`super::reservation`], and a write is not newer for being read after that. Not even after a
//! power cut, which may take back the capture of an entry that is still there: the same entry gets
//! the same stamp again, and what another node wrote over it since stays above. So it is bounded by
//! what bound it then, the last time that was certain; and a time well before that is not believed:
//! it means a clock that was not set (a box that boots in 1970).
//!
//! A backlog takes many transactions. What the bound was is stored with the reservation that
//! would move it, and forgotten with the last of the entries, so that a crash in between changes
//! nothing. These transactions are synced, lest a power cut brings back an entry that was sent.

use rusqlite::Connection;

use crate::database::meta::{Meta, delete_meta, get_meta, set_meta};
use crate::database::triggers::LOG;

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct OfflineWrites {
    /// The last entry that was there at the start; ids begin anew once the log is empty.
    last_id: i64,
    /// The last certain time of the life before.
    base_ms: i64,
    is_stored: bool,
    /// The transaction under way takes the last of them.
    is_done: bool,
}

impl OfflineWrites {
    /// `base_ms` is the last certain time of the life before.
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

    /// What binds entry `id`, if it is one of these.
    pub(crate) fn base_ms(&self, id: i64) -> Option<i64> {
        (id <= self.last_id).then_some(self.base_ms)
    }

    /// Whether some of them are left.
    pub(crate) fn waits(&self) -> bool {
        self.last_id > 0
    }

    /// Stores the bound if entries wait. Inside the transaction that moves that of the clock.
    pub(crate) fn store(&mut self, conn: &Connection) -> rusqlite::Result<()> {
        if self.waits() {
            set_meta(conn, Meta::NotedBase, self.base_ms)?;
            self.is_stored = true;
        }
        Ok(())
    }

    /// The log is dropped up to `id`, if the transaction is not undone.
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

    /// The transaction ended.
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
