//! Where threads that answer somebody meet the thread that speaks with the broker.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::peers::Peers;
use crate::status::verify::message::Request;
use crate::status::verify::report::Report;
use crate::status::verify::worker::Job;
use crate::stream::StreamError;
use crate::stream::key_value::KeyValue;

/// Who asks is answered within this time, with or without the broker.
const PATIENCE: Duration = Duration::from_secs(4);

const OFF: &str = "status_interval = 0: this node neither tells of itself nor asks for others";

/// What does not change while the process runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct About {
    /// `node_name`.
    pub name: String,
    /// The streams that are read, by shard.
    pub streams: Vec<String>,
}

/// Something to be asked of the bucket in which nodes leave word.
type Query = Box<dyn FnOnce(&KeyValue<'_>) -> Result<(), StreamError> + Send>;

/// A question to the thread.
pub enum Ask {
    /// Something of the bucket.
    Bucket(Query, Sender<Result<(), String>>),
    /// What is known of the other nodes.
    Peers(Sender<Result<Peers, String>>),
    /// Forget a node that is gone; or, with `true`, say whether that would be done.
    Forget(u64, bool, Sender<Result<(), String>>),
}

/// See the module's head.
pub struct Board {
    about: OnceLock<About>,
    asks: OnceLock<Sender<Ask>>,
    changed: (Sender<()>, Receiver<()>),
    jobs: OnceLock<Sender<Job>>,
    /// Of the run under way, or the last one.
    report: Mutex<Option<Report>>,
}

impl Default for Board {
    fn default() -> Self {
        Board {
            about: OnceLock::new(),
            asks: OnceLock::new(),
            changed: bounded(1),
            jobs: OnceLock::new(),
            report: Mutex::new(None),
        }
    }
}

impl Board {
    /// What this node says of itself. Once.
    pub fn introduce(&self, about: About) {
        let _ = self.about.set(about);
    }

    /// A thread answers from now on. Once.
    pub(super) fn open(&self, asks: Sender<Ask>) {
        let _ = self.asks.set(asks);
    }

    pub fn about(&self) -> About {
        self.about.get().cloned().unwrap_or_default()
    }

    /// Something that the node tells of itself may have changed.
    pub fn note_change(&self) {
        let _ = self.changed.0.try_send(());
    }

    pub(super) fn changes(&self) -> Receiver<()> {
        self.changed.1.clone()
    }

    /// What the broker knows of the other nodes; an error: why that cannot be told.
    pub fn peers(&self) -> Result<Peers, String> {
        self.ask(Ask::Peers)
    }

    /// Takes a node off the list. An error: why not.
    pub fn forget(&self, node: u64, dry_run: bool) -> Result<(), String> {
        self.ask(|reply| Ask::Forget(node, dry_run, reply))
    }

    /// Asks the bucket, on the thread that has the connection.
    pub fn with_bucket<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&KeyValue<'_>) -> Result<T, StreamError> + Send + 'static,
    ) -> Result<T, String> {
        let (result, found) = bounded(1);
        let query: Query = Box::new(move |bucket| {
            let _ = result.send(ask(bucket)?);
            Ok(())
        });
        self.ask(|reply| Ask::Bucket(query, reply))?;
        found.try_recv().map_err(|e| e.to_string())
    }

    /// A thread does the work from now on. Once.
    pub(crate) fn employ(&self, jobs: Sender<Job>) {
        let _ = self.jobs.set(jobs);
    }

    /// Another node compares rows.
    pub(super) fn answer(&self, request: Request) {
        if let Some(jobs) = self.jobs.get() {
            let _ = jobs.try_send(Job::Answer(request));
        }
    }

    /// Begins to compare the rows of all nodes. An error: why not.
    pub fn begin_verify(&self, repair: bool, dry_run: bool) -> Result<(), String> {
        let jobs = self.jobs.get().ok_or(OFF)?;
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        if report.as_ref().is_some_and(|report| report.running) {
            return Err("rows are being compared already".into());
        }
        let sent = jobs.try_send(Job::Run { repair, dry_run });
        sent.map_err(|_| "this node answers another node just now: try again")?;
        *report = Some(Report {
            running: true,
            ..Report::default()
        });
        Ok(())
    }

    /// What the run under way, or the last one, found.
    pub fn verify_report(&self) -> Option<Report> {
        let report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        report.clone()
    }

    pub(crate) fn set_report(&self, report: Report) {
        *self.report.lock().unwrap_or_else(PoisonError::into_inner) = Some(report);
    }

    fn ask<T>(&self, ask: impl FnOnce(Sender<Result<T, String>>) -> Ask) -> Result<T, String> {
        let asks = self.asks.get().ok_or(OFF)?;
        let (reply, answer) = bounded(1);
        let gone = |_| "the daemon is stopping".to_owned();
        asks.send(ask(reply)).map_err(|e| gone(e.to_string()))?;
        let late = |_| "the broker did not answer in time".to_owned();
        answer.recv_timeout(PATIENCE).map_err(late)?
    }
}
