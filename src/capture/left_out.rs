//! Rows that a migration with a change of the key leaves out.
//!
//! The rows of the old table are gone, but their versions are remembered under the former key. A
//! live one that became no row here gets a tombstone just above its version, as if this node had
//! deleted it: the tombstone beats the row as the migration saw it, and no write since. It is kept
//! under the former key, where it answers the row when that arrives under the new key, and it is
//! sent under the former key: that is where every node knows the row, migrated or not.
//!
//! Nothing is deleted if two rows may have got one key, so that each node may have kept another of
//! them; nor if the old key cannot be computed from a new row, if the table is empty, or if rows of
//! it have NULL in their new key.

use std::sync::Arc;

use rusqlite::{OptionalExtension, params_from_iter};

use super::compare::STEP;
use super::unsent::mark_former;
use crate::capture::Frames;
use crate::database::rows::Rows;
use crate::database::schema::quote;
use crate::database::table::{Shape, Table, key_names, parameters};
use crate::database::{Compare, Database, Former, Result, former_table, left_out, values};
use crate::model::cbor;
use crate::model::value::{OwnedValue, Value};
use crate::model::version::{Version, stamp};
use crate::mutation::{self, Mutation};

/// A live former row that became no row.
struct LeftOut {
    key: Vec<OwnedValue>,
    hlc: i64,
    /// It is held until it fits because it was displaced, or another row has its key.
    is_kept: bool,
}

impl Database {
    /// One step: counts the rows that were left out, then gives them tombstones. Returns how the
    /// comparison goes on; `None` if it is done.
    pub(super) fn left_out_step(
        &mut self,
        table: &Arc<Table>,
        compare: Compare,
        frames: &mut Frames,
    ) -> Result<Option<Compare>> {
        let Some(former) = self.catalog.former.get(&table.id).cloned() else {
            return Ok(None);
        };
        if compare.after.is_none() && !self.deletes_left_out(table, &former)? {
            return Ok(None);
        }
        if !self.count_left_out(table, &former.shape)? {
            return Ok(Some(compare));
        }
        let rows = self.next_left_out(table, &former.shape, compare.after.as_deref())?;
        for row in rows.iter().filter(|row| !row.is_kept) {
            let time_ms = match mutation::is(Mutation::LeftOutCountsAsNow) {
                true => self.stamp_now()?,
                false => 0,
            };
            let hlc = left_out(row.hlc.max(self.tombstone_age.forgotten()));
            let hlc = hlc.max(stamp(time_ms, row.hlc));
            let node = self.node;
            let tombstone = (Version { hlc, node }, true, frames.local_tx);
            self.put_former(table.id, &row.key, tombstone, None)?;
            self.note_given(hlc)?;
            self.send_former((table.id, &former), &row.key, frames)?;
        }
        let last = rows.last().filter(|_| rows.len() == STEP);
        let after = last.map(|row| former.shape.key_bytes(&row.key));
        if after.is_none() {
            self.gone_rows.forget(table.id);
        }
        Ok(after.map(|key| Compare {
            after: Some(key),
            ..compare
        }))
    }

    /// Whether rows that were left out count as deleted.
    fn deletes_left_out(&self, table: &Table, former: &Former) -> Result<bool> {
        if mutation::is(Mutation::LeftOutComesBack) || !keeps_apart(table, &former.shape) {
            return Ok(false);
        }
        let key = (0..table.key_len()).map(|i| format!("{} IS NULL", table.schema.column_sql(i)));
        let nulls = key.collect::<Vec<_>>().join(" OR ");
        let name = quote(table.name());
        let exists = |text: String| -> Result<bool> {
            let found = self.conn.query_row(&text, [], |_| Ok(())).optional()?;
            Ok(found.is_some())
        };
        if !exists(format!("SELECT 1 FROM {name} LIMIT 1"))? {
            if self.lacks_former(table.id)? {
                log::error!(
                    "table {} is empty since its key changed: its rows are not deleted on other \
                     nodes, and come back from there",
                    table.name()
                );
            }
            return Ok(false);
        }
        if exists(format!("SELECT 1 FROM {name} WHERE {nulls} LIMIT 1"))? {
            log::warn!(
                "table {} has rows with NULL in their new key: no row that it had before its key \
                 changed counts as deleted",
                table.name()
            );
            return Ok(false);
        }
        Ok(true)
    }

    /// Counts some of the rows that were left out. True once all are counted; then the count was
    /// reported.
    fn count_left_out(&mut self, table: &Table, shape: &Shape) -> Result<bool> {
        let mut count = self.gone_rows.take(table.id);
        if !count.is_done {
            let rows = self.next_left_out(table, shape, count.after.as_deref())?;
            count.gone += rows.iter().filter(|row| !row.is_kept).count() as u64;
            count.is_done = rows.len() < STEP;
            count.after = rows.last().map(|row| shape.key_bytes(&row.key));
            if count.is_done && count.gone > 0 && self.settings.publish {
                let text = format!("SELECT count(*) FROM {}", former_table(table.id));
                let text = format!("{text} WHERE deleted = 0");
                count.known = self.conn.query_row(&text, [], |r| r.get(0))?;
                self.say_gone(table.name(), &count);
            }
        }
        let is_done = count.is_done;
        self.gone_rows.put(table.id, count);
        Ok(is_done)
    }

    /// The next rows that were left out after a former key, at most `STEP`.
    fn next_left_out(
        &self,
        table: &Table,
        shape: &Shape,
        after: Option<&[u8]>,
    ) -> Result<Vec<LeftOut>> {
        let n = shape.key.len();
        let (names, marks) = (key_names(n).join(", "), parameters(1, n));
        let from = match after {
            Some(_) => format!("AND ({names}) > ({marks})"),
            None => String::new(),
        };
        let mut next = self.conn.prepare_cached(&format!(
            "SELECT hlc, {names} FROM {} WHERE deleted = 0 AND became IS NULL
             AND written_ms IS NULL {from} ORDER BY {names} LIMIT {STEP}",
            former_table(table.id)
        ))?;
        let after = after.map(cbor::key_values).transpose()?.unwrap_or_default();
        let mut rows = next.query(params_from_iter(after))?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            let key = (0..n).map(|i| values::column(row, 1 + i).to_owned());
            let (key, hlc): (Vec<OwnedValue>, i64) = (key.collect(), row.get(0)?);
            let held = self.held_version(table, shape, &key)?;
            let is_held = held.is_some_and(|version| version.hlc >= hlc);
            all.push(LeftOut {
                is_kept: is_held || self.has_same_key(table, shape, &key)?,
                key,
                hlc,
            });
        }
        Ok(all)
    }

    /// Whether a row has the key that this former one would have.
    fn has_same_key(&self, table: &Table, shape: &Shape, key: &[OwnedValue]) -> Result<bool> {
        let columns = table.schema.columns[..table.key_len()].iter();
        let of = columns.map(|column| {
            let old = shape.columns[..key.len()].iter();
            let at = old.clone().position(|(name, _)| *name == column.lower)?;
            Some(key[at].borrow())
        });
        match of.collect::<Option<Vec<Value<'_>>>>() {
            Some(key) => Ok(Rows::new(&self.conn, table)?.exists(&key)?),
            None => Ok(false), // a column is new, see `keeps_apart`
        }
    }

    /// Stores that a tombstone under the former key is unsent, and encodes it.
    pub(crate) fn send_former(
        &mut self,
        (id, former): (i64, &Former),
        key: &[OwnedValue],
        frames: &mut Frames,
    ) -> Result<()> {
        if !self.settings.publish {
            return Ok(());
        }
        let key_bytes = former.shape.key_bytes(key);
        mark_former(&self.conn, id, &key_bytes, frames.local_tx)?;
        if frames.encode {
            self.encode_former(id, &key_bytes, frames)?;
        }
        Ok(())
    }

    /// Encodes some tombstones under the former key with number `id`, those after a key. Returns
    /// the last one's key; none if there are no more.
    pub(super) fn encode_tombstones(
        &self,
        id: i64,
        after: Option<&Vec<u8>>,
        frames: &mut Frames,
    ) -> Result<Option<Vec<u8>>> {
        let Some(former) = self.catalog.former.get(&id) else {
            return Ok(None);
        };
        let n = former.shape.key.len();
        let names = key_names(n).join(", ");
        let from = match after {
            Some(_) => format!("AND ({names}) > ({})", parameters(1, n)),
            None => String::new(),
        };
        let mut next = self.conn.prepare_cached(&format!(
            "SELECT {names} FROM {} WHERE deleted = 1 {from} ORDER BY {names} LIMIT {STEP}",
            former_table(id)
        ))?;
        let after = after.map(|key| cbor::key_values(key)).transpose()?;
        let mut rows = next.query(params_from_iter(after.unwrap_or_default()))?;
        let mut last = None;
        while let Some(row) = rows.next()? {
            let key: Vec<OwnedValue> = (0..n).map(|i| values::column(row, i).to_owned()).collect();
            let key = former.shape.key_bytes(&key);
            self.encode_former(id, &key, frames)?;
            last = Some(key);
        }
        Ok(last)
    }

    /// Encodes the tombstone that a row has under the former key with number `id`.
    pub(super) fn encode_former(&self, id: i64, key: &[u8], frames: &mut Frames) -> Result<()> {
        let mut tables = self.catalog.by_id.values();
        let is_of = |table: &&Arc<Table>| self.formers(table.id).iter().any(|(of, _)| *of == id);
        let (Some(table), Some(former)) = (tables.find(is_of), self.catalog.former.get(&id)) else {
            return Ok(());
        };
        let row = self.former_by_key(id, &cbor::key_values(key)?)?;
        let state = row.as_ref().map(|row| &row.stored.state);
        if let (Some(row), Some(state)) =
            (&row, state.filter(|s| s.deleted && s.version.is_valid()))
        {
            let header = former.shape.former_header(id, table.name());
            let values: Vec<Value<'_>> = row.key.iter().map(OwnedValue::borrow).collect();
            frames.delete_former(table, &header, key, state.version, &values);
        }
        Ok(())
    }
}

/// Whether rows with different old keys have different new keys, or share one that can be told from
/// the old one. All columns of the old key must be here.
fn keeps_apart(table: &Table, shape: &Shape) -> bool {
    let old = &shape.columns[..shape.key.len()];
    let here = table.schema.columns[..table.key_len()]
        .iter()
        .zip(&table.schema.key);
    let was_other = |lower: &String| {
        !old.iter().any(|(c, _)| c == lower) && shape.columns.iter().any(|(c, _)| c == lower)
    };
    if !shape.key_gone(table).is_empty() || here.clone().any(|(c, _)| was_other(&c.lower)) {
        return false;
    }
    let is_old = |lower: &String| old.iter().any(|(c, _)| c == lower);
    if here.clone().all(|(c, _)| is_old(&c.lower)) {
        return true;
    }
    let mut each = old.iter().zip(&shape.key);
    each.all(|((name, _), (affinity, collation))| {
        let now = here.clone().find(|(c, _)| c.lower == *name);
        now.is_some_and(|(_, key)| {
            let is_finer = key.collation == *collation || key.collation == "BINARY";
            let is_wider =
                key.affinity == affinity || affinity == "INTEGER" && key.affinity == "TEXT";
            is_finer && is_wider
        })
    })
}
