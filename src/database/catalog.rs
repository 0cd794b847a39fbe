//! The replicated tables, kept in step with the database's schema.
//!
//! The catalog is read again, inside a write transaction, whenever `PRAGMA schema_version` differs
//! from the last time: new tables get their versions table and triggers, changed tables get new
//! triggers. A table whose triggers were missing for a while is *compared* with its versions, see
//! [`crate::capture`]. So is every rowid-keyed table after a VACUUM, which renumbers its rows.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use rusqlite::OptionalExtension;
use serde::{Deserialize, Serialize};

use crate::apply::Place;
use crate::apply::let_go::held_tables;
use crate::database::go_version::is_of_go;
use crate::database::meta::{Meta, get_meta, set_meta};
use crate::database::schema::{self, Schema, quote};
use crate::database::selection::{self, Doubt, Kind, NotReplicated};
use crate::database::table::{Shape, Table};
use crate::database::{Compare, Database, DatabaseError, Phase, Result, sql_text, values};
use crate::mutation::{self, Mutation};

mod adopt_table;
mod by_content;
mod capture_check;
mod former;
mod gone;
mod not_replicated;
mod quiet;

use capture_check::Text;
pub(crate) use former::{Former, FormerRow, former_table, is_one, left_out, seen, was_table};
pub(crate) use not_replicated::{forget_table, note_local};
use quiet::Quiet;

/// The schema as it was read last, and the work that is left for its tables.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    /// Replicated tables, by lower-case name.
    pub by_name: HashMap<String, Arc<Table>>,
    pub by_id: HashMap<i64, Arc<Table>>,
    /// Comparisons under way, by table id.
    pub comparing: HashMap<i64, Compare>,
    /// Replicated tables (lower case) that have entries in `___held`.
    pub held: HashSet<String>,
    /// Tables with entries in `___held` that are to be removed.
    pub ending: BTreeSet<String>,
    /// Tables (by id) that have entries in `___displaced`.
    pub displaced: HashSet<i64>,
    /// Tables (by id) that have entries in `___lives`.
    pub lives: HashSet<i64>,
    /// Whether the tables that can have births have them.
    pub births: bool,
    /// Whether HarmonyLite sees this database for the first time.
    pub first_time: bool,
    /// Tables that are not adopted yet.
    pub quiet: Quiet,
    /// Tables (by id) that are known but not replicated at present, with the collations of their
    /// keys.
    pub away: HashMap<i64, Vec<String>>,
    /// Replicated tables (by id) that have entries in `___waiting`.
    pub back: BTreeSet<i64>,
    /// By table id, the shape that the table had under its former key, while that is remembered.
    pub former: HashMap<i64, Arc<Former>>,
    /// Number of key columns for which the change log has room.
    pub log_keys: usize,
    /// Held rows may fit now: they are tried again from after this place, or from the start.
    pub retry_held: Option<Option<Place>>,
    /// Keys of the rows that the transaction under way captured, by table id. Their effect on
    /// displaced rows is worked out once all local changes have their versions.
    pub to_settle: BTreeMap<i64, Vec<Vec<u8>>>,
    /// What the captured part of the change log says about the rest of it.
    pub fates: crate::capture::Fates,
    /// Tables (by id) whose displaced rows are all to be settled again at that point.
    pub resettle: BTreeSet<i64>,
    /// A table is replicated that was not replicated before.
    has_new: bool,
    kept_from_firing: HashSet<String>,
    pub references: crate::apply::References,
    /// Whether evictions were noted in tables that depend on [`super::replacing`] for that.
    pub(super) saw_replacing: bool,
    pub not_replicated: Vec<NotReplicated>,
    doubts: Vec<Doubt>,
    /// Nobody changed the schema since it was read by a release that did not yet know the storage
    /// of virtual tables, and did not replicate any table with such a name
    /// ([`Database::knows_storage`]). So each table existed already.
    is_unmoved: bool,
    warned_rowid: HashSet<String>,
    schema_version: Option<i64>,
    /// Hash of the schema's text at that version, see [`capture_check`].
    text: Option<Text>,
    /// The version is not stored in `___meta` yet.
    is_unnoted: bool,
}

impl Catalog {
    /// Whether displaced rows of a table (by id) may come back now, and the table may be compared.
    pub(crate) fn may_settle(&self, id: i64) -> bool {
        let table = self.by_id.get(&id);
        !table.is_some_and(|t| self.quiet.guards(&t.name().to_ascii_lowercase()))
    }

    /// Whether the rows of a table (by id) are still being matched with its rows under the former
    /// key.
    pub(crate) fn is_matching(&self, id: i64) -> bool {
        let compare = self.comparing.get(&id);
        compare.is_some_and(|c| c.phase == Phase::Former)
    }

    /// Makes the next [`Database::refresh_catalog`] read the schema again.
    pub(crate) fn forget(&mut self) {
        self.schema_version = None;
        self.quiet.forget();
    }
}

impl Database {
    /// Brings the catalog, the own tables and the triggers in step with the schema, if that
    /// changed. Inside a write transaction.
    pub(crate) fn refresh_catalog(&mut self) -> Result<()> {
        let version = self.schema_version()?;
        let is_read = self.catalog.schema_version == Some(version);
        if is_read && !self.is_check_due() && !self.has_first_rows() {
            return match self.catalog.is_unnoted {
                true => self.note_schema(),
                false => Ok(()),
            };
        }
        let selection::Selection {
            replicated,
            mut not_replicated,
            doubts,
        } = selection::read(
            &self.conn,
            &|table, columns| self.settings.tables.choose(table, columns),
            self.settings.allow_rowid_tables,
        )?;
        self.drop_apply_triggers()?;
        let renumbered = self.may_be_vacuumed(version)?;
        let previous = std::mem::take(&mut self.catalog);
        let is_fresh = previous.schema_version.is_none() && previous.by_name.is_empty();
        self.catalog = Catalog {
            first_time: previous.first_time,
            quiet: previous.quiet,
            warned_rowid: previous.warned_rowid,
            not_replicated: previous.not_replicated,
            doubts: previous.doubts,
            log_keys: self.log_keys()?,
            births: self.has_births()?,
            fates: previous.fates,
            is_unmoved: is_fresh
                && !self.knows_storage()?
                && get_meta(&self.conn, Meta::SchemaVersion)? == Some(version),
            ..Catalog::default()
        };
        self.catalog.kept_from_firing = self.kept_from_firing()?;
        let replicated = self.settled(replicated, version, is_fresh)?;
        let mut triggers = self.installed_triggers()?;
        self.catalog.saw_replacing = self.sees_replacing(&mut triggers)?;
        not_replicated.extend(self.adopt_all(replicated, renumbered, &mut triggers)?);
        say_not_replicated(&not_replicated, &self.catalog.not_replicated);
        self.catalog.not_replicated = not_replicated;
        let before = std::mem::replace(&mut self.catalog.doubts, doubts);
        let is_new = |doubt: &&Doubt| !before.contains(doubt);
        self.catalog
            .doubts
            .iter()
            .filter(is_new)
            .for_each(|doubt| log::warn!("{doubt}"));
        self.forget_local()?;
        self.set_replacing()?;
        self.read_references()?;
        if triggers.values().any(|text| is_of_go(text)) {
            log::error!(
                "the Go version was started on this database, too: its triggers, which keep the \
                 application from writing, are removed; end it for good"
            );
        }
        for name in triggers.keys() {
            self.conn
                .execute_batch(&format!("DROP TRIGGER {}", quote(name)))?;
        }
        let others = |now: &Catalog| {
            now.by_name
                .keys()
                .any(|n| !previous.by_name.contains_key(n))
        };
        self.note_unindexed(&previous.by_name);
        self.is_news |=
            previous.by_name.len() != self.catalog.by_name.len() || others(&self.catalog);
        self.note_not_replicated()?;
        self.note_away()?;
        self.find_displaced_and_held()?;
        self.await_let_go(self.catalog.has_new)?;
        // The UNIQUE indexes may have changed, or a constraint that kept a row displaced may be
        // gone. Rows are settled only after local changes are captured: a row without its version
        // loses against any other row.
        let unsettled = self.catalog.displaced.union(&self.catalog.lives);
        self.catalog.resettle = unsettled.copied().collect();
        if mutation::is(Mutation::SettleBeforeCapture) {
            for id in std::mem::take(&mut self.catalog.resettle) {
                self.resettle_guarded(id)?;
            }
        }
        self.copy_apply_triggers()?;
        self.find_missed_triggers()?;
        self.catalog.retry_held = (!self.catalog.held.is_empty()).then_some(None);
        self.note_schema_hash()?;
        self.note_schema()
    }

    /// Notes which tables lost a UNIQUE index.
    fn note_unindexed(&mut self, before: &HashMap<String, Arc<Table>>) {
        let now = self.clock.uptime();
        for (name, table) in &self.catalog.by_name {
            let indexes = &table.schema.unique;
            let old = before.get(name).map_or(&[][..], |old| &old.schema.unique);
            if old.iter().any(|index| !indexes.contains(index)) {
                self.catalog.quiet.note_unindexed(name, now);
            }
        }
    }

    /// Adopts the tables that can be replicated here. Returns the others, with reasons.
    fn adopt_all(
        &mut self,
        schemas: Vec<Schema>,
        renumbered: bool,
        triggers: &mut HashMap<String, String>,
    ) -> Result<Vec<NotReplicated>> {
        let mut not_replicated = Vec::new();
        for schema in schemas {
            if let Some(refused) = NotReplicated::refused(&self.conn, &schema)? {
                not_replicated.push(refused);
                continue;
            }
            match selection::is_usable(&self.conn, &schema) {
                Ok(()) => {
                    let table = schema.name.clone();
                    let taken = self.guarded(|db| db.adopt_table(schema, renumbered, triggers))?;
                    if let Err(reason) = taken {
                        self.catalog.log_keys = self.log_keys()?;
                        not_replicated.push(NotReplicated::unsupported(table, reason));
                    }
                }
                Err(e) if e.is_temporary() => return Err(e),
                Err(e) => not_replicated.push(NotReplicated::unsupported(
                    schema.name,
                    selection::why_unusable(&e),
                )),
            }
        }
        Ok(not_replicated)
    }

    /// Settles all displaced rows of a table again.
    pub(crate) fn resettle_guarded(&mut self, id: i64) -> Result<()> {
        if let Some(table) = self.catalog.by_id.get(&id).cloned()
            && let Err(reason) = self.guarded_rows(&table, |()| true, |db, t| db.resettle(t))?
        {
            log::warn!("rows of table {} stay displaced: {reason}", table.name());
        }
        match self.catalog.by_id.get(&id).cloned() {
            Some(table) if self.has_lives(&table) => self.elect_all(&table),
            _ => Ok(()),
        }
    }

    /// The schema version to which the catalog belongs.
    pub(crate) fn catalog_version(&self) -> Option<i64> {
        self.catalog.schema_version
    }

    /// Whether the catalog belongs to the present schema.
    pub(crate) fn catalog_is_current(&self) -> Result<bool> {
        Ok(self.catalog.schema_version == Some(self.schema_version()?))
    }

    pub(super) fn schema_version(&self) -> Result<i64> {
        Ok(self
            .conn
            .prepare_cached("PRAGMA schema_version")?
            .query_row([], |r| r.get(0))?)
    }

    /// Remembers the present schema, after HarmonyLite's own statements changed it.
    pub(super) fn note_schema(&mut self) -> Result<()> {
        let version = self.schema_version()?;
        let hash = self.schema_hash()?;
        if get_meta(&self.conn, Meta::SchemaVersion)? != Some(version) {
            set_meta(&self.conn, Meta::SchemaVersion, version)?;
            set_meta(&self.conn, Meta::SchemaHash, hash)?;
        }
        self.catalog.schema_version = Some(version);
        self.catalog.text = Some(self.schema_text()?);
        self.catalog.is_unnoted = false;
        self.catalog.quiet.note(version);
        self.restore_detector.note_schema(version);
        Ok(())
    }

    /// Whether a VACUUM may have run: it changes the version of the schema and keeps its text. If
    /// the version moved by more than one, a VACUUM may have come with a change of the text.
    fn may_be_vacuumed(&self, version: i64) -> Result<bool> {
        let hash: Option<i64> = get_meta(&self.conn, Meta::SchemaHash)?;
        let known = match self
            .catalog
            .schema_version
            .filter(|_| self.catalog.is_unnoted)
        {
            Some(known) => Some(known),
            None => get_meta(&self.conn, Meta::SchemaVersion)?,
        };
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

    /// Tables (lower case) on which a trigger of the application fires before HarmonyLite's
    /// triggers and may skip them by RAISE(IGNORE). SQLite fires the newest trigger first (its
    /// source, trigger.c), and RAISE(IGNORE) skips those that come after
    /// (<https://www.sqlite.org/lang_createtrigger.html#the_raise_function>).
    fn kept_from_firing(&self) -> Result<HashSet<String>> {
        let mut statement = self.conn.prepare(
            "SELECT lower(tbl_name), name GLOB '__harmonylite__*', sql FROM sqlite_schema
             WHERE type = 'trigger' ORDER BY rowid",
        )?;
        let (mut watched, mut found) = (HashSet::new(), HashSet::new());
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let table = values::lossy(row, 0)?;
            if row.get(1)? {
                watched.insert(table);
            } else if watched.contains(&table) {
                let words = sql_text::words(&values::lossy(row, 2)?);
                if words.windows(3).any(|w| w == ["raise", "(", "ignore"]) {
                    found.insert(table);
                }
            }
        }
        Ok(found)
    }

    /// HarmonyLite's triggers, by lower-case name, with their SQL text; without the triggers of
    /// tables that wait to be adopted.
    pub(super) fn installed_triggers(&self) -> Result<HashMap<String, String>> {
        let mut statement = self.conn.prepare(
            "SELECT lower(name), sql, lower(tbl_name) FROM sqlite_schema
             WHERE type = 'trigger' AND name GLOB '__harmonylite__*'",
        )?;
        let mut all = HashMap::new();
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            if !self.catalog.quiet.waits(&values::lossy(row, 2)?) {
                // A column may have a name that is not UTF-8.
                all.insert(row.get(0)?, values::lossy(row, 1)?);
            }
        }
        Ok(all)
    }

    /// The table with this lower-case name, if its rows may be written: it is replicated, and no
    /// migration is at work on it.
    pub(crate) fn writable(&self, lower: &str) -> Option<&Arc<Table>> {
        let table = self.catalog.by_name.get(lower)?;
        (!self.catalog.quiet.guards(lower) && !self.catalog.is_matching(table.id)).then_some(table)
    }

    /// The table with this lower-case name, even if it still waits to be adopted.
    pub(crate) fn here_or_waiting(&self, lower: &str) -> Result<Option<Arc<Table>>> {
        if let Some(table) = self.catalog.by_name.get(lower) {
            return Ok(Some(table.clone()));
        }
        if !self.catalog.quiet.waits(lower) {
            return Ok(None);
        }
        let mut list = self.conn.prepare_cached(
            "SELECT strict, wr FROM pragma_table_list
             WHERE schema = 'main' AND type = 'table' AND name = ?1 COLLATE NOCASE",
        )?;
        let options = |r: &rusqlite::Row<'_>| {
            let (strict, without_rowid) = (r.get(0)?, r.get(1)?);
            Ok(schema::TableOptions {
                strict,
                without_rowid,
            })
        };
        let Some(options) = list.query_row([lower], options).optional()? else {
            return Ok(None);
        };
        let read = schema::read_table(&self.conn, lower, options)?.ok();
        Ok(read.map(|schema| Arc::new(Table::new(0, schema, Vec::new()))))
    }

    /// Finds known tables that are not in the catalog, and tables that have entries in
    /// `___waiting`.
    fn note_away(&mut self) -> Result<()> {
        let mut known = self
            .conn
            .prepare_cached("SELECT id, shape, name FROM __harmonylite___tables")?;
        let mut names = BTreeMap::new();
        let mut rows = known.query([])?;
        while let Some(row) = rows.next()? {
            let id: i64 = row.get(0)?;
            if !self.catalog.by_id.contains_key(&id) {
                let shape: Shape = from_cbor(&row.get::<_, Vec<u8>>(1)?)?;
                let collations = shape.key.into_iter().map(|(_, collation)| collation);
                self.catalog.away.insert(id, collations.collect());
                names.insert(id, row.get(2)?);
            }
        }
        drop(rows);
        drop(known);
        self.note_gone(&names)?;
        self.find_former()?;
        let mut waiting = self
            .conn
            .prepare_cached("SELECT DISTINCT table_id FROM __harmonylite___waiting")?;
        let waiting = waiting.query_map([], |r| r.get(0))?;
        let waiting: BTreeSet<i64> = waiting.collect::<rusqlite::Result<_>>()?;
        let here = waiting
            .into_iter()
            .filter(|id| self.catalog.by_id.contains_key(id));
        self.catalog.back = here.collect();
        self.keep_marks()
    }

    pub(crate) fn find_displaced_and_held(&mut self) -> Result<()> {
        let mut held = held_tables(&self.conn)?;
        self.tidy_held_size(&held)?;
        held.iter_mut().for_each(|name| name.make_ascii_lowercase());
        held.retain(|name| self.catalog.by_name.contains_key(name));
        self.catalog.held = held.into_iter().collect();
        self.find_ending()?;
        let mut displaced = self
            .conn
            .prepare_cached("SELECT DISTINCT table_id FROM __harmonylite___displaced")?;
        self.catalog.displaced = displaced
            .query_map([], |r| r.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        if self.catalog.births {
            let mut lives = self.conn.prepare_cached(
                "SELECT id FROM __harmonylite___tables
                 WHERE EXISTS (SELECT 1 FROM __harmonylite___lives WHERE table_id = id)",
            )?;
            self.catalog.lives = lives
                .query_map([], |r| r.get(0))?
                .collect::<rusqlite::Result<_>>()?;
        }
        Ok(())
    }
}

/// Logs which tables are not replicated, except those of which `before` says so with the reason.
fn say_not_replicated(now: &[NotReplicated], before: &[NotReplicated]) {
    for left in now.iter().filter(|left| !before.contains(left)) {
        let (table, kind, reason) = (&left.table, left.kind.name(), &left.reason);
        match left.kind {
            Kind::Unsupported => log::warn!("table {table} is unsupported: {reason}"),
            Kind::Refused => log::error!("table {table} is not replicated any more: {reason}"),
            _ => log::info!("table {table} is {kind}, not replicated: {reason}"),
        }
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
