//! Triggers of the application that also run for arriving changes: the setting `apply_triggers`.
//!
//! Triggers are off on HarmonyLite's connection, but triggers of the temporary schema fire all the
//! same. So the chosen triggers are copied there, and tried. An arriving change has already
//! happened on a different node and cannot be refused here. Therefore a trigger that cannot run is
//! left out, and a row for which a trigger fails is written without it. Both cases are logged and
//! counted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, mpsc};

use rusqlite::OptionalExtension;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};

use crate::database::schema::quote;
use crate::database::table::Table;
use crate::database::{Database, DatabaseError, Result, sql_text, values};

/// State of the triggers named in `apply_triggers`.
#[derive(Debug, Default)]
pub(crate) struct ApplyTriggers {
    /// Copies in place, in the order in which they were made.
    running: Vec<TriggerCopy>,
    /// Triggers without a copy, each with the reason.
    unsupported: BTreeMap<String, String>,
    /// Tables (lower case) that the copies write to.
    feeds: BTreeSet<String>,
    /// Number of rows since the start that were written without the triggers, by table.
    failures: BTreeMap<String, u64>,
}

#[derive(Debug, Clone)]
struct TriggerCopy {
    name: String,
    /// In lower case.
    table: String,
    /// The statement that makes the copy.
    create: String,
}

impl ApplyTriggers {
    /// Triggers that do not run for arriving changes, each with the reason.
    pub(crate) fn unsupported(&self) -> &BTreeMap<String, String> {
        &self.unsupported
    }

    /// Number of rows since the start that were written without the triggers of their table,
    /// because one of these failed.
    pub(crate) fn failures(&self) -> u64 {
        self.failures.values().sum()
    }

    /// Whether a trigger that runs here writes to the table.
    pub(crate) fn feeds(&self, table: &str) -> bool {
        self.feeds.contains(&table.to_ascii_lowercase())
    }
}

impl Database {
    /// Copies the triggers that can run here. The log names each of the others once. They are tried
    /// again when the schema changes, because a table that they need may exist then.
    pub(crate) fn copy_apply_triggers(&mut self) -> Result<()> {
        let mut waiting: Vec<String> = Vec::new();
        for name in &self.settings.apply_triggers {
            if !waiting.iter().any(|known| known.eq_ignore_ascii_case(name)) {
                waiting.push(name.clone());
            }
        }
        let (mut running, mut feeds) = (Vec::new(), BTreeSet::new());
        let mut unsupported = BTreeMap::new();
        // A trigger may write to a view that has a trigger of its own: it can run only when that
        // trigger is in place. So the rest is tried again as long as a round brings one more.
        loop {
            let before = waiting.len();
            let mut later = Vec::new();
            for name in waiting {
                match self.copy_trigger(&name, &mut feeds) {
                    Ok(trigger) => running.push(trigger),
                    Err(e) if e.is_temporary() => return Err(e),
                    Err(e) => {
                        unsupported.insert(name.clone(), e.to_string());
                        later.push(name);
                    }
                }
            }
            waiting = later;
            if waiting.is_empty() || waiting.len() == before {
                break;
            }
        }
        unsupported.retain(|name, _| waiting.contains(name));
        self.warn_unsupported(&unsupported)?;
        let known = &mut self.apply_triggers;
        (known.running, known.unsupported, known.feeds) = (running, unsupported, feeds);
        Ok(())
    }

    fn warn_unsupported(&self, unsupported: &BTreeMap<String, String>) -> Result<()> {
        let awaits_schema = self.awaits_schema()?;
        for (name, reason) in unsupported {
            if self.apply_triggers.unsupported.get(name) == Some(reason) {
                continue;
            }
            if awaits_schema && self.find_trigger(name)?.is_none() {
                log::warn!("apply_triggers: {name} is searched for again when the schema arrives");
            } else {
                log::error!("trigger {name} does not run for arriving rows: {reason}");
            }
        }
        Ok(())
    }

    /// Copies a trigger, if a statement that fires it can be compiled. SQLite does not check the
    /// body of a trigger before that.
    fn copy_trigger(&mut self, name: &str, feeds: &mut BTreeSet<String>) -> Result<TriggerCopy> {
        let missing = || DatabaseError::NoSuchTrigger(name.to_owned());
        let (table, text) = self.find_trigger(name)?.ok_or_else(missing)?;
        let rest = sql_text::after_trigger_name(&text).ok_or_else(missing)?;
        let create = format!("CREATE TEMP TRIGGER {} {rest}", own_name(name));
        self.conn.execute_batch(&create)?;
        match self.try_trigger(&table, rest) {
            Ok(fed) => feeds.extend(fed),
            Err(e) => {
                self.drop_apply_trigger(name)?;
                return Err(e);
            }
        }
        Ok(TriggerCopy {
            name: name.to_owned(),
            table,
            create,
        })
    }

    /// Tries a trigger on `table` whose copy is in place; `rest` is its text after the name.
    /// Returns the tables (lower case) that it writes to.
    fn try_trigger(&mut self, table: &str, rest: &str) -> Result<BTreeSet<String>> {
        let statement = self.firing_statement(table, rest)?;
        let fed = self.tables_written_by_triggers(&statement)?;
        let mut texts = vec![rest.to_owned()];
        for table in &fed {
            let text = "SELECT sql FROM main.sqlite_schema WHERE name = ?1 COLLATE NOCASE";
            let mut found = self.conn.prepare_cached(text)?;
            texts.extend(
                found
                    .query_row([table], |r| values::lossy(r, 0))
                    .optional()?,
            );
        }
        // A transaction of HarmonyLite holds rows of many writes, and ROLLBACK would undo all of
        // them.
        if texts.iter().any(|text| may_roll_back(text)) {
            let reason =
                "ROLLBACK in it would undo other arriving rows; ABORT undoes one statement";
            return Err(DatabaseError::Unusable(reason.into()));
        }
        Ok(fed)
    }

    /// A statement on a table or view that fires a trigger, derived from the trigger's text after
    /// its name.
    fn firing_statement(&self, table: &str, rest: &str) -> Result<String> {
        let mut columns = self
            .conn
            .prepare_cached("SELECT name FROM pragma_table_xinfo(?1) WHERE hidden NOT IN (2, 3)")?;
        let columns = columns.query_map([table], |r| values::lossy(r, 0))?;
        let columns = columns.collect::<rusqlite::Result<Vec<String>>>()?;
        let words = sql_text::words(rest);
        let mut words = words.iter().map(String::as_str);
        let event = words.find(|w| ["insert", "update", "delete"].contains(w));
        let table = format!("main.{}", quote(table));
        Ok(match event {
            Some("insert") => format!("INSERT INTO {table} DEFAULT VALUES"),
            Some("update") => {
                let set = columns.iter().map(|c| format!("{0} = {0}", quote(c)));
                format!("UPDATE {table} SET {}", set.collect::<Vec<_>>().join(", "))
            }
            _ => format!("DELETE FROM {table}"),
        })
    }

    /// The tables (lower case) that the triggers fired by `statement` would write to. Fails if the
    /// statement cannot be compiled with these triggers.
    fn tables_written_by_triggers(&mut self, statement: &str) -> Result<BTreeSet<String>> {
        let (sender, written) = mpsc::channel();
        let note = move |context: AuthContext<'_>| {
            use AuthAction::{Delete, Insert, Update};
            if let Insert { table_name } | Delete { table_name } | Update { table_name, .. } =
                context.action
                && context.accessor.is_some()
            {
                // The receiver lives as long as the statement.
                let _ = sender.send(table_name.to_ascii_lowercase());
            }
            Authorization::Allow
        };
        self.conn.authorizer(Some(note))?;
        let compiled = self.conn.prepare(statement).map(drop);
        self.conn
            .authorizer(None::<fn(AuthContext<'_>) -> Authorization>)?;
        compiled?;
        Ok(written.try_iter().collect())
    }

    pub(crate) fn drop_apply_triggers(&self) -> Result<()> {
        let names = &self.settings.apply_triggers;
        names
            .iter()
            .try_for_each(|name| self.drop_apply_trigger(name))
    }

    fn drop_apply_trigger(&self, name: &str) -> Result<()> {
        let text = format!("DROP TRIGGER IF EXISTS temp.{}", own_name(name));
        Ok(self.conn.execute_batch(&text)?)
    }

    /// Whether the table has a trigger that `apply_triggers` names.
    pub(super) fn has_apply_triggers(&self, table: &str) -> Result<bool> {
        for name in &self.settings.apply_triggers {
            let found = self.find_trigger(name)?;
            if found.is_some_and(|(on, _)| on.eq_ignore_ascii_case(table)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Like [`Database::guarded`], for writing rows of a table. If `f` fails with the copied
    /// triggers of the table, it runs again without them. `f` is given the table as it is in that
    /// run, and `is_written` says of a result of `f` whether the rows were written.
    pub(crate) fn guarded_rows<T>(
        &mut self,
        table: &Arc<Table>,
        is_written: impl Fn(&T) -> bool,
        mut f: impl FnMut(&mut Self, &Arc<Table>) -> Result<T>,
    ) -> Result<std::result::Result<T, String>> {
        let done = self.guarded(|db| f(db, table))?;
        let Err(reason) = &done else {
            return Ok(done);
        };
        if !table.fires {
            return Ok(done);
        }
        let name = table.name().to_ascii_lowercase();
        let running = self.apply_triggers.running.iter();
        let own: Vec<TriggerCopy> = running.filter(|t| t.table == name).cloned().collect();
        for trigger in &own {
            self.drop_apply_trigger(&trigger.name)?;
        }
        let mut without = Table::clone(table);
        without.fires = false;
        let without = Arc::new(without);
        let again = self.guarded(|db| f(db, &without))?;
        for trigger in &own {
            self.conn.execute_batch(&trigger.create)?;
        }
        if again.as_ref().is_ok_and(is_written) {
            self.note_failure(&name, reason);
        }
        Ok(again)
    }

    /// Logs the failure for the first row of a table, the tenth, the hundredth and so on.
    fn note_failure(&mut self, table: &str, reason: &str) {
        let failures = self
            .apply_triggers
            .failures
            .entry(table.to_owned())
            .or_default();
        *failures += 1;
        if 10_u64.pow(failures.ilog10()) == *failures {
            log::warn!(
                "a trigger in apply_triggers failed for an arriving row of table {table} \
                 ({failures} so far), and the row is written without it: {reason}; rebuild the \
                 index or table that the trigger feeds"
            );
        }
    }

    /// Fails if a trigger in `apply_triggers` is missing at the start: its name may be misspelled.
    /// If the schema is still to come, from the application or with a snapshot, the triggers come
    /// with it, and nothing is checked.
    pub(crate) fn require_apply_triggers(&self) -> Result<()> {
        if self.awaits_schema()? {
            return Ok(());
        }
        for name in &self.settings.apply_triggers {
            if self.find_trigger(name)?.is_none() {
                return Err(DatabaseError::NoSuchTrigger(name.clone()));
            }
        }
        Ok(())
    }

    /// Whether the database has no table of the application yet, or a snapshot may bring some.
    fn awaits_schema(&self) -> Result<bool> {
        if self.settings.joins_by_snapshot && !self.joined {
            return Ok(true);
        }
        let text = "SELECT NOT EXISTS (SELECT 1 FROM main.sqlite_schema WHERE type = 'table'
            AND name NOT GLOB 'sqlite_*' AND name NOT GLOB '__harmonylite__*')";
        Ok(self
            .conn
            .prepare_cached(text)?
            .query_row([], |r| r.get(0))?)
    }

    /// The table of the trigger, in lower case, and the trigger's text.
    fn find_trigger(&self, name: &str) -> Result<Option<(String, String)>> {
        let text = "SELECT lower(tbl_name), sql FROM main.sqlite_schema
             WHERE type = 'trigger' AND name = ?1 COLLATE NOCASE";
        let mut found = self.conn.prepare_cached(text)?;
        let read = |r: &rusqlite::Row<'_>| Ok((values::lossy(r, 0)?, values::lossy(r, 1)?));
        Ok(found.query_row([name], read).optional()?)
    }
}

/// SQL name of the copy of a trigger.
fn own_name(name: &str) -> String {
    quote(&format!("apply_{name}"))
}

/// Whether a trigger may roll back, by its own text or the text of a table that it writes to.
fn may_roll_back(text: &str) -> bool {
    let words = sql_text::words(text);
    let ends = |before: &[&str]| {
        let mut windows = words.windows(before.len() + 1);
        windows.any(|w| w[..before.len()] == *before && w[before.len()] == "rollback")
    };
    ends(&["raise", "("]) || ends(&["or"]) || ends(&["conflict"])
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use rusqlite::Connection;

    use super::*;
    use crate::apply::tests::support::{Node, exchange, settings};
    use crate::clock::SystemClock;
    use crate::database::Settings;

    const SCHEMA: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE TABLE seen(id);
        CREATE TRIGGER note AFTER INSERT ON t BEGIN INSERT INTO seen VALUES (new.id); END";

    fn named(settings: &mut Settings) {
        settings.apply_triggers = vec!["note".into()];
    }

    #[test]
    fn they_come_with_the_schema() {
        let mut n = vec![
            Node::new(1, "CREATE TABLE t(id INTEGER PRIMARY KEY, v)"),
            Node::with(2, "", named),
        ];
        n[1].run(SCHEMA);
        n[1].capture();
        n[0].run("INSERT INTO t VALUES (7, 'a')");
        exchange(&mut n);
        assert_eq!(n[1].rows("SELECT id FROM seen"), "i7");
    }

    #[test]
    fn a_misspelled_name_is_refused_where_tables_are() {
        let dir = tempfile::tempdir().unwrap();
        let path: PathBuf = dir.path().join("a.db");
        let app = Connection::open(&path).unwrap();
        app.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY)")
            .unwrap();
        let mut settings = Settings { path, ..settings() };
        named(&mut settings);
        let refused = Database::open(settings, Arc::new(SystemClock), Arc::default());
        assert!(matches!(refused, Err(DatabaseError::NoSuchTrigger(_))));
    }
}
