//! The usual case of applying: both sides have the same columns, no column has a version of its
//! own, nothing is held, the table has no further UNIQUE index, and no trigger of the application
//! must run. It takes two look-ups and no allocation per row. A row that is not plain in this sense
//! is left to [`super::join`], which gives the same result for plain rows, too.

use crate::apply::affinity::is_storable_key;
use crate::database::rows::{Rows, Stored};
use crate::database::schema::Affinity;
use crate::database::sites::Sites;
use crate::database::table::Table;
use crate::database::{Database, DatabaseError, Result, is_unfit};
use crate::model::frame::{self, Row};
use crate::model::merge::{Exceptions, RowState};
use crate::model::value::Value;
use crate::model::version::Version;
use crate::mutation::{self, Mutation};

/// Result of applying one row.
enum Plain {
    Unchanged,
    Changed,
    /// The row is not plain after all.
    Other,
}

/// Facts that hold for all rows of one transaction.
struct PlainNow {
    local_tx: i64,
    demoted_version: Option<Version>,
    young_from: i64,
}

impl Database {
    fn plain_now(&self) -> PlainNow {
        PlainNow {
            local_tx: self.reservation.peek_number() - 1,
            demoted_version: self.demoted_version(),
            young_from: self.young_from(),
        }
    }

    /// Whether rows of this table can be plain at all.
    pub(crate) fn is_plain(&self, table: &Table, columns: &[&str]) -> bool {
        let here = &table.schema.columns;
        columns.len() == here.len()
            && columns
                .iter()
                .zip(here)
                .all(|(c, h)| c.eq_ignore_ascii_case(&h.lower))
            && table.schema.unique.is_empty()
            && !table.fires
            && !table.has_late_columns()
            && !self.has_lives(table)
            && self.damage.is_clear()
            && !self.catalog.comparing.contains_key(&table.id)
            && !self.catalog.former.contains_key(&table.id)
            && !self
                .catalog
                .held
                .contains(&table.name().to_ascii_lowercase())
    }

    /// Applies `row` and the rows after it while they are plain. Returns how many changed, and
    /// whether `row` now holds a row that is not plain.
    pub(super) fn apply_plain<'a>(
        &mut self,
        table: &Table,
        rows: &mut frame::FrameRows<'a, '_>,
        row: &mut Row<'a>,
    ) -> Result<(usize, bool)> {
        let now = self.plain_now();
        let mut ops = Rows::new(&self.conn, table)?;
        let (mut changed, mut unchanged) = (0, 0);
        let is_other = loop {
            match plain_row(&mut ops, &mut self.sites, row, &now) {
                Ok(Plain::Unchanged) => unchanged += 1,
                Ok(Plain::Changed) => changed += 1,
                Ok(Plain::Other) => break true,
                Err(DatabaseError::Sqlite(e)) if is_unfit(&e) => break true,
                Err(e) => return Err(e),
            }
            let is_cut = self.steps.applied(row.values.len(), || self.clock.uptime());
            if is_cut || !rows.next(row).unwrap_or(false) {
                break false;
            }
        };
        self.counts.won += changed as u64;
        self.counts.lost += unchanged;
        Ok((changed, is_other))
    }
}

fn plain_row(
    ops: &mut Rows<'_>,
    sites: &mut Sites,
    row: &Row<'_>,
    now: &PlainNow,
) -> Result<Plain> {
    let PlainNow {
        local_tx,
        demoted_version,
        young_from,
    } = *now;
    if !row.exceptions.is_empty() {
        return Ok(Plain::Other);
    }
    let table = ops.table;
    let key = &row.values[..table.key_len()];
    if !is_storable_key(table, key) {
        return Ok(Plain::Other);
    }
    let stored = ops.version(sites, key)?;
    if let Some(stored) = &stored {
        let (here, there) = (&stored.state, row.version);
        let special = !here.exceptions.is_empty() || demoted_version == Some(here.version);
        if stored.birth != row.birth {
            return Ok(Plain::Other);
        }
        if special || (here.deleted && !row.deleted) {
            return Ok(Plain::Other);
        }
        if here.version >= there && !mutation::is(Mutation::NoVersionCompare) {
            // The content decides a tie. An older tombstone matters to columns that are not here
            // yet, so the row must remember it.
            let differs = !mutation::is(Mutation::NoTieBreak)
                && here.version == there
                && (here.deleted != row.deleted
                    || !(row.deleted || ops.has_values(key, &row.values)?));
            let is_republished = here.deleted && stored.local_tx < young_from;
            return Ok(
                if differs || (row.deleted && (!here.deleted || is_republished)) {
                    Plain::Other
                } else {
                    Plain::Unchanged
                },
            );
        }
    }
    if row.deleted && stored.is_none() && mutation::is(Mutation::UnknownDeleteForgotten) {
        return Ok(Plain::Unchanged);
    }
    let live = stored.filter(|s| !s.state.deleted);
    let mut hash = 0;
    // The row may have been changed, or have come back, behind the triggers' back.
    let is_trusted = mutation::is(Mutation::RecordedIsTrusted);
    if row.deleted {
        if live.is_some() || !is_trusted {
            ops.delete(key)?;
        }
    } else {
        hash = table.content_hash(local_tx, row.values.iter().copied());
        let may_be_same = live.is_some_and(|s| s.hash == hash);
        let is_same = may_be_same && (is_trusted || ops.has_values(key, &row.values)?);
        let mut columns = row.values.iter().zip(&table.schema.columns);
        if !is_same {
            ops.upsert(&row.values)?;
            if columns.any(|(v, c)| may_alter(c.affinity, v)) {
                hash = ops.stored_hash(key, local_tx)?;
            }
        }
    }
    let state = RowState {
        version: row.version,
        deleted: row.deleted,
        exceptions: Exceptions::new(),
    };
    ops.put_version(
        sites,
        key,
        &Stored {
            state,
            local_tx,
            hash,
            birth: row.birth,
        },
    )?;
    Ok(Plain::Changed)
}

impl Database {
    /// Applies a plain row of a table for which [`Database::is_plain`] holds. False if the general
    /// way must apply the row.
    pub(crate) fn take_plain(&mut self, table: &Table, row: &Row<'_>) -> Result<bool> {
        let now = self.plain_now();
        let mut ops = Rows::new(&self.conn, table)?;
        match plain_row(&mut ops, &mut self.sites, row, &now) {
            Ok(Plain::Unchanged | Plain::Changed) => Ok(true),
            Ok(Plain::Other) => Ok(false),
            Err(DatabaseError::Sqlite(e)) if is_unfit(&e) => Ok(false),
            Err(e) => Err(e),
        }
    }
}

/// Whether a column of this affinity may change the value when it stores it
/// (<https://www.sqlite.org/datatype3.html>, 3.1). A value from a column of the same affinity
/// stays.
pub(super) fn may_alter(affinity: Affinity, value: &Value<'_>) -> bool {
    match (affinity, value) {
        (_, Value::Null | Value::Blob(_)) | (Affinity::Blob, _) => false,
        (Affinity::Text, v) => !matches!(v, Value::Text(_)),
        (Affinity::Integer | Affinity::Numeric, v) => !matches!(v, Value::Integer(_)),
        (Affinity::Real, v) => !matches!(v, Value::Real(_)),
    }
}
