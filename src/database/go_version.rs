//! Takes a database over that the Go version of HarmonyLite managed.
//!
//! Go's triggers copy each row into a log of its table, `__harmonylite__<table>_change_log`, and
//! note that in a table with the name of this release's change log. The transaction that makes the
//! own tables and triggers also drops Go's triggers: at no moment a write of the application fails
//! or passes unseen. Go's logs are taken over in steps, before anything is captured. A change that
//! Go had not published becomes an entry of the change log, with the time at which it was made.
//! Capture reads the row as it is by then; a missing row was deleted. A row that Go had published
//! counts as a row from before HarmonyLite.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, params};

use super::meta::{Meta, get_meta, set_meta};
use super::own_shape::{self, has_column};
use super::schema::{PREFIX, quote};
use super::write::retry_while_busy;
use super::{Database, Result, triggers, values};
use crate::model::frame::ROWID;

/// A time before this, the first moment of 2020, comes from a clock that was not set.
const EARLIEST_MS: i64 = 1_577_836_800_000;

/// Number of entries that one transaction takes over: a few milliseconds on a small machine.
const STEP: usize = 500;

/// Pause between two such transactions, for the application.
const PAUSE: Duration = Duration::from_millis(3);

/// Objects that Go left in the database.
#[derive(Debug, Default)]
pub(super) struct GoVersion {
    triggers: Vec<String>,
    logs: Vec<GoLog>,
    /// Other tables of Go.
    others: Vec<String>,
}

/// Go's log of the changes of one table.
#[derive(Debug)]
struct GoLog {
    name: String,
    /// Name of the application's table.
    of: String,
}

impl GoVersion {
    /// Returns `None` if Go was never here. Go's tables are recognised by their columns, its
    /// triggers by the column that they write.
    pub(super) fn find(conn: &Connection) -> rusqlite::Result<Option<GoVersion>> {
        let mut found = GoVersion {
            triggers: go_triggers(conn)?,
            ..GoVersion::default()
        };
        let names = own_shape::classify(conn)?;
        let mut left = Vec::new();
        for name in names.unknown {
            let has = |column| has_column(conn, &name, column);
            let of = name.get(PREFIX.len()..).unwrap_or_default();
            let is_log = has("type")? && has("created_at")? && has("state")?;
            match of.strip_suffix("_change_log").filter(|_| is_log) {
                Some(of) => found.logs.push(GoLog {
                    of: of.to_owned(),
                    name,
                }),
                None if has("schema_hash")? => found.others.push(name),
                None => left.push(name),
            }
        }
        for name in names.others {
            if has_column(conn, &name, "change_table_id")? {
                found.others.push(name);
            }
        }
        let is_absent =
            found.triggers.is_empty() && found.logs.is_empty() && found.others.is_empty();
        // Where Go was, other tables with the prefix count as Go's, too, as in Go's own clean-up.
        found.others.append(&mut left);
        Ok((!is_absent).then_some(found))
    }

    /// Makes room for the own tables: drops Go's triggers, and its table with the name of the
    /// change log.
    pub(super) fn make_way(&self, conn: &Connection) -> rusqlite::Result<()> {
        for name in &self.triggers {
            conn.execute_batch(&format!("DROP TRIGGER main.{}", quote(name)))?;
        }
        own_shape::drop_tables(conn, &self.others)
    }

    pub(super) fn has_table(&self, name: &str) -> bool {
        self.others.iter().any(|n| n == name)
    }

    /// Number of changes that Go had not published.
    pub(super) fn unpublished(&self, conn: &Connection) -> rusqlite::Result<u64> {
        let counts = self.logs.iter().map(|log| log.unpublished(conn));
        counts.sum()
    }
}

impl GoLog {
    fn unpublished(&self, conn: &Connection) -> rusqlite::Result<u64> {
        let name = quote(&self.name);
        let text = format!("SELECT count(*) FROM main.{name} WHERE state IS NOT 1");
        conn.query_row(&text, [], |r| r.get(0))
    }
}

/// Whether this text belongs to a trigger of Go. HarmonyLite's triggers write `table_id`.
pub(super) fn is_of_go(trigger: &str) -> bool {
    trigger.to_ascii_lowercase().contains("change_table_id")
}

fn go_triggers(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut list = conn.prepare(
        "SELECT name, sql FROM main.sqlite_schema WHERE type = 'trigger'
         AND lower(name) GLOB ?1 || '*'",
    )?;
    let all = list.query_map([PREFIX], |r| {
        Ok((values::lossy(r, 0)?, values::lossy(r, 1)?))
    })?;
    let all: Vec<(String, String)> = all.collect::<rusqlite::Result<_>>()?;
    let of_go = all.into_iter().filter(|(_, text)| is_of_go(text));
    Ok(of_go.map(|(name, _)| name).collect())
}

/// Last message read of each stream, from a file of Go. Bytes after the map in the file mean
/// nothing.
fn read_seq_map(path: &Path) -> BTreeMap<String, u64> {
    let Ok(file) = std::fs::File::open(path) else {
        return BTreeMap::new();
    };
    let bounded = std::io::Read::take(file, 1 << 20);
    ciborium::from_reader(std::io::BufReader::new(bounded)).unwrap_or_default()
}

/// Statements that turn the entries of one log of Go into entries of the change log. Each takes the
/// number after which it begins, and `insert` and `delete` that with which they end.
struct Adoption {
    table: i64,
    /// Query for the last number of the next entries.
    last: String,
    insert: String,
    delete: String,
}

impl Database {
    /// Takes over the changes that Go had not published, and removes the rest of Go's tables. Runs
    /// once the own tables and triggers are in place, in short transactions, so that the
    /// application can write in between. A start after a crash continues here, and nothing is
    /// captured before it is done.
    pub(super) fn take_over(&mut self, go: &GoVersion) -> Result<()> {
        let mut taken = 0;
        for log in &go.logs {
            if let Some(adoption) = self.adoption(log)? {
                taken += self.adopt(&adoption)?;
            }
        }
        let path = self.settings.seq_map_path.clone();
        let read = path.as_deref().map(read_seq_map).unwrap_or_default();
        self.shortly(|db| {
            let is_current = db.catalog_is_current()?;
            own_shape::drop_tables(&db.conn, go.logs.iter().map(|log| &log.name))?;
            if is_current {
                db.note_schema()?;
            }
            Ok(set_meta(
                &db.conn,
                Meta::GoRead,
                serde_json::to_string(&read).ok(),
            )?)
        })?;
        self.reservation.reload_offline_writes(&self.conn)?;
        log::warn!(
            "the database was managed by the Go version: its triggers and tables are removed, and \
             {taken} change(s) that it had not published are taken over"
        );
        Ok(())
    }

    /// Runs one short transaction of the opening, in which nothing is stamped.
    fn shortly<T>(&mut self, f: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let run =
            |db: &Self, text: &str| retry_while_busy(&db.stop, || db.conn.execute_batch(text));
        run(self, "BEGIN IMMEDIATE")?;
        let done = f(self)?;
        run(self, "COMMIT")?;
        Ok(done)
    }

    /// Returns `None` if there is nothing to adopt, or the rows of the changes cannot be
    /// identified.
    fn adoption(&self, log: &GoLog) -> Result<Option<Adoption>> {
        let count = log.unpublished(&self.conn)?;
        if count == 0 {
            return Ok(None);
        }
        let lost = |why: &str| {
            log::warn!(
                "{count} change(s) of table {} that the Go version had not published are left \
                 out: {why}",
                log.of
            );
            Ok(None)
        };
        let Some(table) = self.catalog.by_name.get(&log.of.to_ascii_lowercase()) else {
            return lost("the table is not replicated here");
        };
        let name = |column: &str| match column {
            ROWID => "val_rowid".to_owned(),
            column => format!("val_{column}"),
        };
        let key: Vec<String> = table.schema.key.iter().map(|k| name(&k.name)).collect();
        for column in &key {
            if !has_column(&self.conn, &log.name, column)? {
                return lost("its key was a different one when they were made");
            }
        }
        let places: Vec<String> = (1..=key.len()).map(|i| format!("k{i}")).collect();
        let columns: Vec<String> = key.iter().map(|c| quote(c)).collect();
        let of = format!("FROM main.{} WHERE state IS NOT 1 AND id", quote(&log.name));
        let insert = format!(
            "INSERT INTO {}(table_id, kind, created_at, {})
             SELECT ?3, {}, iif(created_at >= ?4, created_at, ?5), {} {of} > ?1 AND id <= ?2
             ORDER BY id",
            triggers::LOG,
            places.join(", "),
            triggers::REAL,
            columns.join(", "),
        );
        Ok(Some(Adoption {
            table: table.id,
            last: format!("SELECT max(id) FROM (SELECT id {of} > ?1 ORDER BY id LIMIT {STEP})"),
            insert,
            delete: format!("DELETE {of} > ?1 AND id <= ?2"),
        }))
    }

    /// Returns the number of entries that it took over.
    fn adopt(&mut self, adoption: &Adoption) -> Result<u64> {
        let (mut after, mut taken) = (i64::MIN, 0);
        loop {
            let now_ms = self.clock.now_ms();
            let step = self.shortly(|db| {
                let last: Option<i64> = db
                    .conn
                    .prepare_cached(&adoption.last)?
                    .query_row([after], |r| r.get(0))?;
                let Some(last) = last else {
                    return Ok(None);
                };
                let values = params![after, last, adoption.table, EARLIEST_MS, now_ms];
                let count = db.conn.prepare_cached(&adoption.insert)?.execute(values)?;
                db.conn
                    .prepare_cached(&adoption.delete)?
                    .execute([after, last])?;
                Ok(Some((last, count as u64)))
            })?;
            let Some((last, count)) = step else {
                return Ok(taken);
            };
            (after, taken) = (last, taken + count);
            std::thread::sleep(PAUSE);
        }
    }

    /// Last message of a stream that Go had read before this release took the database over; 0 if
    /// none.
    pub(crate) fn read_by_go(&self, stream: &str) -> Result<u64> {
        let text: Option<String> = get_meta(&self.conn, Meta::GoRead)?;
        let read: Option<BTreeMap<String, u64>> =
            text.and_then(|text| serde_json::from_str(&text).ok());
        Ok(read.and_then(|r| r.get(stream).copied()).unwrap_or(0))
    }
}

#[cfg(test)]
pub(crate) mod made_by_go;
#[cfg(test)]
mod tests;
