//! The replicated tables, kept in step with the database's schema.
//!
//! Read anew, inside a write transaction, whenever `PRAGMA schema_version` differs from the last
//! time: new tables get their versions table and triggers, changed ones new triggers. A table whose
//! triggers were not in place for a while is *compared* with its versions, see
//! [`crate::capture`]; so is every rowid-keyed table after a VACUUM, which renumbers its rows.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};

use crate::apply::{Place, create_probe};
use crate::database::own_tables::{get_meta, set_meta};
use crate::database::schema::{self, LeftAlone, PREFIX, Schema, quote};
use crate::database::table::{Shape, Table, create_versions, versions_table};
use crate::database::{Cause, Compare, Database, DatabaseError, Result, triggers};
use crate::model::key::is_known_collation;
use crate::mutation::{self, Mutation};

/// What is known of the schema.
#[derive(Debug, Default)]
pub struct Catalog {
    /// By lower-case name.
    pub by_name: HashMap<String, Arc<Table>>,
    pub by_id: HashMap<i64, Arc<Table>>,
    /// Comparisons under way, by table id.
    pub comparing: HashMap<i64, Compare>,
    /// Tables (lower case) that are replicated and have something in `___held`.
    pub held: HashSet<String>,
    /// Tables (by id) with something in `___displaced`.
    pub displaced: HashSet<i64>,
    /// Whether this database is seen for the first time.
    pub first_time: bool,
    /// Number of key columns that the raw log has room for.
    pub log_keys: usize,
    /// What is held may fit now: to be tried again after this place, or from the start.
    pub retry_held: Option<Option<Place>>,
    /// Rows captured by the transaction under way, by table id: what they mean for displaced rows
    /// is worked out when all local changes have their versions.
    pub to_settle: BTreeMap<i64, Vec<Vec<u8>>>,
    /// Tables (by id) whose displaced rows are all to be looked at anew, then.
    pub resettle: BTreeSet<i64>,
    left_alone: Vec<LeftAlone>,
    warned_rowid: HashSet<String>,
    schema_version: Option<i64>,
}

impl Catalog {
    /// To be read anew at the next occasion.
    pub fn forget(&mut self) {
        self.schema_version = None;
    }
}

impl Database {
    /// Brings the catalog, our tables and the triggers in step with the schema, if that changed.
    /// Inside a write transaction.
    pub(crate) fn refresh_catalog(&mut self) -> Result<()> {
        let version = self.schema_version()?;
        if self.catalog.schema_version == Some(version) {
            return Ok(());
        }
        let (schemas, mut left_alone) = schema::read(
            &self.conn,
            &*self.settings.selects,
            self.settings.allow_rowid_tables,
        )?;
        self.drop_apply_triggers()?;
        let renumbered = self.may_be_vacuumed(version)?;
        let previous = std::mem::take(&mut self.catalog);
        self.catalog = Catalog {
            first_time: previous.first_time,
            warned_rowid: previous.warned_rowid,
            left_alone: previous.left_alone,
            log_keys: self.log_keys()?,
            ..Catalog::default()
        };
        let mut triggers = self.installed_triggers()?;
        for schema in schemas {
            match self.is_usable(&schema) {
                Ok(()) => {
                    let table = schema.name.clone();
                    let taken = self.guarded(|db| db.take_in(schema, renumbered, &mut triggers))?;
                    if let Err(reason) = taken {
                        self.catalog.log_keys = self.log_keys()?;
                        left_alone.push(LeftAlone { table, reason });
                    }
                }
                Err(e) if e.is_temporary() => return Err(e),
                Err(e) => left_alone.push(LeftAlone {
                    table: schema.name,
                    reason: e.to_string(),
                }),
            }
        }
        if left_alone != self.catalog.left_alone {
            left_alone
                .iter()
                .for_each(|l| log::warn!("table {} is left alone: {}", l.table, l.reason));
        }
        self.catalog.left_alone = left_alone;
        for name in triggers.keys() {
            self.conn
                .execute_batch(&format!("DROP TRIGGER {}", quote(name)))?;
        }
        self.note_left_out()?;
        self.find_set_aside()?;
        // The UNIQUE indexes may be others now, or another constraint that kept a row aside is gone.
        // Not before local changes are captured: a row without its version loses against any.
        self.catalog.resettle = self.catalog.displaced.iter().copied().collect();
        if mutation::is(Mutation::SettleBeforeCapture) {
            for id in std::mem::take(&mut self.catalog.resettle) {
                self.resettle_guarded(id)?;
            }
        }
        self.copy_apply_triggers()?;
        self.catalog.retry_held = (!self.catalog.held.is_empty()).then_some(None);
        self.note_schema()
    }

    /// Looks anew at all displaced rows of a table.
    pub(crate) fn resettle_guarded(&mut self, id: i64) -> Result<()> {
        if let Some(table) = self.catalog.by_id.get(&id).cloned()
            && let Err(reason) = self.guarded(|db| db.resettle(&table))?
        {
            log::warn!("rows of table {} stay aside: {reason}", table.name());
        }
        Ok(())
    }

    /// Whether the catalog is that of the schema as it stands.
    pub(crate) fn catalog_is_current(&self) -> Result<bool> {
        Ok(self.catalog.schema_version == Some(self.schema_version()?))
    }

    /// Whether there is no table of the application.
    pub(crate) fn is_without_tables(&self) -> Result<bool> {
        Ok(self.tables_of_application("'table', 'virtual'")?.is_empty())
    }

    /// Tables of the application that are not replicated by choice.
    pub(crate) fn left_out(&self) -> Result<Vec<String>> {
        let mut tables = self.tables_of_application("'table'")?;
        tables.retain(|name| !(self.settings.selects)(name));
        Ok(tables)
    }

    /// Whether there are such.
    pub fn excludes_tables(&self) -> Result<bool> {
        Ok(!self.left_out()?.is_empty())
    }

    fn tables_of_application(&self, kinds: &str) -> Result<Vec<String>> {
        let mut list = self.conn.prepare_cached(&format!(
            "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type IN ({kinds})
             AND name NOT GLOB 'sqlite_*' AND name NOT GLOB '__harmonylite__*'"
        ))?;
        let names = list.query_map([], |r| r.get(0))?;
        Ok(names.collect::<rusqlite::Result<_>>()?)
    }

    fn schema_version(&self) -> Result<i64> {
        Ok(self
            .conn
            .prepare_cached("PRAGMA schema_version")?
            .query_row([], |r| r.get(0))?)
    }

    /// Remembers the schema as it is now, after our own statements.
    fn note_schema(&mut self) -> Result<()> {
        let version = self.schema_version()?;
        let hash = self.schema_hash()?;
        if get_meta(&self.conn, "schema_version")? != Some(version) {
            set_meta(&self.conn, "schema_version", version)?;
            set_meta(&self.conn, "schema_hash", hash)?;
        }
        self.catalog.schema_version = Some(version);
        Ok(())
    }

    /// Whether there may have been a VACUUM: it moves the schema's version and leaves its text alone.
    /// Where the version moved further than by one, it may have come with another change.
    fn may_be_vacuumed(&self, version: i64) -> Result<bool> {
        let known: Option<i64> = get_meta(&self.conn, "schema_version")?;
        let hash: Option<i64> = get_meta(&self.conn, "schema_hash")?;
        let Some(known) = known.filter(|k| *k != version) else {
            return Ok(false);
        };
        Ok(known.wrapping_add(1) != version || hash == Some(self.schema_hash()?))
    }

    fn schema_hash(&self) -> Result<i64> {
        let mut statement = self.conn.prepare_cached(
            "SELECT coalesce(sql, name) FROM sqlite_schema
             WHERE name NOT GLOB '__harmonylite__*' ORDER BY type, name",
        )?;
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            hash.update(row.get_ref(0)?.as_bytes().unwrap_or_default());
            hash.update(&[0]);
        }
        Ok(hash.digest() as i64)
    }

    fn log_keys(&self) -> Result<usize> {
        let count: usize = self.conn.query_row(
            "SELECT count(*) FROM pragma_table_info('__harmonylite___change_log_global')",
            [],
            |r| r.get(0),
        )?;
        Ok(count.saturating_sub(4))
    }

    /// Name -> SQL text.
    fn installed_triggers(&self) -> Result<HashMap<String, String>> {
        let mut statement = self.conn.prepare(
            "SELECT name, sql FROM sqlite_schema
             WHERE type = 'trigger' AND name GLOB '__harmonylite__*'",
        )?;
        let all = statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?;
        Ok(all.collect::<rusqlite::Result<_>>()?)
    }

    /// Whether SQLite as it is here can read and write the table: an index may need a function or a
    /// collation that only the application has.
    fn is_usable(&self, schema: &Schema) -> Result<()> {
        if let Some(key) = schema
            .key
            .iter()
            .find(|k| !is_known_collation(&k.collation))
        {
            return Err(DatabaseError::Unusable(format!(
                "its key compares by {}, which is not known here",
                key.collation
            )));
        }
        let table = Table::new(0, schema.clone(), Vec::new());
        let sql = &table.sql;
        let scan = table.scan_keys(true, 1);
        for text in [&sql.get_row, &sql.upsert, &sql.delete_row, &scan] {
            self.conn.prepare(text)?;
        }
        Ok(create_probe(&self.conn, schema)?)
    }

    /// One table: number, versions table, triggers. Takes what is right out of `triggers`.
    fn take_in(
        &mut self,
        mut schema: Schema,
        renumbered: bool,
        triggers: &mut HashMap<String, String>,
    ) -> Result<()> {
        let name = schema.name.to_ascii_lowercase();
        if schema.rowid.is_some() && self.catalog.warned_rowid.insert(name.clone()) {
            log::warn!(
                "table {} has no primary key and goes by rowid: rows that two nodes insert at the \
                 same time take each other's place",
                schema.name
            );
        }
        let (id, born, mut compare) = self.table_number(&mut schema)?;
        if renumbered && schema.rowid.is_some() {
            compare = Some(Compare::start(Cause::Unwatched));
        }
        for k in self.catalog.log_keys + 1..=schema.key_len() {
            self.conn
                .execute_batch(&format!("ALTER TABLE {} ADD COLUMN k{k}", triggers::LOG))?;
            self.catalog.log_keys = k;
        }
        if self.set_triggers(id, &schema, triggers)? {
            let cause = match compare.map(|c| c.cause) {
                Some(Cause::Before) => Cause::Before,
                _ => Cause::Unwatched,
            };
            compare = Some(Compare::start(cause));
        }
        let table = Arc::new(Table::new(id, schema, born));
        self.set_compare(id, compare)?;
        self.catalog.by_id.insert(id, table.clone());
        self.catalog.by_name.insert(name, table);
        Ok(())
    }

    /// Finds or makes the table's number and versions table.
    fn table_number(&mut self, schema: &mut Schema) -> Result<(i64, Vec<i64>, Option<Compare>)> {
        let stored: Option<(i64, Vec<u8>, Option<Vec<u8>>)> = self
            .conn
            .prepare_cached(
                "SELECT id, shape, compare FROM __harmonylite___tables WHERE name = ?1",
            )?
            .query_row([&schema.name], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))
            .optional()?;
        let key: Vec<_> = schema
            .key
            .iter()
            .map(|k| (k.affinity.to_owned(), k.collation.clone()))
            .collect();
        if let Some((id, shape, compare)) = stored {
            let known: Shape = from_cbor(&shape)?;
            if known.key == key && self.has_table(&format!("{PREFIX}{}_versions", schema.name))? {
                // A column that was not here before has no version in rows learnt until now.
                let at = self.reservation.peek_number();
                let born_of = |lower: &String| {
                    known
                        .columns
                        .iter()
                        .find(|(c, _)| c == lower)
                        .map_or(at, |(_, born)| *born)
                };
                let born: Vec<i64> = schema.columns.iter().map(|c| born_of(&c.lower)).collect();
                let columns = schema
                    .columns
                    .iter()
                    .map(|c| c.lower.clone())
                    .zip(born.clone());
                let mut shape = Shape {
                    key,
                    columns: columns.collect(),
                    defaults: BTreeMap::new(),
                };
                shape.keep_defaults(&known, &mut schema.columns)?;
                if shape != known {
                    self.store_shape(id, &shape)?;
                }
                let compare = compare.map(|bytes| from_cbor(&bytes)).transpose()?;
                let compare = shape.compare_anew(&known, compare);
                return Ok((id, born, compare));
            }
            log::warn!(
                "the key of table {} is another one, or its versions are gone: they begin anew",
                schema.name
            );
            self.conn
                .execute("DELETE FROM __harmonylite___tables WHERE id = ?1", [id])?;
        }
        let born = vec![0; schema.columns.len()];
        let columns = schema
            .columns
            .iter()
            .map(|c| (c.lower.clone(), 0))
            .collect();
        // Counted by ourselves: AUTOINCREMENT would leave sqlite_sequence behind for good.
        let id = get_meta::<i64>(&self.conn, "last_table")?.unwrap_or(0) + 1;
        set_meta(&self.conn, "last_table", id)?;
        self.conn.execute(
            "INSERT INTO __harmonylite___tables(id, name) VALUES (?1, ?2)",
            params![id, schema.name],
        )?;
        let mut shape = Shape {
            key,
            columns,
            defaults: BTreeMap::new(),
        };
        shape.keep_defaults(&shape.clone(), &mut schema.columns)?;
        self.store_shape(id, &shape)?;
        let drop = format!("DROP TABLE IF EXISTS {}", versions_table(&schema.name));
        self.conn.execute_batch(&drop)?;
        self.conn.execute_batch(&create_versions(schema))?;
        let was_left_out = self
            .known_left_out()?
            .contains(&schema.name.to_ascii_lowercase());
        let cause = match self.catalog.first_time || was_left_out {
            true => Cause::Before,
            false => Cause::Unwatched,
        };
        Ok((id, born, Some(Compare::start(cause))))
    }

    /// Tables (lower case) that were in the database and not replicated when it was looked at last:
    /// when one is included, what it holds by then does not count as written just now.
    fn known_left_out(&self) -> Result<BTreeSet<String>> {
        let stored: Option<Vec<u8>> = get_meta(&self.conn, "left_out")?;
        stored.map_or(Ok(BTreeSet::new()), |bytes| from_cbor(&bytes))
    }

    fn note_left_out(&self) -> Result<()> {
        let mut tables = self.conn.prepare_cached(
            "SELECT lower(name) FROM pragma_table_list WHERE schema = 'main' AND type = 'table'
             AND name NOT GLOB 'sqlite_*' AND name NOT GLOB '__harmonylite__*'",
        )?;
        let by_name = &self.catalog.by_name;
        let left_out: BTreeSet<String> = tables
            .query_map([], |r| r.get(0))?
            .filter(|name| {
                name.as_ref()
                    .map_or(true, |n: &String| !by_name.contains_key(n))
            })
            .collect::<rusqlite::Result<_>>()?;
        if left_out != self.known_left_out()? {
            set_meta(&self.conn, "left_out", to_cbor(&left_out))?;
        }
        Ok(())
    }

    fn has_table(&self, name: &str) -> Result<bool> {
        Ok(self
            .conn
            .prepare_cached("SELECT 1 FROM main.sqlite_schema WHERE type = 'table' AND name = ?1 COLLATE NOCASE")?
            .exists([name])?)
    }

    fn store_shape(&self, id: i64, shape: &Shape) -> Result<()> {
        self.conn.execute(
            "UPDATE __harmonylite___tables SET shape = ?2 WHERE id = ?1",
            params![id, to_cbor(shape)],
        )?;
        Ok(())
    }

    /// Creates the triggers that are missing or differ. True if there were any.
    fn set_triggers(
        &self,
        id: i64,
        schema: &Schema,
        installed: &mut HashMap<String, String>,
    ) -> Result<bool> {
        let mut changed = false;
        for (name, text) in triggers::wanted(id, schema) {
            match installed.remove(&name) {
                Some(there) if there == text => continue,
                Some(_) => self
                    .conn
                    .execute_batch(&format!("DROP TRIGGER {}", quote(&name)))?,
                None => {}
            }
            self.conn.execute_batch(&text)?;
            changed = true;
        }
        Ok(changed)
    }

    /// Stores how far a comparison has come; none when it is done.
    pub(crate) fn set_compare(&mut self, id: i64, compare: Option<Compare>) -> Result<()> {
        self.conn
            .prepare_cached("UPDATE __harmonylite___tables SET compare = ?2 WHERE id = ?1 AND compare IS NOT ?2")?
            .execute(params![id, compare.as_ref().map(to_cbor)])?;
        let was_under_way = match compare {
            Some(compare) => {
                self.catalog.comparing.insert(id, compare);
                false
            }
            None => self.catalog.comparing.remove(&id).is_some(),
        };
        if was_under_way && self.catalog.displaced.contains(&id) {
            self.catalog.resettle.insert(id);
        }
        Ok(())
    }

    pub(crate) fn find_set_aside(&mut self) -> Result<()> {
        let mut held = self
            .conn
            .prepare_cached("SELECT DISTINCT table_name FROM __harmonylite___held")?;
        let by_name = &self.catalog.by_name;
        self.catalog.held = held
            .query_map([], |r| r.get(0))?
            .filter(|name| {
                name.as_ref()
                    .map_or(true, |n: &String| by_name.contains_key(n))
            })
            .collect::<rusqlite::Result<_>>()?;
        let mut displaced = self
            .conn
            .prepare_cached("SELECT DISTINCT table_id FROM __harmonylite___displaced")?;
        self.catalog.displaced = displaced
            .query_map([], |r| r.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        Ok(())
    }
}

fn to_cbor<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).expect("writing to memory does not fail");
    bytes
}

fn from_cbor<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T> {
    ciborium::from_reader(bytes).map_err(|e| DatabaseError::Damaged(e.to_string()))
}
