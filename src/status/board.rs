//! Connects threads that answer requests with the thread that speaks with the broker. That thread,
//! and the one that compares rows, exist only while they have something to do.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::peers::PeerStates;
use super::thread::{StatusThread, Waits};
use crate::status::verify::message::VerifyRequest;
use crate::status::verify::report::VerifyReport;
use crate::status::verify::worker::{VerifyJob, VerifyWorker};
use crate::stream::StreamError;
use crate::stream::key_value::KeyValue;
use crate::thread::OnDemand;

/// A request is answered within this time, with or without the broker.
const PATIENCE: Duration = Duration::from_secs(4);

const OFF: &str = "status_interval = 0: this node neither publishes its state nor reads that of \
                   the others";

/// Facts that do not change while the process runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct About {
    /// `node_name`.
    pub name: String,
    /// The streams that this node reads, by shard.
    pub streams: Vec<String>,
}

/// A query to the bucket in which nodes leave word.
type Query = Box<dyn FnOnce(&KeyValue<'_>) -> Result<(), StreamError> + Send>;

/// A question to the thread.
pub enum StatusRequest {
    /// Runs a query on the bucket.
    Bucket(Query, Sender<Result<(), String>>),
    /// Asks for the known facts about the other nodes.
    Peers(Sender<Result<PeerStates, String>>),
    /// Forgets a node that is gone; with `true`, only checks whether it may be forgotten.
    Forget(u64, bool, Sender<Result<(), String>>),
    /// A node wrote to the bucket under this subject.
    Word(String),
}

/// A thread, and where its work is put.
type Desk<Work, State> = (Sender<Work>, Arc<OnDemand<State>>);

/// See the module's head.
pub struct Board {
    about: OnceLock<About>,
    desks: Mutex<Desks>,
    changed: (Sender<()>, Receiver<()>),
    waits: (Sender<Waits>, Receiver<Waits>),
    /// Report of the run under way, or of the last one.
    report: Mutex<Option<VerifyReport>>,
    /// Since when rows wait here or something fails, by the broker's clock.
    trouble_ms: Mutex<Option<i64>>,
}

#[derive(Default)]
struct Desks {
    status: Option<Desk<StatusRequest, StatusThread>>,
    verify: Option<Desk<VerifyJob, VerifyWorker>>,
}

impl Default for Board {
    fn default() -> Self {
        Board {
            about: OnceLock::new(),
            desks: Mutex::default(),
            changed: bounded(1),
            waits: unbounded(),
            report: Mutex::new(None),
            trouble_ms: Mutex::new(None),
        }
    }
}

impl Board {
    /// Sets the facts that this node tells of itself. Only the first call counts.
    pub fn introduce(&self, about: About) {
        let _ = self.about.set(about);
    }

    /// Notes the thread that answers from now on.
    pub(super) fn open(&self, desk: Desk<StatusRequest, StatusThread>) {
        self.desks().status = Some(desk);
    }

    /// Lets go of the threads, and returns those that run.
    pub fn close(&self) -> Vec<JoinHandle<()>> {
        let desks = std::mem::take(&mut *self.desks());
        let status = desks.status.and_then(|(_, thread)| thread.thread());
        let verify = desks.verify.and_then(|(_, thread)| thread.thread());
        status.into_iter().chain(verify).collect()
    }

    fn desks(&self) -> MutexGuard<'_, Desks> {
        self.desks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Receives what the thread waits for while it does not exist. The receiver waits for that, and
    /// calls [`Board::wake`].
    pub fn waits(&self) -> Receiver<Waits> {
        self.waits.1.clone()
    }

    pub(super) fn tell_waits(&self, waits: Waits) {
        let _ = self.waits.0.send(waits);
    }

    /// Starts the thread that speaks with the broker; `word` is the subject of a message for it.
    pub fn wake(&self, word: Option<String>) {
        if let Some((asks, thread)) = &self.desks().status {
            word.map(|subject| asks.send(StatusRequest::Word(subject)));
            thread.wake();
        }
    }

    /// The facts set by [`Board::introduce`]; empty before.
    pub fn about(&self) -> About {
        self.about.get().cloned().unwrap_or_default()
    }

    /// Notes whether rows wait here or something fails at this moment. Returns since when.
    pub(super) fn trouble_since(&self, is_in_trouble: bool, now_ms: Option<i64>) -> Option<i64> {
        let mut since = self
            .trouble_ms
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *since = match is_in_trouble {
            true => since.or(now_ms),
            false => None,
        };
        *since
    }

    /// Notes that something which the node tells of itself may have changed.
    pub fn note_change(&self) {
        let _ = self.changed.0.try_send(());
    }

    pub(super) fn changes(&self) -> Receiver<()> {
        self.changed.1.clone()
    }

    /// The other nodes, as the broker's bucket has them. An error says why they are not known.
    pub fn peers(&self) -> Result<PeerStates, String> {
        self.ask(StatusRequest::Peers)
    }

    /// Takes a node off the list; with `dry_run`, only checks whether that is allowed. An error
    /// says why not.
    pub fn forget(&self, node: u64, dry_run: bool) -> Result<(), String> {
        self.ask(|reply| StatusRequest::Forget(node, dry_run, reply))
    }

    /// Runs a query on the bucket, on the thread that has the connection. An error says why there
    /// is no answer: the broker fails, does not answer within 4 s, or `status_interval` is 0.
    pub fn with_bucket<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&KeyValue<'_>) -> Result<T, StreamError> + Send + 'static,
    ) -> Result<T, String> {
        let (result, found) = bounded(1);
        let query: Query = Box::new(move |bucket| {
            let _ = result.send(ask(bucket)?);
            Ok(())
        });
        self.ask(|reply| StatusRequest::Bucket(query, reply))?;
        found.try_recv().map_err(|e| e.to_string())
    }

    /// Notes the thread that takes jobs from now on.
    pub(crate) fn employ(&self, desk: Desk<VerifyJob, VerifyWorker>) {
        self.desks().verify = Some(desk);
    }

    /// Hands over another node's request to compare rows. It is dropped if the thread has a job
    /// waiting.
    pub(super) fn answer(&self, request: VerifyRequest) {
        if let Some((jobs, thread)) = &self.desks().verify {
            let _ = jobs.try_send(VerifyJob::Answer(request));
            thread.wake();
        }
    }

    /// Begins to compare the rows of all nodes. An error says why that is not possible now.
    pub fn begin_verify(&self, repair: bool, dry_run: bool) -> Result<(), String> {
        let desks = self.desks();
        let (jobs, thread) = desks.verify.as_ref().ok_or(OFF)?;
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        if report.as_ref().is_some_and(|report| report.running) {
            return Err("rows are being compared already".into());
        }
        let sent = jobs.try_send(VerifyJob::Run { repair, dry_run });
        sent.map_err(|_| "this node answers another node just now: try again")?;
        *report = Some(VerifyReport {
            running: true,
            ..VerifyReport::default()
        });
        thread.wake();
        Ok(())
    }

    /// The report of the run under way, or of the last one.
    pub fn verify_report(&self) -> Option<VerifyReport> {
        let report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        report.clone()
    }

    pub(crate) fn set_report(&self, report: VerifyReport) {
        *self.report.lock().unwrap_or_else(PoisonError::into_inner) = Some(report);
    }

    fn ask<T>(
        &self,
        ask: impl FnOnce(Sender<Result<T, String>>) -> StatusRequest,
    ) -> Result<T, String> {
        let (reply, answer) = bounded(1);
        let desks = self.desks();
        let (asks, thread) = desks.status.as_ref().ok_or(OFF)?;
        let _ = asks.send(ask(reply));
        thread.wake();
        drop(desks);
        let late = |_| "the broker did not answer in time".to_owned();
        answer.recv_timeout(PATIENCE).map_err(late)?
    }
}
