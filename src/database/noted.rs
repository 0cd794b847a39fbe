//! What the raw log held when the daemon started: written while no daemon ran.
//!
//! Such an entry keeps the time of its write, however late it is read: a start raises the floor of
//! the [`super::reservation`], and a write is not newer for being read after that. Two bounds hold
//! all the same. A time well before the last one that was certain means a clock that was not set
//! (a box that boots in 1970). And after a power cut the time counts as what was reserved at least:
//! stamps below may have been given out for content that is lost here, and a write must win over
//! what it replaced.
//!
//! A backlog takes many transactions. What the bounds were is stored with the reservation that
//! would move them, and forgotten with the last of the entries, so that a crash in between changes
//! nothing. After a power cut in between the bounds are those of that start: then entries may count
//! as newer than they are, but none is lost.

use rusqlite::{Connection, params};

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
    floor_ms: i64,
    is_stored: bool,
    /// The transaction under way takes the last of them.
    is_done: bool,
}

impl Noted {
    /// `base_ms` and `floor_ms` are those that a start without entries would continue from.
    pub fn load(
        conn: &Connection,
        same_boot: bool,
        base_ms: i64,
        floor_ms: i64,
    ) -> rusqlite::Result<Self> {
        let last_id = conn.query_row(&format!("SELECT max(id) FROM {LOG}"), [], |r| {
            r.get::<_, Option<i64>>(0)
        })?;
        let mut noted = Noted {
            last_id: last_id.unwrap_or_default(),
            base_ms,
            floor_ms,
            ..Noted::default()
        };
        let stored = (
            get_meta(conn, "noted_base")?,
            get_meta(conn, "noted_floor")?,
        );
        if let (Some(base_ms), Some(floor_ms)) = stored {
            noted.is_stored = true;
            if same_boot {
                (noted.base_ms, noted.floor_ms) = (base_ms, floor_ms);
            }
        }
        Ok(noted)
    }

    pub fn holds(&self, id: i64) -> bool {
        id <= self.last_id
    }

    /// The time that an entry of `time_ms` counts as; none if that is not believed at all.
    pub fn believe(&self, time_ms: i64) -> Option<i64> {
        (time_ms >= self.base_ms - STEP_BACK_MS).then(|| time_ms.max(self.floor_ms))
    }

    /// Stores the bounds if entries wait. Inside the transaction that moves those of the clock.
    pub fn store(&mut self, conn: &Connection) -> rusqlite::Result<()> {
        if self.last_id > 0 {
            set_meta(conn, "noted_base", self.base_ms)?;
            set_meta(conn, "noted_floor", self.floor_ms)?;
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
                "DELETE FROM __harmonylite___meta WHERE key IN (?1, ?2)",
                params!["noted_base", "noted_floor"],
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
        self.floor_ms = self.floor_ms.min(bound_ms);
    }
}
