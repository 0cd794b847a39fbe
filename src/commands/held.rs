//! `harmonylite held`: shows the rows that [`crate::apply::held_report`] finds, as text or as JSON;
//! and drops them.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use crate::apply::{
    HeldReport, HeldTable, ask_to_drop_held, drop_held, held_report, is_asked_to_drop_held,
};
use crate::lock;
use crate::model::timestamp::shown;

/// Number of the JSON's layout.
const VERSION: u32 = 1;

/// A running daemon has dropped the rows within this time, or says why not.
const PATIENCE: Duration = Duration::from_secs(30);

/// Pause between two checks whether it has.
const POLL_PAUSE: Duration = Duration::from_millis(100);

/// Writes to `out` which rows are held.
pub fn show(path: &Path, as_json: bool, out: &mut dyn Write) -> Result<(), String> {
    let report =
        held_report(path).map_err(|e| format!("held changes in {}: {e}", path.display()))?;
    let text = match as_json {
        true => format!("{}\n", json(&report)),
        false => text(&report),
    };
    out.write_all(text.as_bytes())
        .map_err(|e| format!("writing the held changes: {e}"))
}

/// Drops the held rows of a table, through the daemon if one runs. Fails if none are held, or if a
/// running daemon has not dropped them within 30 s.
pub fn drop(path: &Path, table: &str, as_json: bool, out: &mut dyn Write) -> Result<(), String> {
    let failed = |e: &dyn std::fmt::Display| format!("-drop {table}: {}: {e}", path.display());
    let lower = table.to_ascii_lowercase();
    let report = held_report(path).map_err(|e| failed(&e))?;
    let rows = report
        .tables
        .iter()
        .find(|t| t.table == lower)
        .map(|t| t.rows);
    let is_held = ask_to_drop_held(path, &lower).map_err(|e| failed(&e))?;
    let Some(rows) = rows.filter(|_| is_held) else {
        return Err(failed(&"nothing is held of that table"));
    };
    let deadline = Instant::now() + PATIENCE;
    while is_asked_to_drop_held(path, &lower).map_err(|e| failed(&e))? {
        // A daemon may begin or end meanwhile.
        if let Ok(_lock) = lock::take_database(path, Duration::ZERO, || false) {
            drop_held(path, &lower).map_err(|e| failed(&e))?;
        } else if Instant::now() > deadline {
            return Err(failed(
                &"the daemon is still dropping the rows: see its log",
            ));
        } else {
            std::thread::sleep(POLL_PAUSE);
        }
    }
    let text = match as_json {
        true => format!(
            "{}\n",
            json!({ "version": VERSION, "table": lower, "dropped": rows })
        ),
        false => format!("dropped {rows} row(s) of table {lower}\n"),
    };
    out.write_all(text.as_bytes())
        .map_err(|e| format!("writing the result: {e}"))
}

fn text(report: &HeldReport) -> String {
    let mut text: String = report.tables.iter().map(table_text).collect();
    for table in &report.let_go {
        text += &format!(
            "table {table}: changes are let go; a snapshot brings them once the table is here\n"
        );
    }
    for table in &report.unfit {
        text += &format!(
            "table {table}: changes that do not fit it are let go (max_held_bytes); a snapshot \
             brings them once the table is changed here\n"
        );
    }
    for table in &report.awaited {
        text += &format!("table {table}: a snapshot will bring the changes that were let go\n");
    }
    if text.is_empty() {
        text += "nothing is held\n";
    }
    text
}

fn table_text(held: &HeldTable) -> String {
    let HeldTable {
        table,
        rows,
        bytes,
        oldest_ms,
        newest_ms,
        ..
    } = held;
    let mut text = format!(
        "table {table}: {rows} row(s), {} KB, written {} to {}\n",
        bytes.div_ceil(1024),
        shown(*oldest_ms),
        shown(*newest_ms)
    );
    for (reason, rows) in &held.reasons {
        text += &format!("  {rows} row(s): {}\n", reason.escape_debug());
    }
    for line in advice(held) {
        text += &format!("  -> {line}\n");
    }
    text
}

/// Lists the actions that an operator can take.
fn advice(held: &HeldTable) -> Vec<String> {
    let table = &held.table;
    let mut lines = Vec::new();
    if !held.is_here {
        lines.push(format!(
            "create the table here, by the migration that made it on the other nodes; or exclude \
             it: [tables] exclude = [\"{table}\"]; or give the rows up: harmonylite held -drop \
             {table}"
        ));
    }
    let here = held.key_here.as_deref().unwrap_or_default();
    let (before, others): (Vec<&str>, Vec<&str>) = held
        .keys
        .iter()
        .map(String::as_str)
        .partition(|key| held.former_keys.iter().any(|former| former == key));
    if !others.is_empty() {
        lines.push(format!(
            "migrate the table: its key is ({here}) here and ({}) in the rows",
            others.join(") or (")
        ));
    }
    if !before.is_empty() {
        lines.push(format!(
            "run the migration that changed the key here on the nodes that have not run it: their \
             rows have the key ({}), and arrive again under ({here}); if no node has the old key \
             any more, give the rows up: harmonylite held -drop {table}",
            before.join(") or (")
        ));
    }
    for (column, class) in &held.columns {
        lines.push(format!(
            "add the column, by the migration that made it on the other nodes: ALTER TABLE {table} \
             ADD COLUMN {column} (holds {class})"
        ));
    }
    if held.is_here && held.keys.is_empty() && held.columns.is_empty() {
        lines.push(
            "change the constraint here, or the rows where they were written: HarmonyLite tries \
             them again when either changes"
                .into(),
        );
    }
    lines
}

fn json(report: &HeldReport) -> Json {
    let table = |held: &HeldTable| {
        let reasons = held.reasons.iter();
        let reasons = reasons.map(|(reason, rows)| json!({ "reason": reason, "rows": rows }));
        let columns = held.columns.iter();
        let columns = columns.map(|(name, class)| json!({ "name": name, "holds": class }));
        json!({
            "table": held.table,
            "is_here": held.is_here,
            "rows": held.rows,
            "bytes": held.bytes,
            "oldest_ms": held.oldest_ms,
            "newest_ms": held.newest_ms,
            "reasons": reasons.collect::<Vec<_>>(),
            "missing_columns": columns.collect::<Vec<_>>(),
            "keys": held.keys,
            "key_here": held.key_here,
            "former_keys": held.former_keys,
            "advice": advice(held),
        })
    };
    json!({
        "version": VERSION,
        "tables": report.tables.iter().map(table).collect::<Vec<_>>(),
        "passed_over": report.let_go,
        "awaited": report.awaited,
        "unfit": report.unfit,
    })
}
