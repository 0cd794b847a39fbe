//! Virtual tables whose content is not for others: an index that is excluded itself, or one over an
//! excluded table. Only its module can empty such a table, so it is dropped and created again.

use rusqlite::Connection;

use crate::config::Choice;
use crate::database::schema::quote;
use crate::database::storage::{self, Virtual};
use crate::database::{Database, sql_text, values};

impl Database {
    /// The virtual tables that must be empty in a copy in which the tables `empty` are.
    pub(super) fn indexes_to_empty(&self, empty: &[String]) -> rusqlite::Result<Vec<String>> {
        let mut found = Vec::new();
        for index in storage::virtual_tables(&self.conn)? {
            let choice = self.settings.tables.choose(&index.name, &[]);
            let is_excluded = matches!(choice, Choice::Excluded(_));
            let is_fed = self.apply_triggers.feeds(&index.name);
            if (is_excluded && !is_fed) || is_over(&self.conn, &index, empty)? {
                found.push(index.name);
            }
        }
        Ok(found)
    }
}

/// Whether an index reads the content of one of the tables, directly or through a view.
fn is_over(conn: &Connection, index: &Virtual, tables: &[String]) -> rusqlite::Result<bool> {
    let Some(content) = index.content() else {
        return Ok(false);
    };
    let text =
        "SELECT sql FROM main.sqlite_schema WHERE type = 'view' AND name = ?1 COLLATE NOCASE";
    let mut views = conn.prepare_cached(text)?;
    let views = views.query_map([&content], |r| values::lossy(r, 0))?;
    let mut names = vec![content.to_ascii_lowercase()];
    for view in views {
        names.extend(sql_text::words(&view?));
    }
    let is_named = |table: &String| names.contains(&table.to_ascii_lowercase());
    Ok(tables.iter().any(is_named))
}

/// Drops and creates a virtual table. A table whose module is unknown here stays as it is, and the
/// log names it.
pub(super) fn empty(copy: &Connection, index: &str) -> rusqlite::Result<()> {
    let text = "SELECT sql FROM main.sqlite_schema WHERE type = 'table' AND name = ?1";
    let create: String = copy.query_row(text, [index], |r| r.get(0))?;
    // Without a journal nothing can be undone, but an unknown module is an error before anything is
    // done.
    let made = copy.execute_batch(&format!(
        "PRAGMA secure_delete = ON; DROP TABLE {}; {create}",
        quote(index)
    ));
    if let Err(e) = made {
        log::warn!("the virtual table {index} cannot be emptied in the snapshot: {e}");
    }
    Ok(())
}
