//! Rows that a migration with a change of the key did not take over.
//!
//! The rows of the old table are gone, but their versions are remembered under the former key. A
//! live one that became no row here was *omitted*. It gets a tombstone just above its version, as
//! if this node had deleted it: the tombstone beats the row as the migration saw it, and no write
//! since. It is kept under the former key, and answers the row when that arrives under the new key
//! from a node whose migration keeps it.
//!
//! Nothing is deleted if the old key cannot be computed from a new row, if the table is empty, or
//! if rows of it have NULL in their new key.

use std::sync::Arc;

use rusqlite::{OptionalExtension, params_from_iter};

use super::compare::STEP;
use crate::apply::{Incoming, Place, read_held, shape_of_known};
use crate::capture::Frames;
use crate::database::schema::quote;
use crate::database::table::{Shape, Table};
use crate::database::{Compare, Database, Former, Result, former_table, values};
use crate::model::cbor;
use crate::model::key::key_bytes;
use crate::model::value::OwnedValue;
use crate::model::version::{Version, stamp};
use crate::mutation::{self, Mutation};

/// Off until it converges: in some histories the row stays on one node (tests/sim with the bit 8192
/// and `OMITS` on: seeds 84546404133865 and 84546404134369).
const DELETES: bool = false;

/// A live former row that became no row.
struct Omitted {
    key: Vec<OwnedValue>,
    hlc: i64,
    /// It is held until it fits, because it was displaced.
    is_held: bool,
}

impl Database {
    /// One step: counts the omitted rows, then gives them tombstones. Returns how the comparison
    /// goes on; `None` if it is done.
    pub(super) fn omitted_step(
        &mut self,
        table: &Arc<Table>,
        compare: Compare,
        frames: &mut Frames,
    ) -> Result<Option<Compare>> {
        let Some(former) = self.catalog.former.get(&table.id).cloned() else {
            return Ok(None);
        };
        if compare.after.is_none() && !self.deletes_omitted(table, &former)? {
            return Ok(None);
        }
        if !self.count_omitted(table, &former.shape)? {
            return Ok(Some(compare));
        }
        let rows = self.next_omitted(table, &former.shape, compare.after.as_deref())?;
        for row in rows.iter().filter(|row| !row.is_held) {
            let time_ms = match mutation::is(Mutation::OmittedCountsAsNow) {
                true => self.stamp_now()?,
                false => 0,
            };
            let hlc = stamp(time_ms, row.hlc.max(self.tombstone_age.forgotten()));
            let node = self.node;
            let tombstone = (Version { hlc, node }, true, frames.local_tx);
            self.put_former(table.id, &row.key, tombstone, None)?;
            self.note_given(hlc)?;
        }
        let last = rows.last().filter(|_| rows.len() == STEP);
        let after = last.map(|row| former_key(&former.shape, &row.key));
        if after.is_none() {
            self.gone_rows.forget(table.id);
        }
        Ok(after.map(|key| Compare {
            after: Some(key),
            ..compare
        }))
    }

    /// Whether omitted rows count as deleted.
    fn deletes_omitted(&self, table: &Table, former: &Former) -> Result<bool> {
        if !DELETES
            || mutation::is(Mutation::OmittedComesBack)
            || !former.shape.key_gone(table).is_empty()
        {
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

    /// Counts some of the omitted rows. True once all are counted; then the count was reported.
    fn count_omitted(&mut self, table: &Table, shape: &Shape) -> Result<bool> {
        let mut count = self.gone_rows.take(table.id);
        if !count.is_done {
            let rows = self.next_omitted(table, shape, count.after.as_deref())?;
            count.gone += rows.iter().filter(|row| !row.is_held).count() as u64;
            count.is_done = rows.len() < STEP;
            count.after = rows.last().map(|row| former_key(shape, &row.key));
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

    /// The next omitted rows after a former key, at most `STEP`.
    fn next_omitted(
        &self,
        table: &Table,
        shape: &Shape,
        after: Option<&[u8]>,
    ) -> Result<Vec<Omitted>> {
        let n = shape.key.len();
        let names: Vec<String> = (1..=n).map(|i| format!("k{i}")).collect();
        let marks: Vec<String> = (1..=n).map(|i| format!("?{i}")).collect();
        let (names, marks) = (names.join(", "), marks.join(", "));
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
        let mut omitted = Vec::new();
        while let Some(row) = rows.next()? {
            let key = (0..n).map(|i| values::column(row, 1 + i).to_owned());
            let (key, hlc): (Vec<OwnedValue>, i64) = (key.collect(), row.get(0)?);
            let at = Place {
                table: table.name().to_ascii_lowercase(),
                shape: shape_of_known(shape),
                key: former_key(shape, &key),
            };
            let mut held = Incoming::default();
            read_held(&self.conn, &self.sites, &at, &mut held)?;
            omitted.push(Omitted {
                is_held: held.row.is_some_and(|version| version.hlc >= hlc),
                key,
                hlc,
            });
        }
        Ok(omitted)
    }
}

fn former_key(shape: &Shape, key: &[OwnedValue]) -> Vec<u8> {
    let collations = shape.key.iter().map(|(_, collation)| collation.as_str());
    key_bytes(key.iter().map(OwnedValue::borrow), collations)
}
