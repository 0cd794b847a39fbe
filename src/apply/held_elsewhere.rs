//! Ends what is held of a row under other keys of its table.

use rusqlite::{OptionalExtension, params};

use crate::apply::Incoming;
use crate::apply::former_key::KeyPart;
use crate::apply::held::{Place, read_held, shape_of_known, shape_of_table};
use crate::apply::was::OldKey;
use crate::database::table::Table;
use crate::database::{Database, Former, Result};
use crate::model::cbor;
use crate::model::key::key_bytes;
use crate::model::merge::FLOOR;
use crate::model::value::{OwnedValue, Value};
use crate::model::version::Version;
use std::sync::Arc;

impl Database {
    /// Ends what is held of a row under other keys of its table, if it is no newer than `version`:
    /// the row came under the present key.
    pub(super) fn end_held_of_former(
        &self,
        table: &Table,
        key: &[Value<'_>],
        incoming: &Incoming,
        version: Version,
    ) -> Result<()> {
        let name = table.name().to_ascii_lowercase();
        if !self.catalog.held.contains(&name) {
            return Ok(());
        }
        let (own, formers) = (shape_of_table(table), self.formers(table.id));
        let mut shape = String::new();
        while let Some(next) = self.next_held_shape(&name, &shape)? {
            shape = next;
            if shape == own {
                continue;
            }
            let Some(parts) = parts_of(&formers, &shape) else {
                continue;
            };
            let key = parts.iter().map(|part| {
                let carried = incoming.columns.get(part.name);
                let columns = table.schema.columns[..key.len()].iter();
                let of_key = || columns.zip(key).find(|(c, _)| c.lower == part.name);
                let value = carried.map(|(_, value)| value.borrow());
                part.stored(&value.or_else(|| of_key().map(|(_, v)| *v))?.to_owned())
            });
            let Some(key) = key.collect::<Option<Vec<OwnedValue>>>() else {
                continue;
            };
            let collations = parts.iter().map(|part| part.collation);
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

    /// Ends deletes that are held under other keys of their tables, once a tombstone of that age is
    /// forgotten. A delete stays if a row here may be the one, because the table is still to get
    /// that key. Inside a transaction.
    pub(crate) fn end_old_deletes(&mut self) -> Result<()> {
        let Some(now_ms) = self.broker_time_ms() else {
            return Ok(());
        };
        let oldest_ms = now_ms - self.settings.tombstone_retention.as_millis() as i64;
        let held: Vec<String> = self.catalog.held.iter().cloned().collect();
        for name in held {
            let Some(table) = self.writable(&name).cloned() else {
                continue;
            };
            if !self.judges(&name) || self.catalog.displaced.contains(&table.id) {
                continue;
            }
            for at in self.held_deletes(&name, &shape_of_table(&table))? {
                let mut held = Incoming::default();
                read_held(&self.conn, &self.sites, &at, &mut held)?;
                let is_old = |v: &Version| v.time_ms() <= oldest_ms && held.newest() == Some(*v);
                let Some(tombstone) = held.floor.filter(is_old) else {
                    continue;
                };
                if held.unsent.is_none() && self.is_of_no_row(&table, &at)? {
                    self.end_held_at(&at)?;
                    self.note_dropped(tombstone)?;
                }
            }
        }
        self.say_held_ended()
    }

    /// Whether no row of the table has the values of this key of another shape. False if that
    /// cannot be told, because the table lacks a column of it.
    fn is_of_no_row(&self, table: &Table, at: &Place) -> Result<bool> {
        let (shape, key) = (at.shape.clone(), at.key.clone());
        let Some(former) = (OldKey { shape, key }).former() else {
            return Ok(false);
        };
        let old = cbor::key_values(&at.key)?;
        let is_told = former.shape.key_gone(table).is_empty();
        Ok(is_told && self.rows_of_former(table, &former.shape, &old)?.is_empty())
    }

    /// Rows of a table of which nothing newer than a delete is held, under a key of another shape
    /// than `own`.
    fn held_deletes(&self, table: &str, own: &str) -> Result<Vec<Place>> {
        let mut deletes = self.conn.prepare_cached(
            "SELECT shape, key FROM __harmonylite___held WHERE table_name = ?1 AND shape <> ?2
             GROUP BY shape, key HAVING max(hlc) = max(iif(column = ?3, hlc, 0)) LIMIT 1000",
        )?;
        let of = params![table, own, FLOOR];
        let places = deletes.query_map(of, |row| {
            Ok(Place {
                table: table.to_owned(),
                shape: row.get(0)?,
                key: row.get(1)?,
            })
        })?;
        Ok(places.collect::<rusqlite::Result<_>>()?)
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
}

/// The columns of a key of this shape; none if the text does not tell them.
fn parts_of<'a>(formers: &'a [(i64, Arc<Former>)], shape: &'a str) -> Option<Vec<KeyPart<'a>>> {
    let mut known = formers.iter().map(|(_, former)| &former.shape);
    if let Some(known) = known.find(|known| shape_of_known(known) == shape) {
        return Some(KeyPart::of_shape(known));
    }
    KeyPart::of_text(shape)
}
