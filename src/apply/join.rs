//! Joins one incoming row with the row here, column by column.

use std::sync::Arc;

use crate::apply::Incoming;
use crate::apply::affinity::is_storable_key;
use crate::apply::demoted;
use crate::apply::former_key::is_of_former;
use crate::apply::held::{DAMAGED, Place, WAITS};
use crate::apply::unique::is_collision;
use crate::capture::{Frames, is_late};
use crate::database::rows::{Rows, Stored};
use crate::database::table::Table;
use crate::database::{Database, Former, FormerRow, Result, is_unfit, savepoint};
use crate::model::merge::{self, Action, MergeColumn, RowState};
use crate::model::value::{OwnedValue, Value};
use crate::model::version::{HLC_BEFORE, Version};
use crate::mutation::{self, Mutation};

/// Result of one attempt to write a row.
enum Attempt {
    Done,
    /// The row collides in a UNIQUE index.
    Collides,
    /// The row breaks a constraint that the table has here.
    Unfit(String),
}

/// The next step after the row's version is stored.
enum JoinOutcome {
    Nothing,
    Hold(String),
    /// Work out which of the colliding rows is in the table. `arrived` is the row as it is now;
    /// none if it is deleted.
    Settle {
        in_table: Option<Vec<OwnedValue>>,
        arrived: Option<Vec<OwnedValue>>,
    },
}

/// Result of a join.
struct Joined {
    before: Option<RowState>,
    after: RowState,
    next: JoinOutcome,
    /// The transaction under which the row was learnt before, if a part of that content survives in
    /// the joined row, or the others may not know that the row has no birth: if the row was marked
    /// unsent under it, the mark must stay.
    remains: Option<i64>,
    /// The row lives on although a tombstone is known that its sender may have forgotten, or the
    /// row lost against such a tombstone.
    buried: bool,
}

impl Database {
    /// Joins one row, and holds those of its columns that are unknown here. True if something
    /// changed.
    pub(crate) fn join_row(
        &mut self,
        table: &Arc<Table>,
        key: &[Value<'_>],
        key_bytes: &[u8],
        mut incoming: Incoming,
        frames: &mut Frames,
    ) -> Result<bool> {
        if !is_storable_key(table, key) {
            let reason = "its key has a different storage class than the table's";
            let at = Place::of_life(table, key_bytes, incoming.birth);
            self.hold(&at, &incoming, reason)?;
            return Ok(false);
        }
        // Writes that the application made while the triggers were missing come before this row.
        if let Some(cause) = self.catalog.comparing.get(&table.id).map(|c| c.cause) {
            self.compare_key(table, key_bytes, cause, frames)?;
        }
        if let Some(changed) = self.join_aside(table, key, key_bytes, &mut incoming, frames)? {
            return Ok(changed);
        }
        let at = Place::of_life(table, key_bytes, incoming.birth);
        if !self.add_former(table, (key, key_bytes), &mut incoming)? {
            self.hold(&at, &incoming, WAITS)?;
            return Ok(false);
        }
        if self.damage.is_known(table.id, key_bytes) {
            self.hold(&at, &incoming, DAMAGED)?;
            return Ok(false);
        }
        self.damage.begin_row(table.id, key_bytes);
        self.demote_preexisting(table, key)?;
        let is_written = |joined: &Joined| !matches!(joined.next, JoinOutcome::Hold(_));
        let written = self.guarded_rows(table, is_written, |db, table| {
            let mut joined = db.join_versions(table, key, key_bytes, &incoming, frames.local_tx)?;
            if let JoinOutcome::Settle { in_table, arrived } = &mut joined.next {
                let (in_table, arrived) = (in_table.take(), arrived.take());
                db.settle_joined(table, key, key_bytes, in_table, arrived)?;
            }
            Ok(joined)
        })?;
        self.damage.end_row();
        let joined = match written {
            Ok(Joined {
                next: JoinOutcome::Hold(reason),
                ..
            })
            | Err(reason) => {
                self.hold(&at, &incoming, &reason)?;
                return Ok(false);
            }
            Ok(joined) => joined,
        };
        let is_done = self.settle_held(table, &at, &incoming, joined.after.floor())?;
        self.end_held_of_former(table, key, &incoming, joined.after.version)?;
        let after = &joined.after;
        let is_now = (after.version, after.deleted);
        self.learn_was(table, key_bytes, &incoming, is_now, frames.local_tx)?;
        let mut versions = after.exceptions.values().chain([&after.version]);
        let is_to_be_sent = versions.any(|v| incoming.is_to_be_sent(*v));
        if is_done && self.settings.publish && is_to_be_sent {
            self.mark_republished(table, key_bytes, frames)?;
        }
        if let Some(local_tx) = joined.remains {
            self.mark_onwards(table, key_bytes, local_tx, frames)?;
        }
        if joined.buried && self.settings.publish && !mutation::is(Mutation::BuriedInSilence) {
            self.mark_republished(table, key_bytes, frames)?;
        }
        self.elect(table, key, key_bytes)?;
        Ok(joined.before.as_ref() != Some(&joined.after))
    }

    /// Adds the tombstone that a row has under the former key of its table. A row that was deleted
    /// under the former key must not come back because it arrives under the new key. False if it is
    /// not known yet whether the migration took the row over.
    fn add_former(
        &self,
        table: &Table,
        (key, key_bytes): (&[Value<'_>], &[u8]),
        incoming: &mut Incoming,
    ) -> Result<bool> {
        if incoming.row.is_none() || !self.catalog.former.contains_key(&table.id) {
            return Ok(true);
        }
        let value = |name: &str| incoming.columns.get(name).map(|(_, v)| v.borrow());
        let mut each = self.deleted_before(table, value)?;
        match self.row_that_was(table, incoming)? {
            Some((_, former, row)) if self.is_that_row(table, key_bytes, incoming)? => {
                each.extend(row.map(|row| (former, row)));
            }
            Some(_) => {}
            None => {
                let former = self.former_row(table, value, incoming.row)?;
                let is_compared = self.catalog.comparing.contains_key(&table.id);
                if is_compared && former.as_ref().is_some_and(FormerRow::may_be_left_out) {
                    return Ok(false);
                }
                let last = self.catalog.former.get(&table.id).cloned();
                each.extend(last.zip(former));
            }
        }
        if each.is_empty() {
            return Ok(true);
        }
        let mut rows = Rows::new(&self.conn, table)?;
        let is_here = rows.version(&self.sites, key)?.is_some();
        let here = rows.owned_row(key)?;
        let is_of = |of: &(Arc<Former>, FormerRow)| {
            let mut here = here.iter();
            here.all(|values| is_of_former(table, &of.0.shape, &of.1, values))
        };
        let tombstones = each.iter().filter(|of| is_of(of));
        let tombstones = tombstones.map(|(_, row)| row.tombstone(is_here, self.node));
        let tombstone = tombstones.max().flatten();
        if tombstone >= incoming.row {
            incoming.floor = incoming.floor.max(tombstone);
            incoming.unsent = incoming.unsent.max(tombstone);
        }
        Ok(true)
    }

    /// The version of rows that were in the file before HarmonyLite, until this node has met the
    /// others: such a row loses against theirs. None afterwards.
    pub(super) fn demoted_version(&self) -> Option<Version> {
        (!self.joined).then_some(Version {
            hlc: HLC_BEFORE,
            node: self.node,
        })
    }

    /// Gives a row from before HarmonyLite the version of node 0, the lowest there is. Rows that
    /// come by a stream need this too: a row that lost against this node's own row would not come
    /// again when a snapshot later brings a lower version.
    fn demote_preexisting(&mut self, table: &Table, key: &[Value<'_>]) -> Result<()> {
        let Some(own) = self.demoted_version() else {
            return Ok(());
        };
        let mut rows = Rows::new(&self.conn, table)?;
        if let Some(mut stored) = rows.version(&self.sites, key)?
            && stored.state.version == own
        {
            stored.state.version.node = 0;
            rows.put_version(&mut self.sites, key, &stored)?;
        }
        Ok(())
    }

    /// Merges the versions, writes the row as far as possible and stores the version.
    fn join_versions(
        &mut self,
        table: &Table,
        key: &[Value<'_>],
        key_bytes: &[u8],
        incoming: &Incoming,
        local_tx: i64,
    ) -> Result<Joined> {
        let mut rows = Rows::new(&self.conn, table)?;
        let stored = rows.version(&self.sites, key)?;
        let in_table = rows.owned_row(key)?;
        let displaced = match in_table {
            Some(_) => None,
            None => self.displaced_row(table, key_bytes)?,
        };
        let local = in_table.as_deref().or(displaced.as_deref());
        let local = local.filter(|here| !is_mended(table, stored.as_ref(), here, incoming));
        let columns = columns(table, stored.as_ref(), local, incoming);
        let before = stored.as_ref().map(|s| s.state.clone());
        let theirs = incoming.state();
        let (state, mut action) = merge::join(before.as_ref(), &theirs, &columns);
        let is_trusted = mutation::is(Mutation::RecordedIsTrusted);
        if state.deleted && action == Action::VersionOnly && in_table.is_some() && !is_trusted {
            action = Action::Delete; // it came back behind the triggers' back
        }
        let is_tie = |s: &Stored| s.state.version == theirs.version;
        let survives = |s: &&Stored| state != theirs || is_tie(s) || incoming.is_taken_in;
        let in_doubt = stored
            .as_ref()
            .filter(|s| s.state.deleted && self.may_be_dropped_elsewhere(s));
        let is_republished = theirs.deleted && in_doubt.is_some_and(is_tie);
        // The tombstone counts even if the row wins: columns from before the tombstone lose to it.
        let is_unheard = |s: &Stored| theirs.floor() < s.state.version;
        let mut joined = Joined {
            remains: stored.as_ref().filter(survives).map(|s| s.local_tx),
            buried: !theirs.deleted && in_doubt.is_some_and(is_unheard),
            before,
            after: state,
            next: JoinOutcome::Nothing,
        };
        let state = &joined.after;
        let attempt = match &action {
            // A tombstone that is published again is kept as long here as on nodes that learn it
            // only now.
            Action::Nothing if is_republished => Attempt::Done,
            Action::Nothing => {
                joined.remains = None; // as it was, mark and all
                return Ok(joined);
            }
            Action::VersionOnly => Attempt::Done,
            // Displaced rows wait in this table: the change may decide which of them is in it.
            _ if self.catalog.displaced.contains(&table.id) => Attempt::Collides,
            action => write(&mut rows, key, action, &columns, local)?,
        };
        let hash_of = |values: &[OwnedValue]| {
            table.content_hash(local_tx, values.iter().map(OwnedValue::borrow))
        };
        let hash = match attempt {
            Attempt::Unfit(reason) => {
                joined.next = JoinOutcome::Hold(reason);
                return Ok(joined);
            }
            _ if state.deleted && matches!(attempt, Attempt::Done) => 0,
            Attempt::Done => match &displaced {
                Some(values) => hash_of(values),
                None => rows.stored_hash(key, local_tx)?,
            },
            Attempt::Collides => {
                let values = final_values(table, &action, &columns, local);
                let hash = hash_of(&values);
                let arrived = (!state.deleted).then_some(values);
                joined.next = JoinOutcome::Settle {
                    arrived,
                    in_table: in_table.clone(),
                };
                if state.deleted { 0 } else { hash }
            }
        };
        let old = stored.as_ref().map_or(0, |s| s.hash);
        let birth = stored.as_ref().map_or(incoming.birth, |s| s.birth);
        let stored = Stored {
            state: state.clone(),
            local_tx,
            hash,
            birth,
        };
        rows.put_version(&mut self.sites, key, &stored)?;
        demoted::note(
            &mut self.demoted,
            table,
            joined.before.as_ref(),
            old,
            &stored,
        );
        Ok(joined)
    }
}

/// Whether the row here is not what was recorded with its version, and the row that arrives with
/// that version is.
fn is_mended(
    table: &Table,
    stored: Option<&Stored>,
    here: &[OwnedValue],
    incoming: &Incoming,
) -> bool {
    let is_same = |s: &&Stored| !s.state.deleted && incoming.row == Some(s.state.version);
    let Some(stored) = stored.filter(is_same) else {
        return false;
    };
    let arrived = table.schema.columns.iter().map(|column| {
        let value = incoming.columns.get(&column.lower).map(|(_, v)| v);
        value.unwrap_or(&column.default).borrow()
    });
    let is_here = table.is_content(stored, here.iter().map(OwnedValue::borrow));
    !is_here && table.is_content(stored, arrived)
}

/// The table's columns with the values of both sides.
pub(super) fn columns<'a>(
    table: &'a Table,
    stored: Option<&Stored>,
    local: Option<&'a [OwnedValue]>,
    incoming: &'a Incoming,
) -> Vec<MergeColumn<'a>> {
    let each = table.schema.columns.iter().enumerate().map(|(i, column)| {
        let own = local.map(|values| values[i].borrow());
        // A column that was added later and still has its default: nobody wrote it.
        let is_default = own.is_some_and(|v| v.same(&column.default.borrow()));
        let unwritten = is_default && stored.is_some_and(|s| is_late(table, s, i));
        MergeColumn {
            name: &column.lower,
            local: own.filter(|_| !unwritten),
            incoming: incoming.columns.get(&column.lower).map(|(_, v)| v.borrow()),
        }
    });
    each.collect()
}

/// Writes the row as `action` says; on a collision or a broken constraint the row stays as it was.
fn write(
    rows: &mut Rows<'_>,
    key: &[Value<'_>],
    action: &Action,
    columns: &[MergeColumn<'_>],
    local: Option<&[OwnedValue]>,
) -> Result<Attempt> {
    let incoming = |which: &[usize]| -> Vec<Value<'_>> {
        which.iter().filter_map(|i| columns[*i].incoming).collect()
    };
    let result = match action {
        Action::Delete => rows.delete(key),
        Action::Write(which) if local.is_some() => {
            let differs = |i: &usize| {
                let (old, new) = (local.map(|l| l[*i].borrow()), columns[*i].incoming);
                !old.zip(new).is_some_and(|(old, new)| old.same(&new))
            };
            // Writes only changed columns, as an application does: a trigger may watch single
            // columns.
            let which: Vec<usize> = which.iter().copied().filter(differs).collect();
            rows.update_some(key, &which, &incoming(&which))
        }
        Action::Write(which) => rows.upsert_some(key, which, &incoming(which)),
        Action::Rebuild { write, keep } => {
            let local = local.unwrap_or_default();
            let which: Vec<usize> = write.iter().chain(keep).copied().collect();
            let mut values = incoming(write);
            values.extend(keep.iter().map(|i| local[*i].borrow()));
            savepoint(rows.conn, false, || {
                rows.delete(key)?;
                rows.upsert_some(key, &which, &values)
            })
        }
        Action::Nothing | Action::VersionOnly => Ok(()),
    };
    match result {
        Ok(()) => Ok(Attempt::Done),
        Err(e) if is_collision(rows.table, &e) => Ok(Attempt::Collides),
        // A trigger may be at fault: the caller tries again without triggers.
        Err(e) if is_unfit(&e) && !rows.table.fires => Ok(Attempt::Unfit(e.to_string())),
        Err(e) => Err(e.into()),
    }
}

/// All values of the row after `action`.
pub(super) fn final_values(
    table: &Table,
    action: &Action,
    columns: &[MergeColumn<'_>],
    local: Option<&[OwnedValue]>,
) -> Vec<OwnedValue> {
    let mut values: Vec<OwnedValue> = table
        .schema
        .columns
        .iter()
        .map(|c| c.default_now.clone())
        .collect();
    let keeps = |i: usize| match action {
        Action::Rebuild { keep, .. } => keep.contains(&i),
        _ => true,
    };
    if let Some(local) = local {
        (0..values.len())
            .filter(|i| keeps(*i))
            .for_each(|i| values[i] = local[i].clone());
    }
    if let Action::Write(write) | Action::Rebuild { write, .. } = action {
        for i in write {
            if let Some(value) = columns[*i].incoming {
                values[*i] = value.to_owned();
            }
        }
    }
    values
}
