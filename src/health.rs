//! The problems of this moment, for people or programs that watch many nodes.
//!
//! A thread that retries reports a failing subject here with its cause, and reports it ok once it
//! works ([`Health`]). Lasting problems (such as missed messages) are read from the database on a
//! request ([`report`]), so that a healthy, idle node does no work for this.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::database::{Database, Result};
use crate::model::text::shortened;
use crate::seal::Seal;

/// Rows are counted up to this number, so that neither the client nor the node waits.
pub const COUNTED: u64 = 10_000;

/// The value of `status` while there are no problems.
pub const HEALTHY: &str = "healthy";
/// The value of `status` while there are problems.
pub const UNHEALTHY: &str = "unhealthy";

/// Most bytes of a cause, which may come from another program.
const TEXT_BYTES: usize = 1000;

/// How long an event is shown that a person should look at.
const SHOWN: Duration = Duration::from_secs(3600);

/// Problems by their subject.
#[derive(Debug, Default)]
pub struct Health {
    troubles: Mutex<BTreeMap<String, String>>,
    /// What happened and is shown for a while, by subject.
    events: Mutex<BTreeMap<String, (String, Instant)>>,
    last: Mutex<Option<LastFailure>>,
    /// Why this node is offline on purpose. Whoever reports a failure holds it meanwhile.
    offline: Mutex<Option<String>>,
    /// Counts what is refused because of its seal.
    seal: OnceLock<Arc<Seal>>,
}

/// The last reported failure, whether it lasts or not.
#[derive(Debug, Clone)]
pub struct LastFailure {
    /// The failing part, such as "connecting".
    pub subject: String,
    /// The cause, cut after 1000 bytes.
    pub why: String,
    /// When it was reported.
    pub at: Instant,
}

impl Health {
    /// Reports that `subject` fails, with its cause. A part that only lacks the broker does not
    /// fail while this node is offline on purpose.
    pub fn report_failing(&self, subject: &str, why: &str) {
        let offline = self.offline.lock();
        let offline = offline.unwrap_or_else(PoisonError::into_inner);
        if needs_broker(subject) && offline.is_some() {
            return;
        }
        let (subject, why) = (subject.to_owned(), shortened(why, TEXT_BYTES).into_owned());
        let last = LastFailure {
            subject: subject.clone(),
            why: why.clone(),
            at: Instant::now(),
        };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
        self.with(|troubles| {
            troubles.insert(subject, why);
        });
    }

    /// Notes why this node is offline on purpose; `None`: it is not.
    pub fn set_offline(&self, why: Option<String>) {
        let offline = self.offline.lock();
        let mut offline = offline.unwrap_or_else(PoisonError::into_inner);
        *offline = why;
        if offline.is_some() {
            self.with(|troubles| troubles.retain(|subject, _| !needs_broker(subject)));
        }
    }

    /// Why this node is offline on purpose; `None` if it is not.
    pub fn offline(&self) -> Option<String> {
        let offline = self.offline.lock();
        offline.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The last failure; none if nothing failed since the start.
    pub fn last(&self) -> Option<LastFailure> {
        let last = self.last.lock();
        last.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on what this seal refuses counts.
    pub fn watch_seal(&self, seal: &Arc<Seal>) {
        let _ = self.seal.set(seal.clone());
    }

    /// How many messages, values and objects were refused because of their seal.
    pub fn refused(&self) -> u64 {
        self.seal.get().map_or(0, |seal| seal.refusals.count())
    }

    /// Reports that `subject` works.
    pub fn report_ok(&self, subject: &str) {
        self.with(|troubles| {
            troubles.remove(subject);
        });
    }

    /// Reports something that happened once and that a person should look at: it is shown for an
    /// hour.
    pub fn report_event(&self, subject: &str, what: &str) {
        let event = (shortened(what, TEXT_BYTES).into_owned(), Instant::now());
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.retain(|_, (_, at)| at.elapsed() < SHOWN);
        events.insert(subject.to_owned(), event);
    }

    /// All problems that threads reported, and what happened within the last hour.
    fn problems(&self) -> BTreeMap<String, String> {
        let mut problems = self.with(|troubles| troubles.clone());
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = events.iter().filter(|(_, (_, at))| at.elapsed() < SHOWN);
        problems.extend(shown.map(|(subject, (what, _))| (subject.clone(), what.clone())));
        problems
    }

    fn with<T>(&self, change: impl FnOnce(&mut BTreeMap<String, String>) -> T) -> T {
        change(&mut self.troubles.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Whether a subject is of threads that do nothing without the broker.
fn needs_broker(subject: &str) -> bool {
    matches!(subject, "connecting" | "publishing" | "snapshots") || subject.starts_with("reading ")
}

/// All problems and counts as JSON; `status` is "healthy" while `problems` is empty. Without a
/// database, which an application may have locked, the threads' problems alone. Fails if the
/// database cannot be read.
pub fn report(health: &Health, database: Option<&Database>) -> Result<Value> {
    let mut problems = health.problems();
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
            [] => "were dropped by the broker before this node read them".to_owned(),
            tables => format!("were let go as far as they change {}", tables.join(", ")),
        };
        let text = format!(
            "messages up to {} {cause}: this node lacks changes until a snapshot brings them",
            missed.seq
        );
        problems.insert(format!("gap in {stream}"), text);
    }
    let seal = health.seal.get();
    if let Some(text) = seal.and_then(|seal| seal.refusals.problem()) {
        problems.insert("cluster key".to_owned(), text);
    }
    if let Some(text) = database.clock_problem() {
        problems.insert("clock".to_owned(), text);
    }
    if let Some(text) = database.ahead_problem() {
        problems.insert("versions".to_owned(), text);
    }
    let triggers = &database.apply_triggers;
    for (name, reason) in triggers.unsupported() {
        let text = format!("does not run for arriving rows: {reason}");
        problems.insert(format!("trigger {name}"), text);
    }
    for left in database
        .not_replicated()
        .iter()
        .filter(|l| l.kind.is_a_problem())
    {
        let text = format!("is not replicated any more: {}", left.reason);
        problems.insert(format!("table {}", left.table), text);
    }
    for (table, text) in database.gone_lately() {
        problems.insert(format!("table {table}"), text.to_owned());
    }
    if let Some(text) = database.kept_here_problem() {
        problems.insert("rows that stay here".to_owned(), text);
    }
    if let Some(text) = database.held_problem() {
        problems.insert("held rows".to_owned(), text);
    }
    for table in database.unfit_let_go() {
        let text = "changes that do not fit it take more than max_held_bytes, and are let go: \
                    change it as on the other nodes, and a snapshot brings them; see `harmonylite \
                    held`";
        problems.insert(format!("rows of table {table}"), text.to_owned());
    }
    let with_go = database.nodes_with_go();
    if !with_go.is_empty() {
        let text = format!(
            "nodes {with_go:?} run the Go version, which cannot read frames of this version: \
             replace it there"
        );
        problems.insert("nodes of the Go version".to_owned(), text);
    }
    Ok(json!({
        "status": if problems.is_empty() { HEALTHY } else { UNHEALTHY },
        "node_id": database.node(),
        "problems": problems,
        "holds_rows": database.holds_rows()?,
        "held": database.held_up_to(COUNTED)?,
        "held_bytes": database.held_bytes(),
        "let_go": database.counts().let_go,
        "kept_here": database.counts().kept_here,
        "passed_over": database.passed_over(),
        "displaced": database.displaced_up_to(COUNTED)?,
        "rejected": database.rejected(),
        "quarantined": database.quarantined()?,
        "refused": health.refused(),
        "from_go": database.go_events(),
        "triggers_missed": database.missed_triggers(),
        "triggers_left_out": triggers.unsupported().len(),
        "trigger_failures": triggers.failures(),
        "dangling_rows_seen": database.dangling_seen(),
        "rows_gone": database.rows_gone(),
        "tables": tables(database),
        "waiting_tables": waiting(database),
    }))
}

/// The tables that a migration probably works on, each with the longest time left to wait.
fn waiting(database: &Database) -> Vec<Value> {
    let each = database.held_up().into_iter();
    let each = each.map(|(table, why, left)| {
        json!({ "table": table, "reason": why, "seconds_left": left.as_secs() })
    });
    each.collect()
}

/// The tables that are not replicated, each with the reason.
fn tables(database: &Database) -> Vec<Value> {
    let each = database.not_replicated().iter();
    let each = each.map(
        |left| json!({ "table": left.table, "part": left.kind.name(), "reason": left.reason }),
    );
    each.collect()
}
