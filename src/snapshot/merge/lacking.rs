//! Judges rows here that a snapshot lacks. Such a row was deleted and the snapshot's maker has
//! forgotten that, or it is on its way, or the broker lost it.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Merge, RowCount, STEP};
use crate::apply::{Incoming, Place as RowPlace};
use crate::capture::Frames;
use crate::database::meta::{Meta, get_meta, set_meta};
use crate::database::rows::{Rows, Stored, keys};
use crate::database::table::Table;
use crate::database::{Database, DatabaseError, Result};
use crate::model::birth::Birth;
use crate::model::frame::MAX_ROW_BYTES;
use crate::model::manifest::StreamPosition;
use crate::model::shard::shard;
use crate::model::value::{OwnedValue, Value};
use crate::model::version::Version;
use crate::mutation::{self, Mutation};
use crate::snapshot::source::SourceRow;

impl Merge {
    /// Judges rows here that the snapshot lacks: they were deleted, or they are new to the others.
    /// Returns the last key compared, or `None` at the end.
    pub(super) fn find_lacking(
        &self,
        db: &mut Database,
        table: &Arc<Table>,
        after: Option<Vec<OwnedValue>>,
        frames: &mut Frames,
        (rows, is_over): (&mut RowCount, &dyn Fn(&Database) -> bool),
    ) -> Result<Option<Vec<OwnedValue>>> {
        let Some(local) = db.table_like(table) else {
            return Ok(None);
        };
        let mut last = None;
        let scan = local.scan_versions(after.is_none(), STEP);
        for key in keys(&db.conn, &local, &scan, after.as_deref())? {
            let borrowed: Vec<Value<'_>> = key.iter().map(OwnedValue::borrow).collect();
            let is_deleted = self.judge_lives(db, table, &local, &borrowed, frames)?;
            rows.note_here(&local, is_deleted);
            last = Some(key);
            if is_over(db) {
                break;
            }
        }
        Ok(last)
    }

    /// Judges each life of a number here that the snapshot lacks. True if one was deleted.
    fn judge_lives(
        &self,
        db: &mut Database,
        table: &Table,
        local: &Arc<Table>,
        key: &[Value<'_>],
        frames: &mut Frames,
    ) -> Result<bool> {
        if !local.has_births {
            if self.source.version(table, key)?.is_some() {
                return Ok(false);
            }
            let stored = Rows::new(&db.conn, local)?.version(&db.sites, key)?;
            return match stored {
                Some(stored) => self.settle_lacking(db, local, key, stored, frames),
                None => Ok(false),
            };
        }
        let key_bytes = local.key_bytes(key.iter().copied());
        let mut is_deleted = false;
        if db.has_lives(local) {
            let mut lacking = Vec::new();
            let all = (&key_bytes[..], i64::MAX);
            db.lives(local).each_learnt_by(&db.sites, all, |life| {
                let has = self.source.has_life(table, key, life.stored.birth)?;
                lacking.extend(Some(life.stored).filter(|_| !has));
                Ok(())
            })?;
            for stored in lacking {
                is_deleted |= self.settle_lacking(db, local, key, stored, frames)?;
            }
        }
        let shown = Rows::new(&db.conn, local)?.version(&db.sites, key)?;
        if let Some(shown) = shown
            && !self.source.has_life(table, key, shown.birth)?
        {
            is_deleted |= self.settle_lacking(db, local, key, shown, frames)?;
        }
        Ok(is_deleted)
    }

    /// Whether a row of the snapshot that is unknown here was deleted and the delete is forgotten:
    /// this node has read all that the maker had read of the row's stream, and the row is old
    /// enough.
    pub(super) fn is_forgotten_here(
        &self,
        db: &Database,
        table: &Table,
        row: &SourceRow,
        dropped: Version,
    ) -> Result<bool> {
        let state = &row.stored.state;
        if state.deleted || state.version > dropped {
            return Ok(false);
        }
        let place = self.place_of(db, table, &row.key_bytes);
        let is_read = place.is_some_and(|(stream, place)| db.has_read(stream, place));
        Ok(is_read && !self.source.is_marked(table, row)?)
    }

    /// The stream by which a row comes, and the snapshot's position in it.
    fn place_of(
        &self,
        db: &Database,
        table: &Table,
        key: &[u8],
    ) -> Option<(&String, &StreamPosition)> {
        let shard = shard(table.name(), key, db.settings.shards);
        let name = format!("-{shard}");
        let mut found = self
            .entry
            .streams
            .iter()
            .filter(|(s, _)| s.ends_with(&name));
        // If several streams match, some had a different name before, and the row may have come by
        // any.
        found.next().filter(|_| found.next().is_none())
    }

    /// The local transaction up to which the snapshot holds everything that was learnt here of a
    /// row.
    pub(super) fn covered(&self, db: &Database, table: &Table, key: &[u8]) -> i64 {
        let places = &self.entry.streams;
        match self.place_of(db, table, key) {
            Some((stream, _)) => db.covered_in(stream, places),
            None => db.covered_up_to(places),
        }
    }

    /// Whether the snapshot's maker holds the row, so that it is not in its table.
    fn is_held(&self, table: &Table, key_bytes: &[u8], birth: Birth) -> Result<bool> {
        let at = RowPlace::of_life(table, key_bytes, birth);
        match self.source.held(&at, MAX_ROW_BYTES) {
            Err(DatabaseError::RowTooLarge(..)) => Ok(true),
            held => Ok(held?.is_some()),
        }
    }

    /// Judges a row here that the snapshot lacks; its maker dropped tombstones up to a version. The
    /// row was deleted if the snapshot covers everything that was read here and the row is old
    /// enough for its tombstone to be gone. Otherwise the others lack it. If the row should be in
    /// the snapshot and is too new for its delete to be forgotten, the broker lost it.
    fn settle_lacking(
        &self,
        db: &mut Database,
        table: &Arc<Table>,
        key: &[Value<'_>],
        stored: Stored,
        frames: &mut Frames,
    ) -> Result<bool> {
        let key_bytes = table.key_bytes(key.iter().copied());
        if stored.state.deleted {
            return Ok(false);
        }
        let birth = stored.birth;
        let of = (key, &key_bytes[..]);
        if self.is_held(table, &key_bytes, birth)? {
            return Ok(false);
        }
        let (version, dropped) = (stored.state.version, self.entry.dropped());
        let hasty = mutation::is(Mutation::LackingRowsDeleted);
        let is_known = stored.local_tx <= self.covered(db, table, &key_bytes)
            && !db.is_marked(table, &key_bytes, stored.local_tx)?;
        if version > dropped && !hasty {
            // A row that the snapshot does not cover is marked, or on its way through a stream.
            if is_known && db.settings.publish {
                db.mark_again(table, of, birth, frames)?;
            }
            return Ok(false);
        }
        if version.node == db.node && !db.settings.publish {
            return Ok(false); // nobody else ever heard of it
        }
        if hasty || is_known {
            let gone = Incoming {
                birth,
                floor: Some(version),
                ..Incoming::default()
            };
            // A row that cannot be deleted here keeps its version.
            if db.join_row(table, key, &key_bytes, gone, frames)? {
                db.forget_life(table, key, &key_bytes, birth)?;
                db.restore_detector.forget();
                db.note_forgotten(version)?;
                db.note_dropped(dropped)?;
                return Ok(true);
            }
        } else if db.settings.publish {
            db.mark_again(table, of, birth, frames)?;
        }
        Ok(false)
    }

    /// Marks a row that the snapshot covers, has as `theirs`, and that is newer here: the broker
    /// lost the messages after `theirs`, so this node sends the row again.
    pub(super) fn tell_unheard(
        &self,
        db: &mut Database,
        table: &Table,
        their_table: &Table,
        theirs: &SourceRow,
        frames: &mut Frames,
    ) -> Result<()> {
        let key: Vec<Value<'_>> = theirs.key.iter().map(OwnedValue::borrow).collect();
        let birth = theirs.stored.birth;
        let ours = db.life(table, &key, birth)?;
        let (Some(ours), true) = (ours, db.settings.publish) else {
            return Ok(());
        };
        let (version, known) = (ours.state.version, theirs.stored.state.version);
        let names = |t: &Table| {
            let columns = t.schema.columns.iter();
            columns.map(|c| c.lower.clone()).collect::<BTreeSet<_>>()
        };
        let is_more = version > known
            || (version == known
                && names(table) == names(their_table)
                && !self.has_same_content(db, table, &ours, their_table, theirs)?);
        if is_more && !db.is_marked(table, &theirs.key_bytes, ours.local_tx)? {
            db.mark_again(table, (&key, &theirs.key_bytes), birth, frames)?;
        }
        Ok(())
    }
}

impl Database {
    /// Whether no replicated table has a version of any row.
    pub(super) fn knows_no_row(&self) -> Result<bool> {
        for table in self.catalog.by_id.values() {
            let scan = table.scan_all_versions(true, 1);
            if !keys(&self.conn, table, &scan, None)?.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The newest tombstone ever dropped here, or by a peer whose snapshot was merged.
    pub fn dropped(&self) -> Result<Version> {
        let get = |key| get_meta::<i64>(&self.conn, key).map(Option::unwrap_or_default);
        Ok(Version {
            hlc: get(Meta::DroppedHlc)?,
            node: get(Meta::DroppedNode)? as u64,
        })
    }

    /// Notes that a tombstone was dropped. Must be called inside a transaction.
    pub(crate) fn note_dropped(&mut self, version: Version) -> Result<()> {
        if version > self.dropped()? {
            set_meta(&self.conn, Meta::DroppedHlc, version.hlc)?;
            set_meta(&self.conn, Meta::DroppedNode, version.node as i64)?;
        }
        Ok(())
    }
}
