//! Commands that ask the daemon of a database: `status`, `schema status`, `verify`, `forget`,
//! `pause`, `resume`.

use std::io::Write;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Value as Json, json};

use super::{diag, schema};
use crate::cli::DaemonQuery;
use crate::config::Config;
use crate::http::client::{self, ClientError, ClientResponse};
use crate::output;
use crate::progress::{Unit, Work};
use crate::status::report::{LongWork, Status};
use crate::status::verify::report::VerifyReport;
use crate::status::{text, unattended};

/// Largest answer that is read, in bytes.
const MOST: u64 = 64 << 20;

/// Pause between two reports of the progress of a comparison.
const POLL_PAUSE: Duration = Duration::from_millis(500);

/// Outcome of a command that did not fail, for its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandOutcome {
    /// All is well.
    Fine,
    /// Something is wrong, or nodes differ.
    NotFine,
    /// No daemon answers.
    NoDaemon,
}

impl From<bool> for CommandOutcome {
    fn from(fine: bool) -> CommandOutcome {
        match fine {
            true => CommandOutcome::Fine,
            false => CommandOutcome::NotFine,
        }
    }
}

/// Runs the command and writes its output to `out`. An error says why it cannot be run.
pub fn run(
    config: &Config,
    what: &DaemonQuery,
    json: bool,
    out: &mut dyn Write,
) -> Result<CommandOutcome, String> {
    match what {
        DaemonQuery::Status => status(config, json, out),
        DaemonQuery::Schema { cluster } => schema_status(config, *cluster, json, out),
        DaemonQuery::Verify { repair, dry_run } => verify(config, (*repair, *dry_run), json, out),
        DaemonQuery::Forget { node, dry_run } => forget(config, *node, *dry_run, json, out),
        DaemonQuery::Pause { pauses } => pause(config, *pauses, json, out),
        DaemonQuery::Diag { to } => diag::write(config, to.as_deref(), out),
    }
}

/// The daemon's answer to a `GET`; `None` if no daemon runs.
pub(super) fn get(config: &Config, target: &str) -> Result<Option<ClientResponse>, String> {
    ask(config, |socket| client::get(socket, target))
}

fn post(config: &Config, target: &str) -> Result<Option<ClientResponse>, String> {
    ask(config, |socket| client::post(socket, target))
}

fn ask(
    config: &Config,
    ask: impl FnOnce(&std::path::Path) -> Result<ClientResponse, ClientError>,
) -> Result<Option<ClientResponse>, String> {
    let Some(socket) = &config.control_socket else {
        return Ok(None);
    };
    match ask(socket) {
        Ok(answer) => Ok(Some(answer)),
        Err(ClientError::NoDaemon { .. }) => Ok(None),
        Err(e) => Err(e.to_string()),
    }
}

/// Parses the answer as JSON. An error is the daemon's own text, or says that the answer is not
/// valid.
fn read<T: DeserializeOwned>(answer: ClientResponse) -> Result<T, String> {
    let status = answer.status;
    let body = answer.text(MOST).map_err(|e| format!("the answer: {e}"))?;
    if status != 200 {
        let parsed: Json = serde_json::from_str(&body).unwrap_or_default();
        let mut why = parsed["error"].as_str().unwrap_or(body.trim()).to_owned();
        let works = serde_json::from_value::<Vec<LongWork>>(parsed["progress"].clone());
        for work in works.iter().flatten() {
            why += &format!("; {}", text::at_work(work));
        }
        return Err(why);
    }
    serde_json::from_str(&body).map_err(|e| format!("the answer of the daemon: {e}"))
}

fn no_daemon(config: &Config, json: bool, out: &mut dyn Write) -> Result<CommandOutcome, String> {
    let why = format!(
        "no daemon answers for {}: this command needs a running daemon with a control_socket",
        config.db_path.display()
    );
    let text = match json {
        true => json!({ "error": why }).to_string(),
        false => why,
    };
    write(out, &(text + "\n"))?;
    Ok(CommandOutcome::NoDaemon)
}

fn write(out: &mut dyn Write, text: &str) -> Result<(), String> {
    out.write_all(text.as_bytes()).map_err(output::failed)
}

/// The status from the daemon, or else from the file.
fn find_status(config: &Config) -> Result<Status, String> {
    match get(config, "/status")? {
        Some(answer) => read(answer),
        None => unattended::status(&config.db_path, &config.node_name)
            .map_err(|e| format!("status of {}: {e}", config.db_path.display())),
    }
}

fn status(config: &Config, json: bool, out: &mut dyn Write) -> Result<CommandOutcome, String> {
    let status = find_status(config)?;
    let text = match json {
        true => serde_json::to_string(&status).unwrap_or_default() + "\n",
        false => text::text(&status),
    };
    write(out, &text)?;
    Ok(match status.running {
        true => CommandOutcome::from(status.fine),
        false => CommandOutcome::NoDaemon,
    })
}

fn schema_status(
    config: &Config,
    cluster: bool,
    json: bool,
    out: &mut dyn Write,
) -> Result<CommandOutcome, String> {
    let status = find_status(config)?;
    let (text, is_same) = schema::shown(&status, cluster, json);
    write(out, &text)?;
    Ok(match status.running {
        true => CommandOutcome::from(is_same),
        false => CommandOutcome::NoDaemon,
    })
}

fn forget(
    config: &Config,
    node: u64,
    dry_run: bool,
    json: bool,
    out: &mut dyn Write,
) -> Result<CommandOutcome, String> {
    let dry = if dry_run { "&dry_run" } else { "" };
    let Some(answer) = post(config, &format!("/forget?node={node}{dry}"))? else {
        return no_daemon(config, json, out);
    };
    let done: Json = read(answer)?;
    let text = match (json, dry_run) {
        (true, _) => format!("{done}\n"),
        (_, true) => format!("node {node} would be forgotten\n"),
        (_, false) => format!("node {node} is forgotten\n"),
    };
    write(out, &text)?;
    Ok(CommandOutcome::Fine)
}

fn pause(
    config: &Config,
    pauses: bool,
    json: bool,
    out: &mut dyn Write,
) -> Result<CommandOutcome, String> {
    let target = if pauses { "/pause" } else { "/resume" };
    let Some(answer) = post(config, target)? else {
        return no_daemon(config, json, out);
    };
    let done: Json = read(answer)?;
    let text = match (json, pauses) {
        (true, _) => format!("{done}\n"),
        (_, true) => "paused: it captures and does not connect, until harmonylite resume\n".into(),
        (_, false) => "resumed\n".into(),
    };
    write(out, &text)?;
    Ok(CommandOutcome::Fine)
}

fn verify(
    config: &Config,
    (repair, dry_run): (bool, bool),
    json: bool,
    out: &mut dyn Write,
) -> Result<CommandOutcome, String> {
    let flags = [(repair, "repair"), (dry_run, "dry_run")];
    let flags: Vec<_> = flags.iter().filter(|f| f.0).map(|f| f.1).collect();
    let Some(answer) = post(config, &format!("/verify?{}", flags.join("&")))? else {
        return no_daemon(config, json, out);
    };
    let _: Json = read(answer)?;
    let work = Work::begin("verify", Unit::Parts);
    let report = loop {
        std::thread::sleep(POLL_PAUSE);
        let Some(answer) = get(config, "/verify")? else {
            return Err("the daemon ended meanwhile".into());
        };
        let report: VerifyReport = read(answer)?;
        if !report.running {
            break report;
        }
        work.at(&report.doing, report.rows, report.rows_about);
    };
    drop(work);
    let text = match json {
        true => serde_json::to_string(&report).unwrap_or_default() + "\n",
        false => verdict(&report),
    };
    write(out, &text)?;
    Ok(CommandOutcome::from(report.fine))
}

fn verdict(report: &VerifyReport) -> String {
    let mut lines = Vec::new();
    if let Some(error) = &report.error {
        lines.push(error.clone());
    }
    for node in &report.nodes {
        if let Some(why) = &node.why {
            let why = why.escape_debug();
            lines.push(format!("node {}: not comparable yet: {why}", node.node));
        }
    }
    for (table, why) in &report.left_out {
        lines.push(format!("table {table}: not compared: {why}"));
    }
    for row in &report.different_rows {
        lines.push(format!("table {}, key {} differs", row.table, row.key));
        for on in &row.nodes {
            let state = match (on.present, on.intact) {
                (_, false) if on.written_ms.is_some() => "changed behind the triggers' back",
                (true, _) => "there",
                (false, _) => "not there",
            };
            let written = match (on.written_ms, &on.written_by) {
                (Some(ms), Some(by)) => {
                    format!(
                        ", written {} on node {by}",
                        crate::model::timestamp::shown(ms)
                    )
                }
                _ => ", never heard of".to_owned(),
            };
            lines.push(format!("  node {}: {state}{written}", on.node));
        }
    }
    if report.more {
        lines.push("more rows differ than are listed: run it again once these are equal".into());
    }
    if report.unsettled > 0 {
        let count = report.unsettled;
        lines.push(format!(
            "{count} row(s) are not comparable yet: they change all the time"
        ));
    }
    if report.repaired > 0 {
        let would = if report.dry_run { "would be " } else { "" };
        let count = report.repaired;
        lines.push(format!("{count} row(s) {would}published again"));
    }
    let compared = report.nodes.iter().filter(|n| n.comparable).count();
    let (rows, tables) = (report.rows, report.tables);
    lines.push(match (report.fine, report.differ.is_empty()) {
        (true, _) => {
            format!("all {compared} node(s) hold the same {rows} row(s) in {tables} table(s)")
        }
        (_, true) => format!("no difference among {compared} node(s), but not all was compared"),
        _ => format!("tables that differ: {}", report.differ.join(", ")),
    });
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::verify::report::{Compared, RowDifference, RowOn};

    #[test]
    fn a_row_that_differs_is_named_with_its_nodes() {
        let on = |node: &str, intact| RowOn {
            node: node.into(),
            written_ms: Some(0),
            written_by: Some("1".into()),
            present: true,
            intact,
            digest: String::new(),
        };
        let report = VerifyReport {
            differ: vec!["item".into()],
            different_rows: vec![RowDifference {
                table: "item".into(),
                key: "17".into(),
                nodes: vec![on("1", true), on("2", false)],
            }],
            nodes: vec![Compared {
                node: "3".into(),
                comparable: false,
                why: Some("away".into()),
            }],
            ..VerifyReport::default()
        };
        let text = verdict(&report);
        for says in [
            "node 3: not comparable yet: away",
            "table item, key 17 differs",
            "  node 1: there, written 1970-01-01",
            "  node 2: changed behind the triggers' back",
            "tables that differ: item",
        ] {
            assert!(text.contains(says), "{text}");
        }
    }
}
