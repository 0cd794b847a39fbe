//! Tables whose changes are let go instead of being held.
//!
//! Of a table that is here and for whose held changes there is no space any more, the changes that
//! do not fit it are let go: rows that break a constraint here, columns that it lacks. Its name is
//! remembered with a hash of its definition. Once that differs, the changes may fit, and this node
//! lacks them.
//!
//! Nothing is stored of a table that the configuration excludes, nor of one that nobody can
//! replicate (SQLite's own tables, ours). The names of excluded tables are remembered, and those of
//! tables that were let go for want of space (`held_size`): if such a table is replicated here one
//! day, this node lacks everything that it let go. That is a gap in every stream
//! ([`crate::model::gap`]). A snapshot closes the gap if its maker let nothing of that table go.
//!
//! A snapshot lacks the rows of a table that its maker dropped, although others may have it. A node
//! that merges it, or begins with it, misses these rows if the table is here one day. Until then it
//! holds what arrives for the table.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Connection, OptionalExtension};
use serde::{Deserialize, Serialize};

use crate::apply::Incoming;
use crate::apply::held::DAMAGED;
use crate::apply::held_drop::is_asked_for;
use crate::config::Choice;
use crate::database::meta::{Meta, get_meta, set_meta};
use crate::database::schema::PREFIX;
use crate::database::selection;
use crate::database::{Database, DatabaseError, Result, TIME_BOX};

/// Bounds of the remembered names, in number and bytes: a peer may invent any number.
const MAX_NAMES: usize = 1000;
const MAX_BYTES: usize = 32 << 10;

/// Entries of `___held` that are removed before the clock is read again.
const STEP: usize = 64;

/// Removes entries of table `?1`, at most `?2`.
pub(super) const DELETE_SOME: &str =
    "DELETE FROM __harmonylite___held WHERE (table_name, shape, key, column) IN (
         SELECT table_name, shape, key, column FROM __harmonylite___held
         WHERE table_name = ?1 LIMIT ?2)";

/// Whether `held` is an entry of a row that this node is to send.
pub(super) const SENDS: &str =
    "EXISTS (SELECT 1 FROM __harmonylite___held AS mark WHERE mark.table_name = held.table_name
             AND mark.shape = held.shape AND mark.key = held.key
             AND mark.column = char(0) || 'unsent')";

/// The tables of which rows were let go; see the module's head. Names are in lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LetGo {
    /// Tables of which rows were let go.
    names: BTreeSet<String>,
    /// Tables that are replicated here by now: a snapshot is awaited for them.
    awaited: BTreeSet<String>,
    /// Tables that are here and whose changes that do not fit them are let go, each with a hash of
    /// its definition.
    #[serde(default)]
    unfit: BTreeMap<String, i64>,
    /// Tables that the makers of merged snapshots had dropped.
    #[serde(default)]
    missed: BTreeSet<String>,
    /// Whether there were more names than are remembered.
    #[serde(default)]
    is_more: bool,
}

impl LetGo {
    pub(crate) fn load(conn: &Connection) -> rusqlite::Result<LetGo> {
        let text: Option<String> = get_meta(conn, Meta::LetGo)?;
        let stored = text.and_then(|text| serde_json::from_str(&text).ok());
        Ok(stored.unwrap_or_default())
    }

    /// Tables of which this database lacks rows.
    pub(crate) fn lacks(&self) -> impl Iterator<Item = &String> {
        let known = self.names.iter().chain(&self.awaited);
        let all: BTreeSet<&String> = known.chain(self.unfit.keys()).chain(&self.missed).collect();
        all.into_iter()
    }

    /// The tables of which rows were let go, those for which a snapshot is awaited, and those of
    /// which the rows that do not fit are let go.
    pub(crate) fn into_names(self) -> [Vec<String>; 3] {
        let unfit = self.unfit.into_keys().collect();
        [self.names, self.awaited, unfit].map(|names: BTreeSet<String>| names.into_iter().collect())
    }

    /// Remembers a table, in a process that is not the daemon. Inside a transaction.
    pub(crate) fn note(conn: &Connection, name: &str) -> rusqlite::Result<()> {
        let mut let_go = LetGo::load(conn)?;
        let_go.add(name);
        let_go.store(conn)
    }

    /// Remembers tables of which a copy of the database lacks the rows.
    pub(crate) fn note_missed(copy: &Connection, all: &BTreeSet<String>) -> rusqlite::Result<()> {
        let mut let_go = LetGo::load(copy)?;
        all.iter().for_each(|name| let_go.miss(name));
        let_go.store(copy)
    }

    fn store(&self, conn: &Connection) -> rusqlite::Result<()> {
        set_meta(
            conn,
            Meta::LetGo,
            serde_json::to_string(self).expect("names are JSON"),
        )
    }

    fn add(&mut self, name: &str) {
        match self.has_room_for(name) {
            true => drop(self.names.insert(name.to_ascii_lowercase())),
            false => self.is_more = true,
        }
    }

    fn miss(&mut self, name: &str) {
        match self.has_room_for(name) {
            true => drop(self.missed.insert(name.to_owned())),
            false => self.is_more = true,
        }
    }

    fn has_room_for(&self, name: &str) -> bool {
        let bytes: usize = self.lacks().map(String::len).sum();
        self.names.len() + self.missed.len() < MAX_NAMES && bytes + name.len() <= MAX_BYTES
    }
}

/// Whether a name (lower case) cannot be that of an application's table.
pub(crate) fn is_reserved(lower: &str) -> bool {
    lower.starts_with("sqlite_") || lower.starts_with(PREFIX)
}

impl Database {
    /// Whether changes of a table (lower case) are let go instead of being held. The table is not
    /// replicated here, and has these columns on the sending node. Remembers its name. Inside a
    /// transaction.
    pub(crate) fn lets_go(&mut self, lower: &str, columns: &[&str]) -> Result<bool> {
        if self.catalog.by_name.contains_key(lower) {
            return Ok(false);
        }
        if is_reserved(lower) || self.let_go.names.contains(lower) {
            return Ok(true);
        }
        let why = match self.settings.tables.choose(lower, columns) {
            Choice::Replicated => return Ok(false),
            Choice::Local(why) => format!("it is local: {why}"),
            Choice::Excluded(why) => format!("the configuration excludes it: {why}"),
        };
        log::info!("changes of table {lower:?} are let go: {why}");
        self.note_let_go(lower)?;
        Ok(true)
    }

    /// Remembers that rows of a table are let go. Inside a transaction.
    pub(crate) fn note_let_go(&mut self, lower: &str) -> Result<()> {
        self.let_go.add(lower);
        self.store_let_go()
    }

    fn store_let_go(&self) -> Result<()> {
        Ok(self.let_go.store(&self.conn)?)
    }

    /// Takes over the tables that the maker of a merged snapshot let go. Inside a transaction.
    pub(crate) fn inherit_let_go(&mut self, of_maker: &LetGo) -> Result<()> {
        let before = self.let_go.clone();
        for name in of_maker.lacks() {
            let is_missed = of_maker.missed.contains(name);
            match is_missed {
                _ if self.let_go.awaited.contains(name) => {}
                true => self.let_go.miss(name),
                false => self.let_go.add(name),
            }
        }
        self.let_go.is_more |= of_maker.is_more;
        if self.let_go != before {
            self.store_let_go()?;
            self.catalog.forget(); // one of them may be replicated here
        }
        Ok(())
    }

    /// Records a gap if a table that was let go is replicated by now. `has_new` says that a table
    /// became replicated just now. Inside a transaction, with the catalog read.
    pub(crate) fn await_let_go(&mut self, has_new: bool) -> Result<()> {
        let here = &self.catalog.by_name;
        let known = self.let_go.names.union(&self.let_go.missed);
        let mut found: BTreeSet<String> = known.cloned().collect();
        found.retain(|name| here.contains_key(name));
        let is_any = self.let_go.is_more && has_new;
        let changed = self.changed_unfit()?;
        let is_none = found.is_empty() && changed.is_empty() && !is_any;
        if is_none || !self.settings.joins_by_snapshot {
            return Ok(());
        }
        for name in &changed {
            log::warn!(
                "table {name} is another one now: a snapshot brings the changes that did not fit \
                 it before, and were let go"
            );
            self.let_go.unfit.remove(name);
        }
        found.extend(changed);
        for name in &found {
            if self.let_go.missed.remove(name) {
                log::warn!(
                    "table {name} is here now: a snapshot brings the rows that others have of it"
                );
            }
            if self.let_go.names.remove(name) {
                log::warn!(
                    "table {name} is replicated from now on: a snapshot brings the changes that \
                     were let go"
                );
            }
        }
        self.let_go.awaited.extend(found);
        self.note_gaps_here();
        self.is_news |= self.has_gap();
        if !self.has_gap() {
            self.let_go.awaited.clear(); // nothing was read yet
        }
        self.store_let_go()?;
        self.store_positions()
    }

    /// Does the same where no snapshots are kept: reads again what the streams still have. At a
    /// start, before anything is read.
    pub(crate) fn read_let_go_again(&mut self) -> Result<()> {
        let here = &self.catalog.by_name;
        let names = &self.let_go.names;
        if !names.iter().any(|n| here.contains_key(n)) && self.let_go.unfit.is_empty() {
            return Ok(());
        }
        log::warn!(
            "tables are replicated whose changes were let go before: this node reads the streams \
             again"
        );
        self.write(|db| {
            let Database {
                let_go, catalog, ..
            } = &mut *db;
            let_go.names.retain(|n| !catalog.by_name.contains_key(n));
            let_go.unfit.clear();
            db.read_from_the_start();
            db.store_let_go()?;
            db.store_positions()
        })
    }

    /// Names of the tables of which changes are let go; other nodes may have them.
    pub fn passed_over(&self) -> Vec<&str> {
        self.let_go.names.iter().map(String::as_str).collect()
    }

    /// Lets go of the held changes of a table that is here, and of those that do not fit it from
    /// now on. Inside a transaction.
    pub(super) fn let_unfit_go(&mut self, lower: &str) -> Result<()> {
        let hash = self.definition_hash(lower)?;
        if self.let_go.unfit.insert(lower.to_owned(), hash) != Some(hash) {
            log::warn!(
                "changes that do not fit table {lower} take too much space (max_held_bytes): this \
                 node lets them go; once the table is changed here, a snapshot brings them"
            );
            self.store_let_go()?;
        }
        self.catalog.ending.insert(lower.to_owned());
        Ok(())
    }

    /// Whether a row that does not fit its table (lower case), for a reason or by some of its
    /// columns, is let go.
    pub(super) fn lets_unfit_go(&self, lower: &str, row: &Incoming, reason: &str) -> bool {
        self.is_unfit(lower) && row.unsent.is_none() && reason != DAMAGED && self.judges(lower)
    }

    /// Whether changes that do not fit this table (lower case) are let go.
    pub(super) fn is_unfit(&self, lower: &str) -> bool {
        self.let_go.unfit.contains_key(lower)
    }

    /// Whether it is known what fits this table (lower case): rows do not wait for a migration or a
    /// comparison.
    pub(super) fn judges(&self, lower: &str) -> bool {
        let table = self.writable(lower);
        table.is_some_and(|table| !self.catalog.comparing.contains_key(&table.id))
    }

    /// Tables whose changes that do not fit them are let go.
    pub(crate) fn unfit_let_go(&self) -> impl Iterator<Item = &String> {
        self.let_go.unfit.keys()
    }

    /// The tables of [`Self::unfit_let_go`] that are defined differently by now, or are gone.
    fn changed_unfit(&self) -> Result<Vec<String>> {
        let mut changed = Vec::new();
        for (name, hash) in &self.let_go.unfit {
            if self.definition_hash(name)? != *hash {
                changed.push(name.clone());
            }
        }
        Ok(changed)
    }

    /// Hash of what the schema says of a table, its indexes and triggers.
    fn definition_hash(&self, lower: &str) -> Result<i64> {
        let mut parts = self.conn.prepare_cached(
            "SELECT coalesce(sql, name) FROM sqlite_schema
             WHERE lower(tbl_name) = ?1 AND name NOT GLOB '__harmonylite__*' ORDER BY type, name",
        )?;
        let mut parts = parts.query([lower])?;
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        while let Some(part) = parts.next()? {
            hash.update(part.get_ref(0)?.as_bytes().unwrap_or_default());
            hash.update(&[0]);
        }
        Ok(hash.digest() as i64)
    }

    /// Has the held entries removed that are left of tables whose changes that do not fit are let
    /// go. Must be called when all held rows were tried.
    pub(super) fn end_unfit(&mut self) {
        let names = self.let_go.unfit.keys();
        let left = names.filter(|name| self.catalog.held.contains(*name));
        let left: Vec<String> = left.filter(|n| self.judges(n)).cloned().collect();
        self.catalog.ending.extend(left);
    }

    /// Tables for which a snapshot is awaited.
    pub(crate) fn awaited(&self) -> &BTreeSet<String> {
        &self.let_go.awaited
    }

    /// Whether, since the last call, the snapshot scheduler got something to do: other tables, or
    /// tables for which a snapshot is awaited.
    pub(crate) fn has_news(&mut self) -> bool {
        std::mem::take(&mut self.is_news)
    }

    /// Whether the maker of a snapshot let go of a table for which this node awaits one.
    pub(crate) fn lacks_awaited(&self, lacks: &[String]) -> bool {
        lacks.iter().any(|name| self.let_go.awaited.contains(name))
    }

    /// Ends the waiting for a snapshot once no gap is left. Inside a transaction.
    pub(crate) fn end_awaiting(&mut self) -> Result<()> {
        if self.has_gap() || self.let_go.awaited.is_empty() {
            return Ok(());
        }
        self.let_go.awaited.clear();
        self.store_let_go()
    }

    /// Whether rows were let go of tables that other nodes may have. Without `selected`: of tables
    /// that the configuration excludes. With it: of tables that it selects and that are unknown
    /// here, or that the rows do not fit.
    pub(crate) fn has_let_go(&self, selected: bool) -> bool {
        if selected && !self.let_go.unfit.is_empty() {
            return true;
        }
        let tables = &self.settings.tables;
        let mut names = self.let_go.names.union(&self.let_go.missed);
        names.any(|name| tables.replicates(name) == selected)
    }

    /// Names of tables of which rows were let go because the configuration excludes them.
    pub(crate) fn let_go_by_choice(&self) -> impl Iterator<Item = &String> {
        let tables = &self.settings.tables;
        let names = self.let_go.names.iter();
        names.filter(|name| !tables.replicates(name))
    }

    /// Finds the tables whose entries in `___held` must be removed, because they are let go now.
    pub(crate) fn find_ending(&mut self) -> Result<()> {
        let mut ending = BTreeSet::new();
        for table in held_tables(&self.conn)? {
            let here = selection::column_names(&self.conn, &table)?;
            let columns = match here.is_empty() {
                true => held_columns(&self.conn, &table)?,
                false => here,
            };
            let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
            if self.lets_go(&table.to_ascii_lowercase(), &columns)? {
                ending.insert(table);
            }
        }
        self.catalog.ending = ending;
        Ok(())
    }

    /// Finds held tables that nobody needs any more, and has their entries removed. Such a table is
    /// not here, nothing came of it for as long as a tombstone is kept, and no node `has` it. True
    /// if entries are to be removed. Must be called only when all streams were read to their end.
    pub(crate) fn end_forgotten(&mut self, has: &dyn Fn(&str) -> bool) -> Result<bool> {
        let (Some(now_ms), false) = (self.broker_time_ms(), self.has_gap()) else {
            return Ok(false);
        };
        let retention_ms = self.settings.tombstone_retention.as_millis() as i64;
        let bound = self.local_tx_before(now_ms - retention_ms)?;
        for table in held_tables(&self.conn)? {
            let is_here = self.catalog.by_name.contains_key(&table);
            let is_old =
                || Ok::<_, DatabaseError>(self.held_at(&table)?.is_some_and(|at| at <= bound));
            if !is_here && !has(&table) && is_old()? && self.catalog.ending.insert(table.clone()) {
                log::info!(
                    "held changes of table {table:?} are dropped: no node has the table any more"
                );
            }
        }
        Ok(!self.catalog.ending.is_empty())
    }

    /// Removes some held entries of the tables that were found. Inside a transaction.
    pub(crate) fn end_held(&mut self) -> Result<()> {
        let began = self.clock.uptime();
        while let Some(table) = self.catalog.ending.first().cloned() {
            let is_done = self.end_some(&table)?;
            if is_done {
                self.catalog.ending.remove(&table);
                self.forget_held_size(&table)?;
                self.drop_request_is_done(&table)?;
                self.say_held_ended()?;
            }
            if self.clock.uptime() - began >= TIME_BOX {
                break;
            }
        }
        Ok(())
    }
}

impl Database {
    /// Removes some held entries of a table. True if none is left that must be removed.
    fn end_some(&self, table: &str) -> Result<bool> {
        if !self.let_go.unfit.contains_key(table) || is_asked_for(&self.conn, table)? {
            let mut delete = self.conn.prepare_cached(DELETE_SOME)?;
            return Ok(delete.execute(rusqlite::params![table, STEP])? < STEP);
        }
        let text = format!(
            "DELETE FROM __harmonylite___held WHERE (table_name, shape, key, column) IN (
                 SELECT table_name, shape, key, column FROM __harmonylite___held AS held
                 WHERE table_name = ?1 AND reason <> ?3 AND NOT {SENDS} LIMIT ?2)"
        );
        let mut delete = self.conn.prepare_cached(&text)?;
        Ok(delete.execute(rusqlite::params![table, STEP, DAMAGED])? < STEP)
    }
}

/// Names of the columns of one held row of a table.
fn held_columns(conn: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    let text = "SELECT column FROM __harmonylite___held WHERE table_name = ?1 AND (shape, key) =
                (SELECT shape, key FROM __harmonylite___held WHERE table_name = ?1 LIMIT 1)
                AND substr(column, 1, 1) <> char(0)";
    let mut columns = conn.prepare_cached(text)?;
    columns.query_map([table], |r| r.get(0))?.collect()
}

/// Names of the tables of which something is held, sorted; found without reading all entries.
pub(crate) fn held_tables(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    let text = "SELECT table_name FROM __harmonylite___held
                WHERE table_name > ?1 ORDER BY table_name LIMIT 1";
    let mut next = conn.prepare_cached(text)?;
    let mut tables = Vec::new();
    let mut after = String::new();
    while let Some(table) = next
        .query_row([&after], |r| r.get::<_, String>(0))
        .optional()?
    {
        after.clone_from(&table);
        tables.push(table);
    }
    Ok(tables)
}
