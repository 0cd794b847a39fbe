//! Makes own tables again that another program dropped: schema tools drop tables they do not know.
//!
//! HarmonyLite's triggers disappear with a table of the application, not with an own table. So
//! until the own tables are back, every write of the application fails. They are made again at
//! once, under the open connection. The versions of all rows are lost with them. The versions that
//! other nodes know come back with the newest snapshot and the streams, which are read again. Until
//! then the rows count as from before HarmonyLite and lose against arriving versions. Only the
//! unsent changes are unknown to other nodes, and these are in memory, with their versions.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rusqlite::types::Value as SqlValue;
use rusqlite::{Connection, params_from_iter};

use super::error::is_busy;
use super::install::install;
use super::meta::{Meta, set_meta};
use super::own_tables;
use super::rows::Rows;
use super::sites::Sites;
use super::table::Table;
use super::write::retry_while_busy;
use super::{Database, DatabaseError, Result, journal, triggers};
use crate::capture::{Frames, Unsent, UnsentCopy, put_mark};
use crate::database::rows::Stored;
use crate::model::birth::Birth;
use crate::model::cbor;
use crate::model::merge::{Exceptions, RowState};
use crate::model::value::{OwnedValue, Value};

/// Most entries of the change log that are taken over: they take a few milliseconds.
const MOST_UNCAPTURED: usize = 10_000;

/// A tool drops all its tables within this time.
const DONE_WITHIN: Duration = Duration::from_secs(10);

/// How long [`Database::begin_at_once`] tries with short naps, and the length of a nap.
const IMPATIENT: Duration = Duration::from_millis(500);
const NAP: Duration = Duration::from_micros(20);

impl Database {
    /// Whether own tables are missing, in a schema with a different version than `known`. A backup
    /// from before HarmonyLite has no own tables at all, and restoring it moves the version of the
    /// schema by one. A tool that drops all own tables moves it by one for each.
    pub(super) fn has_dropped_tables(&self, known: Option<i64>) -> Result<bool> {
        let version = self.schema_version()?;
        let Some(known) = known.filter(|known| *known != version) else {
            return Ok(false);
        };
        let wanted = own_tables::names();
        let names: Vec<String> = wanted.iter().map(|name| format!("'{name}'")).collect();
        let names = names.join(", ");
        let text = format!(
            "SELECT count(*) FILTER (WHERE type = 'table' AND name IN ({names})), count(*)
             FROM sqlite_schema WHERE name GLOB '__harmonylite__*'"
        );
        let counts = |r: &rusqlite::Row<'_>| Ok((r.get::<_, usize>(0)?, r.get::<_, usize>(1)?));
        let (tables, all) = self.conn.query_row(&text, [], counts)?;
        let steps = version.wrapping_sub(known);
        let is_stepwise = steps >= wanted.len() as i64;
        Ok(match tables < wanted.len() {
            true => all > 0 || is_stepwise,
            false => self.was_just_remade() && self.lacks_versions()?,
        })
    }

    /// Whether the tables were made again so lately that the tool may still be dropping.
    fn was_just_remade(&self) -> bool {
        let remade = self.restore_detector.remade;
        remade.is_some_and(|at| self.clock.uptime().saturating_sub(at) < DONE_WITHIN)
    }

    /// Whether a replicated table that still exists has lost its versions table.
    fn lacks_versions(&self) -> Result<bool> {
        let mut lacks = self.conn.prepare(
            "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?1 COLLATE NOCASE
             AND NOT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table'
                 AND name = '__harmonylite__' || ?1 || '_versions' COLLATE NOCASE)",
        )?;
        let mut tables = self.catalog.by_id.values();
        Ok(tables.try_fold(false, |found, table| {
            Ok::<_, rusqlite::Error>(found || lacks.exists([table.name()])?)
        })?)
    }

    /// Makes all own tables and triggers again. The caller must make its readers read the streams
    /// again, too.
    ///
    /// A crash inside leaves the tables dropped. A crash between the two transactions leaves the
    /// positions at the start, and a start that finds messages gone asks for a snapshot.
    pub fn make_tables_again(&mut self) -> Result<()> {
        self.check_files(false)?;
        if self.is_away {
            return Err(DatabaseError::Stopped); // nothing is there, and all is to end
        }
        self.sync_commits(true)?;
        self.begin_at_once()?;
        // A restored copy from before HarmonyLite lacks them, too, and is left as it is.
        let checked = match self.check_not_restored() {
            Err(e @ DatabaseError::RestoredInPlace(_)) => Err(e),
            _ => Ok(()),
        };
        let made = checked
            .and_then(|()| self.make_tables_inside())
            .and_then(|copy| {
                retry_while_busy(&self.stop, || self.conn.execute_batch("COMMIT"))?;
                Ok(copy)
            });
        self.catalog.first_time = false;
        match made {
            Ok(copy) => {
                let level = match self.was_just_remade() {
                    true => log::Level::Debug,
                    false => log::Level::Warn,
                };
                log::log!(
                    level,
                    "another program dropped tables of HarmonyLite: this node creates them again \
                     with {} unsent row(s), and reads the newest snapshot and the streams again",
                    copy.rows().len()
                );
                self.marks.copy = copy;
                self.restore_detector.remade = Some(self.clock.uptime());
            }
            Err(e) => {
                if !self.conn.is_autocommit() {
                    self.conn.execute_batch("ROLLBACK")?;
                }
                self.catalog.forget();
                return Err(e);
            }
        }
        self.reservation.is_stored();
        self.load_republish()?;
        self.seen_data_version = -1;
        self.forget_positions()
    }

    /// Begins a write transaction, at first with short naps between the tries. A tool that drops
    /// one table after the other leaves gaps of microseconds, and the sooner the change log is
    /// back, the fewer writes of the application fail. A connection that dropped it, or failed to
    /// write without it, notices that it is back only when it reads something.
    fn begin_at_once(&self) -> Result<()> {
        let until = Instant::now() + IMPATIENT;
        loop {
            match self.conn.prepare_cached("BEGIN IMMEDIATE")?.execute([]) {
                Err(e) if is_busy(&e) && Instant::now() < until => std::thread::sleep(NAP),
                Err(e) if is_busy(&e) => break,
                Err(e) => return Err(e.into()),
                Ok(_) => return Ok(()),
            }
        }
        retry_while_busy(&self.stop, || self.conn.execute_batch("BEGIN IMMEDIATE"))
    }

    /// Makes the tables, inside a transaction. Returns the changes that are marked unsent.
    fn make_tables_inside(&mut self) -> Result<UnsentCopy> {
        let unsent = self.newest_unsent();
        let uncaptured = self.read_uncaptured()?;
        own_tables::drop_all(&self.conn)?;
        install(&self.conn, &self.settings)?;
        self.store_what_is_known()?;
        self.sites = Sites::load(&self.conn)?;
        self.stop_live();
        self.marks.forget_acknowledged();
        self.parts_bytes = None;
        self.restore_detector.forget();
        self.catalog.first_time = true;
        self.catalog.forget();
        self.refresh_catalog()?;
        set_meta(&self.conn, Meta::Installed, 1)?;
        self.log_again(&uncaptured)?;
        let local_tx = Frames::new(self).local_tx;
        for row in &unsent {
            if let Some(table) = self.catalog.by_name.get(&row.table.to_ascii_lowercase()) {
                put_unsent(&self.conn, &mut self.sites, table, row, local_tx)?;
            }
        }
        Ok(UnsentCopy::marked_by(local_tx, unsent))
    }

    fn newest_unsent(&self) -> Vec<Unsent> {
        let rows = self.marks.copy.rows().into_iter();
        let by_key = rows.map(|row| ((row.table.clone(), row.key.clone()), row));
        by_key.collect::<BTreeMap<_, _>>().into_values().collect()
    }

    /// The entries of the change log, with the lower-case name of their table; none if the change
    /// log is gone.
    fn read_uncaptured(&self) -> Result<Vec<(String, Vec<SqlValue>)>> {
        let columns = log_columns(self.catalog.log_keys);
        let text = format!(
            "SELECT table_id, {columns} FROM {} ORDER BY id",
            triggers::LOG
        );
        let Ok(mut statement) = self.conn.prepare(&text) else {
            return Ok(Vec::new());
        };
        let count = statement.column_count();
        let mut entries = Vec::new();
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let table = row.get(0).ok().and_then(|id| self.catalog.by_id.get(&id));
            if let Some(table) = table.filter(|_| entries.len() < MOST_UNCAPTURED) {
                let values = (1..count)
                    .map(|i| row.get(i))
                    .collect::<rusqlite::Result<_>>()?;
                entries.push((table.name().to_ascii_lowercase(), values));
            }
        }
        Ok(entries)
    }

    fn log_again(&self, entries: &[(String, Vec<SqlValue>)]) -> Result<()> {
        for (name, values) in entries {
            let Some(table) = self.catalog.by_name.get(name) else {
                continue;
            };
            let places: String = (2..values.len() + 2).map(|i| format!(", ?{i}")).collect();
            let columns = log_columns(values.len() - 2);
            let log = triggers::LOG;
            let text = format!("INSERT INTO {log}(table_id, {columns}) VALUES (?1{places})");
            let id = SqlValue::Integer(table.id);
            let all = std::iter::once(&id).chain(values);
            self.conn
                .prepare_cached(&text)?
                .execute(params_from_iter(all))?;
        }
        Ok(())
    }

    fn store_what_is_known(&mut self) -> Result<()> {
        set_meta(&self.conn, Meta::NodeId, self.node as i64)?;
        super::content_key::store(&self.conn, &self.content_key)?;
        let taken = self.settings.node_id.filter(|id| *id != self.node);
        if let Some(taken) = taken {
            set_meta(&self.conn, Meta::NodeIdTaken, taken as i64)?;
        }
        if self.joined {
            set_meta(&self.conn, Meta::Joined, 1)?;
        }
        journal::note_mode(&self.conn, &self.settings.path)?;
        let now_ms = self.clock.now_ms();
        let time_ms = self.bounded_time(self.reservation.believe(now_ms, now_ms));
        self.reservation.extend(&self.conn, &*self.clock, time_ms)?;
        self.all_given_is_forgotten(time_ms)
    }
}

fn log_columns(keys: usize) -> String {
    let keys = (1..=keys).map(|i| format!(", k{i}"));
    ["kind, created_at".to_owned()]
        .into_iter()
        .chain(keys)
        .collect()
}

/// Stores again the version that a row had before its versions table was dropped, and its mark.
fn put_unsent(
    conn: &Connection,
    sites: &mut Sites,
    table: &Table,
    row: &Unsent,
    local_tx: i64,
) -> Result<()> {
    let key = cbor::key_values(&row.key)?;
    let key: Vec<Value<'_>> = key.iter().map(OwnedValue::borrow).collect();
    let mut rows = Rows::new(conn, table)?;
    let deleted = !rows.exists(&key)?;
    let hash = match deleted {
        true => 0,
        false => rows.stored_hash(&key, local_tx)?,
    };
    let state = RowState {
        version: row.version,
        deleted,
        exceptions: Exceptions::new(),
    };
    rows.put_version(
        sites,
        &key,
        &Stored {
            state,
            local_tx,
            hash,
            birth: Birth::None,
        },
    )?;
    put_mark(&rows, &row.key, local_tx)
}

#[cfg(test)]
mod tests {
    use super::own_tables::names;
    use crate::apply::tests::support::{Node, cluster, converge, exchange};
    use crate::database::DatabaseError;

    const SCHEMA: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE TABLE w(a, b, v,
        PRIMARY KEY(a, b))";

    fn drop_tables(node: &Node, which: impl Fn(&str) -> bool) {
        let list = "SELECT name FROM sqlite_schema WHERE type = 'table'
                    AND name GLOB '__harmonylite__*' ORDER BY rowid";
        let mut names = node.app.prepare(list).unwrap();
        let names = names.query_map([], |r| r.get::<_, String>(0)).unwrap();
        let names: Vec<String> = names.map(Result::unwrap).collect();
        for name in names.iter().filter(|name| which(name)) {
            node.app
                .execute_batch(&format!("DROP TABLE {name}"))
                .unwrap();
        }
    }

    fn make_again(node: &mut Node) {
        assert!(node.db.is_changed().unwrap());
        let refused = node.db.capture().unwrap_err();
        assert!(matches!(refused, DatabaseError::Dropped), "{refused}");
        node.db.make_tables_again().unwrap();
    }

    /// Republishes all rows, as if the streams were read from their start.
    fn read_again(nodes: &mut [Node]) -> String {
        nodes.iter_mut().for_each(|n| n.db.republish_all().unwrap());
        converge(nodes)
    }

    #[test]
    fn the_application_writes_on_without_any_of_our_tables() {
        for which in names().into_iter().map(Some).chain([None]) {
            let mut n = cluster(2, SCHEMA);
            n[0].run("INSERT INTO t VALUES (1, 'a'), (2, 'b'); INSERT INTO w VALUES (1, 'x', 'c')");
            converge(&mut n);
            drop_tables(&n[0], |name| which.is_none_or(|which| name == which));
            make_again(&mut n[0]);
            // SQLite checks for a newer schema when it reads, not when a trigger names an unknown
            // table.
            n[0].rows("SELECT * FROM t");
            n[0].run("INSERT INTO t VALUES (3, 'd'); UPDATE t SET v = 'new' WHERE id = 1");
            n[0].run("DELETE FROM t WHERE id = 2");
            let rows = read_again(&mut n);
            assert!(
                rows.contains("new") && rows.contains('d'),
                "{which:?}: {rows}"
            );
            assert_eq!(n[1].rows("SELECT id FROM t"), "i1\ni3", "{which:?}");
        }
    }

    /// A thread that only reads may be the first to notice.
    #[test]
    fn a_reader_of_a_dropped_table_gets_an_error_that_says_so() {
        let mut node = Node::new(1, SCHEMA);
        node.db.heard_broker_time(1_700_000_000_000);
        drop_tables(&node, |_| true);
        let refused = node.db.note_age().unwrap_err();
        assert!(matches!(refused, DatabaseError::Dropped), "{refused}");
        assert!(refused.is_temporary());
        node.db.make_tables_again().unwrap();
        node.db.note_age().unwrap();
        // A table of the application with such a name is no own table.
        let other = node.db.conn.prepare("SELECT * FROM __harmonylite___metal");
        assert!(!matches!(other.unwrap_err().into(), DatabaseError::Dropped));
    }

    /// A restored copy from before HarmonyLite lacks own tables as well.
    #[test]
    fn nothing_is_made_in_a_file_that_was_put_back() {
        let mut node = Node::new(1, SCHEMA);
        node.run("INSERT INTO t VALUES (1, 'a')");
        node.capture();
        let copy = rusqlite::Connection::open_in_memory().unwrap();
        copy.execute_batch(SCHEMA).unwrap();
        let backup = rusqlite::backup::Backup::new(&copy, &mut node.app).unwrap();
        let pause = std::time::Duration::ZERO;
        backup.run_to_completion(100, pause, None).unwrap();
        drop(backup);
        let ends = node.db.make_tables_again().unwrap_err();
        assert!(matches!(ends, DatabaseError::RestoredInPlace(_)), "{ends}");
        let count = "SELECT count(*) FROM sqlite_schema WHERE name GLOB '__harmonylite__*'";
        assert_eq!(node.rows(count), "i0");
    }

    /// Changes that other nodes made meanwhile win over sent changes, and unsent changes win over
    /// the state before them.
    #[test]
    fn unsent_rows_are_kept() {
        let mut n = cluster(2, SCHEMA);
        n[0].run(
            "INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c'); INSERT INTO w VALUES (1, 'x', 'c')",
        );
        converge(&mut n);
        n[0].clock.advance(std::time::Duration::from_secs(10));
        n[1].clock.advance(std::time::Duration::from_secs(5));
        n[0].run("UPDATE t SET v = 'unsent' WHERE id = 1; DELETE FROM t WHERE id = 3");
        n[0].run("UPDATE w SET v = 'unsent, too'");
        n[0].capture();
        n[1].run("UPDATE t SET v = 'of another' WHERE id = 2");
        drop_tables(&n[0], |_| true);
        make_again(&mut n[0]);
        read_again(&mut n);
        for node in &n {
            assert_eq!(node.rows("SELECT v FROM t"), "t'unsent'\nt'of another'");
            assert_eq!(node.rows("SELECT v FROM w"), "t'unsent, too'");
        }
    }

    #[test]
    fn entries_of_the_log_are_captured() {
        let mut n = cluster(2, SCHEMA);
        n[0].run("INSERT INTO t VALUES (1, 'a'); INSERT INTO w VALUES (1, 'x', 'c')");
        converge(&mut n);
        n[0].run("UPDATE t SET v = 'new'; UPDATE w SET v = 'new, too'");
        drop_tables(&n[0], |name| name == "__harmonylite___meta");
        make_again(&mut n[0]);
        read_again(&mut n);
        assert_eq!(n[1].rows("SELECT v FROM t"), "t'new'");
        assert_eq!(n[1].rows("SELECT v FROM w"), "t'new, too'");
    }

    #[test]
    fn all_at_once_with_the_triggers() {
        let mut n = cluster(2, SCHEMA);
        n[0].run("INSERT INTO t VALUES (1, 'a')");
        converge(&mut n);
        n[0].app.execute_batch("BEGIN").unwrap();
        let list = "SELECT name FROM sqlite_schema WHERE type = 'trigger'";
        for name in n[0].rows(list).lines() {
            let name = name.trim_start_matches('t').trim_matches('\'');
            n[0].app
                .execute_batch(&format!("DROP TRIGGER \"{name}\""))
                .unwrap();
        }
        drop_tables(&n[0], |_| true);
        n[0].app
            .execute_batch("INSERT INTO t VALUES (2, 'b'); COMMIT")
            .unwrap();
        make_again(&mut n[0]);
        n[0].run("INSERT INTO t VALUES (3, 'c')");
        exchange(&mut n);
        assert_eq!(n[1].rows("SELECT v FROM t"), "t'a'\nt'b'\nt'c'");
    }
}
