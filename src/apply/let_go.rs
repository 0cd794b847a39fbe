//! Tables whose changes are let go instead of being held.
//!
//! Nothing is kept of a table that the configuration leaves out, nor of one that nobody can
//! replicate (SQLite's own, ours). The name of the former is remembered: should the table be
//! replicated here one day, this node lacks all that it let go. That is a gap in every stream
//! ([`crate::model::gap`]), which a snapshot makes up for whose maker let nothing go of that table.

use std::collections::BTreeSet;

use rusqlite::{Connection, OptionalExtension};
use serde::{Deserialize, Serialize};

use crate::config::Choice;
use crate::database::meta::{Meta, get_meta, set_meta};
use crate::database::schema::PREFIX;
use crate::database::selection;
use crate::database::{Database, DatabaseError, Result, TIME_BOX};

/// Names that are remembered, and bytes of them: a peer may invent any number.
const MAX_NAMES: usize = 1000;
const MAX_BYTES: usize = 32 << 10;

/// Entries of `___held` that are removed between two looks at the clock.
const STEP: usize = 64;

/// Removes entries of a table, at most so many.
pub(super) const DELETE_SOME: &str =
    "DELETE FROM __harmonylite___held WHERE (table_name, shape, key, column) IN (
         SELECT table_name, shape, key, column FROM __harmonylite___held
         WHERE table_name = ?1 LIMIT ?2)";

/// See the module's head. Names are in lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LetGo {
    /// Tables of which rows were let go.
    names: BTreeSet<String>,
    /// Of these, the ones that are replicated here by now: a snapshot is awaited for them.
    awaited: BTreeSet<String>,
    /// There were more names than are remembered.
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
        self.names.union(&self.awaited)
    }

    /// The same, by name; and those for which a snapshot is awaited.
    pub(crate) fn into_names(self) -> (Vec<String>, Vec<String>) {
        let [names, awaited] = [self.names, self.awaited].map(|n| n.into_iter().collect());
        (names, awaited)
    }

    /// Remembers a table, where no daemon runs. Inside a transaction.
    pub(crate) fn note(conn: &Connection, name: &str) -> rusqlite::Result<()> {
        let mut let_go = LetGo::load(conn)?;
        let_go.add(name);
        let_go.store(conn)
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

    fn has_room_for(&self, name: &str) -> bool {
        let bytes: usize = self.lacks().map(String::len).sum();
        self.names.len() < MAX_NAMES && bytes + name.len() <= MAX_BYTES
    }
}

/// Whether a name (lower case) is one that no application's table has.
pub(crate) fn is_reserved(lower: &str) -> bool {
    lower.starts_with("sqlite_") || lower.starts_with(PREFIX)
}

impl Database {
    /// Whether what arrives of a table (lower case) that is not replicated here, and has these
    /// columns elsewhere, is let go, not held; and remembers its name. Inside a transaction.
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
            Choice::Excluded(why) => format!("the configuration leaves it out: {why}"),
        };
        log::info!("changes of table {lower:?} are passed over: {why}");
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

    /// A snapshot brought rows, but none of the tables that its maker let go. Inside a transaction.
    pub(crate) fn inherit_let_go(&mut self, of_maker: &LetGo) -> Result<()> {
        let before = self.let_go.clone();
        for name in of_maker.lacks() {
            if !self.let_go.awaited.contains(name) {
                self.let_go.add(name);
            }
        }
        self.let_go.is_more |= of_maker.is_more;
        if self.let_go != before {
            self.store_let_go()?;
            self.catalog.forget(); // one of them may be replicated here
        }
        Ok(())
    }

    /// Tables that were let go and are replicated by now: what was missed of them is a gap.
    /// `has_new` says that a table is replicated since just now. Inside a transaction, with the
    /// catalog read.
    pub(crate) fn await_let_go(&mut self, has_new: bool) -> Result<()> {
        let here = &self.catalog.by_name;
        let mut found: BTreeSet<String> = self.let_go.names.clone();
        found.retain(|name| here.contains_key(name));
        let is_any = self.let_go.is_more && has_new;
        if (found.is_empty() && !is_any) || !self.settings.joins_by_snapshot {
            return Ok(());
        }
        for name in &found {
            log::warn!(
                "table {name} is replicated from now on: a snapshot brings what was passed over of \
                 it"
            );
            self.let_go.names.remove(name);
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

    /// The same where no snapshots are kept: what the streams still have is read again. At a start,
    /// before anything is read.
    pub(crate) fn read_let_go_again(&mut self) -> Result<()> {
        let here = &self.catalog.by_name;
        if !self.let_go.names.iter().any(|n| here.contains_key(n)) {
            return Ok(());
        }
        log::warn!("tables are replicated that were passed over before: reading the streams again");
        self.write(|db| {
            let Database {
                let_go, catalog, ..
            } = &mut *db;
            let_go.names.retain(|n| !catalog.by_name.contains_key(n));
            db.read_from_the_start();
            db.store_let_go()?;
            db.store_positions()
        })
    }

    /// Tables of which changes are let go, and which others have.
    pub fn passed_over(&self) -> Vec<&str> {
        self.let_go.names.iter().map(String::as_str).collect()
    }

    /// Tables for which a snapshot is awaited.
    pub(crate) fn awaited(&self) -> &BTreeSet<String> {
        &self.let_go.awaited
    }

    /// Whether there is something for the scheduler of snapshots since this was asked last: other
    /// tables, or a snapshot is awaited for some.
    pub(crate) fn has_news(&mut self) -> bool {
        std::mem::take(&mut self.is_news)
    }

    /// Whether the maker of a snapshot let go of a table for which one is awaited.
    pub(crate) fn lacks_awaited(&self, lacks: &[String]) -> bool {
        lacks.iter().any(|name| self.let_go.awaited.contains(name))
    }

    /// No gap is left: what was awaited is here. Inside a transaction.
    pub(crate) fn end_awaiting(&mut self) -> Result<()> {
        if self.has_gap() || self.let_go.awaited.is_empty() {
            return Ok(());
        }
        self.let_go.awaited.clear();
        self.store_let_go()
    }

    /// Whether rows were let go of tables that other nodes may have: by choice, or of tables that
    /// are `selected` and unknown here.
    pub(crate) fn has_let_go(&self, selected: bool) -> bool {
        let tables = &self.settings.tables;
        let mut names = self.let_go.names.iter();
        names.any(|name| tables.replicates(name) == selected)
    }

    /// Names of tables of which rows were let go by choice.
    pub(crate) fn let_go_by_choice(&self) -> impl Iterator<Item = &String> {
        let tables = &self.settings.tables;
        let names = self.let_go.names.iter();
        names.filter(|name| !tables.replicates(name))
    }

    /// Tables with something in `___held` of which nothing is to be held.
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

    /// What is held of tables that are not here, of which nothing came for as long as a tombstone
    /// is kept and which no node `has`, is to be removed. True if there is some. To be called only
    /// when all streams were read to their end.
    pub(crate) fn end_forgotten(&mut self, has: &dyn Fn(&str) -> bool) -> Result<bool> {
        let (Some(now_ms), false) = (self.broker_time_ms(), self.has_gap()) else {
            return Ok(false);
        };
        let retention_ms = self.settings.tombstone_retention.as_millis() as i64;
        let bound = self.learnt_before(now_ms - retention_ms)?;
        for table in held_tables(&self.conn)? {
            let is_here = self.catalog.by_name.contains_key(&table);
            let is_old =
                || Ok::<_, DatabaseError>(self.held_at(&table)?.is_some_and(|at| at <= bound));
            if !is_here && !has(&table) && is_old()? && self.catalog.ending.insert(table.clone()) {
                log::info!("what is held of table {table:?} goes: no node has it any more");
            }
        }
        Ok(!self.catalog.ending.is_empty())
    }

    /// Removes some of what is held of those. Inside a transaction.
    pub(crate) fn end_held(&mut self) -> Result<()> {
        let began = self.clock.uptime();
        while let Some(table) = self.catalog.ending.first().cloned() {
            let mut delete = self.conn.prepare_cached(DELETE_SOME)?;
            let is_done = delete.execute(rusqlite::params![table, STEP])? < STEP;
            drop(delete);
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

/// Names of the columns of one row that is held of a table.
fn held_columns(conn: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    let text = "SELECT column FROM __harmonylite___held WHERE table_name = ?1 AND (shape, key) =
                (SELECT shape, key FROM __harmonylite___held WHERE table_name = ?1 LIMIT 1)
                AND substr(column, 1, 1) <> char(0)";
    let mut columns = conn.prepare_cached(text)?;
    columns.query_map([table], |r| r.get(0))?.collect()
}

/// Names of the tables of which something is held, found without reading all of it.
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
