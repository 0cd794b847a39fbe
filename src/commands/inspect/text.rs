//! The report as text.

use std::path::Path;

use crate::inspect::{InspectReport, TableReport};

/// The kinds of tables in the order in which they are listed, each with its heading.
const PARTS: [(&str, &str); 6] = [
    ("replicated", "replicated"),
    (
        "local",
        "local: each node has its own; they are in snapshots",
    ),
    ("excluded", "excluded: they are not in snapshots either"),
    ("virtual", "virtual: each node's module keeps its own"),
    ("storage", "storage of virtual tables"),
    ("unsupported", "unsupported: they cannot be replicated"),
];

/// Names are padded to the longest of them, but to no more characters than this.
const WIDEST: usize = 40;

pub(super) fn text(path: &Path, report: &InspectReport) -> String {
    let mut lines = vec![match report.tables.len() {
        0 => format!("{}: no tables", path.display()),
        count => format!("{}: {count} table(s)", path.display()),
    }];
    let names = report.tables.iter().map(|table| table.name.chars().count());
    let width = names.max().unwrap_or(0).min(WIDEST);
    for (part, heading) in PARTS {
        let mut tables = report.tables.iter().filter(|t| t.part() == part).peekable();
        if tables.peek().is_some() {
            lines.push(heading.to_owned());
        }
        lines.extend(tables.map(|table| {
            let name = table.name.escape_debug().to_string();
            format!("  {name:width$}  {}", described(table))
                .trim_end()
                .to_owned()
        }));
    }
    for trigger in &report.feeding {
        let applied = match trigger.is_applied {
            true => "is in apply_triggers",
            false => "is not in apply_triggers",
        };
        lines.push(format!(
            "trigger {} of {} writes to {}: it {applied}",
            trigger.name,
            trigger.table,
            trigger.feeds.join(", ")
        ));
    }
    lines.extend(report.dangers.iter().map(|d| format!("danger: {}", d.text)));
    if !report.lines.is_empty() {
        lines.push("to write into the configuration:".to_owned());
        lines.extend(report.lines.iter().map(|line| format!("  {line}")));
    }
    lines.join("\n") + "\n"
}

fn described(table: &TableReport) -> String {
    if let Some(left) = &table.not_replicated {
        return left.reason.clone();
    }
    let mut said = vec![match table.key.is_empty() {
        true => "by rowid".to_owned(),
        false => format!("key {}", table.key.join(", ")),
    }];
    if table.numbers_itself {
        said.push("numbers itself".to_owned());
    }
    if let Some(natural) = &table.natural_key {
        said.push(format!("unique by {}", natural.join(", ")));
    }
    let needs = table.needs.iter();
    said.extend(needs.map(|need| format!("{} (SQLite {})", need.feature, need.version)));
    said.join("; ")
}
