//! Merges a snapshot into a database that is in use, in short transactions.
//!
//! A snapshot is a bundle of changes like any other: each row joins by its version, whatever order
//! and however often. So local writes survive, and a crash on the way costs nothing but the time to
//! begin anew. Only when all is joined do the positions move.

use std::path::Path;
use std::sync::Arc;

use crate::apply::{LetGo, Place, shape_of_table};
use crate::capture::{Captured, Frames};
use crate::database::meta::{Meta, set_meta};
use crate::database::rows::{Rows, Stored};
use crate::database::table::Table;
use crate::database::{Database, DatabaseError, Result};
use crate::model::frame::Row;
use crate::model::manifest::Entry;
use crate::model::merge::State;
use crate::model::value::{OwnedValue, Value};
use crate::model::version::Version;
use crate::mutation::{self, Mutation};
use crate::snapshot::source::{Source, SourceRow};
use former::SourceFormer;

mod former;
mod lacking;
mod pending;
mod schema;

/// Rows read from the snapshot at a time.
const STEP: usize = 128;

/// A merge under way.
pub struct Merge {
    source: Source,
    former: Vec<SourceFormer>,
    entry: Entry,
    at: MergeProgress,
    /// Rows so far, and those of the snapshot, for the log.
    pub rows: Count,
    total: u64,
    /// Whether there was no row here when it began; none while that is not known.
    is_first: Option<bool>,
}

/// Rows of the snapshot that were looked at, and those that were new here.
#[derive(Debug, Clone, Copy, Default)]
pub struct Count {
    pub seen: u64,
    pub new: u64,
}

/// How far a merge has come.
#[derive(Clone, PartialEq)]
enum MergeProgress {
    /// A database without any table gets those of the snapshot.
    Schema,
    /// Rows of the snapshot's n-th table after a key.
    Rows(usize, Option<Vec<OwnedValue>>),
    /// Rows here that the snapshot's n-th table lacks.
    Lacking(usize, Option<Vec<OwnedValue>>),
    /// Tombstones of the snapshot's n-th former key after a key.
    Former(usize, Option<Vec<OwnedValue>>),
    Held(Option<Place>),
    Parts(Option<(Vec<u8>, i64)>),
    Marks(Option<(i64, i64, Vec<u8>)>),
    Done,
}

/// A row of the snapshot, as it is here.
enum Ours {
    /// Unknown.
    None,
    Same,
    /// Another version of it; or none is known before the table is compared with its versions.
    Other(Option<Stored>),
}

impl Ours {
    fn has(&self, version: Version) -> bool {
        match self {
            Ours::None | Ours::Other(None) => false,
            Ours::Same => true,
            Ours::Other(Some(ours)) => ours.state.version == version,
        }
    }
}

impl Merge {
    /// Opens a snapshot's file, which belongs to the merge from here on.
    pub fn open(file: &Path, entry: &Entry) -> Result<Merge> {
        let source = Source::open(file)?;
        Ok(Merge {
            total: source.count()?,
            former: SourceFormer::all(&source)?,
            source,
            entry: entry.clone(),
            at: MergeProgress::Schema,
            rows: Count::default(),
            is_first: None,
        })
    }

    /// How far it is, in bytes of the snapshot's database, and how many these are.
    pub fn progress(&self) -> (u64, u64) {
        let size = self.entry.database_size;
        let done = u128::from(size) * u128::from(self.rows.seen) / u128::from(self.total.max(1));
        (size.min(done as u64), size)
    }

    /// Whether the snapshot's tables are here, as far as they come from it.
    pub fn has_tables(&self) -> bool {
        self.at != MergeProgress::Schema
    }

    /// One short transaction, which begins by capturing what the application did. True when all is
    /// done.
    pub fn step(&mut self, db: &mut Database) -> Result<(bool, Captured)> {
        db.bound_held()?;
        if self.is_first.is_none() {
            self.is_first = Some(db.knows_no_row()?);
        }
        let (at, rows, captured) = db.write_past_damage(|db| {
            let (mut captured, mut at, mut rows) =
                (Captured::default(), self.at.clone(), self.rows);
            if !db.capture_inside(&mut captured)? {
                return Ok((at, rows, captured));
            }
            let began = db.clock.uptime();
            let mut frames = Frames::new(db);
            db.doubt_ages();
            while at != MergeProgress::Done {
                let is_over = |db: &Database| db.clock.uptime() - began >= db.time_box();
                let is_schema = at == MergeProgress::Schema;
                at = self.advance(db, at, &mut frames, &mut rows, &is_over)?;
                // New tables are looked through before rows come, while they are empty: else every
                // row is compared as well, and the look never catches up.
                let is_indexed = at != MergeProgress::Lacking(0, None);
                if is_over(db) || !is_indexed || (is_schema && !db.catalog.comparing.is_empty()) {
                    break;
                }
            }
            if at == MergeProgress::Done {
                self.finish(db)?;
            }
            db.store_positions()?;
            db.store_held_size()?;
            db.take_captured(frames, &mut captured);
            Ok((at, rows, captured))
        })?;
        self.at = at;
        self.rows = rows;
        let done = self.at == MergeProgress::Done;
        if done && !db.joined {
            db.joined = true;
            db.report_demoted()?;
        }
        Ok((done, captured))
    }

    fn advance(
        &self,
        db: &mut Database,
        at: MergeProgress,
        frames: &mut Frames,
        rows: &mut Count,
        is_over: &dyn Fn(&Database) -> bool,
    ) -> Result<MergeProgress> {
        match at {
            MergeProgress::Schema => {
                if mutation::is(Mutation::PositionsBeforeMerge) {
                    db.take_places(&self.entry);
                }
                self.bring_schema(db)?;
                Ok(MergeProgress::Rows(0, None))
            }
            MergeProgress::Rows(n, after) => match self.source.tables.get(n) {
                Some(table) => {
                    let next = self.join_some(db, table, after, frames, rows, is_over)?;
                    Ok(next.map_or(MergeProgress::Rows(n + 1, None), |key| {
                        MergeProgress::Rows(n, Some(key))
                    }))
                }
                None => Ok(MergeProgress::Former(0, None)),
            },
            MergeProgress::Former(n, after) => self.take_former(db, (n, after), frames, is_over),
            MergeProgress::Held(after) => self.hold_some(db, after, frames),
            MergeProgress::Parts(after) => self.take_parts(db, after, is_over),
            MergeProgress::Marks(after) => self.mark_some(db, after),
            MergeProgress::Lacking(n, after) => match self.source.tables.get(n) {
                Some(table) => {
                    let next = self.look_for_lacking(db, table, after, frames, is_over)?;
                    Ok(next.map_or(MergeProgress::Lacking(n + 1, None), |key| {
                        MergeProgress::Lacking(n, Some(key))
                    }))
                }
                None => Ok(MergeProgress::Done),
            },
            MergeProgress::Done => Ok(MergeProgress::Done),
        }
    }

    /// Joins rows of one table after a key; returns the last one, none at the end.
    fn join_some(
        &self,
        db: &mut Database,
        table: &Arc<Table>,
        after: Option<Vec<OwnedValue>>,
        frames: &mut Frames,
        rows: &mut Count,
        is_over: &dyn Fn(&Database) -> bool,
    ) -> Result<Option<Vec<OwnedValue>>> {
        let local = db.table_like(table);
        let columns = table.schema.columns.iter();
        let columns: Vec<&str> = columns.map(|c| c.lower.as_str()).collect();
        let found = self.source.rows(table, after.as_deref(), STEP)?;
        if !found.is_empty() && db.lets_go(&table.name().to_ascii_lowercase(), &columns)? {
            return Ok(None);
        }
        let dropped = db.dropped()?;
        let publishes = db.settings.publish && !mutation::is(Mutation::MarksNotCarried);
        let is_plain =
            |local: &Arc<Table>| !table.has_late_columns() && db.is_plain(local, &columns);
        let plain = local.as_ref().is_some_and(is_plain);
        let mut last = None;
        for row in found {
            rows.seen += 1;
            let ours = match &local {
                Some(local) => db.compared(local, &row)?,
                None => Ours::None,
            };
            let taken = match (&ours, &local) {
                (Ours::Same, _) => Ok(false),
                (Ours::None, Some(_)) if self.is_forgotten_here(db, table, &row, dropped)? => {
                    Ok(false)
                }
                (Ours::None, Some(local))
                    if plain && self.take_plain(db, table, local, &row)? =>
                {
                    Ok(true)
                }
                _ => self.take_row(db, table, local.as_ref(), &row, frames),
            };
            match taken {
                Ok(taken) => rows.new += u64::from(taken),
                Err(e @ DatabaseError::RowTooLarge(..)) => {
                    db.reject_rows(table.name(), 1, &e.to_string());
                }
                Err(e) => return Err(e),
            }
            if let (Ours::Other(Some(ours)), Some(local)) = (&ours, &local)
                && ours.at <= self.covered(db, table, &row.key_bytes)
            {
                db.tell_unheard(local, table, &row, frames)?;
            }
            if let Some(local) = local.as_ref().filter(|_| publishes)
                && !ours.has(row.stored.state.version)
                && (self.source.is_marked(table, &row)? || db.is_news(&ours, &row.stored.state))
            {
                db.carry_mark(local, &row, frames)?;
            }
            last = Some(row.key);
            if is_over(db) {
                break;
            }
        }
        Ok(last)
    }

    /// Joins a row, or holds it. False if the file lacks its values.
    fn take_row(
        &self,
        db: &mut Database,
        theirs: &Table,
        local: Option<&Arc<Table>>,
        row: &SourceRow,
        frames: &mut Frames,
    ) -> Result<bool> {
        let most = db.limits.row_bytes;
        let Some(incoming) = self
            .source
            .incoming(theirs, row, most, local.map(Arc::as_ref))?
        else {
            return Ok(false);
        };
        let Some(table) = local else {
            let at = Place::of(theirs, &row.key_bytes);
            if let Some(table) = db.of_former(&at.table, &at.shape) {
                db.take_former(&table, &at, incoming, frames)?;
                return Ok(true);
            }
            // Else it was asked before; but it may have become too much since.
            if !db.lets_go(&at.table, &[])? {
                db.hold(&at, &incoming, db.why_held(&at.table))?;
                db.let_go_if_too_much(&at.table)?;
            }
            return Ok(true);
        };
        let key: Vec<Value<'_>> = row.key.iter().map(OwnedValue::borrow).collect();
        db.join_with_held(table, &key, &row.key_bytes, incoming, frames)?;
        Ok(true)
    }

    /// Takes a row that is new here, if it is a plain one.
    fn take_plain(
        &self,
        db: &mut Database,
        theirs: &Table,
        local: &Arc<Table>,
        row: &SourceRow,
    ) -> Result<bool> {
        let state = &row.stored.state;
        if !state.exceptions.is_empty() {
            return Ok(false);
        }
        let values = match state.deleted {
            true => None,
            false => match self.source.values(theirs, row, db.limits.row_bytes) {
                Ok(Some(values)) => Some(values),
                Ok(None) | Err(DatabaseError::RowTooLarge(..)) => return Ok(false),
                Err(e) => return Err(e),
            },
        };
        let values = values.as_ref().unwrap_or(&row.key);
        let row = Row {
            version: state.version,
            deleted: state.deleted,
            exceptions: Vec::new(),
            values: values.iter().map(OwnedValue::borrow).collect(),
        };
        db.take_plain(local, &row)
    }

    fn finish(&self, db: &mut Database) -> Result<()> {
        if db.is_brought_on_by(&self.entry) {
            db.inherit_let_go(&LetGo::load(&self.source.conn)?)?;
        }
        db.take_places(&self.entry);
        db.end_awaiting()?;
        db.forget_lost()?;
        db.note_dropped(self.entry.dropped())?;
        Ok(set_meta(&db.conn, Meta::Joined, 1)?)
    }
}

impl Database {
    /// The table here that a snapshot's table is, if its key is the same.
    fn table_like(&self, theirs: &Table) -> Option<Arc<Table>> {
        let local = self.writable(&theirs.name().to_ascii_lowercase());
        let same = |local: &&Arc<Table>| shape_of_table(local) == shape_of_table(theirs);
        local.filter(same).cloned()
    }

    fn compared(&self, table: &Arc<Table>, row: &SourceRow) -> Result<Ours> {
        let key: Vec<Value<'_>> = row.key.iter().map(OwnedValue::borrow).collect();
        let ours = Rows::new(&self.conn, table)?.version(&self.sites, &key)?;
        let same = |ours: &Stored| ours.state == row.stored.state && ours.hash == row.stored.hash;
        let is_compared = self.catalog.comparing.contains_key(&table.id);
        Ok(match ours {
            None if !is_compared => Ours::None,
            Some(ours) if same(&ours) && !is_compared => Ours::Same,
            ours => Ours::Other(ours),
        })
    }

    /// Whether a snapshot says of a row that lives here that it was deleted, so long ago that
    /// others may have forgotten it: they may have been told of the row since.
    fn is_news(&self, ours: &Ours, theirs: &State) -> bool {
        let lives = matches!(ours, Ours::Other(Some(ours)) if !ours.state.deleted);
        lives && theirs.deleted && self.is_old(theirs.version.time_ms())
    }

    /// A row that was learnt from a snapshot just now, and that the others may lack, is sent by us:
    /// its maker may never come back. One that was known before was sent, or marked when it was
    /// learnt; else nodes that merge each other's snapshots would send it for ever.
    fn carry_mark(&mut self, table: &Table, theirs: &SourceRow, frames: &mut Frames) -> Result<()> {
        let key: Vec<Value<'_>> = theirs.key.iter().map(OwnedValue::borrow).collect();
        let ours = Rows::new(&self.conn, table)?.version(&self.sites, &key)?;
        match ours.is_some_and(|ours| ours.state.version == theirs.stored.state.version) {
            true => self.mark_republished(table, &theirs.key_bytes, frames),
            false => Ok(()),
        }
    }

    /// Whether this node has met the others: it founded the cluster or merged a snapshot.
    pub fn is_joined(&self) -> bool {
        self.joined
    }

    /// This node founds the cluster.
    pub fn found(&mut self) -> Result<()> {
        self.write(|db| Ok(set_meta(&db.conn, Meta::Joined, 1)?))?;
        self.joined = true;
        self.report_demoted()
    }
}
