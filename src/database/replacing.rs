//! How our triggers see that a statement may replace rows, and cost nothing where it may not.
//!
//! A BEFORE INSERT trigger of ours must name the rows that the new one may evict: afterwards they
//! are gone. Most statements that meet such a row evict none: OR IGNORE and ON CONFLICT DO NOTHING
//! leave the new row out, and that must not write a page. No function tells what a statement says
//! of conflicts, but it overrules what is said in the statements of a trigger
//! (<https://www.sqlite.org/lang_createtrigger.html>). So the trigger says INSERT OR IGNORE into a
//! table where the new row always meets another: nothing happens, unless the statement says OR
//! REPLACE. Then the row there is replaced, and the trigger of that table notes the key in the raw
//! log.
//!
//! What says OR ABORT, OR FAIL or OR ROLLBACK fails here already, where it would fail in the table.
//! That must be certain: see [`super::triggers`] for where this way is taken.

use std::collections::HashMap;

use crate::database::schema::quote;
use crate::database::triggers::{LOG, MAYBE};
use crate::database::{Database, Result, values};

/// Holds one row, which every other meets.
pub(super) const TABLE: &str = "__harmonylite___replacing";

/// The trigger of that table.
const TRIGGER: &str = "__harmonylite___replaced";

/// The table and its trigger as `sqlite_schema` has them, for keys of so many columns.
fn wanted(keys: usize) -> [String; 2] {
    let columns = |prefix: &str| {
        let each = (1..=keys).map(|i| format!(", {prefix}k{i}"));
        each.collect::<String>()
    };
    [
        format!(
            "CREATE TABLE {TABLE}(id INTEGER PRIMARY KEY, table_id, created_at{})",
            columns("")
        ),
        format!(
            "CREATE TRIGGER {TRIGGER} AFTER INSERT ON {TABLE} BEGIN \
             INSERT INTO {LOG}(table_id, kind, created_at{}) \
             VALUES (NEW.table_id, {MAYBE}, NEW.created_at{}); END",
            columns(""),
            columns("NEW.")
        ),
    ]
}

impl Database {
    /// Whether both are in place for the log as it is. Takes the trigger out of those of the
    /// tables.
    pub(super) fn sees_replacing(&self, triggers: &mut HashMap<String, String>) -> Result<bool> {
        let trigger = triggers.remove(TRIGGER);
        let [table, text] = wanted(self.catalog.log_keys);
        Ok(trigger == Some(text) && self.has_replacing_table(&table)?)
    }

    fn has_replacing_table(&self, text: &str) -> Result<bool> {
        let mut there = self
            .conn
            .prepare_cached("SELECT sql FROM main.sqlite_schema WHERE name = ?1")?;
        let mut found = there.query_map([TABLE], |r| values::lossy(r, 0))?;
        Ok(found.next().transpose()?.is_some_and(|sql| sql == text))
    }

    /// Puts both in place where some table needs them.
    pub(super) fn set_replacing(&self) -> Result<()> {
        let mut tables = self.catalog.by_id.values();
        if !tables.any(|table| table.schema.notes_replacing()) {
            return Ok(());
        }
        let texts = wanted(self.catalog.log_keys);
        let mut triggers = self.installed_triggers()?;
        if !self.sees_replacing(&mut triggers)? {
            self.conn.execute_batch(&format!(
                "DROP TRIGGER IF EXISTS {TRIGGER}; DROP TABLE IF EXISTS {}; {}",
                quote(TABLE),
                texts.join("; ")
            ))?;
        }
        let row = format!("INSERT OR IGNORE INTO {TABLE}(id) VALUES (1)");
        self.conn.execute(&row, [])?;
        Ok(())
    }
}
