//! Adopts one table, new or known: its number, its versions table, its triggers, and whether it has
//! to be compared with its versions first.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::{OptionalExtension, params};

use super::former::{Kept, seen};
use super::{from_cbor, to_cbor};
use crate::database::meta::{Meta, get_meta, set_meta};
use crate::database::schema::{PREFIX, Schema, quote};
use crate::database::table::{Shape, Table, create_versions, versions_table};
use crate::database::{
    Compare, CompareReason, Database, MissedEvents, Result, own_shape, triggers, values,
};
use crate::model::frame::ROWID;

/// State of a table before its triggers are checked.
struct Numbered {
    id: i64,
    /// See [`Table::born`].
    born: Vec<i64>,
    compare: Option<Compare>,
}

impl Database {
    /// Adopts one table: number, versions table, triggers. Removes from `triggers` those that
    /// belong to it.
    pub(super) fn adopt_table(
        &mut self,
        mut schema: Schema,
        renumbered: bool,
        triggers: &mut HashMap<String, String>,
    ) -> Result<()> {
        let name = schema.name.to_ascii_lowercase();
        if schema.rowid.is_some() && self.catalog.warned_rowid.insert(name.clone()) {
            log::warn!(
                "table {} has no primary key and goes by rowid: rows that two nodes insert at the \
                 same time replace each other",
                schema.name
            );
        }
        let old_name = self.take_over_renamed(&schema)?;
        self.catalog.has_new |= self.known_not_replicated()?.contains(&name);
        let is_renamed = old_name.is_some();
        let is_watched = is_renamed || triggers.contains_key(&format!("{PREFIX}{name}_insert"));
        let watched_as = is_watched.then(|| old_name.unwrap_or_else(|| schema.name.clone()));
        let number = self.table_number(&mut schema, watched_as.as_deref())?;
        let (id, mut compare) = (number.id, number.compare);
        for k in self.catalog.log_keys + 1..=schema.key_len() {
            self.conn
                .execute_batch(&format!("ALTER TABLE {} ADD COLUMN k{k}", triggers::LOG))?;
            self.catalog.log_keys = k;
        }
        let mut missing = self.set_triggers(id, &schema, triggers)?;
        if is_renamed {
            missing = MissedEvents::None; // they were in place, under the old name
            compare = Some(Compare::renamed(compare));
        }
        if renumbered && schema.rowid.is_some() {
            missing = MissedEvents::OfWrites; // as good as
        }
        compare = Compare::after(compare, missing);
        let mut table = Table::new(id, schema, number.born);
        if self.catalog.births && table.schema.is_numbered() {
            table = self.with_births(table)?;
        }
        table.fires = self.has_apply_triggers(table.name())?;
        table.set_key(Some(self.content_key));
        let table = Arc::new(table);
        self.set_compare(id, compare)?;
        self.catalog.by_id.insert(id, table.clone());
        self.catalog.by_name.insert(name, table);
        Ok(())
    }

    /// Adds the births to the versions table of a numbered table, if it has none.
    fn with_births(&self, table: Table) -> Result<Table> {
        let versions = format!("{PREFIX}{}_versions", table.name());
        if !own_shape::has_column(&self.conn, &versions, "born")? {
            let versions = versions_table(table.name());
            self.conn
                .execute_batch(&format!("ALTER TABLE {versions} ADD COLUMN born"))?;
        }
        Ok(table.with_births())
    }

    /// If the table had a different name until now, moves its state to the new name: its versions,
    /// and its held rows. Its marks, displaced rows and entries of the change log go along by its
    /// number. Returns the old name in that case.
    fn take_over_renamed(&self, schema: &Schema) -> Result<Option<String>> {
        let number = "SELECT 1 FROM __harmonylite___tables WHERE name = ?1";
        let is_known = |name: &str| self.conn.prepare_cached(number)?.exists([name]);
        let Some(old) = self.name_before(&schema.name)? else {
            return Ok(None);
        };
        let versions = [&old, &schema.name].map(|name| versions_table(name));
        if is_known(&schema.name)? || !is_known(&old)? || self.has_table(&old)? {
            return Ok(None); // or a table has the old name
        }
        self.conn.execute_batch(&format!(
            "DROP TABLE IF EXISTS {1}; ALTER TABLE {0} RENAME TO {1}",
            versions[0], versions[1]
        ))?;
        self.conn.execute(
            "UPDATE __harmonylite___tables SET name = ?2 WHERE name = ?1",
            [&old, &schema.name],
        )?;
        self.conn.execute(
            "UPDATE OR IGNORE __harmonylite___held SET table_name = ?2 WHERE table_name = ?1",
            [&old, &schema.name].map(|name| name.to_ascii_lowercase()),
        )?;
        Ok(Some(old))
    }

    /// The present names of the columns that were known of the table under `name`. If no trigger
    /// lists them, because an earlier HarmonyLite made none, the columns of `schema` are returned:
    /// ALTER TABLE RENAME keeps the position of a column.
    fn listed_columns(&self, schema: &Schema, name: &str) -> Result<Vec<String>> {
        let text: Option<String> = self
            .conn
            .prepare_cached(
                "SELECT sql FROM sqlite_schema WHERE type = 'trigger'
                 AND tbl_name = ?1 COLLATE NOCASE AND name = ?2 COLLATE NOCASE",
            )?
            .query_row([&schema.name, &triggers::list_name(name)], |r| {
                values::lossy(r, 0)
            })
            .optional()?;
        let rowid = schema.rowid.is_some().then(|| ROWID.to_owned());
        Ok(match text {
            Some(text) => rowid.into_iter().chain(triggers::listed(&text)).collect(),
            None => schema.columns.iter().map(|c| c.lower.clone()).collect(),
        })
    }

    /// The table name in the names of its HarmonyLite triggers, if that differs from its own.
    fn name_before(&self, name: &str) -> Result<Option<String>> {
        let trigger: Option<String> = self
            .conn
            .prepare_cached(
                "SELECT name FROM sqlite_schema WHERE type = 'trigger'
                 AND tbl_name = ?1 COLLATE NOCASE AND name GLOB '__harmonylite__*_insert'",
            )?
            .query_row([name], |r| r.get(0))
            .optional()?;
        let of = trigger.as_deref().and_then(|t| t.strip_prefix(PREFIX));
        let of = of.and_then(|t| t.strip_suffix("_insert"));
        Ok(of
            .filter(|of| !of.eq_ignore_ascii_case(name))
            .map(str::to_owned))
    }

    /// Finds or makes the number and versions table of the table. `watched_as` is the name in its
    /// HarmonyLite triggers, if it has any; a table with such triggers is the known one.
    fn table_number(&mut self, schema: &mut Schema, watched_as: Option<&str>) -> Result<Numbered> {
        let stored: Option<(i64, Vec<u8>, Option<Vec<u8>>)> = self
            .conn
            .prepare_cached(
                "SELECT id, shape, compare FROM __harmonylite___tables WHERE name = ?1",
            )?
            .query_row([&schema.name], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))
            .optional()?;
        if let Some((id, shape, compare)) = stored {
            let known: Shape = from_cbor(&shape)?;
            let born = vec![0; schema.columns.len()];
            if Shape::of(schema, &born).has_key_of(&known)
                && self.has_table(&format!("{PREFIX}{}_versions", schema.name))?
            {
                let compare = compare.map(|bytes| from_cbor(&bytes)).transpose()?;
                return self.known_number(id, schema, &known, compare, watched_as);
            }
            log::warn!(
                "table {} has a different key, or its versions are gone",
                schema.name
            );
            let has_versions = self.has_table(&format!("{PREFIX}{}_versions", schema.name))?;
            if has_versions {
                self.hold_displaced(id, &schema.name, &known)?;
            }
            self.conn
                .execute("DELETE FROM __harmonylite___tables WHERE id = ?1", [id])?;
            return self.new_number(schema, has_versions.then_some((id, &known)));
        }
        self.new_number(schema, None)
    }

    /// Whether the table has a number, and the same key as before.
    pub(super) fn has_known_key(&self, schema: &Schema) -> Result<bool> {
        let shape: Option<Vec<u8>> = self
            .conn
            .prepare_cached("SELECT shape FROM __harmonylite___tables WHERE name = ?1")?
            .query_row([&schema.name], |r| r.get(0))
            .optional()?;
        let known: Option<Shape> = shape.map(|bytes| from_cbor(&bytes)).transpose()?;
        let now = Shape::of(schema, &vec![0; schema.columns.len()]);
        Ok(known.is_some_and(|known| now.has_key_of(&known)))
    }

    /// Number of a table that was known before; its columns may have changed.
    fn known_number(
        &self,
        id: i64,
        schema: &mut Schema,
        known: &Shape,
        compare: Option<Compare>,
        watched_as: Option<&str>,
    ) -> Result<Numbered> {
        // A column that did not exist before has no version in rows learnt until now.
        let at = self.reservation.peek_number();
        let born_of = |lower: &String| {
            let found = known.columns.iter().find(|(c, _)| c == lower);
            found.map_or(at, |(_, born)| *born)
        };
        let born: Vec<i64> = schema.columns.iter().map(|c| born_of(&c.lower)).collect();
        let mut shape = Shape::of(schema, &born);
        let renamed = match watched_as {
            Some(name) if shape.columns != known.columns => {
                shape.renamed_since(known, &self.listed_columns(schema, name)?)
            }
            _ => Vec::new(), // they are the same, or the table is another one
        };
        shape.keep_known(known, &renamed, &mut schema.columns)?;
        if shape != *known {
            self.store_shape(id, &shape)?;
        }
        Ok(Numbered {
            id,
            born,
            compare: shape.compare_anew(known, compare),
        })
    }

    /// Number of a table that is new, or has a new key: its versions begin anew. `before` has the
    /// number and shape that it had until now.
    fn new_number(
        &mut self,
        schema: &mut Schema,
        before: Option<(i64, &Shape)>,
    ) -> Result<Numbered> {
        // HarmonyLite counts itself: AUTOINCREMENT would leave sqlite_sequence behind for good.
        let id = get_meta::<i64>(&self.conn, Meta::LastTable)?.unwrap_or(0) + 1;
        set_meta(&self.conn, Meta::LastTable, id)?;
        self.catalog.has_new = true;
        self.conn.execute(
            "INSERT INTO __harmonylite___tables(id, name) VALUES (?1, ?2)",
            params![id, schema.name],
        )?;
        let born = vec![0; schema.columns.len()];
        let mut shape = Shape::of(schema, &born);
        shape.keep_known(&shape.clone(), &[], &mut schema.columns)?;
        self.store_shape(id, &shape)?;
        let highest = self.highest_before(schema)?;
        let kept = match before {
            Some((old, known)) => self.keep_former((old, id), schema, known)?,
            None => Kept::Nothing,
        };
        if matches!(kept, Kept::Nothing) {
            let drop = format!("DROP TABLE IF EXISTS {}", versions_table(&schema.name));
            self.conn.execute_batch(&drop)?;
            let waiting = "DELETE FROM __harmonylite___waiting WHERE table_id = ?1";
            self.conn.execute(waiting, [before.map(|(old, _)| old)])?;
        }
        self.conn.execute_batch(&create_versions(schema))?;
        let was_left_out = self
            .known_not_replicated()?
            .contains(&schema.name.to_ascii_lowercase());
        let is_old = self.catalog.first_time || was_left_out || self.catalog.is_unmoved;
        let compare = match kept {
            _ if is_old => Compare::start(CompareReason::Before),
            Kept::ByContent(written_ms) => Compare::matched(written_ms),
            // Its rows may have been written and not captured: such rows have no version yet.
            Kept::Nothing if highest.is_none() => Compare::start(CompareReason::Unwatched),
            _ => Compare::start(CompareReason::Rekeyed(highest.unwrap_or(0))),
        };
        Ok(Numbered {
            id,
            born,
            compare: Some(compare),
        })
    }

    /// The highest hlc that the table's rows had under their former key; `None` if they had no
    /// versions, because the table is new.
    fn highest_before(&self, schema: &Schema) -> Result<Option<i64>> {
        if !self.has_table(&format!("{PREFIX}{}_versions", schema.name))? {
            return Ok(None);
        }
        let text = format!("SELECT max(hlc) FROM {}", versions_table(&schema.name));
        Ok(self.conn.query_row(&text, [], |r| r.get(0))?)
    }

    pub(crate) fn has_table(&self, name: &str) -> Result<bool> {
        Ok(self
            .conn
            .prepare_cached(
                "SELECT 1 FROM main.sqlite_schema WHERE type = 'table' AND name = ?1 \
                COLLATE NOCASE",
            )?
            .exists([name])?)
    }

    fn store_shape(&self, id: i64, shape: &Shape) -> Result<()> {
        self.conn.execute(
            "UPDATE __harmonylite___tables SET shape = ?2 WHERE id = ?1",
            params![id, to_cbor(shape)],
        )?;
        Ok(())
    }

    /// Creates the triggers that are missing, differ, or fire too late. Returns which were missing.
    fn set_triggers(
        &self,
        id: i64,
        schema: &Schema,
        installed: &mut HashMap<String, String>,
    ) -> Result<MissedEvents> {
        let saw_all = self.catalog.saw_replacing || !schema.notes_replacing();
        let mut missing = match saw_all {
            true => MissedEvents::None,
            false => MissedEvents::OfEvictions,
        };
        let lower = schema.name.to_ascii_lowercase();
        let is_kept_from_firing = self.catalog.kept_from_firing.contains(&lower);
        let births = self.settings.births;
        for (name, text) in triggers::wanted(id, schema, births) {
            match installed.remove(&name.to_ascii_lowercase()) {
                Some(there) if there == text && !is_kept_from_firing => continue,
                Some(_) => self
                    .conn
                    .execute_batch(&format!("DROP TRIGGER {}", quote(&name)))?,
                None => {}
            }
            self.conn.execute_batch(&text)?;
            missing = missing.max(triggers::missing_without(&name));
        }
        Ok(missing)
    }

    /// Stores the progress of a comparison; `None` when it is done.
    pub(crate) fn set_compare(&mut self, id: i64, compare: Option<Compare>) -> Result<()> {
        self.conn
            .prepare_cached(
                "UPDATE __harmonylite___tables SET compare = ?2 WHERE id = ?1 AND \
                compare IS NOT ?2",
            )?
            .execute(params![id, compare.as_ref().map(to_cbor)])?;
        let was_under_way = match compare {
            Some(compare) => {
                self.catalog.comparing.insert(id, compare);
                false
            }
            None => {
                if let Some(former) = self.catalog.former.get(&id) {
                    if former.seen & seen::NEW != 0 && self.lacks_former(id)? {
                        self.note_seen(id, seen::LACKING)?;
                    }
                    self.catalog.retry_held = Some(None); // what arrived under the former key
                }
                self.catalog.comparing.remove(&id).is_some()
            }
        };
        if was_under_way && self.catalog.displaced.contains(&id) {
            self.catalog.resettle.insert(id);
        }
        Ok(())
    }
}
