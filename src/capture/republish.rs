//! Publishes every row once more, for a broker that lost what it had acknowledged.
//!
//! Rows carry their own versions, so it does not matter who publishes whose, and what others have
//! already is nothing new to them. A walk through the versions, a chunk at a time, each published
//! and acknowledged before the next: no marks, and no more memory than a chunk. How far it came is
//! stored with the next chunk; a crash repeats one at most. What is held here for want of a table
//! or a column may be nowhere else by now: it goes out once it is taken in.

use serde::{Deserialize, Serialize};

use crate::capture::Frames;
use crate::database::meta::{Meta, get_meta, set_meta};
use crate::database::rows::{Rows, row_values};
use crate::database::{Database, Result};
use crate::model::cbor;

/// Rows looked up between two looks at how much it is by now.
const STEP: usize = 128;

/// How far the walk has come.
#[derive(Debug, Default)]
pub(super) struct Republish {
    /// All before this is published and acknowledged; none if there is nothing to publish again.
    from: Option<RepublishCursor>,
    /// Where the chunk that is under way ends; the outer none if none is.
    chunk_end: Option<Option<RepublishCursor>>,
    /// What is held is to be published again as well, when it is taken in.
    held: bool,
}

/// After this key of this table, in the order of table numbers and keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct RepublishCursor {
    table: i64,
    after: Option<Vec<u8>>,
}

impl Republish {
    /// The chunk under way may not have arrived.
    pub(super) fn interrupt(&mut self) {
        self.chunk_end = None;
    }
}

impl Database {
    /// Everything is to be published again, in the calls of [`Database::backlog`].
    pub fn republish_all(&mut self) -> Result<()> {
        if !self.settings.publish {
            return Ok(());
        }
        self.stop_live();
        self.write(|db| {
            db.forget_ages()?;
            let held = db.republishes_held() || db.held()? > 0;
            db.set_republish_held(held)?;
            db.set_republish(Some(RepublishCursor {
                table: 0,
                after: None,
            }))
        })
    }

    /// Whether not every row is published again yet.
    pub(crate) fn is_republishing(&self) -> bool {
        self.marks.republish.from.is_some()
    }

    /// Whether what is held is published again when it is taken in.
    pub(crate) fn republishes_held(&self) -> bool {
        self.marks.republish.held
    }

    /// All that was held is taken in. Inside a transaction.
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

    /// Reads at the start where an unfinished walk was.
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

    /// Encodes the next chunk; false if there is none. What the call before encoded is
    /// acknowledged, unless [`Database::stop_live`] said otherwise. Inside a transaction.
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

    /// Encodes a few rows behind `place`. None if there are none.
    fn encode_step(
        &self,
        place: &RepublishCursor,
        limit: usize,
        frames: &mut Frames,
    ) -> Result<Option<RepublishCursor>> {
        let Some(table) = self
            .catalog
            .by_id
            .values()
            .filter(|t| t.id >= place.table)
            .min_by_key(|t| t.id)
        else {
            return Ok(None);
        };
        let after = place.after.as_ref().filter(|_| table.id == place.table);
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
