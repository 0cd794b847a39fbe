//! Triggers of the application that write to tables which are not replicated. For changes that
//! arrive, they run only if `apply_triggers` names them.

use rusqlite::Connection;

use super::TableReport;
use crate::database::schema::PREFIX;
use crate::database::{sql_text, values};

/// A trigger on a replicated table that writes to tables which are not.
pub(crate) struct Feeding {
    pub name: String,
    pub table: String,
    /// The tables that it writes to and that are not replicated.
    pub feeds: Vec<String>,
    /// Whether `apply_triggers` names it.
    pub is_applied: bool,
}

/// The triggers on replicated tables that write to tables which are not.
pub(super) fn feeding(
    conn: &Connection,
    tables: &[TableReport],
    apply_triggers: &[String],
) -> rusqlite::Result<Vec<Feeding>> {
    let find = |name: &str| {
        let mut tables = tables.iter();
        tables.find(|table| table.name.eq_ignore_ascii_case(name))
    };
    let mut found = Vec::new();
    for (name, table, text) in triggers(conn)? {
        if find(&table).is_none_or(|table| table.not_replicated.is_some()) {
            continue;
        }
        let written = sql_text::written_tables(&text).into_iter();
        let written = written.filter_map(|name| find(&name));
        let mut feeds: Vec<String> = written
            .filter(|table| table.not_replicated.is_some())
            .map(|table| table.name.clone())
            .collect();
        feeds.sort();
        feeds.dedup();
        if !feeds.is_empty() {
            let mut applied = apply_triggers.iter();
            found.push(Feeding {
                is_applied: applied.any(|applied| applied.eq_ignore_ascii_case(&name)),
                name,
                table,
                feeds,
            });
        }
    }
    Ok(found)
}

/// Names in `names` that belong to no trigger.
pub(super) fn missing(conn: &Connection, names: &[String]) -> rusqlite::Result<Vec<String>> {
    let known = triggers(conn)?;
    let is_known = |name: &str| known.iter().any(|(k, ..)| k.eq_ignore_ascii_case(name));
    let missing = names.iter().filter(|name| !is_known(name));
    Ok(missing.cloned().collect())
}

/// Name, table and text of the application's triggers.
fn triggers(conn: &Connection) -> rusqlite::Result<Vec<(String, String, String)>> {
    let mut list = conn.prepare(
        "SELECT name, tbl_name, sql FROM main.sqlite_schema WHERE type = 'trigger' ORDER BY name",
    )?;
    let all = list.query_map([], |r| {
        Ok((
            values::lossy(r, 0)?,
            values::lossy(r, 1)?,
            values::lossy(r, 2)?,
        ))
    })?;
    let own =
        |t: &rusqlite::Result<(String, _, _)>| !matches!(t, Ok((n, ..)) if n.starts_with(PREFIX));
    all.filter(own).collect()
}
