//! Lets our triggers detect that a statement may replace rows, at no cost for one that may not.
//!
//! A BEFORE INSERT trigger of ours must name the rows that the new row may evict: afterwards they
//! are gone. Most statements that meet such a row evict none: OR IGNORE and ON CONFLICT DO NOTHING
//! leave the new row out, and that must not write a page. No SQL function shows the conflict clause
//! of the running statement, but that clause overrules those of the statements in a trigger
//! (<https://www.sqlite.org/lang_createtrigger.html>). So the trigger says INSERT OR IGNORE into a
//! table where the new row always conflicts with the one that is there. Nothing happens unless the
//! statement says OR REPLACE. In that case the row there is replaced, and the trigger of that table
//! notes the key in the change log.
//!
//! A statement that says OR ABORT, OR FAIL or OR ROLLBACK fails in the trigger already, and would
//! fail in the table, too. That must be certain: [`super::triggers`] takes this way only where it
//! is.

use std::collections::HashMap;

use crate::database::schema::quote;
use crate::database::triggers::{LOG, MAYBE};
use crate::database::{Database, Result, values};

/// Table with one row, with which every new row conflicts.
pub(super) const TABLE: &str = "__harmonylite___replacing";

/// The trigger of that table.
const TRIGGER: &str = "__harmonylite___replaced";

/// The table and its trigger as `sqlite_schema` has them, for keys of up to `keys` columns.
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
    /// Whether the table and its trigger are in place for the change log as it is. Removes that
    /// trigger from `triggers`, which leaves those of the user's tables.
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

    /// Creates the table and its trigger if some table of the user needs them.
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
