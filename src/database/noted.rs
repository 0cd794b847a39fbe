//! What the raw log held when the daemon started: written while no daemon ran.
//!
//! Such an entry keeps the time of its write, however late it is read: a start raises the floor of
//! the [`super::reservation`], and a write is not newer for being read after that. Not even after a
//! power cut, which may take back the capture of an entry that is still there: the same entry gets
//! the same stamp again, and what another node wrote over it since stays above. Only a time well
//! before the last one that was certain is not believed: it means a clock that was not set (a box
//! that boots in 1970).
//!
//! A backlog takes many transactions. What the bound was is stored with the reservation that
//! would move it, and forgotten with the last of the entries, so that a crash in between changes
//! nothing. After a power cut in between the bound is that of that start: then entries may count as
//! newer than they are, but none is lost.

use rusqlite::Connection;

use crate::database::own_tables::{get_meta, set_meta};
use crate::database::triggers::LOG;

/// How far back a clock that is set right may step.
const STEP_BACK_MS: i64 = 60_000;

#[derive(Debug, Clone, Copy, Default)]
pub struct Noted {
    /// The last entry that was there at the start; ids begin anew once the log is empty.
    last_id: i64,
    /// The last certain time of the life before.
    base_ms: i64,
    is_stored: bool,
    /// The transaction under way takes the last of them.
    is_done: bool,
}

impl Noted {
    /// `base_ms` is the last certain time of the life before.
    pub fn load(conn: &Connection, same_boot: bool, base_ms: i64) -> rusqlite::Result<Self> {
        let last_id = conn.query_row(&format!("SELECT max(id) FROM {LOG}"), [], |r| {
            r.get::<_, Option<i64>>(0)
        })?;
        let mut noted = Noted {
            last_id: last_id.unwrap_or_default(),
            base_ms,
            ..Noted::default()
        };
        if let Some(base_ms) = get_meta(conn, "noted_base")? {
            noted.is_stored = true;
            if same_boot {
                noted.base_ms = base_ms;
            }
        }
        Ok(noted)
    }

    pub fn holds(&self, id: i64) -> bool {
        id <= self.last_id
    }

    /// The time that an entry of `time_ms` counts as; none if that is not believed at all.
    pub fn believe(&self, time_ms: i64) -> Option<i64> {
        (time_ms >= self.base_ms - STEP_BACK_MS).then_some(time_ms)
    }

    /// Stores the bound if entries wait. Inside the transaction that moves that of the clock.
    pub fn store(&mut self, conn: &Connection) -> rusqlite::Result<()> {
        if self.last_id > 0 {
            set_meta(conn, "noted_base", self.base_ms)?;
            self.is_stored = true;
        }
        Ok(())
    }

    /// The log is dropped up to `id`, if the transaction is not undone.
    pub fn dropped(&mut self, conn: &Connection, id: i64) -> rusqlite::Result<()> {
        if self.last_id == 0 || id < self.last_id {
            return Ok(());
        }
        self.is_done = true;
        if self.is_stored {
            conn.execute(
                "DELETE FROM __harmonylite___meta WHERE key = 'noted_base'",
                [],
            )?;
        }
        Ok(())
    }

    /// The transaction ended.
    pub fn ended(&mut self, committed: bool) {
        if self.is_done && committed {
            *self = Noted::default();
        }
        self.is_done = false;
    }

    pub fn lower(&mut self, bound_ms: i64) {
        self.base_ms = self.base_ms.min(bound_ms);
    }
}
