//! Gives one local change its version.

use rusqlite::params;

use crate::apply::{self, Lives, RowLife};
use crate::capture::unsent::{put_mark, unmark};
use crate::capture::{Became, Frames, Touched};
use crate::database::rows::{Rows, Stored, row_values};
use crate::database::schema::Column;
use crate::database::sites::Sites;
use crate::database::table::Table;
use crate::database::{Database, DatabaseError, Result, values};
use crate::model::birth::{self, Birth};
use crate::model::cbor::value_bytes;
use crate::model::merge::{Exceptions, FLOOR, RowState};
use crate::model::value::{OwnedValue, Value};
use crate::model::version::{HLC_BEFORE, Version, milliseconds, stamp};

/// Why capture reads a row, weakest evidence first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ChangeEvidence {
    /// A REPLACE may have evicted the row.
    Maybe,
    /// The comparison reads the row: it changed if its version has a different hash or is missing.
    Compared,
    /// Like `Compared`, in a table that was rebuilt with different columns.
    Rebuilt,
    /// The row was in the file before HarmonyLite was.
    Before,
    /// A trigger saw the row change.
    Real,
}

/// Writes the versions, marks and frames of local changes.
pub(crate) struct Recorder<'a> {
    pub sites: &'a mut Sites,
    pub frames: &'a mut Frames,
    pub node: u64,
    /// Some rows of the table may have no version yet.
    pub comparing: bool,
    /// Some rows of the table may be displaced: live by version, but not in the table.
    pub displaced: bool,
    pub publish: bool,
    /// A forgotten version of this node may have been as high as this hlc.
    pub forgotten: i64,
    /// hlc that the next row had under the former key of its table; 0 if it had none.
    pub former: i64,
    /// The old key of the next row, as frames carry it.
    pub was: Option<Vec<u8>>,
    /// Bytes of the largest row that can be published.
    pub row_bytes: usize,
    /// The highest hlc given to a row so far.
    pub highest: i64,
    /// Number of the first transaction after the change log was last empty.
    pub log_run: i64,
    /// Whether rows that are inserted get births.
    pub births: bool,
    /// Whether some numbers of the table may have lives in `___lives`.
    pub has_lives: bool,
}

impl Recorder<'_> {
    /// Reads the row with this key and gives it a version if it changed. True if it did.
    pub(crate) fn record(
        &mut self,
        rows: &mut Rows<'_>,
        key: &[Value<'_>],
        touched: &Touched,
    ) -> Result<bool> {
        let (key_bytes, why, time_ms) = (&touched.key[..], touched.why, touched.time_ms);
        let stored = rows.version(self.sites, key)?;
        let known = stored.as_ref().map_or(0, |s| s.state.version.hlc);
        // A known row may have been forgotten and learnt again.
        let mut previous = known.max(self.forgotten).max(self.former);
        if self.has_lives {
            let (conn, table) = (rows.conn, rows.table);
            let lives = Lives { conn, table };
            previous = previous.max(Database::highest_of_lives(&lives, key_bytes)?);
        }
        if self.displaced
            && let Some(values) = rows.owned_row(key)?
        {
            let hidden = apply::highest_displaced(rows, self.sites, &values, key_bytes)?;
            previous = previous.max(hidden);
        }
        let hlc = if why == ChangeEvidence::Before {
            HLC_BEFORE
        } else {
            stamp(time_ms, previous)
        };
        let version = Version {
            hlc,
            node: self.node,
        };
        let has_birth = |s: &Stored| s.birth != Birth::None;
        if self.births || stored.as_ref().is_some_and(has_birth) {
            let shown = self.is_shown(rows, key_bytes, stored.as_ref())?;
            let has_row = rows.exists(key)?;
            match touched.fate.verdict(why, has_row, shown) {
                // The log was cut: its insert follows, and tells how the row was born.
                Became::Nothing if has_row && !shown => return Ok(false),
                Became::Nothing if stored.is_some() && why != ChangeEvidence::Maybe => {
                    return Ok(false);
                }
                Became::Dies if has_row => {
                    let stored = stored.as_ref().expect("shown");
                    self.bury(rows, key, key_bytes, stored, version)?;
                    return Ok(true);
                }
                Became::IsBorn { given } => {
                    let at = (key, key_bytes);
                    return self.bear(rows, at, (why, given), (time_ms, previous), stored, shown);
                }
                _ => {}
            }
        }
        let birth = stored.as_ref().map_or(Birth::None, |s| s.birth);
        let of = (version, birth);
        let Some(new) = self.decide(rows, key, key_bytes, why, of, stored.as_ref())? else {
            return Ok(false);
        };
        self.highest = self.highest.max(hlc);
        rows.put_version(self.sites, key, &new)?;
        self.mark(rows, key_bytes, stored.as_ref())?;
        Ok(true)
    }

    /// Encodes the row if it changed, and returns what is to be stored of it; none if it did not
    /// change.
    fn decide(
        &mut self,
        rows: &mut Rows<'_>,
        key: &[Value<'_>],
        key_bytes: &[u8],
        why: ChangeEvidence,
        (version, birth): (Version, Birth),
        stored: Option<&Stored>,
    ) -> Result<Option<Stored>> {
        let table = rows.table;
        let count = table.schema.columns.len();
        let frames = &mut *self.frames;
        let named = (key_bytes, self.was.as_deref());
        let found = rows.row(key, |row| {
            let values = || row_values(row, count);
            let live = stored.filter(|s| !s.state.deleted);
            let same = || live.is_some_and(|s| table.is_content(s, values()));
            let unchanged = match why {
                ChangeEvidence::Maybe => true,
                ChangeEvidence::Compared | ChangeEvidence::Rebuilt => same(),
                ChangeEvidence::Before => live.is_some(),
                ChangeEvidence::Real => false,
            };
            if unchanged {
                return Ok(None);
            }
            let bytes = row_bytes(values());
            if bytes > self.row_bytes {
                return Err(DatabaseError::RowTooLarge(bytes, self.row_bytes));
            }
            let mut exceptions = exceptions(table, stored, |i| values::column(row, i));
            if let (ChangeEvidence::Rebuilt, Some(stored)) = (why, stored) {
                fill_late(table, stored, self.node, &mut exceptions);
            }
            let state = RowState {
                version,
                deleted: false,
                exceptions,
            };
            if frames.encode {
                let exceptions = for_others(table, &state, |i| values::column(row, i));
                frames.upsert(table, named, (version, birth), &exceptions, values());
            }
            Ok(Some(Stored {
                state,
                local_tx: frames.local_tx,
                hash: table.content_hash(frames.local_tx, values()),
                birth,
            }))
        })?;
        match found {
            Some(changed) => changed,
            None if self.is_deletion(rows, key_bytes, why, version, stored)? => {
                if self.frames.encode {
                    self.frames
                        .delete(table, key_bytes, (version, birth), key.iter().copied());
                }
                Ok(Some(dead(version, birth, self.frames.local_tx)))
            }
            None => Ok(None),
        }
    }

    /// Whether the known row was in the table at the last capture.
    fn is_shown(&self, rows: &Rows<'_>, key_bytes: &[u8], stored: Option<&Stored>) -> Result<bool> {
        if stored.is_none_or(|s| s.state.deleted) {
            return Ok(false);
        }
        Ok(!self.is_displaced(rows, key_bytes)?)
    }

    fn is_displaced(&self, rows: &Rows<'_>, key_bytes: &[u8]) -> Result<bool> {
        if !self.displaced {
            return Ok(false);
        }
        let mut displaced = rows.conn.prepare_cached(
            "SELECT 1 FROM __harmonylite___displaced WHERE table_id = ?1 AND key = ?2",
        )?;
        Ok(displaced.exists(params![rows.table.id, key_bytes])?)
    }

    /// Gives the row its tombstone, although a row is in the table: the log has its insert.
    fn bury(
        &mut self,
        rows: &mut Rows<'_>,
        key: &[Value<'_>],
        key_bytes: &[u8],
        stored: &Stored,
        version: Version,
    ) -> Result<()> {
        let dead = dead(version, stored.birth, self.frames.local_tx);
        if self.frames.encode {
            let (table, of) = (rows.table, (version, stored.birth));
            let key = key.iter().copied();
            self.frames.delete(table, key_bytes, of, key);
        }
        self.highest = self.highest.max(version.hlc);
        rows.put_version(self.sites, key, &dead)?;
        self.mark(rows, key_bytes, Some(stored))
    }

    fn mark(&self, rows: &Rows<'_>, key_bytes: &[u8], before: Option<&Stored>) -> Result<()> {
        if !self.publish {
            return Ok(());
        }
        if let Some(before) = before.filter(|s| s.local_tx != self.frames.local_tx) {
            unmark(rows, key_bytes, before.local_tx)?;
        }
        put_mark(rows, key_bytes, self.frames.local_tx)
    }

    /// Gives a new row its version and its birth. The row that had its number so far goes aside,
    /// dead if it was shown. True if there is such a row.
    fn bear(
        &mut self,
        rows: &mut Rows<'_>,
        (key, key_bytes): (&[Value<'_>], &[u8]),
        (why, given): (ChangeEvidence, bool),
        (time_ms, mut previous): (i64, i64),
        stored: Option<Stored>,
        is_shown: bool,
    ) -> Result<bool> {
        let (conn, table) = (rows.conn, rows.table);
        let Some(values) = rows.owned_row(key)? else {
            return Ok(false);
        };
        previous = previous.max(stored.as_ref().map_or(0, |s| s.birth.hlc()));
        if let Some(shown) = stored.as_ref().filter(|_| is_shown) {
            let hlc = stamp(time_ms, previous);
            let version = Version {
                hlc,
                node: self.node,
            };
            self.bury(rows, key, key_bytes, shown, version)?;
            previous = hlc;
        }
        if let Some(stored) = rows.version(self.sites, key)? {
            let values = match stored.state.deleted {
                true => Vec::new(),
                false => apply::displaced_row(conn, table, key_bytes)?.unwrap_or_default(),
            };
            let life = RowLife { stored, values };
            Lives { conn, table }.put(self.sites, key_bytes, &life)?;
            self.has_lives = true;
        }
        let columns = table
            .schema
            .columns
            .iter()
            .zip(&values)
            .skip(table.key_len());
        let hash = birth::content(columns.map(|(c, v)| (&*c.lower, v.borrow())));
        let mut hlc = match why {
            ChangeEvidence::Before => HLC_BEFORE,
            _ => stamp(time_ms, previous),
        };
        let birth = match (why, given) {
            (ChangeEvidence::Before, _) => Birth::Before(hash),
            (_, true) => Birth::Given(hash),
            (_, false) => {
                if milliseconds(hlc) == milliseconds(previous) {
                    hlc = stamp(milliseconds(previous) + 1, previous);
                }
                let node = self.node;
                Birth::chosen(Version { hlc, node }, hash)
            }
        };
        let lives = Lives { conn, table };
        if self.has_lives
            && let Some(known) = lives.get(self.sites, key_bytes, birth)?
        {
            hlc = hlc.max(stamp(time_ms, known.stored.state.version.hlc));
            lives.remove(key_bytes, birth)?;
        }
        let of = (
            Version {
                hlc,
                node: self.node,
            },
            birth,
        );
        let Some(new) = self.decide(rows, key, key_bytes, why, of, None)? else {
            return Ok(false);
        };
        self.highest = self.highest.max(hlc);
        rows.put_version(self.sites, key, &new)?;
        self.mark(rows, key_bytes, None)?;
        Ok(true)
    }

    /// Whether a row that is not in the table was deleted.
    fn is_deletion(
        &self,
        rows: &Rows<'_>,
        key_bytes: &[u8],
        why: ChangeEvidence,
        version: Version,
        stored: Option<&Stored>,
    ) -> Result<bool> {
        match stored {
            Some(stored) if stored.state.deleted => {
                Ok(why == ChangeEvidence::Real && self.is_earlier_part(stored, version))
            }
            Some(_) => Ok(why == ChangeEvidence::Real || !self.is_displaced(rows, key_bytes)?),
            // The row was inserted and deleted since the last capture: no other node knows it.
            // While rows from before have no versions yet, it may have been one of them.
            None => Ok(self.comparing && why == ChangeEvidence::Real),
        }
    }
}

impl Recorder<'_> {
    /// Whether a row was found deleted because of an entry that is not its last one: the change log
    /// is taken in parts, and the delete itself may come with a later part.
    fn is_earlier_part(&self, stored: &Stored, version: Version) -> bool {
        let before = stored.state.version;
        before.node == self.node
            && stored.local_tx >= self.log_run
            && milliseconds(before.hlc) < milliseconds(version.hlc)
    }
}

/// A tombstone.
fn dead(version: Version, birth: Birth, local_tx: i64) -> Stored {
    let state = RowState {
        version,
        deleted: true,
        exceptions: Exceptions::new(),
    };
    Stored {
        state,
        local_tx,
        hash: 0,
        birth,
    }
}

/// Upper bound of the bytes that a row with these values takes in a frame.
pub(super) fn row_bytes<'v>(values: impl Iterator<Item = Value<'v>>) -> usize {
    const HEAD: usize = 64;
    values.map(value_bytes).fold(HEAD, usize::saturating_add)
}

/// Exceptions of a local write. It counts as a write of the whole row, except for columns that were
/// added since and still have their default: the write must not overwrite what other nodes wrote
/// there.
fn exceptions<'v>(
    table: &Table,
    stored: Option<&Stored>,
    value: impl Fn(usize) -> Value<'v>,
) -> Exceptions {
    let mut exceptions = Exceptions::new();
    let Some(stored) = stored else {
        return exceptions;
    };
    let floor = stored.state.floor();
    if floor != Version::NEVER {
        exceptions.insert(FLOOR.to_owned(), floor);
    }
    if table.has_late_columns() {
        let never = never_written(table, stored, value);
        exceptions.extend(never.map(|name| (name, Version::NEVER)));
    }
    exceptions
}

/// Gives values that a rebuild put into new columns the lowest version above the row's floor. They
/// are older than the writes of nodes that had these columns before, even if the row came from such
/// a node since.
fn fill_late(table: &Table, stored: &Stored, node: u64, exceptions: &mut Exceptions) {
    let hlc = HLC_BEFORE.max(stored.state.floor().hlc + 1);
    let late = (0..table.schema.columns.len()).filter(|i| is_late(table, stored, *i));
    for i in late {
        let name = table.schema.columns[i].lower.clone();
        exceptions.entry(name).or_insert(Version { hlc, node });
    }
}

/// Columns of this row that have no version and still have their default.
pub(super) fn never_written<'v>(
    table: &Table,
    stored: &Stored,
    value: impl Fn(usize) -> Value<'v>,
) -> impl Iterator<Item = String> {
    let columns = table.schema.columns.iter().enumerate();
    let late = columns.filter(move |(i, column)| {
        is_late(table, stored, *i) && value(*i).same(&column.default.borrow())
    });
    late.map(|(_, column)| column.lower.clone())
}

/// Whether the column has no version in this row: it was added after the row's version was learnt,
/// or no known version carried it.
pub(crate) fn is_late(table: &Table, stored: &Stored, column: usize) -> bool {
    let lower = &table.schema.columns[column].lower;
    stored.local_tx < table.born[column]
        || (!stored.state.deleted && stored.state.column(lower) == Version::NEVER)
}

/// The version under which the default of an added column is published. It is `NEVER`, as long as
/// other nodes know the default. If the default is a different one by now (`now`), a node that
/// joins later gets the old value from such a row alone: then it is the lowest version of the row.
pub(crate) fn unwritten(
    column: &Column,
    now: &OwnedValue,
    state: &RowState,
    value: Value<'_>,
) -> Version {
    match column.default != *now && value.same(&column.default.borrow()) {
        true => state.lowest(),
        false => Version::NEVER,
    }
}

/// Exceptions as frames carry them.
pub(super) fn for_others<'v>(
    table: &Table,
    state: &RowState,
    value: impl Fn(usize) -> Value<'v>,
) -> Vec<(usize, Version)> {
    let mut exceptions = indexed(table, &state.exceptions);
    for (i, own) in &mut exceptions {
        if let Some(column) = table
            .schema
            .columns
            .get(*i)
            .filter(|_| *own == Version::NEVER)
        {
            *own = unwritten(column, &column.default_now, state, value(*i));
        }
    }
    exceptions
}

/// Exceptions by column index, as frames name them. The index after the last column is the floor.
pub(crate) fn indexed(table: &Table, exceptions: &Exceptions) -> Vec<(usize, Version)> {
    let columns = &table.schema.columns;
    let index = |name: &String| match name.as_str() {
        FLOOR => Some(columns.len()),
        name => columns.iter().position(|c| c.lower == name),
    };
    exceptions
        .iter()
        .filter_map(|(name, v)| Some((index(name)?, *v)))
        .collect()
}
