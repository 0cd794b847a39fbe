//! The versions that a table's rows had before its key changed.
//!
//! A migration that changes the key does not change the rows. So each row keeps the version that it
//! had under its old key, if all columns of the old key still exist. If all other columns still
//! exist, the old row is found by its content. The versions table of the old key stays, as the
//! *former* table, for as long as a deleted row is remembered. Its tombstones belong to rows that
//! may still arrive under the new key.

use std::sync::Arc;

use rusqlite::{OptionalExtension, params, params_from_iter};
use serde::{Deserialize, Serialize};

use super::by_content::{contents_name, contents_table};
use super::{from_cbor, to_cbor};
use crate::database::own_shape::has_column;
use crate::database::rows::{Stored, stored};
use crate::database::schema::{PREFIX, Schema, quote};
use crate::database::table::{Shape, Table, key_names, parameters, versions_table};
use crate::database::{Database, Result, triggers, values};
use crate::model::cbor;
use crate::model::key::{is_known_collation, key_bytes};
use crate::model::value::{OwnedValue, Value};
use crate::model::version::{Version, stamp};

/// The former key of a table, as `___former` stores it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Former {
    #[serde(flatten)]
    pub shape: Shape,
    /// Bits of [`seen`]: how the migration derived new keys from old keys.
    #[serde(default)]
    pub seen: u8,
    /// Number under which the key before this one is remembered.
    #[serde(default)]
    pub before: Option<i64>,
    /// Present rows do not tell this key: it is remembered by their own, see [`was_table`].
    #[serde(default)]
    pub has_was: bool,
    /// The rows of before can be found by their content, see [`super::by_content`].
    #[serde(skip)]
    pub has_contents: bool,
}

/// Bits for what the comparison observed about the keys that a migration gave to rows.
pub(crate) mod seen {
    /// A row has the key that its former columns give here.
    pub(crate) const COMPUTED: u8 = 1;
    /// A row has a different key.
    pub(crate) const OTHER: u8 = 2;
    /// A row is new: it matches no row from before.
    pub(crate) const NEW: u8 = 4;
    /// A row from before is missing.
    pub(crate) const LACKING: u8 = 8;
}

impl Former {
    /// Whether the content is plausible: it may come from a different node.
    pub(crate) fn is_sound(&self) -> bool {
        let known = ["INTEGER", "TEXT", "BLOB", "REAL", "NUMERIC"];
        let is_known = |(affinity, collation): &(String, String)| {
            known.contains(&affinity.as_str()) && is_known_collation(collation)
        };
        let (key, columns) = (&self.shape.key, &self.shape.columns);
        !key.is_empty() && key.len() <= columns.len() && key.iter().all(is_known)
    }

    /// Whether the former columns of a row give its key here, as far as the rows show. Rows that
    /// are new beside rows that are missing may be the same rows, under computed keys.
    pub(crate) fn makes_keys(&self) -> bool {
        let both = seen::NEW | seen::LACKING;
        self.seen & (seen::COMPUTED | seen::OTHER) == seen::COMPUTED && self.seen & both != both
    }
}

/// A row as it was under its old key.
pub(crate) struct FormerRow {
    pub key: Vec<OwnedValue>,
    pub stored: Stored,
    /// Unix milliseconds of a write that came after the stored version and was not captured.
    pub written_ms: Option<i64>,
    /// The rest by which the row was found, see [`super::by_content`].
    pub content: Option<i64>,
    /// Key, as bytes, of the row that this row became; `None` if it became no row, or several.
    pub became: Option<Vec<u8>>,
}

impl FormerRow {
    /// The tombstone of the row, if it has one. `is_here` says whether the row that it became
    /// exists. A row that was written just before the migration and does not exist was deleted by
    /// the migration, which counts as a delete by this `node`.
    pub(crate) fn tombstone(&self, is_here: bool, node: u64) -> Option<Version> {
        let state = &self.stored.state;
        match self.written_ms {
            Some(time_ms) if !is_here => Some(Version {
                hlc: stamp(time_ms, state.version.hlc),
                node,
            }),
            _ => Some(state.version).filter(|v| state.deleted && v.hlc > 0),
        }
    }

    /// Whether no row is known that the row became.
    pub(crate) fn may_be_left_out(&self) -> bool {
        !self.stored.state.deleted && self.became.is_none() && self.content.is_none()
    }

    /// The hlc above which a write to the row must be, now that it is made under the new key.
    pub(crate) fn outdone(&self) -> i64 {
        let hlc = self.stored.state.version.hlc;
        match self.may_be_left_out() {
            true => left_out(hlc),
            false => hlc,
        }
    }
}

/// The hlc of the tombstone of a row that a migration leaves out, which had this hlc. A node
/// where the row got a different key gives it a tombstone that is one below.
pub(crate) fn left_out(hlc: i64) -> i64 {
    stamp(0, hlc.saturating_add(1))
}

/// How the versions of the old key are kept.
pub(super) enum Kept {
    /// They are not kept: the new table lacks too many of the old columns.
    Nothing,
    ByKey,
    /// The new rows lack the old key. The value is the time, in unix milliseconds, of the last
    /// write that was not captured.
    ByContent(Option<i64>),
}

/// Whether two values of a key are equal under the collation.
pub(crate) fn is_one(collation: &str, a: &OwnedValue, b: &OwnedValue) -> bool {
    let bytes = |v: &OwnedValue| key_bytes([v.borrow()].into_iter(), [collation].into_iter());
    bytes(a) == bytes(b)
}

/// Name of the table with the versions of table number `id` under its former key.
fn former_name(id: i64) -> String {
    format!("{PREFIX}_former_{id}")
}

/// The name of that table, quoted for SQL.
pub(crate) fn former_table(id: i64) -> String {
    quote(&former_name(id))
}

/// SQL name of the table that has the former key of each present one, both as bytes.
pub(crate) fn was_table(id: i64) -> String {
    quote(&format!("{}_was", former_name(id)))
}

fn create_was(id: i64) -> String {
    let name = was_table(id);
    format!("CREATE TABLE {name}(key BLOB PRIMARY KEY, was BLOB) WITHOUT ROWID")
}

impl Database {
    /// Keeps the versions of a table under its number `new`, with the writes to its rows that the
    /// change log and `___waiting` have under its number `old`.
    pub(super) fn keep_former(
        &mut self,
        (old, new): (i64, i64),
        schema: &Schema,
        known: &Shape,
    ) -> Result<Kept> {
        let n = known.key.len();
        let has = |name: &String| schema.columns.iter().any(|c| c.lower == *name);
        let has_all = |columns: &[(String, i64)]| columns.iter().all(|(name, _)| has(name));
        let (key, others) = known.columns.split_at(n);
        let is_by_key = has_all(key);
        if !is_by_key && !has_all(others) {
            return Ok(Kept::Nothing);
        }
        let former = former_table(new);
        self.conn.execute_batch(&format!(
            "ALTER TABLE {} RENAME TO {former}; ALTER TABLE {former} ADD COLUMN written_ms;
             ALTER TABLE {former} ADD COLUMN became",
            versions_table(&schema.name)
        ))?;
        let remembered = "SELECT table_id FROM __harmonylite___former WHERE table_id = ?1";
        let before = self.conn.query_row(remembered, [old], |r| r.get(0));
        let former_shape = Former {
            shape: known.clone(),
            seen: 0,
            before: before.optional()?,
            has_was: !is_by_key,
            has_contents: !is_by_key,
        };
        if former_shape.has_was {
            self.conn.execute_batch(&create_was(new))?;
        }
        self.conn.execute(
            "INSERT INTO __harmonylite___former(table_id, at, shape) VALUES (?1, ?2, ?3)",
            params![new, self.reservation.peek_number(), to_cbor(&former_shape)],
        )?;
        let mut written_ms = None;
        for (key, time_ms) in self.uncaptured(old, n)? {
            written_ms = written_ms.max(Some(time_ms));
            self.note_written_before(&former, &key, time_ms)?;
        }
        let log = format!("DELETE FROM {} WHERE table_id = ?1", triggers::LOG);
        self.conn.execute(&log, [old])?;
        let waiting = "DELETE FROM __harmonylite___waiting WHERE table_id = ?1";
        self.conn.execute(waiting, [old])?;
        // Of these rows, the deleted ones are sent under the former key.
        let unsent =
            "UPDATE OR REPLACE __harmonylite___unsent SET table_id = ?2 WHERE table_id = ?1";
        self.conn.execute(unsent, [old, -new])?;
        if is_by_key {
            return Ok(Kept::ByKey);
        }
        self.begin_contents(new, known)?;
        Ok(Kept::ByContent(written_ms))
    }

    /// Keys that were written and not captured yet, each with the time of the write in unix
    /// milliseconds.
    fn uncaptured(&self, id: i64, keys: usize) -> Result<Vec<(Vec<OwnedValue>, i64)>> {
        let mut found = Vec::new();
        let mut waiting = self.conn.prepare_cached(
            "SELECT key, time_ms FROM __harmonylite___waiting WHERE table_id = ?1 AND kind = ?2",
        )?;
        let mut rows = waiting.query(params![id, triggers::REAL])?;
        while let Some(row) = rows.next()? {
            let key: Vec<u8> = row.get(0)?;
            found.push((cbor::key_values(&key)?, row.get(1)?));
        }
        let names = key_names(keys);
        let mut log = self.conn.prepare(&format!(
            "SELECT id, created_at, {} FROM {} WHERE table_id = ?1 AND kind = ?2",
            names.join(", "),
            triggers::LOG
        ))?;
        let mut rows = log.query(params![id, triggers::REAL])?;
        while let Some(row) = rows.next()? {
            let time_ms = self.entry_time(row.get(0)?, row.get(1).unwrap_or(0));
            let key = (0..keys).map(|i| values::column(row, 2 + i).to_owned());
            found.push((key.collect(), time_ms));
        }
        Ok(found)
    }

    /// Notes the time of a write that was not captured. A row without a version gets a tombstone
    /// that is older than any other version.
    fn note_written_before(
        &mut self,
        former: &str,
        key: &[OwnedValue],
        time_ms: i64,
    ) -> Result<()> {
        let site = self.sites.site(&self.conn, self.node)?;
        let n = key.len();
        let text = format!(
            "INSERT INTO {former}({}, hlc, site, deleted, at, hash, written_ms)
             VALUES ({}, 0, {site}, 1, 0, 0, {time_ms})
             ON CONFLICT DO UPDATE SET written_ms = max(ifnull(written_ms, 0), \
             excluded.written_ms)",
            key_names(n).join(", "),
            parameters(1, n),
        );
        self.conn.execute(&text, params_from_iter(key))?;
        Ok(())
    }

    /// Reads which tables have former versions.
    pub(super) fn find_former(&mut self) -> Result<()> {
        let mut all = self
            .conn
            .prepare_cached("SELECT table_id, shape FROM __harmonylite___former")?;
        let mut rows = all.query([])?;
        while let Some(row) = rows.next()? {
            let id = row.get(0)?;
            // Another program may have dropped the table.
            if self.has_table(&former_name(id))? {
                if !has_column(&self.conn, &former_name(id), "became")? {
                    let table = former_table(id); // of an earlier build
                    self.conn
                        .execute_batch(&format!("ALTER TABLE {table} ADD COLUMN became"))?;
                }
                let former = Former {
                    has_contents: self.has_table(&contents_name(id))?,
                    ..from_cbor(&row.get::<_, Vec<u8>>(1)?)?
                };
                self.catalog.former.insert(id, Arc::new(former));
            }
        }
        Ok(())
    }

    /// The row's versions under the former key of its table. `value` returns the row's value of a
    /// column (lower case). If the new row lacks the old key, the former row is found by its
    /// content, and by `version` if given.
    pub(crate) fn former_row<'v>(
        &self,
        table: &Table,
        value: impl Fn(&str) -> Option<Value<'v>>,
        version: Option<Version>,
    ) -> Result<Option<FormerRow>> {
        let Some(former) = self.catalog.former.get(&table.id) else {
            return Ok(None);
        };
        let shape = &former.shape;
        let n = shape.key.len();
        let has = |name: &String| table.schema.columns.iter().any(|c| c.lower == *name);
        if !shape.columns[..n].iter().all(|(name, _)| has(name)) {
            return match former.has_contents {
                true => self.former_by_content(table, shape, value, version),
                // Learnt from a snapshot, or a column of it was dropped later.
                false => Ok(None),
            };
        }
        let names = shape.columns.iter().take(n);
        let key = names.map(|(name, _)| value(name).map(Value::to_owned));
        match key.collect::<Option<Vec<_>>>() {
            Some(key) => self.former_by_key(table.id, &key),
            None => Ok(None),
        }
    }

    /// The keys that a table (by number) had, the last one first, each with the number under which
    /// it is remembered.
    pub(crate) fn formers(&self, id: i64) -> Vec<(i64, Arc<Former>)> {
        let mut all: Vec<(i64, Arc<Former>)> = Vec::new();
        let mut next = Some(id);
        // Numbers rise, so this ends whatever is stored.
        while let Some(id) = next.filter(|id| all.last().is_none_or(|(last, _)| id < last))
            && let Some(former) = self.catalog.former.get(&id)
        {
            next = former.before;
            all.push((id, former.clone()));
        }
        all
    }

    /// The row under the keys that the table had before its former one, as far as it was deleted
    /// under them. `value` is as for [`Self::former_row`].
    pub(crate) fn deleted_before<'v>(
        &self,
        table: &Table,
        value: impl Fn(&str) -> Option<Value<'v>>,
    ) -> Result<Vec<(Arc<Former>, FormerRow)>> {
        let mut found = Vec::new();
        for (id, former) in self.formers(table.id).into_iter().skip(1) {
            let key = former.shape.columns.iter().take(former.shape.key.len());
            let key = key.map(|(name, _)| value(name).map(Value::to_owned));
            if let Some(key) = key.collect::<Option<Vec<_>>>()
                && let Some(row) = self.former_by_key(id, &key)?
                && row.tombstone(row.became.is_some(), self.node).is_some()
            {
                found.push((former, row));
            }
        }
        Ok(found)
    }

    /// The former row of table number `id` with this former key.
    pub(crate) fn former_by_key(&self, id: i64, key: &[OwnedValue]) -> Result<Option<FormerRow>> {
        let n = key.len();
        let is_key: Vec<String> = (1..=n).map(|i| format!("k{i} = ?{i}")).collect();
        let columns = key_names(n);
        let text = format!(
            "SELECT hlc, site, deleted, at, hash, exc, written_ms, became, {} FROM {} WHERE {}",
            columns.join(", "),
            former_table(id),
            is_key.join(" AND ")
        );
        let mut row = self.conn.prepare_cached(&text)?;
        let mut rows = row.query(params_from_iter(key))?;
        let Some(row) = rows.next()? else {
            return Ok(None);
        };
        Ok(Some(FormerRow {
            key: (0..n)
                .map(|i| values::column(row, 8 + i).to_owned())
                .collect(),
            stored: stored(&self.sites, row)?,
            written_ms: row.get(6)?,
            content: None,
            became: match values::column(row, 7) {
                Value::Blob(key) if !key.is_empty() => Some(key.to_vec()),
                _ => None,
            },
        }))
    }

    /// Remembers which key a row has now. If it became two rows, neither of them counts.
    pub(crate) fn note_became(&self, id: i64, former: &[OwnedValue], key: &[u8]) -> Result<()> {
        let is_key = (1..=former.len()).map(|i| format!("k{i} = ?{}", i + 1));
        let text = format!(
            "UPDATE {} SET became = iif(became IS NULL OR became = ?1, ?1, x'') WHERE {}",
            former_table(id),
            is_key.collect::<Vec<_>>().join(" AND ")
        );
        let key = OwnedValue::Blob(key.to_vec());
        let of = std::iter::once(&key).chain(former);
        self.conn
            .prepare_cached(&text)?
            .execute(params_from_iter(of))?;
        match &key {
            OwnedValue::Blob(key) => self.note_was(id, former, key),
            _ => Ok(()),
        }
    }

    /// Remembers the former key of a present one.
    fn note_was(&self, id: i64, former: &[OwnedValue], key: &[u8]) -> Result<()> {
        let Some(of) = self.catalog.former.get(&id).filter(|f| f.has_was) else {
            return Ok(());
        };
        let collations = of.shape.key.iter().map(|(_, collation)| collation.as_str());
        let was = key_bytes(former.iter().map(OwnedValue::borrow), collations);
        let text = format!("REPLACE INTO {}(key, was) VALUES (?1, ?2)", was_table(id));
        self.conn.prepare_cached(&text)?.execute([key, &was])?;
        Ok(())
    }

    /// The former key, as bytes, of the row that has `key` now; none if it may be several.
    pub(crate) fn old_key(&self, id: i64, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let text = format!("SELECT was FROM {} WHERE key = ?1", was_table(id));
        let mut was = self.conn.prepare_cached(&text)?;
        let Some(was) = was
            .query_row([key], |r| r.get::<_, Vec<u8>>(0))
            .optional()?
        else {
            return Ok(None);
        };
        let former = self.former_by_key(id, &cbor::key_values(&was)?)?;
        let is_that = former.is_some_and(|f| f.became.as_deref() == Some(key));
        Ok(is_that.then_some(was))
    }

    /// Stores an arrived version of a row under its former key, unless a known version is newer,
    /// and the key of the row that it became here. With `became` `None` the stored key stays.
    pub(crate) fn put_former(
        &mut self,
        id: i64,
        key: &[OwnedValue],
        (version, deleted, local_tx): (Version, bool, i64),
        became: Option<&[u8]>,
    ) -> Result<()> {
        let known = self.former_by_key(id, key)?;
        let is_newer = known.is_none_or(|k| k.stored.state.version < version);
        let site = self.sites.site(&self.conn, version.node)?;
        let newer = match is_newer {
            true => {
                "hlc = excluded.hlc, site = excluded.site, deleted = excluded.deleted,
                 at = excluded.at, hash = 0, exc = NULL, written_ms = NULL, "
            }
            false => "",
        };
        let names = key_names(key.len());
        let text = format!(
            "INSERT INTO {}(hlc, site, deleted, at, became, hash, {}) VALUES ({}, 0, {})
             ON CONFLICT DO UPDATE SET {newer}became = ifnull(excluded.became, became)",
            former_table(id),
            names.join(", "),
            parameters(1, 5),
            parameters(6, key.len())
        );
        let numbers = [version.hlc, site, i64::from(deleted), local_tx].map(OwnedValue::Integer);
        let became = became.map_or(OwnedValue::Null, |b| OwnedValue::Blob(b.to_vec()));
        let all = numbers.iter().chain([&became]).chain(key);
        self.conn
            .prepare_cached(&text)?
            .execute(params_from_iter(all))?;
        match &became {
            OwnedValue::Blob(became) => self.note_was(id, key, became),
            _ => Ok(()),
        }
    }

    /// Makes a table remember a former key that it did not have on this node, so that the deletes
    /// under that key can be stored. Inside a transaction.
    pub(crate) fn adopt_former(&mut self, table: &Table, former: &Former) -> Result<()> {
        let (name, was) = (former_table(table.id), was_table(table.id));
        self.conn.execute_batch(&format!(
            "DROP TABLE IF EXISTS {name}; DROP TABLE IF EXISTS {was};
             CREATE TABLE {name}({}, hlc INTEGER, site INTEGER, deleted INTEGER, at INTEGER,
             hash INTEGER, exc BLOB, written_ms, became, PRIMARY KEY({})) WITHOUT ROWID",
            former.shape.key_definitions(),
            key_names(former.shape.key.len()).join(", ")
        ))?;
        let former = Former {
            shape: former.shape.clone(),
            has_was: !former.shape.key_gone(table).is_empty(),
            ..Former::default()
        };
        if former.has_was {
            self.conn.execute_batch(&create_was(table.id))?;
        }
        self.conn.execute(
            "REPLACE INTO __harmonylite___former(table_id, at, shape) VALUES (?1, ?2, ?3)",
            params![table.id, self.reservation.peek_number(), to_cbor(&former)],
        )?;
        self.catalog.former.insert(table.id, Arc::new(former));
        self.note_schema()
    }

    /// Adds bits of [`seen`] to those noted for a table.
    pub(crate) fn note_seen(&mut self, id: i64, what: u8) -> Result<()> {
        let Some(former) = self.catalog.former.get_mut(&id) else {
            return Ok(());
        };
        if former.seen & what == what {
            return Ok(());
        }
        let noted = Former {
            seen: former.seen | what,
            ..Former::clone(former)
        };
        let text = "UPDATE __harmonylite___former SET shape = ?2 WHERE table_id = ?1";
        self.conn.execute(text, params![id, to_cbor(&noted)])?;
        *former = Arc::new(noted);
        Ok(())
    }

    /// Whether a live row from before became no row here.
    pub(crate) fn lacks_former(&self, id: i64) -> Result<bool> {
        let text = format!(
            "SELECT 1 FROM {} WHERE deleted = 0 AND became IS NULL LIMIT 1",
            former_table(id)
        );
        let found = self.conn.query_row(&text, [], |_| Ok(())).optional()?;
        Ok(found.is_some())
    }

    /// Whether the row is unchanged, as far as the former columns are concerned.
    pub(crate) fn is_as_before(
        &self,
        table: &Table,
        former: &FormerRow,
        values: &[OwnedValue],
    ) -> bool {
        let Some(of) = self.catalog.former.get(&table.id) else {
            return false;
        };
        let shape = &of.shape;
        if former.content.is_some() {
            return true; // that is how it was found
        }
        let n = shape.key.len();
        let of = |i: usize| {
            let column = &table.schema.columns[i];
            match shape.columns.iter().position(|(c, _)| *c == column.lower) {
                // The key may have been stored in a different spelling.
                Some(at) if at < n && !is_one(&shape.key[at].1, &former.key[at], &values[i]) => {
                    former.key[at].borrow()
                }
                Some(_) => values[i].borrow(),
                None => column.default.borrow(),
            }
        };
        table.is_content(&former.stored, (0..values.len()).map(of))
    }

    /// Forgets former versions that are older than transaction `bound`, with their tables. Inside a
    /// transaction.
    pub(crate) fn forget_former(&mut self, bound: i64) -> Result<()> {
        let old: Vec<i64> = {
            let text = "SELECT table_id FROM __harmonylite___former WHERE at <= ?1";
            let mut old = self.conn.prepare(text)?;
            let old = old.query_map([bound], |r| r.get(0))?;
            old.collect::<rusqlite::Result<_>>()?
        };
        for id in &old {
            self.conn.execute_batch(&format!(
                "DROP TABLE IF EXISTS {}; DROP TABLE IF EXISTS {}; DROP TABLE IF EXISTS {}",
                former_table(*id),
                contents_table(*id),
                was_table(*id)
            ))?;
            let text = "DELETE FROM __harmonylite___former WHERE table_id = ?1";
            self.conn.execute(text, [id])?;
            self.catalog.former.remove(id);
        }
        match old.is_empty() {
            true => Ok(()),
            false => self.note_schema(),
        }
    }
}
