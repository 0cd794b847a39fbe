//! A database that the Go version of HarmonyLite managed becomes one of ours.
//!
//! Go's triggers copy each row into a log of its table, `__harmonylite__<table>_change_log`, and
//! note that in a log that has the name of our change log. They go in the transaction that makes
//! our tables and triggers: there is no moment at which a write of the application fails or passes
//! unseen. Go's logs follow in steps, before anything is captured. A change that Go had not
//! published becomes an entry of our change log, with the time at which it was made: capture reads
//! what the row is by then, and a row that is gone was deleted. A row that Go had published is a
//! row from before HarmonyLite.

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

/// A time before this, the first moment of 2020, is that of a clock that was not set.
const EARLIEST_MS: i64 = 1_577_836_800_000;

/// Entries that are taken over in one transaction: a few milliseconds on a small machine.
const STEP: usize = 500;

/// For the application, between two of these.
const PAUSE: Duration = Duration::from_millis(3);

/// What Go left in the database.
#[derive(Debug, Default)]
pub(super) struct GoVersion {
    triggers: Vec<String>,
    logs: Vec<Log>,
    /// Go's tables other than those.
    others: Vec<String>,
}

/// Go's log of the changes of one table.
#[derive(Debug)]
struct Log {
    name: String,
    /// The application's table.
    of: String,
}

impl GoVersion {
    /// None if Go was never here. Go's tables are known by their columns, its triggers by the
    /// column that they write.
    pub(super) fn find(conn: &Connection) -> rusqlite::Result<Option<GoVersion>> {
        let mut found = GoVersion {
            triggers: go_triggers(conn)?,
            ..GoVersion::default()
        };
        let names = own_shape::look(conn)?;
        let mut left = Vec::new();
        for name in names.unknown {
            let has = |column| has_column(conn, &name, column);
            let of = name.get(PREFIX.len()..).unwrap_or_default();
            let is_log = has("type")? && has("created_at")? && has("state")?;
            match of.strip_suffix("_change_log").filter(|_| is_log) {
                Some(of) => found.logs.push(Log {
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
        // What else begins with the prefix is Go's where Go was, as for its own clean-up.
        found.others.append(&mut left);
        Ok((!is_absent).then_some(found))
    }

    /// Makes room for our tables: Go's triggers go, and its table with the name of our change log.
    pub(super) fn make_way(&self, conn: &Connection) -> rusqlite::Result<()> {
        for name in &self.triggers {
            conn.execute_batch(&format!("DROP TRIGGER main.{}", quote(name)))?;
        }
        own_shape::drop_tables(conn, &self.others)
    }

    pub(super) fn has_table(&self, name: &str) -> bool {
        self.others.iter().any(|n| n == name)
    }

    /// How many changes Go had not published.
    pub(super) fn unpublished(&self, conn: &Connection) -> rusqlite::Result<u64> {
        let counts = self.logs.iter().map(|log| log.unpublished(conn));
        counts.sum()
    }
}

impl Log {
    fn unpublished(&self, conn: &Connection) -> rusqlite::Result<u64> {
        let name = quote(&self.name);
        let text = format!("SELECT count(*) FROM main.{name} WHERE state IS NOT 1");
        conn.query_row(&text, [], |r| r.get(0))
    }
}

/// Whether that is the text of a trigger of Go's. Ours write `table_id`.
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

/// Stream -> the last message read, from a file of Go's, whose bytes beyond the map mean nothing.
fn read_seq_map(path: &Path) -> BTreeMap<String, u64> {
    let Ok(file) = std::fs::File::open(path) else {
        return BTreeMap::new();
    };
    let bounded = std::io::Read::take(file, 1 << 20);
    ciborium::from_reader(std::io::BufReader::new(bounded)).unwrap_or_default()
}

/// How the entries of one log become entries of ours. Each statement takes the number after which
/// it begins, and that with which it ends.
struct Adoption {
    table: i64,
    /// The last of the next entries.
    last: String,
    insert: String,
    delete: String,
}

impl Database {
    /// Takes in what Go had not published, and removes the rest of what it made. Once our tables
    /// and triggers are in place: in short transactions, between which the application writes. A
    /// start after a crash goes on where this one ended, and nothing is captured before it is done.
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
        self.reservation.look_at_log(&self.conn)?;
        log::warn!(
            "the database was managed by the Go version: its triggers and tables are removed, and \
             {taken} change(s) that it had not published are taken over"
        );
        Ok(())
    }

    /// One short transaction of the opening: nothing is stamped in it.
    fn shortly<T>(&mut self, f: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let run =
            |db: &Self, text: &str| retry_while_busy(&db.stop, || db.conn.execute_batch(text));
        run(self, "BEGIN IMMEDIATE")?;
        let done = f(self)?;
        run(self, "COMMIT")?;
        Ok(done)
    }

    /// None if there is nothing to adopt, or it cannot be told of which rows it is.
    fn adoption(&self, log: &Log) -> Result<Option<Adoption>> {
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
                return lost("its key was another one when they were made");
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

    /// Returns how many entries there were.
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

    /// The last message of a stream that Go had read before the database became ours; 0 if none.
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
