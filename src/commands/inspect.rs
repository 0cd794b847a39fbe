//! `harmonylite inspect`: shows how each table of a database takes part, and which dangers it has,
//! as text or as JSON. It needs no daemon and changes nothing on disk.

use std::io::Write;
use std::path::Path;

use serde_json::{Value as Json, json};

use crate::config::{Config, Tables};
use crate::database::read_only::ReadOnly;
use crate::inspect::{Chosen, Feeding, InspectReport, TableReport, order};
use crate::output;

mod text;

/// Number of the JSON's layout. It is raised when something in it gets a different meaning.
const VERSION: u32 = 1;

/// Number of attempts to read the file. It is read without locks, so it may change meanwhile.
const TRIES: usize = 5;

/// Writes the report about a database. Returns an error if there is a danger, or if the database
/// cannot be read. No configuration counts as one with defaults alone.
pub fn show(
    path: &Path,
    config: Option<&Config>,
    as_json: bool,
    out: &mut dyn Write,
) -> Result<(), String> {
    let defaults = Tables::default();
    let chosen = config.map_or(
        Chosen {
            tables: &defaults,
            apply_triggers: &[],
            allow_rowid_tables: true,
        },
        Chosen::from,
    );
    let report = read_report(path, &chosen)?;
    let said = match as_json {
        true => format!("{:#}\n", json(path, &report)),
        false => text::text(path, &report),
    };
    out.write_all(said.as_bytes()).map_err(output::failed)?;
    match report.dangers.len() {
        0 => Ok(()),
        count => Err(format!("{}: {count} danger(s), see above", path.display())),
    }
}

/// Writes the same report for `-check`. Dangers are no error here.
pub fn show_beside_check(config: &Config, out: &mut dyn Write) -> Result<(), String> {
    if !config.db_path.exists() {
        return Ok(());
    }
    let report = read_report(&config.db_path, &Chosen::from(config))?;
    let said = text::text(&config.db_path, &report);
    out.write_all(said.as_bytes()).map_err(output::failed)
}

fn read_report(path: &Path, chosen: &Chosen<'_>) -> Result<InspectReport, String> {
    let failed = |e: &dyn std::fmt::Display| format!("inspecting {}: {e}", path.display());
    for _ in 0..TRIES {
        let read = ReadOnly::open(path).map_err(|e| failed(&e))?;
        let report = InspectReport::read(&read.conn, chosen);
        if read.is_sound() {
            return report.map_err(|e| failed(&e));
        }
    }
    Err(failed(&"it is written all the time: try again"))
}

fn json(path: &Path, report: &InspectReport) -> Json {
    let table = |table: &TableReport| {
        json!({
            "table": table.name,
            "part": table.part(),
            "reason": table.not_replicated.as_ref().map(|left| &left.reason),
            "key": table.key,
            "goes_by": table.goes_by(),
            "natural_key": table.natural_key,
            "numbers_itself": table.numbers_itself,
            "needs_sqlite": table.needs.iter().map(|n| n.version).max_by_key(|v| order(v)),
            "features": table.needs.iter().map(|n| n.feature).collect::<Vec<_>>(),
        })
    };
    let trigger = |trigger: &Feeding| {
        json!({
            "trigger": trigger.name,
            "table": trigger.table,
            "feeds": trigger.feeds,
            "in_apply_triggers": trigger.is_applied,
        })
    };
    json!({
        "version": VERSION,
        "database": path.display().to_string(),
        "sqlite": rusqlite::version(),
        "tables": report.tables.iter().map(table).collect::<Vec<_>>(),
        "triggers": report.feeding.iter().map(trigger).collect::<Vec<_>>(),
        "dangers": report.dangers.iter().map(|d| &d.text).collect::<Vec<_>>(),
        "configuration": report.lines,
    })
}

#[cfg(test)]
mod tests;
