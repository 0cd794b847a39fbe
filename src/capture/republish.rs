//! Publishes every row once more, after the broker lost messages that it had acknowledged.
//!
//! Rows carry their own versions, so any node may publish any row, and nodes that know a row
//! already lose nothing. This is a walk through the versions, chunk by chunk: each chunk is
//! published and acknowledged before the next. It needs no marks and no more memory than a chunk.
//! Its cursor is stored with the next chunk, so a crash repeats one chunk at most. A row that is
//! held here for want of a table or a column may be nowhere else by now: it is published once it is
//! applied.

use serde::{Deserialize, Serialize};

use crate::capture::Frames;
use crate::database::meta::{Meta, get_meta, set_meta};
use crate::database::rows::{Rows, row_values};
use crate::database::{Database, Result};
use crate::model::cbor;

/// Rows that one step looks up before the size of the chunk is checked.
const STEP: usize = 128;

/// How far the walk has come.
#[derive(Debug, Default)]
pub(super) struct Republish {
    /// Every row before this is published and acknowledged; none if no walk is under way.
    from: Option<RepublishCursor>,
    /// End of the chunk under way: the outer option is none without a chunk, the inner one at the
    /// end of the walk.
    chunk_end: Option<Option<RepublishCursor>>,
    /// Held rows are to be published again as well, when they are applied.
    held: bool,
}

/// A place in the walk, in the order of table numbers and keys: after this key of this table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct RepublishCursor {
    table: i64,
    after: Option<Vec<u8>>,
}

impl Republish {
    /// Forgets the end of the chunk under way, which may not have arrived.
    pub(super) fn interrupt(&mut self) {
        self.chunk_end = None;
    }
}

impl Database {
    /// Starts to publish every row again; the calls of [`Database::backlog`] encode the rows. Does
    /// nothing on a node that does not publish.
    pub fn republish_all(&mut self) -> Result<()> {
        if !self.settings.publish {
            return Ok(());
        }
        self.stop_live();
        self.write(|db| {
            db.forget_tombstone_age()?;
            let held = db.republishes_held() || db.held()? > 0;
            db.set_republish_held(held)?;
            db.set_republish(Some(RepublishCursor {
                table: i64::MIN, // former keys have negative numbers
                after: None,
            }))
        })
    }

    /// Whether rows are still to be published again.
    pub(crate) fn is_republishing(&self) -> bool {
        self.marks.republish.from.is_some()
    }

    /// Whether held rows are published again when they are applied.
    pub(crate) fn republishes_held(&self) -> bool {
        self.marks.republish.held
    }

    /// Once no row is held any more, none is to be published again. Inside a transaction.
    pub(crate) fn all_held_is_republished(&mut self) -> Result<()> {
        match self.republishes_held() && self.held()? == 0 {
            true => self.set_republish_held(false),
            false => Ok(()),
        }
    }

    fn set_republish_held(&mut self, again: bool) -> Result<()> {
        set_meta(&self.conn, Meta::PublishHeldAgain, again)?;
        self.marks.republish.held = again;
        Ok(())
    }

    /// Reads, at the start, where an unfinished walk stopped.
    pub(crate) fn load_republish(&mut self) -> Result<()> {
        self.marks.republish.held =
            get_meta(&self.conn, Meta::PublishHeldAgain)?.unwrap_or_default();
        let stored: Option<Vec<u8>> = get_meta(&self.conn, Meta::PublishAgain)?;
        self.marks.republish.from = stored
            .filter(|s| !s.is_empty())
            .and_then(|s| ciborium::from_reader(&s[..]).ok());
        Ok(())
    }

    fn set_republish(&mut self, from: Option<RepublishCursor>) -> Result<()> {
        let mut bytes = Vec::new();
        if let Some(from) = &from {
            ciborium::into_writer(from, &mut bytes).expect("writing to memory does not fail");
        }
        set_meta(&self.conn, Meta::PublishAgain, bytes)?;
        self.marks.republish.from = from;
        self.marks.republish.chunk_end = None;
        Ok(())
    }

    /// Encodes the next chunk; false if there is none. The chunk of the call before counts as
    /// acknowledged, unless [`Database::stop_live`] was called since. Inside a transaction.
    pub(super) fn encode_republished(&mut self, limit: usize, frames: &mut Frames) -> Result<bool> {
        if let Some(end) = self.marks.republish.chunk_end.take() {
            self.set_republish(end)?;
        }
        let Some(mut place) = self.marks.republish.from.clone() else {
            return Ok(false);
        };
        let mut next = None;
        while let Some(after) = self.encode_step(&place, limit, frames)? {
            place = after;
            if frames.bytes() >= limit {
                next = Some(place);
                break;
            }
        }
        if next.is_none() && frames.is_empty() {
            self.set_republish(None)?;
            return Ok(false);
        }
        self.marks.republish.chunk_end = Some(next);
        Ok(true)
    }

    /// Encodes a few rows after `place`. None if there are none.
    fn encode_step(
        &self,
        place: &RepublishCursor,
        limit: usize,
        frames: &mut Frames,
    ) -> Result<Option<RepublishCursor>> {
        let tables = self.catalog.by_id.keys().copied();
        let each = tables.chain(self.catalog.former.keys().map(|id| -id));
        let Some(id) = each.filter(|id| *id >= place.table).min() else {
            return Ok(None);
        };
        let after = place.after.as_ref().filter(|_| id == place.table);
        let Some(table) = self.catalog.by_id.get(&id) else {
            let after = self.encode_tombstones(-id, after, frames)?;
            let table = id + i64::from(after.is_none());
            return Ok(Some(RepublishCursor { table, after }));
        };
        let mut keys = self
            .conn
            .prepare_cached(&table.scan_all_versions(after.is_none(), STEP))?;
        let after = after
            .map(|a| cbor::key_values(a))
            .transpose()?
            .unwrap_or_default();
        let mut found = keys.query(rusqlite::params_from_iter(after))?;
        let mut rows = Rows::new(&self.conn, table)?;
        let mut last = None;
        while let Some(row) = found.next()? {
            let key = table.key_bytes(row_values(row, table.key_len()));
            self.encode_row(&mut rows, &key, i64::MAX, frames)?;
            last = Some(key);
            if frames.bytes() >= 2 * limit {
                break;
            }
        }
        Ok(Some(match last {
            Some(key) => RepublishCursor {
                table: table.id,
                after: Some(key),
            },
            None => RepublishCursor {
                table: table.id + 1,
                after: None,
            },
        }))
    }
}
