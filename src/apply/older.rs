//! Applies rows that arrive under a key that their table had before its former one: this node ran
//! two migrations that change the key, and the sender none of them.
//!
//! Each former key remembers which key a row got from it. So such a row is taken from key to key,
//! until it arrives under the former one. Where one step cannot be told, the row is held.

use std::sync::Arc;

use rusqlite::{OptionalExtension, params};

use crate::apply::Incoming;
use crate::apply::former::convert;
use crate::apply::held::{Place, read_held, shape_of_known, shape_of_table};
use crate::capture::Frames;
use crate::database::table::{Shape, Table};
use crate::database::{Database, Former, FormerRow, Result, is_one};
use crate::model::cbor;
use crate::model::key::key_bytes;
use crate::model::value::OwnedValue;
use crate::model::version::{HLC_BEFORE, Version};

/// A column of a key: name, affinity and collation.
type KeyPart = (String, String, String);

/// The keys that a row had, and has, under the next key of its table.
struct Step {
    /// The row no longer has this key.
    gone: Option<Vec<OwnedValue>>,
    key: Vec<OwnedValue>,
}

impl Database {
    /// Joins a row as [`Database::join_former`] does.
    pub(super) fn join_older(
        &mut self,
        table: &Arc<Table>,
        at: &Place,
        mut incoming: Incoming,
        frames: &mut Frames,
    ) -> Result<Option<bool>> {
        let formers = self.formers(table.id);
        let mut pairs = formers.windows(2);
        let Some([(_, newer), (id, older)]) =
            pairs.find(|pair| shape_of_known(&pair[1].1.shape) == at.shape)
        else {
            return Ok(None);
        };
        let old = cbor::key_values(&at.key)?;
        if self.catalog.comparing.contains_key(&table.id) || old.len() != older.shape.key.len() {
            return Ok(None);
        }
        let known = self.former_by_key(*id, &old)?;
        let is_here = known.as_ref().is_some_and(|k| k.became.is_some());
        let tombstone = known.as_ref().and_then(|k| k.tombstone(is_here, self.node));
        incoming.floor = incoming.floor.max(tombstone);
        let state = incoming.state();
        let version = state.version;
        if !version.is_valid() {
            return Ok(None);
        }
        let told = (version, state.deleted, frames.local_tx);
        let mut changed = false;
        let key = match (state.deleted, &known) {
            (
                true,
                Some(FormerRow {
                    became: Some(key), ..
                }),
            ) => {
                let key = cbor::key_values(key)?;
                let Some(is_done) = self.delete_newer(table, newer, &key, version, frames)? else {
                    return Ok(None);
                };
                changed |= is_done;
                Some(key)
            }
            (true, _) => None,
            (false, known) => {
                let Some(step) = step(older, &newer.shape, &old, known.as_ref(), &incoming)? else {
                    return Ok(None);
                };
                if let Some(gone) = &step.gone {
                    let hlc = (version.hlc - 1).max(HLC_BEFORE);
                    let below = Version { hlc, ..version };
                    let deleted = self.delete_newer(table, newer, gone, below, frames)?;
                    changed |= deleted.unwrap_or(false);
                }
                let incoming = under(&step.key, table, older, &newer.shape, incoming);
                let next = place(at, &newer.shape, &step.key);
                let Some(is_done) = self.join_at(table, &next, incoming, frames)? else {
                    return Ok(None);
                };
                changed |= is_done;
                Some(step.key)
            }
        };
        let key = key.map(|key| place(at, &newer.shape, &key).key);
        self.put_former(*id, &old, told, key.as_deref())?;
        self.end_held_at(at)?;
        Ok(Some(changed))
    }

    /// Joins a row at a place of a newer key together with what is held there.
    fn join_at(
        &mut self,
        table: &Arc<Table>,
        at: &Place,
        mut incoming: Incoming,
        frames: &mut Frames,
    ) -> Result<Option<bool>> {
        if self.catalog.held.contains(&at.table) {
            self.add_held(&mut incoming, at)?;
        }
        self.join_former(table, at, incoming, frames)
    }

    fn delete_newer(
        &mut self,
        table: &Arc<Table>,
        newer: &Former,
        key: &[OwnedValue],
        version: Version,
        frames: &mut Frames,
    ) -> Result<Option<bool>> {
        let own = Place::of(table, &[]);
        let incoming = Incoming {
            floor: Some(version),
            ..Incoming::default()
        };
        self.join_at(table, &place(&own, &newer.shape, key), incoming, frames)
    }

    /// Ends what is held of a row under other keys of its table, if it is no newer than `version`:
    /// the row came under the present key.
    pub(super) fn end_held_of_former(
        &self,
        table: &Table,
        incoming: &Incoming,
        version: Version,
    ) -> Result<()> {
        let name = table.name().to_ascii_lowercase();
        if !self.catalog.held.contains(&name) {
            return Ok(());
        }
        let own = shape_of_table(table);
        let mut shape = String::new();
        while let Some(next) = self.next_held_shape(&name, &shape)? {
            shape = next;
            if shape == own {
                continue;
            }
            let Some(parts) = self.parts_of(table, &shape) else {
                continue;
            };
            let key = parts.iter().map(|(name, affinity, _)| {
                let (_, value) = incoming.columns.get(name)?;
                convert(affinity, value)
            });
            let Some(key) = key.collect::<Option<Vec<OwnedValue>>>() else {
                continue;
            };
            let collations = parts.iter().map(|(_, _, collation)| collation.as_str());
            let at = Place {
                table: name.clone(),
                shape: shape.clone(),
                key: key_bytes(key.iter().map(OwnedValue::borrow), collations),
            };
            let mut held = Incoming::default();
            read_held(&self.conn, &self.sites, &at, &mut held)?;
            if held.newest().is_some_and(|newest| newest <= version) {
                self.end_held_at(&at)?;
            }
        }
        Ok(())
    }

    /// The next shape of keys, in order, under which something of a table is held.
    fn next_held_shape(&self, table: &str, after: &str) -> Result<Option<String>> {
        let mut next = self.conn.prepare_cached(
            "SELECT shape FROM __harmonylite___held WHERE table_name = ?1 AND shape > ?2
             ORDER BY shape LIMIT 1",
        )?;
        let of = params![table, after];
        Ok(next.query_row(of, |r| r.get(0)).optional()?)
    }

    /// The columns of a key of this shape; none if the text does not tell them.
    fn parts_of(&self, table: &Table, shape: &str) -> Option<Vec<KeyPart>> {
        for (_, former) in self.formers(table.id) {
            if shape_of_known(&former.shape) == shape {
                let key = former.shape.columns.iter().zip(&former.shape.key);
                let parts = key.map(|((n, _), (a, c))| (n.clone(), a.clone(), c.clone()));
                return Some(parts.collect());
            }
        }
        let part = |text: &str| {
            let mut words = text.rsplitn(3, ' ');
            let (collation, affinity) = (words.next()?, words.next()?);
            let known = ["INTEGER", "TEXT", "BLOB", "REAL", "NUMERIC"].contains(&affinity);
            let name = words.next().filter(|_| known)?;
            Some((name.to_owned(), affinity.to_owned(), collation.to_owned()))
        };
        shape.split(", ").map(part).collect()
    }
}

fn place(at: &Place, shape: &Shape, key: &[OwnedValue]) -> Place {
    let collations = shape.key.iter().map(|(_, collation)| collation.as_str());
    Place {
        table: at.table.clone(),
        shape: shape_of_known(shape),
        key: key_bytes(key.iter().map(OwnedValue::borrow), collations),
    }
}

/// The key that a row got from its `old` one; none if it cannot be told.
fn step(
    older: &Former,
    newer: &Shape,
    old: &[OwnedValue],
    known: Option<&FormerRow>,
    incoming: &Incoming,
) -> Result<Option<Step>> {
    let parts = || newer.columns.iter().zip(&newer.key);
    let old_key = &older.shape.columns[..old.len()];
    let carried = |name: &String| incoming.columns.get(name).map(|(_, value)| value);
    let computed = || {
        let of_key = |name: &String| {
            let at = old_key.iter().position(|(c, _)| c == name)?;
            // With other collations the bytes are the key as it compares, not as it is spelled.
            (older.shape.key[at].1 == "BINARY").then(|| &old[at])
        };
        let key = parts().map(|((name, _), (affinity, _))| {
            convert(affinity, carried(name).or_else(|| of_key(name))?)
        });
        older
            .makes_keys()
            .then(|| key.collect::<Option<Vec<_>>>())?
    };
    let Some(became) = known.and_then(|k| k.became.as_ref()) else {
        return Ok(computed().map(|key| Step { gone: None, key }));
    };
    let became = cbor::key_values(became)?;
    let is_moved = parts()
        .zip(&became)
        .any(|(((name, _), (affinity, collation)), was)| {
            let is_new =
                |value| convert(affinity, value).is_none_or(|v| !is_one(collation, &v, was));
            !old_key.iter().any(|(c, _)| c == name) && carried(name).is_some_and(is_new)
        });
    Ok(match is_moved {
        false => Some(Step {
            gone: None,
            key: became,
        }),
        true => computed().map(|key| Step {
            gone: Some(became),
            key,
        }),
    })
}

/// The row with the values of its newer key, and without columns that are here no more.
fn under(
    key: &[OwnedValue],
    table: &Table,
    older: &Former,
    newer: &Shape,
    mut incoming: Incoming,
) -> Incoming {
    let is_here = |name: &str| table.schema.columns.iter().any(|c| c.is_or_was(name));
    for (name, _) in older.shape.columns.iter().filter(|(c, _)| !is_here(c)) {
        incoming.columns.remove(name);
    }
    for ((name, _), value) in newer.columns.iter().zip(key) {
        if let Some((_, carried)) = incoming.columns.get_mut(name) {
            *carried = value.clone();
        }
    }
    incoming
}
