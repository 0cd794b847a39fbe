//! Applies rows that arrive under the key that their table had here before. They come from a node
//! that has not migrated yet.
//!
//! Such a row is joined under the key of the row that it became here. A row that was not here is
//! joined under the key that its columns make, if the keys of other rows were made so
//! ([`Former::makes_keys`]). A value for a missing key column is never made up: the row is held
//! until it comes under its new key. Resulting changes are published under the new key. If the
//! migration of another node gives the row a different key, all nodes have both rows.

use std::sync::Arc;

use rusqlite::params;

use crate::apply::Incoming;
use crate::apply::affinity::is_storable_key;
use crate::apply::held::{DROP_HELD, Place, shape_of_known, shape_of_table};
use crate::capture::Frames;
use crate::database::schema::{Affinity, Column};
use crate::database::table::{Shape, Table};
use crate::database::{Database, Former, FormerRow, Result, is_one, seen};
use crate::model::cbor;
use crate::model::frame::{Row, TableRows};
use crate::model::key::key_bytes;
use crate::model::value::{OwnedValue, Value};
use crate::model::version::{HLC_BEFORE, Version};
use crate::mutation::{self, Mutation};

/// Reason for holding a row that cannot be applied under its former key.
const REASON: &str =
    "it has the key that the table had here before, and its new key cannot be told";

/// Keys of one row: `became` is its key here, if it must be deleted there; `new` is the key that it
/// gets.
struct Keys {
    became: Option<Vec<OwnedValue>>,
    new: Vec<OwnedValue>,
}

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
        while rows.next(&mut row).unwrap_or(false) {
            let key = row.values[..frame.key.len()].iter().copied();
            let at = Place {
                table: table.name().to_ascii_lowercase(),
                shape: shape.to_owned(),
                key: key_bytes(key, frame.key.iter().map(|k| k.collation)),
            };
            let incoming = Incoming::from_frame(&row, &frame.columns);
            changed += usize::from(self.take_former(table, &at, incoming, frames)?);
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
        self.hold(at, &incoming, REASON)?;
        self.counts.held += 1;
        self.let_go_if_too_much(&at.table)?;
        Ok(false)
    }

    /// Joins a row that arrived, or is held, at a place of the former key, and ends what is held
    /// there. Returns whether something changed; none if the row must be held.
    pub(super) fn join_former(
        &mut self,
        table: &Arc<Table>,
        at: &Place,
        mut incoming: Incoming,
        frames: &mut Frames,
    ) -> Result<Option<bool>> {
        let Some(former) = self.catalog.former.get(&table.id).cloned() else {
            return Ok(None);
        };
        if shape_of_known(&former.shape) != at.shape {
            return self.join_older(table, at, incoming, frames);
        }
        let old = cbor::key_values(&at.key)?;
        let is_sound = old.len() == former.shape.key.len();
        // During the comparison it is not known yet which row became which.
        if self.catalog.comparing.contains_key(&table.id)
            || !is_sound
            || mutation::is(Mutation::FormerKeyHeld)
        {
            return Ok(None);
        }
        let known = self.former_by_key(table.id, &old)?;
        let is_here = known.as_ref().is_some_and(|k| k.became.is_some());
        let tombstone = known.as_ref().and_then(|k| k.tombstone(is_here, self.node));
        incoming.floor = incoming.floor.max(tombstone);
        let state = incoming.state();
        if !state.version.is_valid() {
            return Ok(None); // it says nothing
        }
        let changed = match state.deleted {
            true => self.delete_former(table, &old, known, (state.version, frames))?,
            false => {
                let Some(keys) = keys(table, &former, &old, known.as_ref(), &incoming)? else {
                    return Ok(None);
                };
                self.upsert_former(table, &former, &old, keys, incoming, frames)?
            }
        };
        self.end_held_at(at)?;
        Ok(Some(changed))
    }

    /// Ends what is held at a place: it was joined.
    pub(super) fn end_held_at(&self, at: &Place) -> Result<()> {
        if self.catalog.held.contains(&at.table) {
            let of = params![at.table, at.shape, at.key];
            self.conn.prepare_cached(DROP_HELD)?.execute(of)?;
        }
        Ok(())
    }

    /// Deletes the row that this one became.
    fn delete_former(
        &mut self,
        table: &Arc<Table>,
        old: &[OwnedValue],
        known: Option<FormerRow>,
        (version, frames): (Version, &mut Frames),
    ) -> Result<bool> {
        self.put_former(table.id, old, (version, true, frames.local_tx), None)?;
        match known.and_then(|k| k.became) {
            Some(key) => self.join_deleted(table, &cbor::key_values(&key)?, version, frames),
            None => Ok(false),
        }
    }

    fn upsert_former(
        &mut self,
        table: &Arc<Table>,
        former: &Former,
        old: &[OwnedValue],
        Keys { became, new }: Keys,
        mut incoming: Incoming,
        frames: &mut Frames,
    ) -> Result<bool> {
        let version = incoming.state().version;
        // Columns that the migration dropped are not waited for.
        let is_here = |name: &str| table.schema.columns.iter().any(|c| c.is_or_was(name));
        for (name, _) in former.shape.columns.iter().filter(|(c, _)| !is_here(c)) {
            incoming.columns.remove(name);
        }
        for (i, column) in table.schema.columns[..new.len()].iter().enumerate() {
            if let Some((_, value)) = incoming.columns.get_mut(&column.lower) {
                let own = converted(column, value);
                let is_that = own
                    .as_ref()
                    .is_some_and(|v| is_one(collation(table, i), v, &new[i]));
                *value = own.filter(|_| is_that).unwrap_or_else(|| new[i].clone());
            }
        }
        let mut changed = false;
        if let Some(before) = became {
            changed |= self.join_deleted(table, &before, version, frames)?;
        }
        let new: Vec<Value<'_>> = new.iter().map(OwnedValue::borrow).collect();
        let key = table.key_bytes(new.iter().copied());
        changed |= self.join_and_tell(table, &new, &key, incoming, frames)?;
        self.put_former(table.id, old, (version, false, frames.local_tx), Some(&key))?;
        Ok(changed)
    }

    /// Deletes a row that was deleted, or got a different key, under its former key. The
    /// tombstone's version is one below: the same transaction may have given the new key to a
    /// different row.
    fn join_deleted(
        &mut self,
        table: &Arc<Table>,
        key: &[OwnedValue],
        version: Version,
        frames: &mut Frames,
    ) -> Result<bool> {
        let hlc = (version.hlc - 1).max(HLC_BEFORE);
        let incoming = Incoming {
            floor: Some(Version { hlc, ..version }),
            ..Incoming::default()
        };
        let key: Vec<Value<'_>> = key.iter().map(OwnedValue::borrow).collect();
        let key_bytes = table.key_bytes(key.iter().copied());
        self.join_and_tell(table, &key, &key_bytes, incoming, frames)
    }

    fn join_and_tell(
        &mut self,
        table: &Arc<Table>,
        key: &[Value<'_>],
        key_bytes: &[u8],
        incoming: Incoming,
        frames: &mut Frames,
    ) -> Result<bool> {
        let changed = self.join_with_held(table, key, key_bytes, incoming, frames)?;
        if changed && self.settings.publish {
            self.mark_republished(table, key_bytes, frames)?;
        }
        Ok(changed)
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
        let columns = table.schema.columns[..key.len()].iter().enumerate();
        let mut each = columns.map(|(i, column)| {
            match shape.columns.iter().position(|(c, _)| *c == column.lower) {
                Some(at) if at < n => {
                    let (old, new) = (&former.key[at], key[i].to_owned());
                    let is_new = |v| is_one(collation(table, i), &v, &new);
                    // The key may be stored in a different spelling, which goes into the content.
                    let is_spelled = || is_same && is_one(&shape.key[at].1, old, &new);
                    converted(column, old).is_some_and(is_new) || is_spelled()
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

/// Whether a row of this table, by its values, is the one that had a former key. Two rows may have
/// got one key: a migration keeps one of them, and the tombstone of the other one does not concern
/// it.
pub(super) fn is_of_former(
    table: &Table,
    shape: &Shape,
    former: &FormerRow,
    values: &[OwnedValue],
) -> bool {
    let mut each = shape.columns.iter().zip(&shape.key).zip(&former.key);
    former.content.is_some()
        || each.all(|(((name, _), (affinity, collation)), old)| {
            let at = table.schema.columns.iter().position(|c| c.lower == *name);
            let value = at.and_then(|at| convert(affinity, &values[at]));
            value.is_none_or(|v| is_one(collation, &v, old))
        })
}

/// The keys of a row that arrives; none if they cannot be determined.
fn keys(
    table: &Table,
    former: &Former,
    old: &[OwnedValue],
    known: Option<&FormerRow>,
    incoming: &Incoming,
) -> Result<Option<Keys>> {
    let computed = || match former.makes_keys() {
        true => computed_key(table, former, old, incoming),
        false => None,
    };
    let Some(became) = known.and_then(|k| k.became.as_ref()) else {
        return Ok(computed().map(|new| Keys { became: None, new }));
    };
    let became = cbor::key_values(became)?;
    let old_key = &former.shape.columns[..old.len()];
    let columns = table.schema.columns[..became.len()].iter().enumerate();
    // Columns that were outside of the old key.
    let mut others = columns.filter(|(_, c)| !old_key.iter().any(|(name, _)| *name == c.lower));
    let is_moved = others.any(|(i, column)| {
        let value = incoming.columns.get(&column.lower);
        let value = value.map(|(_, value)| converted(column, value));
        value.is_some_and(|v| !v.is_some_and(|v| is_one(collation(table, i), &v, &became[i])))
    });
    Ok(match is_moved {
        true => computed().map(|new| Keys {
            became: Some(became),
            new,
        }),
        false => Some(Keys {
            became: None,
            new: became,
        }),
    })
}

/// The key that the former columns make here, if all of them are there and the table can store it.
fn computed_key(
    table: &Table,
    former: &Former,
    old: &[OwnedValue],
    incoming: &Incoming,
) -> Option<Vec<OwnedValue>> {
    let shape = &former.shape;
    let of_key = |name: &str| {
        let at = shape.columns[..old.len()]
            .iter()
            .position(|(c, _)| c == name)?;
        // With other collations the bytes are the key as it compares, not as it is spelled.
        (shape.key[at].1 == "BINARY").then(|| &old[at])
    };
    let columns = table.schema.columns[..table.key_len()].iter();
    let key = columns.map(|column| {
        let carried = incoming.columns.get(&column.lower).map(|(_, value)| value);
        converted(column, carried.or_else(|| of_key(&column.lower))?)
    });
    let key: Vec<OwnedValue> = key.collect::<Option<_>>()?;
    let borrowed: Vec<Value<'_>> = key.iter().map(OwnedValue::borrow).collect();
    is_storable_key(table, &borrowed).then_some(key)
}

/// Collation of a key column.
fn collation(table: &Table, i: usize) -> &str {
    &table.schema.key[i].collation
}

fn converted(column: &Column, value: &OwnedValue) -> Option<OwnedValue> {
    convert(column.affinity.name(), value)
}

/// The value that a column of this affinity stores for `value`; none if `value` is NULL, or if
/// SQLite's conversion of it is not reproduced here.
pub(super) fn convert(affinity: &str, value: &OwnedValue) -> Option<OwnedValue> {
    let is_text = affinity == Affinity::Text.name();
    let is_number = !is_text && affinity != Affinity::Blob.name();
    match value {
        OwnedValue::Null => None,
        OwnedValue::Integer(i) if is_text => Some(OwnedValue::Text(i.to_string().into())),
        OwnedValue::Real(_) if is_text => None,
        OwnedValue::Text(text) if is_number => {
            let number = std::str::from_utf8(text)
                .ok()
                .and_then(|t| t.parse::<i64>().ok());
            let plain = number.filter(|n| n.to_string().as_bytes() == &text[..]);
            plain
                .map(OwnedValue::Integer)
                .or_else(|| Some(value.clone()))
        }
        _ => Some(value.clone()),
    }
}
