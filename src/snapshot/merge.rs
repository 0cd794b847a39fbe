//! Merges a snapshot into a database that is in use, in short transactions.
//!
//! A snapshot is a bundle of changes like any other: each row joins by its version, in any order
//! and any number of times. So local writes survive, and after a crash on the way the merge only
//! has to begin anew. The positions move when all rows are joined, never earlier.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::apply::{LetGo, Place, shape_of_table};
use crate::capture::{Captured, Frames};
use crate::database::meta::{Meta, set_meta};
use crate::database::rows::{Rows, Stored};
use crate::database::schema::Column;
use crate::database::table::Table;
use crate::database::{Database, DatabaseError, Result};
use crate::model::frame::Row;
use crate::model::manifest::SnapshotEntry;
use crate::model::merge::RowState;
use crate::model::value::{OwnedValue, Value};
use crate::model::version::Version;
use crate::mutation::{self, Mutation};
use crate::snapshot::source::{SnapshotSource, SourceRow};
use crate::snapshot::watch::share;
use former::SourceFormer;

mod former;
mod lacking;
mod pending;
mod schema;

#[cfg(test)]
pub(super) use schema::create;
pub(crate) use schema::say_code;

/// Number of rows read from the snapshot at a time.
const STEP: usize = 128;

/// A merge under way.
pub struct Merge {
    source: SnapshotSource,
    former: Vec<SourceFormer>,
    entry: SnapshotEntry,
    at: MergeProgress,
    /// Number of rows joined so far. `total` is the number in the snapshot.
    pub rows: RowCount,
    total: u64,
    /// Whether there was no row here when the merge began; `None` until that is known.
    is_first: Option<bool>,
}

/// Counts rows of the snapshot.
#[derive(Debug, Clone, Default)]
pub struct RowCount {
    /// Rows read from the snapshot so far.
    pub seen: u64,
    /// Rows of those that were new here.
    pub new: u64,
    /// Rows here that were deleted, by a tombstone of the snapshot or because it lacks them.
    pub deleted: u64,
    /// By table: rows of those, and live rows that were here.
    tables: BTreeMap<String, (u64, u64)>,
}

impl RowCount {
    /// Counts a live row that was here, and whether the merge deleted it.
    fn note_here(&mut self, table: &Table, is_deleted: bool) {
        self.deleted += u64::from(is_deleted);
        let (deleted, here) = match self.tables.get_mut(table.name()) {
            Some(counts) => counts,
            None => self.tables.entry(table.name().to_owned()).or_default(),
        };
        *deleted += u64::from(is_deleted);
        *here += 1;
    }

    /// The deleted rows of each table, for the log; empty if there are none.
    pub fn by_table(&self) -> String {
        let deleted = self.tables.iter().filter(|(_, (deleted, _))| *deleted > 0);
        let each: Vec<String> = deleted
            .map(|(name, (rows, _))| format!("{name} {rows}"))
            .collect();
        match each.is_empty() {
            true => String::new(),
            false => format!(" ({})", each.join(", ")),
        }
    }

    /// Tables of which more than a tenth was deleted: name, deleted rows, rows that were here.
    pub fn many_deleted(&self) -> impl Iterator<Item = (&str, u64, u64)> {
        let tables = self
            .tables
            .iter()
            .map(|(name, (deleted, here))| (&**name, *deleted, *here));
        tables.filter(|(_, deleted, here)| deleted * 10 > *here)
    }
}

/// How far a merge has come.
#[derive(Clone, PartialEq)]
enum MergeProgress {
    /// Creating the snapshot's tables, if the database has none.
    Schema,
    /// Joining the rows of the snapshot's n-th table after a key.
    Rows(usize, Option<Vec<OwnedValue>>),
    /// Judging the rows here that the snapshot's n-th table lacks.
    Lacking(usize, Option<Vec<OwnedValue>>),
    /// Applying the tombstones of the snapshot's n-th former key after a key.
    Former(usize, Option<Vec<OwnedValue>>),
    Held(Option<Place>),
    Parts(Option<(Vec<u8>, i64)>),
    Marks(Option<(i64, i64, Vec<u8>)>),
    Done,
}

/// The state here of a row of the snapshot.
enum Ours {
    /// No version is known here.
    None,
    Same,
    /// A different version; or `None` while the table is not yet compared with its versions.
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
    /// Opens a snapshot's file. The file belongs to the merge from here on.
    pub fn open(file: &Path, entry: &SnapshotEntry) -> Result<Merge> {
        let source = SnapshotSource::open(file)?;
        Ok(Merge {
            total: source.count()?,
            former: SourceFormer::all(&source)?,
            source,
            entry: entry.clone(),
            at: MergeProgress::Schema,
            rows: RowCount::default(),
            is_first: None,
        })
    }

    /// Progress in bytes of the snapshot's database: done, and all.
    pub fn progress(&self) -> (u64, u64) {
        let size = self.entry.database_size;
        (share(size, self.rows.seen, self.total), size)
    }

    /// Whether the snapshot's tables were created, if the database had none.
    pub fn has_tables(&self) -> bool {
        self.at != MergeProgress::Schema
    }

    /// Runs one short transaction, which begins by capturing what the application wrote. Returns
    /// true when the merge is done.
    pub fn step(&mut self, db: &mut Database) -> Result<(bool, Captured)> {
        db.bound_held()?;
        if self.is_first.is_none() {
            self.is_first = Some(db.knows_no_row()?);
        }
        let (at, rows, captured) = db.write_past_damage(|db| {
            let (mut captured, mut at, mut rows) =
                (Captured::default(), self.at.clone(), self.rows.clone());
            if !db.capture_locked(&mut captured)? {
                return Ok((at, rows, captured));
            }
            if self.source.has_births && !db.catalog.births {
                db.learn_births()?;
            }
            let began = db.clock.uptime();
            let mut frames = Frames::new(db);
            db.doubt_tombstone_age();
            while at != MergeProgress::Done {
                let is_over = |db: &Database| db.clock.uptime() - began >= db.time_box();
                let is_schema = at == MergeProgress::Schema;
                at = self.advance(db, at, &mut frames, &mut rows, &is_over)?;
                // New tables are compared before rows come, while they are empty. Otherwise every
                // row is compared as well, and the comparison never catches up.
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
        rows: &mut RowCount,
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
                    let next = self.find_lacking(db, table, after, frames, (rows, is_over))?;
                    Ok(next.map_or(MergeProgress::Lacking(n + 1, None), |key| {
                        MergeProgress::Lacking(n, Some(key))
                    }))
                }
                None => Ok(MergeProgress::Done),
            },
            MergeProgress::Done => Ok(MergeProgress::Done),
        }
    }

    /// Joins rows of one table after a key. Returns the last key, or `None` at the end of the
    /// table.
    fn join_some(
        &self,
        db: &mut Database,
        table: &Arc<Table>,
        after: Option<Vec<OwnedValue>>,
        frames: &mut Frames,
        rows: &mut RowCount,
        is_over: &dyn Fn(&Database) -> bool,
    ) -> Result<Option<Vec<OwnedValue>>> {
        let local = db.table_like(table);
        let columns = table.schema.columns.iter();
        let columns: Vec<&str> = columns.map(|c| c.lower.as_str()).collect();
        let become_founder = self.source.rows(table, after.as_deref(), STEP)?;
        if !become_founder.is_empty() && db.lets_go(&table.name().to_ascii_lowercase(), &columns)? {
            return Ok(None);
        }
        let dropped = db.dropped()?;
        let publishes = db.settings.publish && !mutation::is(Mutation::MarksNotCarried);
        let is_plain =
            |local: &Arc<Table>| !table.has_late_columns() && db.is_plain(local, &columns);
        let plain = local.as_ref().is_some_and(is_plain);
        let mut last = None;
        let mut found = become_founder.into_iter().peekable();
        while let Some(row) = found.next() {
            rows.seen += u64::from(!row.is_aside);
            let ours = match &local {
                Some(local) => self.compared(db, local, table, &row)?,
                None => Ours::None,
            };
            let taken = match (&ours, &local) {
                (Ours::Same, _) => Ok(false),
                (Ours::None, Some(_)) if self.is_forgotten_here(db, table, &row, dropped)? => {
                    Ok(false)
                }
                (Ours::None, Some(local))
                    if plain
                        && !row.is_aside
                        && !db.has_lives(local)
                        && self.take_plain(db, table, local, &row)? =>
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
                && !ours.state.deleted
                && row.stored.state.deleted
                && ours.state.version < row.stored.state.version
            {
                rows.note_here(local, true); // live rows are counted when the merge is at its end
            }
            if let (Ours::Other(Some(ours)), Some(local)) = (&ours, &local)
                && ours.local_tx <= self.covered(db, table, &row.key_bytes)
            {
                self.tell_unheard(db, local, table, &row, frames)?;
            }
            if let Some(local) = local.as_ref().filter(|_| publishes)
                && !ours.has(row.stored.state.version)
                && (self.source.is_marked(table, &row)? || db.is_news(&ours, &row.stored.state))
            {
                db.carry_mark(local, &row, frames)?;
            }
            // All lives of a number come in one step.
            let is_last = found.peek().is_none_or(|next| next.key != row.key);
            last = Some(row.key);
            if is_last && is_over(db) {
                break;
            }
        }
        Ok(last)
    }

    /// Compares a row of the snapshot's table `theirs` with the row here.
    fn compared(
        &self,
        db: &Database,
        table: &Table,
        theirs: &Table,
        row: &SourceRow,
    ) -> Result<Ours> {
        let key: Vec<Value<'_>> = row.key.iter().map(OwnedValue::borrow).collect();
        let ours = db.life(table, &key, row.stored.birth)?;
        let is_compared = db.catalog.comparing.contains_key(&table.id);
        Ok(match ours {
            None if !is_compared => Ours::None,
            Some(ours)
                if !is_compared
                    && ours.state == row.stored.state
                    && self.has_same_content(db, table, &ours, theirs, row)? =>
            {
                Ours::Same
            }
            ours => Ours::Other(ours),
        })
    }

    /// Whether a row of the snapshot's table `theirs`, which has the version of the row here, has
    /// the same content. Hashes tell that only if both databases have one key, as after a start
    /// from a snapshot.
    fn has_same_content(
        &self,
        db: &Database,
        table: &Table,
        ours: &Stored,
        theirs: &Table,
        row: &SourceRow,
    ) -> Result<bool> {
        let other = &row.stored;
        if ours.state.deleted || other.state.deleted {
            return Ok(ours.state.deleted == other.state.deleted);
        }
        if table.has_key_of(ours, theirs, other) {
            return Ok(ours.hash == other.hash);
        }
        let there = match self.source.all_values(theirs, row, db.limits.row_bytes) {
            Err(DatabaseError::RowTooLarge(..)) => return Ok(false),
            there => there?,
        };
        let key: Vec<Value<'_>> = row.key.iter().map(OwnedValue::borrow).collect();
        let here = match db.values_aside(table, &key, &row.key_bytes, ours.birth)? {
            Some(values) => Some(values),
            None => Rows::new(&db.conn, table)?.owned_row(&key)?,
        };
        let here = match here {
            Some(values) => Some(values),
            None => db.displaced_row(table, &row.key_bytes)?,
        };
        let (Some(here), Some(there)) = (here, there) else {
            return Ok(false);
        };
        // A column that one side lacks counts as its default, as in a hash.
        let covers = |(one, values): (&Table, &[OwnedValue]), (other, others): (&Table, &[_])| {
            let mut columns = one.schema.columns.iter().zip(values);
            columns.all(|(column, value)| {
                let same = |c: &Column| c.lower == column.lower;
                let at = other.schema.columns.iter().position(same);
                *value == *at.map_or(&column.default, |at| &others[at])
            })
        };
        Ok(covers((table, &here), (theirs, &there)) && covers((theirs, &there), (table, &here)))
    }

    /// Joins a row, or holds it. Returns false if the file lacks its values.
    fn take_row(
        &self,
        db: &mut Database,
        theirs: &Table,
        local: Option<&Arc<Table>>,
        row: &SourceRow,
        frames: &mut Frames,
    ) -> Result<bool> {
        let most = db.limits.row_bytes;
        let local_table = local.map(Arc::as_ref);
        let Some(mut incoming) = self.source.incoming(theirs, row, most, local_table)? else {
            return Ok(false);
        };
        incoming.was = self.was(theirs, row)?;
        let Some(table) = local else {
            let at = Place::of_life(theirs, &row.key_bytes, row.stored.birth);
            if let Some(table) = db.of_former(&at.table, &at.shape) {
                db.take_former(&table, &at, incoming, frames)?;
                return Ok(true);
            }
            // With a table here `join_some` asked this already. The held rows may have become too
            // many since.
            if !db.lets_go(&at.table, &[])? {
                db.hold(&at, &incoming, db.why_held(&at.table))?;
                db.let_go_if_too_much(&at.table)?;
            }
            return Ok(true);
        };
        let key: Vec<Value<'_>> = row.key.iter().map(OwnedValue::borrow).collect();
        let is_changed = db.join_with_held(table, &key, &row.key_bytes, incoming, frames)?;
        if is_changed && !row.stored.state.deleted && !row.is_aside {
            let there = Rows::new(&self.source.conn, theirs)?.owned_row(&key)?;
            if let Some(there) = there {
                self.keep_record(db, (theirs, row, &there), table)?;
            }
        }
        Ok(true)
    }

    /// Applies a row that is new here, if it is a plain one.
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
        let there = values.as_ref().unwrap_or(&row.key);
        let taken = Row {
            version: state.version,
            birth: row.stored.birth,
            deleted: state.deleted,
            exceptions: Vec::new(),
            values: there.iter().map(OwnedValue::borrow).collect(),
        };
        let is_taken = db.take_plain(local, &taken)?;
        if is_taken && !state.deleted {
            self.keep_record(db, (theirs, row, there), local)?;
        }
        Ok(is_taken)
    }

    /// A row that was changed behind the triggers' back where the snapshot was made is known as
    /// such here, too: it keeps the hash that was recorded with its version. A hash under the key
    /// of another database says nothing here, so such a row gets the lowest version instead.
    /// `there` are the values in the snapshot's table.
    fn keep_record(
        &self,
        db: &mut Database,
        (theirs, row, there): (&Table, &SourceRow, &[OwnedValue]),
        local: &Table,
    ) -> Result<()> {
        let is_as_recorded = theirs.is_content(&row.stored, there.iter().map(OwnedValue::borrow));
        if is_as_recorded || mutation::is(Mutation::DamageForgottenOnMerge) {
            return Ok(());
        }
        let key: Vec<Value<'_>> = row.key.iter().map(OwnedValue::borrow).collect();
        let mut rows = Rows::new(&db.conn, local)?;
        if let Some(mut here) = rows.version(&db.sites, &key)?
            && here.state.version == row.stored.state.version
        {
            match local.has_key_of(&here, theirs, &row.stored) {
                true => here.hash = row.stored.hash,
                false => here.state = here.state.lowered(),
            }
            rows.put_version(&mut db.sites, &key, &here)?;
        }
        Ok(())
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
    /// The table here with the name of the snapshot's table, if its key is the same.
    fn table_like(&self, theirs: &Table) -> Option<Arc<Table>> {
        let local = self.writable(&theirs.name().to_ascii_lowercase());
        let same = |local: &&Arc<Table>| shape_of_table(local) == shape_of_table(theirs);
        local.filter(same).cloned()
    }

    /// Whether the snapshot has a tombstone for a row that lives here, so old that others may have
    /// forgotten the delete: they may have been sent the row since.
    fn is_news(&self, ours: &Ours, theirs: &RowState) -> bool {
        let lives = matches!(ours, Ours::Other(Some(ours)) if !ours.state.deleted);
        lives && theirs.deleted && self.is_old(theirs.version.time_ms())
    }

    /// Marks a row that was learnt from a snapshot just now and that the others may lack, so that
    /// this node sends it: its maker may never come back. A row that was known before was sent, or
    /// marked when it was learnt. Otherwise nodes that merge each other's snapshots would send it
    /// for ever.
    fn carry_mark(&mut self, table: &Table, theirs: &SourceRow, frames: &mut Frames) -> Result<()> {
        let key: Vec<Value<'_>> = theirs.key.iter().map(OwnedValue::borrow).collect();
        let birth = theirs.stored.birth;
        let ours = self.life(table, &key, birth)?;
        match ours.is_some_and(|ours| ours.state.version == theirs.stored.state.version) {
            true => self.mark_again(table, (&key, &theirs.key_bytes), birth, frames),
            false => Ok(()),
        }
    }

    /// Whether this node has met the others: it founded the cluster or merged a snapshot.
    pub fn is_joined(&self) -> bool {
        self.joined
    }

    /// Notes that this node founds the cluster.
    pub fn become_founder(&mut self) -> Result<()> {
        self.write(|db| Ok(set_meta(&db.conn, Meta::Joined, 1)?))?;
        self.joined = true;
        self.report_demoted()
    }
}
