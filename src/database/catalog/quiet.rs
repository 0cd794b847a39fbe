//! Leaves tables alone for a while when a migration may be at work on them.
//!
//! Many tools rebuild a table in several transactions: they make a new table, copy the rows, drop
//! the old table, and rename the new one. An arriving row that is written into one of the two
//! tables between these steps is lost with the old table, or collides with the tool's own copy in
//! the new one. So:
//!
//! - A table whose triggers are missing (it is new, was made anew or was renamed) is adopted only
//!   when nobody has changed the schema for [`QUIET`], and its first rows are as old. Arriving rows
//!   for it are held; the comparison finds its local changes of that time.
//! - A table whose name looks like a step of a rebuild of X (`new_X`, `X_backup`, …) is a
//!   *stand-in*. It is not adopted before it is renamed. Until then nothing is written into X, and
//!   X itself is not adopted if it was made anew. After [`PATIENCE`] the stand-in is a table like
//!   any other.
//! - While a new table has half of the columns of X, whatever its name, nothing is written into X.
//! - A table that was dropped may be created again from a TEMP copy, which nobody else sees: no
//!   snapshot is made before [`QUIET`] is over.
//! - A table that lost a UNIQUE index is not written to for [`QUIET`]: the index may be made anew
//!   in a transaction of its own, which would fail if colliding rows arrived meanwhile.
//! - A table that was made anew and is empty, though its rows were not deleted, waits for its rows.
//!   After [`PATIENCE`] it is adopted without them, which does not count as a delete.
//!
//! Writes of the application to X are captured as always, as long as X has its triggers. If X was
//! made anew with the same key, has rows, and has no stand-in, it gets its triggers back at once.
//! Only the comparison and arriving rows wait then.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use rusqlite::params_from_iter;

use super::from_cbor;
use crate::capture::{KINDS, MARK};
use crate::database::meta::{Meta, get_meta};
use crate::database::schema::{PREFIX, Schema, quote};
use crate::database::table::{Shape, key_names, versions_table};
use crate::database::triggers::{LOG, MAYBE};
use crate::database::{Database, Result, values};
use crate::model::cbor;
use crate::model::value::OwnedValue;
use crate::mutation::{self, Mutation};

/// How long the schema must stay unchanged before a changed table is adopted.
const QUIET: Duration = Duration::from_secs(2);

/// Most uncaptured changes that are compared with the rows of an empty table.
const MOST_ENTRIES: usize = 1000;

/// How long a stand-in may stay.
const PATIENCE: Duration = Duration::from_secs(600);

/// Names that tools give to a stand-in: the text before and after the table's own name.
const STAND_INS: [(&str, &str); 14] = [
    ("new_", ""),        // Prisma
    ("new__", ""),       // Django
    ("__new_", ""),      // Drizzle
    ("__old_push_", ""), // Drizzle's push
    ("_alembic_tmp_", ""),
    ("temporary_", ""), // TypeORM
    ("ef_temp_", ""),   // Entity Framework
    ("__temp__", ""),   // Laravel, Doctrine
    ("", "__tmp__"),    // Peewee
    ("", "_backup"),    // Sequelize
    ("", "_old"),
    ("old_", ""),
    ("", "_new"),
    ("tmp_", ""),
];

/// Tables that wait, and the effect on other tables. Times are those of
/// [`crate::clock::Clock::uptime`].
#[derive(Debug)]
pub(crate) struct Quiet {
    /// Equals [`QUIET`], except in tests.
    pub time: Duration,
    /// The `PRAGMA schema_version` seen last; `None` if that change may have been undone since.
    seen: Option<i64>,
    /// Time when another connection's change of the schema was seen last.
    changed: Duration,
    /// HarmonyLite itself changed the schema: no table waits.
    is_own: bool,
    /// Tables whose triggers are missing, by lower-case name.
    tables: BTreeMap<String, TriggerlessTable>,
    /// Replicated tables (lower case) that must not be written to.
    guarded: HashSet<String>,
    /// Tables (lower case) that lost a UNIQUE index lately, with the time when that was seen.
    unindexed: BTreeMap<String, Duration>,
    /// Time of the next check.
    due: Option<Duration>,
}

/// A table whose triggers are missing, or were until lately.
#[derive(Debug)]
struct TriggerlessTable {
    name: String,
    /// Time when it was first seen in this state.
    since: Duration,
    /// Time when a row of it was first seen.
    rows: Option<Duration>,
    waits: bool,
    /// It has its triggers again, and must not be written to yet.
    is_early: bool,
    /// Its versions are known: the table is not new.
    is_known: bool,
    /// It may be the stand-in of another table, which is guarded meanwhile.
    may_stand_in: bool,
    /// The reason for a long wait, as text for people, and the end of the wait.
    held_up: Option<(String, Duration)>,
}

/// Reason for the wait of a table.
#[derive(Default)]
struct Wait {
    until: Duration,
    /// The table (lower case) for which it is a stand-in.
    stands_for: Option<String>,
    /// Its rows are gone, but were not deleted.
    is_emptied: bool,
    /// It has its triggers, or gets them at once.
    is_early: bool,
    /// Its rows are those of a known table.
    may_be_early: bool,
}

impl Default for Quiet {
    fn default() -> Self {
        Quiet {
            time: QUIET,
            seen: None,
            changed: Duration::ZERO,
            is_own: false,
            tables: BTreeMap::new(),
            guarded: HashSet::new(),
            unindexed: BTreeMap::new(),
            due: None,
        }
    }
}

impl Quiet {
    /// Notes that HarmonyLite itself changed the schema.
    pub(crate) fn trust(&mut self) {
        self.is_own = true;
    }

    /// Notes that HarmonyLite's own statements may have been undone.
    pub(crate) fn forget(&mut self) {
        self.seen = None;
    }

    /// Notes the version of the schema after HarmonyLite's own statements.
    pub(crate) fn note(&mut self, version: i64) {
        self.seen = Some(version);
    }

    /// Notes that a table (lower case) lost a UNIQUE index.
    pub(crate) fn note_unindexed(&mut self, table: &str, now: Duration) {
        self.unindexed.insert(table.to_owned(), now);
        self.guard_unindexed(now);
    }

    fn guard_unindexed(&mut self, now: Duration) {
        let (changed, time) = (self.changed, self.time);
        let until = |seen: Duration| seen.max(changed) + time;
        self.unindexed.retain(|_, seen| until(*seen) > now);
        self.guarded.extend(self.unindexed.keys().cloned());
        let next = self.unindexed.values().map(|seen| until(*seen)).min();
        self.due = self.due.into_iter().chain(next).min();
    }

    /// Whether a table that is gone may be about to be created again: somebody changed the schema
    /// just now.
    pub(crate) fn may_come_back(&self, now: Duration) -> bool {
        self.changed + self.time > now
    }

    /// Has the schema read again once a table that is gone has not come back.
    pub(super) fn await_gone(&mut self, now: Duration) {
        if self.may_come_back(now) {
            let until = self.changed + self.time;
            self.due = self.due.into_iter().chain([until]).min();
        }
    }

    /// Whether a table (lower case) must not be written to.
    pub(crate) fn guards(&self, table: &str) -> bool {
        self.guarded.contains(table)
    }

    /// Whether a table (lower case) waits to be adopted.
    pub(crate) fn waits(&self, table: &str) -> bool {
        self.tables.get(table).is_some_and(|seen| seen.waits)
    }

    fn waiting(&self) -> impl Iterator<Item = &TriggerlessTable> {
        self.tables.values().filter(|seen| seen.waits)
    }

    /// Names of new tables that are not adopted yet.
    pub(crate) fn young(&self) -> impl Iterator<Item = &String> {
        self.waiting().filter(|s| !s.is_known).map(|s| &s.name)
    }

    /// Whether a migration may be at work on a table whose versions are known: the table is not
    /// adopted yet, or a new one may be its stand-in. With `is_gone`, which says that such a table
    /// is not there, each new one may be.
    pub(crate) fn has_rebuilt(&self, is_gone: bool) -> bool {
        let mut waiting = self.waiting();
        waiting.any(|seen| seen.is_known || seen.may_stand_in || is_gone)
    }

    /// Time when a waiting table is adopted, if nothing prevents that.
    fn calm(&self, seen: &TriggerlessTable) -> Duration {
        let rows = seen.rows.unwrap_or_default();
        seen.since.max(self.changed).max(rows) + self.time
    }
}

impl Database {
    /// Time until a waiting table must be checked again; `None` if no table waits.
    pub fn next_check(&self) -> Option<Duration> {
        let due = self.catalog.quiet.due?;
        Some(due.saturating_sub(self.clock.uptime()))
    }

    /// Sets how long changed tables wait, for simulations and for tests of other things. The
    /// catalog is read again.
    pub fn wait_for_quiet(&mut self, time: Duration) {
        self.catalog.quiet.time = time;
        self.catalog.forget();
    }

    pub(crate) fn is_check_due(&self) -> bool {
        let due = self.catalog.quiet.due;
        due.is_some_and(|due| due <= self.clock.uptime())
    }

    /// Tables that wait for longer than a moment: name, reason, and the time that is left.
    pub fn held_up(&self) -> Vec<(&str, &str, Duration)> {
        let now = self.clock.uptime();
        let waiting = self.catalog.quiet.waiting();
        let held_up = waiting.filter_map(|seen| Some((seen, seen.held_up.as_ref()?)));
        held_up
            .map(|(seen, (why, until))| (&seen.name[..], &why[..], until.saturating_sub(now)))
            .collect()
    }

    /// Whether a waiting table was empty, and has a row now.
    pub(super) fn has_first_rows(&self) -> bool {
        let mut empty = self.catalog.quiet.waiting().filter(|s| s.rows.is_none());
        empty.any(|seen| self.has_row(&seen.name))
    }

    /// Returns those of `schemas` that are to be adopted now.
    pub(super) fn settled(
        &mut self,
        schemas: Vec<Schema>,
        version: i64,
        is_fresh: bool,
    ) -> Result<Vec<Schema>> {
        let now = self.clock.uptime();
        let watching = self.watching()?;
        let known = self.known_names()?;
        let quiet = &mut self.catalog.quiet;
        if quiet.seen.is_some_and(|seen| seen != version) {
            quiet.changed = now;
        }
        quiet.seen = Some(version);
        quiet.guarded.clear();
        quiet.due = None;
        let is_own = std::mem::take(&mut quiet.is_own);
        // A database that begins as a copy of a different one has none of HarmonyLite's triggers.
        // Neither has a database whose only table is being rebuilt.
        let is_copy = is_fresh
            && watching.is_empty()
            && get_meta::<i64>(&self.conn, Meta::SchemaVersion)?.is_none();
        let is_begun = self.catalog.first_time || is_copy;
        if is_own || is_begun || mutation::is(Mutation::TableAtWorkTaken) {
            self.catalog.quiet.tables.clear();
            return Ok(schemas);
        }
        let mut waits = self.waits_of(&schemas, &watching, &known)?;
        self.guard(&schemas, &waits);
        self.let_in_early(&schemas, &mut waits)?;
        let quiet = &mut self.catalog.quiet;
        let times = waits.values().map(|w| w.until);
        quiet.due = times.filter(|u| *u > now).min();
        quiet.guard_unindexed(now);
        let mut emptied = Vec::new();
        for (name, wait) in &waits {
            let Some(seen) = quiet.tables.get_mut(name) else {
                continue;
            };
            seen.is_early = wait.is_early;
            seen.waits = wait.until > now && !wait.is_early;
            seen.hold_up(wait);
            if seen.is_early {
                quiet.guarded.insert(name.clone());
            } else if !seen.waits {
                wait.say_over(&seen.name);
                emptied.extend(wait.is_emptied.then(|| seen.name.clone()));
            }
        }
        quiet.tables.retain(|name, _| waits.contains_key(name));
        for name in emptied {
            self.forget_rows(&name)?;
        }
        let quiet = &self.catalog.quiet;
        let is_settled = |schema: &Schema| !quiet.waits(&schema.name.to_ascii_lowercase());
        Ok(schemas.into_iter().filter(is_settled).collect())
    }

    /// The tables whose triggers are missing or were until lately, by lower-case name.
    fn waits_of(
        &mut self,
        schemas: &[Schema],
        watching: &HashMap<String, HashSet<String>>,
        known: &HashSet<String>,
    ) -> Result<BTreeMap<String, Wait>> {
        let now = self.clock.uptime();
        let left_out = self.known_not_replicated()?;
        let mut waits = BTreeMap::new();
        for schema in schemas {
            let lower = schema.name.to_ascii_lowercase();
            let triggers = watching.get(&lower);
            if triggers.is_some_and(|of| of.contains(&lower)) {
                let quiet = &self.catalog.quiet;
                let early = quiet.tables.get(&lower).filter(|seen| seen.is_early);
                let until = early.map(|seen| quiet.calm(seen)).filter(|u| *u > now);
                waits.extend(until.map(|until| (lower, Wait::early(until))));
                continue;
            }
            let is_old = self.catalog.is_unmoved && !known.contains(&lower);
            if left_out.contains(&lower) || is_old {
                continue; // it did not change, the choice did
            }
            let wait = self.wait_of(schema, schemas, triggers, known)?;
            waits.insert(lower, wait);
        }
        // A table that was made anew waits as long as its stand-in.
        let stand_ins: Vec<(String, Duration)> = waits
            .values()
            .filter_map(|wait: &Wait| Some((wait.stands_for.clone()?, wait.until)))
            .collect();
        for (name, until) in stand_ins {
            if let Some(wait) = waits.get_mut(&name) {
                wait.until = wait.until.max(until);
            }
        }
        Ok(waits)
    }

    /// How long a table whose triggers are missing waits, and why.
    fn wait_of(
        &mut self,
        schema: &Schema,
        schemas: &[Schema],
        triggers: Option<&HashSet<String>>,
        known: &HashSet<String>,
    ) -> Result<Wait> {
        let (now, lower) = (self.clock.uptime(), schema.name.to_ascii_lowercase());
        let is_known = known.contains(&lower);
        let renamed = triggers.and_then(|of| of.iter().next());
        let is_there = |name: &String| schemas.iter().any(|s| s.name.eq_ignore_ascii_case(name));
        let stands_for = renamed
            .filter(|old| is_there(old) || is_stand_in(&lower, old))
            .or_else(|| known.iter().find(|name| is_stand_in(&lower, name)));
        let is_empty = !self.has_row(&schema.name);
        let is_emptied = is_known && is_empty && self.lacks_its_rows(&schema.name)?;
        let seen = self
            .catalog
            .quiet
            .tables
            .entry(lower.clone())
            .or_insert_with(|| TriggerlessTable {
                name: schema.name.clone(),
                since: now,
                rows: None,
                waits: true,
                is_early: false,
                is_known,
                may_stand_in: false,
                held_up: None,
            });
        seen.is_known = is_known || renamed.is_some();
        if !is_empty {
            seen.rows.get_or_insert(now);
        }
        let seen = &self.catalog.quiet.tables[&lower];
        let until = match stands_for.is_some() || is_emptied {
            true => seen.since + PATIENCE,
            false => self.catalog.quiet.calm(seen),
        };
        Ok(Wait {
            until,
            stands_for: stands_for.cloned(),
            is_emptied,
            is_early: false,
            may_be_early: is_known && renamed.is_none() && !is_empty,
        })
    }

    /// Finds the tables that must not be written to while others wait.
    fn guard(&mut self, schemas: &[Schema], waits: &BTreeMap<String, Wait>) {
        if mutation::is(Mutation::TableAtWorkFilled) {
            return;
        }
        let now = self.clock.uptime();
        let quiet = &mut self.catalog.quiet;
        let waiting = |s: &&Schema| {
            let wait = waits.get(&s.name.to_ascii_lowercase());
            wait.is_some_and(|wait| wait.until > now)
        };
        for new in schemas.iter().filter(waiting) {
            let lower = new.name.to_ascii_lowercase();
            let stands_for = waits[&lower].stands_for.clone();
            let is_young = quiet.tables.get(&lower).is_some_and(|seen| !seen.is_known);
            let alike = schemas.iter().filter(|s| is_young && is_alike(new, s));
            let alike = alike.map(|s| s.name.to_ascii_lowercase());
            let of: Vec<String> = alike
                .filter(|name| *name != lower)
                .chain(stands_for)
                .collect();
            if let Some(seen) = quiet.tables.get_mut(&lower) {
                seen.may_stand_in = !of.is_empty();
            }
            quiet.guarded.extend(of);
        }
    }

    /// Gives triggers at once to tables that were made anew with the same key, have rows, and have
    /// no stand-in.
    fn let_in_early(&self, schemas: &[Schema], waits: &mut BTreeMap<String, Wait>) -> Result<()> {
        let now = self.clock.uptime();
        let quiet = &self.catalog.quiet;
        for schema in schemas {
            let lower = schema.name.to_ascii_lowercase();
            let is_free = |w: &&mut Wait| {
                w.may_be_early && w.until > now && w.stands_for.is_none() && !quiet.guards(&lower)
            };
            if let Some(wait) = waits.get_mut(&lower).filter(is_free) {
                wait.is_early = self.has_known_key(schema)?;
            }
        }
        Ok(())
    }

    /// Notes that the rows of a table are gone without having been deleted, so that the rows of
    /// other nodes come back.
    fn forget_rows(&mut self, table: &str) -> Result<()> {
        let text = format!("DELETE FROM {} WHERE deleted = 0", versions_table(table));
        self.conn.execute(&text, [])?;
        self.note_let_go(&table.to_ascii_lowercase())
    }

    /// Names, in lower case, of the tables that have a number.
    fn known_names(&self) -> Result<HashSet<String>> {
        let mut names = self
            .conn
            .prepare_cached("SELECT lower(name) FROM __harmonylite___tables")?;
        let names = names.query_map([], |r| r.get(0))?;
        Ok(names.collect::<rusqlite::Result<_>>()?)
    }

    /// By lower-case table name, the table names that occur in the names of its HarmonyLite
    /// triggers.
    fn watching(&self) -> Result<HashMap<String, HashSet<String>>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT lower(tbl_name), lower(name) FROM sqlite_schema
             WHERE type = 'trigger' AND name GLOB '__harmonylite__*_insert'",
        )?;
        let mut found: HashMap<String, HashSet<String>> = HashMap::new();
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (table, name) = (values::lossy(row, 0)?, values::lossy(row, 1)?);
            let of = name
                .strip_prefix(PREFIX)
                .and_then(|n| n.strip_suffix("_insert"));
            found
                .entry(table)
                .or_default()
                .extend(of.map(str::to_owned));
        }
        Ok(found)
    }

    fn has_row(&self, table: &str) -> bool {
        let text = format!("SELECT 1 FROM {} LIMIT 1", quote(table));
        let exists = |mut s: rusqlite::CachedStatement<'_>| s.exists([]);
        self.conn
            .prepare_cached(&text)
            .and_then(exists)
            .unwrap_or(false)
    }

    /// Whether rows of an empty table were not deleted, by the captured changes and those that
    /// wait: a row has no entry, or an entry has no row, so that the row was inserted since. A
    /// waiting entry of kind `MARK` belongs to a row that exists, and does not mean a delete.
    fn lacks_its_rows(&self, table: &str) -> Result<bool> {
        let of = "SELECT id, shape FROM __harmonylite___tables WHERE name = ?1";
        let known = |r: &rusqlite::Row<'_>| Ok((r.get::<_, i64>(0)?, r.get::<_, Vec<u8>>(1)?));
        let known = self.conn.prepare_cached(of)?.query_row([table], known);
        let Ok((id, shape)) = known else {
            return Ok(false); // it is not replicated
        };
        let shape: Shape = from_cbor(&shape)?;
        let (n, versions) = (shape.key.len(), versions_table(table));
        let is_key: Vec<String> = (1..=n).map(|i| format!("k{i} = ?{i}")).collect();
        let live = format!("SELECT 1 FROM {versions} WHERE deleted = 0");
        let Ok(mut is_live) = self
            .conn
            .prepare_cached(&format!("{live} AND {}", is_key.join(" AND ")))
        else {
            return Ok(false); // it has no versions
        };
        let mut deletes = HashSet::new();
        for (key, is_certain) in self.entries(id, n)? {
            match is_live.exists(params_from_iter(&key))? {
                true => drop(deletes.insert(shape.key_bytes(&key))),
                false if is_certain => return Ok(true),
                false => {}
            }
        }
        let rows = format!("SELECT count(*) FROM ({live} LIMIT {MOST_ENTRIES})");
        let rows: usize = self.conn.query_row(&rows, [], |r| r.get(0))?;
        Ok(rows > deletes.len())
    }

    /// Keys in the change log and in `___waiting` of a table by its number, at most
    /// [`MOST_ENTRIES`] of each, and whether the row was certainly written.
    fn entries(&self, id: i64, keys: usize) -> Result<Vec<(Vec<OwnedValue>, bool)>> {
        let mut found = Vec::new();
        let mut waiting = self.conn.prepare_cached(&format!(
            "SELECT kind, key FROM __harmonylite___waiting
             WHERE table_id = ?1 AND kind <> {MARK} LIMIT {MOST_ENTRIES}"
        ))?;
        let mut rows = waiting.query([id])?;
        while let Some(row) = rows.next()? {
            let key: Vec<u8> = row.get(1)?;
            let kind = row.get::<_, i64>(0)? % KINDS;
            found.push((cbor::key_values(&key)?, kind != MAYBE));
        }
        let names = key_names(keys).join(", ");
        let mut log = self.conn.prepare(&format!(
            "SELECT DISTINCT kind, {names} FROM {LOG} WHERE table_id = ?1 LIMIT {MOST_ENTRIES}"
        ))?;
        let mut rows = log.query([id])?;
        while let Some(row) = rows.next()? {
            let key = (0..keys).map(|i| values::column(row, 1 + i).to_owned());
            found.push((key.collect(), row.get::<_, i64>(0)? != MAYBE));
        }
        Ok(found)
    }
}

impl Wait {
    fn early(until: Duration) -> Self {
        Wait {
            until,
            is_early: true,
            ..Wait::default()
        }
    }

    /// The reason why it waits for longer than a moment, if it does.
    fn why(&self) -> Option<String> {
        if let Some(of) = &self.stands_for {
            return Some(format!(
                "it looks like a step of a migration of table {of}, and arriving rows of that \
                 table wait; drop it if a failed migration left it"
            ));
        }
        let text = "it was created again and is empty: a migration may still copy its rows. It \
                    takes part again 2 s after its first row, or when the time is over: the other \
                    nodes keep its rows, and they come back";
        self.is_emptied.then(|| text.to_owned())
    }

    /// Logs that the table is adopted after all.
    fn say_over(&self, name: &str) {
        let minutes = PATIENCE.as_secs() / 60;
        if let Some(of) = &self.stands_for {
            log::error!(
                "table {name} looks like a step of a migration of table {of}, and has been there \
                 for {minutes} minutes: it is replicated from now on; drop it if a failed \
                 migration left it"
            );
        } else if self.is_emptied {
            log::error!(
                "table {name} was created again and has been empty for {minutes} minutes: the \
                 other nodes keep its rows"
            );
        }
    }
}

impl TriggerlessTable {
    /// Logs once why a table waits for long.
    fn hold_up(&mut self, wait: &Wait) {
        let why = wait.why().filter(|_| self.waits);
        if let Some(why) = why.as_ref().filter(|_| self.held_up.is_none()) {
            log::warn!(
                "table {} waits for up to {} minutes, and so do its changes and new snapshots: \
                 {why}",
                self.name,
                PATIENCE.as_secs() / 60
            );
        }
        self.held_up = why.map(|why| (why, wait.until));
    }
}

/// Whether a table, by its name, is a step of a rebuild of table `of`. Both are in lower case.
fn is_stand_in(name: &str, of: &str) -> bool {
    let is_one = |(before, after): &(&str, &str)| {
        let rest = name
            .strip_prefix(before)
            .and_then(|r| r.strip_suffix(after));
        rest == Some(of)
    };
    STAND_INS.iter().any(is_one)
}

/// Whether the table `new` has half of the columns of `known`.
fn is_alike(new: &Schema, known: &Schema) -> bool {
    let has = |lower: &String| new.columns.iter().any(|c| c.lower == *lower);
    let shared = known.columns.iter().filter(|c| has(&c.lower)).count();
    2 * shared >= known.columns.len()
}
