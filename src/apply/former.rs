//! Applies rows that arrive under the key that their table had here before. They come from a node
//! that has not migrated yet.
//!
//! Such a row is joined under the key of the row that it became here. A row that was not here is
//! joined under the key that its columns make, if the keys of other rows were made so
//! ([`crate::database::Former::makes_keys`]). A value for a missing key column is never made up:
//! the row is held until it comes under its new key. A delete does not come again: where no row is
//! known that the deleted one became, it counts for the rows that have the former key in their
//! columns, as it does on nodes that learn of these rows only after the delete. Resulting changes
//! are published under the new key. If the migration of another node gives the row a different key,
//! all nodes have both rows.

use std::sync::Arc;

use rusqlite::params;

use crate::apply::Incoming;
use crate::apply::former_key::{Keys, NextKey};
use crate::apply::held::{DROP_HELD, Place, shape_of_known, shape_of_table};
use crate::capture::Frames;
use crate::database::table::Table;
use crate::database::{Database, FormerRow, Result, is_one, seen};
use crate::model::birth::Birth;
use crate::model::cbor;
use crate::model::frame::{Row, TableRows};
use crate::model::key::key_bytes;
use crate::model::value::{OwnedValue, Value};
use crate::model::version::{HLC_BEFORE, Version};
use crate::mutation::{self, Mutation};

/// Reason for holding a row that cannot be applied under its former key.
const REASON: &str =
    "it has the key that the table had here before, and its new key cannot be told";

impl Database {
    /// The table of this name (lower case), if a key that it had before has this shape, and the
    /// present one has not.
    pub(crate) fn of_former(&self, name: &str, shape: &str) -> Option<Arc<Table>> {
        let table = self.writable(name)?;
        if shape_of_table(table) == shape {
            return None;
        }
        let formers = self.formers(table.id);
        let mut shapes = formers.iter().map(|(_, f)| shape_of_known(&f.shape));
        shapes.any(|s| s == shape).then(|| table.clone())
    }

    /// Applies the rows of a frame. Returns how many changed something.
    pub(super) fn apply_former(
        &mut self,
        table: &Arc<Table>,
        nodes: &[u64],
        frame: &TableRows<'_>,
        shape: &str,
        frames: &mut Frames,
    ) -> Result<usize> {
        let (mut rows, mut row) = (frame.rows(nodes), Row::default());
        let mut changed = 0;
        while !self.steps.is_cut() && rows.next(&mut row).unwrap_or(false) {
            if self.steps.passes() {
                continue;
            }
            let key = row.values[..frame.key.len()].iter().copied();
            let at = Place {
                table: table.name().to_ascii_lowercase(),
                shape: shape.to_owned(),
                key: key_bytes(key, frame.key.iter().map(|k| k.collation)),
            };
            let incoming = Incoming::from_frame(&row, &frame.columns);
            changed += usize::from(self.take_former(table, &at, incoming, frames)?);
            self.steps.applied(row.values.len(), || self.clock.uptime());
        }
        Ok(changed)
    }

    /// Joins a row together with what is held of it, or holds it. True if something changed.
    pub(crate) fn take_former(
        &mut self,
        table: &Arc<Table>,
        at: &Place,
        incoming: Incoming,
        frames: &mut Frames,
    ) -> Result<bool> {
        let mut whole = incoming.clone();
        if self.catalog.held.contains(&at.table) {
            self.add_held(&mut whole, at)?;
        }
        if let Some(changed) = self.join_former(table, at, whole, frames)? {
            return Ok(changed);
        }
        let holds = self.counts.holds;
        self.hold(at, &incoming, REASON)?;
        self.counts.held += self.counts.holds - holds;
        Ok(false)
    }

    /// Joins a row that arrived, or is held, at a place of a former key, and ends what is held
    /// there. Each former key remembers which key a row got from it, and so a row is taken from key
    /// to key until it has the table's own. Returns whether something changed; none if the row must
    /// be held.
    pub(super) fn join_former(
        &mut self,
        table: &Arc<Table>,
        at: &Place,
        mut incoming: Incoming,
        frames: &mut Frames,
    ) -> Result<Option<bool>> {
        let formers = self.formers(table.id);
        let mut shapes = formers.iter().map(|(_, f)| shape_of_known(&f.shape));
        let Some(n) = shapes.position(|shape| shape == at.shape) else {
            return Ok(None);
        };
        let (id, former) = &formers[n];
        let next = match n.checked_sub(1) {
            Some(newer) => NextKey::Former(&formers[newer].1),
            None => NextKey::Own(table),
        };
        let (old, _, birth) = at.life()?;
        if birth != Birth::None {
            return Ok(None); // another row has its number
        }
        // During the comparison it is not known yet which row became which.
        if self.catalog.comparing.contains_key(&table.id)
            || old.len() != former.shape.key.len()
            || mutation::is(Mutation::FormerKeyHeld)
        {
            return Ok(None);
        }
        let known = self.former_by_key(*id, &old)?;
        let is_here = known.as_ref().is_some_and(|k| k.became.is_some());
        let tombstone = known.as_ref().and_then(|k| k.tombstone(is_here, self.node));
        incoming.floor = incoming.floor.max(tombstone);
        let state = incoming.state();
        if !state.version.is_valid() {
            return Ok(None); // it says nothing
        }
        let keys = match state.deleted {
            true => None,
            false => match next.of_row(former, &old, known.as_ref(), &incoming)? {
                Some(keys) => Some(keys),
                None => return Ok(None),
            },
        };
        let told = (state.version, state.deleted, frames.local_tx);
        let became = keys.as_ref().map(|keys| next.key_bytes(&keys.new));
        let is_own = matches!(next, NextKey::Own(_));
        if is_own {
            // First, because the row that is sent says which one it was.
            self.put_former(*id, &old, told, became.as_deref())?;
        }
        let gone = match &keys {
            Some(keys) => keys.gone.clone(),
            None => known
                .and_then(|k| k.became)
                .map(|key| cbor::key_values(&key))
                .transpose()?,
        };
        let deleted = Incoming {
            floor: Some(just_below(state.version)),
            ..Incoming::default()
        };
        let mut changed = false;
        match gone {
            Some(gone) => {
                let is_done = self.join_next(table, next, &gone, deleted, frames)?;
                changed |= is_done.unwrap_or(false);
            }
            None if state.deleted && tombstone < Some(state.version) => {
                for key in self.rows_of_former(table, &former.shape, &old)? {
                    changed |= self.join_own(table, &key, deleted.clone(), frames)?;
                }
            }
            None => {}
        }
        if let Some(Keys { new, .. }) = keys {
            let incoming = next.with_key(table, &former.shape, &new, incoming);
            let Some(is_done) = self.join_next(table, next, &new, incoming, frames)? else {
                return Ok(None);
            };
            changed |= is_done;
        }
        if !is_own {
            self.put_former(*id, &old, told, became.as_deref())?;
        }
        self.end_held_at(at)?;
        Ok(Some(changed))
    }

    /// Joins a row under the next key, together with what is held of it there.
    fn join_next(
        &mut self,
        table: &Arc<Table>,
        next: NextKey<'_>,
        key: &[OwnedValue],
        mut incoming: Incoming,
        frames: &mut Frames,
    ) -> Result<Option<bool>> {
        let NextKey::Former(newer) = next else {
            return self.join_own(table, key, incoming, frames).map(Some);
        };
        let at = Place::under(&table.name().to_ascii_lowercase(), &newer.shape, key);
        if self.catalog.held.contains(&at.table) {
            self.add_held(&mut incoming, &at)?;
        }
        self.join_former(table, &at, incoming, frames)
    }

    /// Joins a row under the table's own key, under which a change is published.
    fn join_own(
        &mut self,
        table: &Arc<Table>,
        key: &[OwnedValue],
        incoming: Incoming,
        frames: &mut Frames,
    ) -> Result<bool> {
        let key: Vec<Value<'_>> = key.iter().map(OwnedValue::borrow).collect();
        let key_bytes = table.key_bytes(key.iter().copied());
        let changed = self.join_with_held(table, &key, &key_bytes, incoming, frames)?;
        if changed && self.settings.publish {
            self.mark_republished(table, &key_bytes, frames)?;
        }
        Ok(changed)
    }

    /// Ends what is held at a place: it was joined.
    pub(super) fn end_held_at(&self, at: &Place) -> Result<()> {
        if self.catalog.held.contains(&at.table) {
            let of = params![at.table, at.shape, at.key];
            self.conn.prepare_cached(DROP_HELD)?.execute(of)?;
        }
        Ok(())
    }

    /// Notes whether a row's present key is the one that its former columns make. `is_same` says
    /// that the columns outside of the key are unchanged.
    pub(crate) fn see_key(
        &mut self,
        table: &Table,
        former: &FormerRow,
        key: &[Value<'_>],
        is_same: bool,
    ) -> Result<()> {
        let Some(of) = self.catalog.former.get(&table.id) else {
            return Ok(());
        };
        let (shape, n) = (&of.shape, former.key.len());
        let parts = NextKey::Own(table).parts();
        let mut each = parts.iter().zip(key).map(|(part, new)| {
            match shape.columns.iter().position(|(c, _)| c == part.name) {
                Some(at) if at < n => {
                    let (old, new) = (&former.key[at], (*new).to_owned());
                    // The key may be stored in a different spelling, which goes into the content.
                    let is_spelled = || is_same && is_one(&shape.key[at].1, old, &new);
                    part.is_that(old, &new) || is_spelled()
                }
                Some(_) => is_same,
                None => true, // no row of before has it
            }
        });
        let what = match each.all(|is_computed| is_computed) {
            true => seen::COMPUTED,
            false => seen::OTHER,
        };
        self.note_seen(table.id, what)
    }
}

/// The version of the tombstone of a row that was deleted, or got a different key, under its former
/// key. It is one below: the same transaction may have given the new key to a different row.
fn just_below(version: Version) -> Version {
    let hlc = (version.hlc - 1).max(HLC_BEFORE);
    Version { hlc, ..version }
}
