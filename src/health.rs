//! What is wrong just now, for whoever watches many nodes.
//!
//! Threads that try again and again say here why, and take it back when it works ([`Health`]). What
//! lasts (messages that were missed) is asked of the database when
//! somebody wants to know ([`report`]), so that a healthy, idle node does nothing for it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde_json::{Value, json};

use crate::database::{Database, Result};
use crate::model::text::shortened;

/// Rows are counted up to here: who asks must not wait, nor must the node.
pub const COUNTED: u64 = 10_000;

/// The two values of `status`.
pub const HEALTHY: &str = "healthy";
pub const UNHEALTHY: &str = "unhealthy";

/// A text that comes from elsewhere is told up to so many bytes.
const TEXT_BYTES: usize = 1000;

/// Troubles by their subject.
#[derive(Debug, Default)]
pub struct Health {
    troubles: Mutex<BTreeMap<String, String>>,
    last: Mutex<Option<Trouble>>,
}

/// The last thing that did not work, whether it does by now or not.
#[derive(Debug, Clone)]
pub struct Trouble {
    pub subject: String,
    pub why: String,
    pub at: Instant,
}

impl Health {
    /// `subject` does not work, and why.
    pub fn report_failing(&self, subject: &str, why: &str) {
        let (subject, why) = (subject.to_owned(), shortened(why, TEXT_BYTES).into_owned());
        let last = Trouble {
            subject: subject.clone(),
            why: why.clone(),
            at: Instant::now(),
        };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
        self.with(|troubles| {
            troubles.insert(subject, why);
        });
    }

    /// None if nothing failed since the start.
    pub fn last(&self) -> Option<Trouble> {
        let last = self.last.lock();
        last.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// `subject` works.
    pub fn report_ok(&self, subject: &str) {
        self.with(|troubles| {
            troubles.remove(subject);
        });
    }

    fn with<T>(&self, look: impl FnOnce(&mut BTreeMap<String, String>) -> T) -> T {
        look(&mut self.troubles.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// All that is known, as JSON: `status` is "healthy" as long as `problems` is empty. Without a
/// database, which somebody may have locked, what the threads say.
pub fn report(health: &Health, database: Option<&Database>) -> Result<Value> {
    let mut problems = health.with(|troubles| troubles.clone());
    let Some(database) = database else {
        let busy = "it is busy: perhaps an application holds its write lock";
        problems
            .entry("database".to_owned())
            .or_insert(busy.to_owned());
        return Ok(json!({ "status": UNHEALTHY, "problems": problems }));
    };
    let awaited: Vec<&str> = database.awaited().iter().map(String::as_str).collect();
    for (stream, missed) in database.missed() {
        let cause = match &awaited[..] {
            [] => "were gone from the broker before they were read here".to_owned(),
            tables => format!(
                "were passed over as far as they are of {}",
                tables.join(", ")
            ),
        };
        let text = format!(
            "messages up to {} {cause}: this node lacks changes until a snapshot brings them",
            missed.seq
        );
        problems.insert(format!("gap in {stream}"), text);
    }
    let triggers = &database.apply_triggers;
    for (name, reason) in triggers.left_out() {
        let text = format!("does not run for what arrives: {reason}");
        problems.insert(format!("trigger {name}"), text);
    }
    for (table, text) in database.gone_lately() {
        problems.insert(format!("table {table}"), text.to_owned());
    }
    let with_go = database.nodes_with_go();
    if !with_go.is_empty() {
        let text = format!(
            "publish with the Go version, which does not read what this version publishes: replace \
             it there ({with_go:?})"
        );
        problems.insert("nodes of the Go version".to_owned(), text);
    }
    Ok(json!({
        "status": if problems.is_empty() { HEALTHY } else { UNHEALTHY },
        "node_id": database.node(),
        "problems": problems,
        "holds_rows": database.holds_rows()?,
        "held": database.held_up_to(COUNTED)?,
        "passed_over": database.passed_over(),
        "displaced": database.displaced_up_to(COUNTED)?,
        "rejected": database.rejected(),
        "quarantined": database.quarantined()?,
        "from_go": database.go_events(),
        "triggers_missed": database.missed_triggers(),
        "triggers_left_out": triggers.left_out().len(),
        "trigger_failures": triggers.failures(),
        "dangling_rows_seen": database.dangling_seen(),
        "rows_gone": database.rows_gone(),
        "tables": tables(database),
        "waiting_tables": waiting(database),
    }))
}

/// The tables that a migration seems to be at work on.
fn waiting(database: &Database) -> Vec<Value> {
    let each = database.held_up().into_iter();
    let each = each.map(|(table, why, left)| {
        json!({ "table": table, "reason": why, "seconds_left": left.as_secs() })
    });
    each.collect()
}

/// The tables that are not replicated, each with the reason.
fn tables(database: &Database) -> Vec<Value> {
    let each = database.left_alone().iter();
    let each = each.map(
        |left| json!({ "table": left.table, "part": left.kind.name(), "reason": left.reason }),
    );
    each.collect()
}
