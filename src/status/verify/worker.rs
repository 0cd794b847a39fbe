//! Thread: does long work one after the other: a run that was asked for here, and answers to the
//! runs of other nodes. It exists only meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use rustix::rand::GetRandomFlags;

use super::answer::{AnswerError, SliceReader, answer, captured};
use super::message::{ANSWER, MAX_BYTES, REQUEST, VerifyAnswer, VerifyRequest, Want};
use super::report::VerifyReport;
use super::run::{Nodes, verify};
use crate::model::text::hex;
use crate::progress::{Unit, Work};
use crate::shared::Shared;
use crate::thread::{Exited, OnDemand};

/// Shortest time to wait for the other nodes. The wait is longer if this node took longer itself.
const PATIENCE: Duration = Duration::from_secs(30);

/// Pauses between two checks whether they answered: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(300);

/// Name of the run among works that take long.
pub const WORK: &str = "verify";

/// A job of the thread.
#[derive(Debug)]
pub enum VerifyJob {
    /// Compare the rows of all nodes, and make them equal if that is wanted.
    Run {
        /// Publish the newest version of each row that differs.
        repair: bool,
        /// Name what a repair would publish, and publish nothing.
        dry_run: bool,
    },
    /// Answer another node's run.
    Answer(VerifyRequest),
}

/// What the thread works with.
pub struct VerifyWorker {
    shared: Arc<Shared>,
    stop: Receiver<()>,
    jobs: Receiver<VerifyJob>,
}

/// Takes jobs from now on. Work ends when `stop` is closed.
pub fn start(shared: Arc<Shared>, stop: Receiver<()>, exits: &Sender<Exited>) {
    // At most one job waits. A node that asks meanwhile gets no answer, and asks again.
    let (sender, jobs) = bounded(1);
    let board = shared.clone();
    let worker = VerifyWorker { shared, stop, jobs };
    let thread = OnDemand::new("verify", exits, worker, work);
    board.status.employ((sender, thread));
}

fn work(mut worker: VerifyWorker, thread: &OnDemand<VerifyWorker>) {
    loop {
        let VerifyWorker { shared, stop, jobs } = &worker;
        for job in jobs.try_iter() {
            match job {
                VerifyJob::Run { repair, dry_run } => run(shared, stop, repair, dry_run),
                VerifyJob::Answer(request) => {
                    if let Err(why) = tell(shared, &request, stop) {
                        log::debug!("verify: {why}");
                    }
                }
            }
        }
        match thread.rest(worker, |worker| worker.jobs.is_empty()) {
            Some(again) => worker = again,
            None => return,
        }
    }
}

fn run(shared: &Arc<Shared>, stop: &Receiver<()>, repair: bool, dry_run: bool) {
    let mut random = [0; 40];
    if rustix::rand::getrandom(&mut random[..], GetRandomFlags::empty()).is_err() {
        shared.status.set_report(VerifyReport {
            error: Some("the system gives no random numbers".into()),
            ..VerifyReport::default()
        });
        return;
    }
    let mut over = OverBucket {
        shared,
        stop,
        this: shared.lock().database.node(),
        run: hex(&random[32..]),
        key: hex(&random[..32]),
        step: 0,
        asked: Vec::new(),
        work: Work::begin(WORK, Unit::Parts),
    };
    let report = verify(&mut over, repair, dry_run);
    over.tidy();
    let (differ, left_out) = (report.differ.len(), report.left_out.len());
    match &report.error {
        Some(why) => log::warn!("verify: {why}"),
        None if report.fine => log::info!("verify: all nodes hold the same rows"),
        None => log::warn!("verify: {differ} table(s) differ, {left_out} were not compared"),
    }
    shared.status.set_report(report);
}

/// Answers another node's run by way of the bucket.
fn tell(shared: &Arc<Shared>, request: &VerifyRequest, stop: &Receiver<()>) -> Result<(), String> {
    let answer = own(shared, request, stop).map_err(|e| e.to_string())?;
    let key = format!("{ANSWER}{}", shared.lock().database.node());
    put(shared, key, serde_json::to_vec(&answer).unwrap_or_default())
}

/// The answer of this node.
fn own(
    shared: &Arc<Shared>,
    request: &VerifyRequest,
    stop: &Receiver<()>,
) -> Result<VerifyAnswer, AnswerError> {
    let Want::Repair(fixes) = &request.want else {
        return answer(shared, request, stop);
    };
    let repaired = captured(shared, stop, |db| db.repair(fixes))?.unwrap_or(0);
    shared.note_change();
    shared.wake_publisher();
    if repaired > 0 {
        log::warn!("verify: {repaired} row(s) that differ between nodes are published again");
    }
    Ok(VerifyAnswer {
        run: request.run.clone(),
        step: request.step,
        repaired,
        ..VerifyAnswer::default()
    })
}

fn put(shared: &Shared, key: String, bytes: Vec<u8>) -> Result<(), String> {
    shared
        .status
        .with_bucket(move |bucket| bucket.put(&key, &bytes).map(drop))
}

/// The nodes, reached by way of the broker's bucket.
struct OverBucket<'a> {
    shared: &'a Arc<Shared>,
    stop: &'a Receiver<()>,
    this: u64,
    run: String,
    key: String,
    step: u32,
    asked: Vec<u64>,
    /// The run, as health and metrics show it.
    work: Work,
}

impl OverBucket<'_> {
    fn answers(&self) -> Result<BTreeMap<u64, VerifyAnswer>, String> {
        let keys: Vec<String> = self
            .asked
            .iter()
            .map(|id| format!("{ANSWER}{id}"))
            .collect();
        let found = self
            .shared
            .status
            .with_bucket(move |bucket| bucket.get_all(&keys, MAX_BYTES))?;
        let parsed = self.asked.iter().zip(found).filter_map(|(id, found)| {
            let answer: VerifyAnswer = serde_json::from_slice(&found?.value).ok()?;
            let is_this = answer.run == self.run && answer.step == self.step;
            is_this.then_some((*id, answer))
        });
        Ok(parsed.collect())
    }

    /// The nodes that tell of themselves.
    fn others(&self) -> Result<Vec<u64>, String> {
        let status = crate::status::now(self.shared).map_err(|e| e.to_string())?;
        if let Some(why) = status.others_unknown {
            return Err(format!("the other nodes are not known: {why}"));
        }
        let others = status.others.iter().filter(|n| n.tells());
        Ok(others.filter_map(|n| n.node.parse().ok()).collect())
    }

    /// Deletes the keys that the run left in the bucket.
    fn tidy(&self) {
        let keys = self.asked.iter().map(|id| format!("{ANSWER}{id}"));
        let keys: Vec<String> = keys.chain([REQUEST.to_owned()]).collect();
        let tidied = self
            .shared
            .status
            .with_bucket(move |bucket| keys.iter().try_for_each(|key| bucket.delete(key)));
        if let Err(why) = tidied {
            log::debug!("verify: {why}");
        }
    }
}

impl Nodes for OverBucket<'_> {
    fn this(&self) -> u64 {
        self.this
    }

    fn ask(&mut self, want: &Want) -> Result<BTreeMap<u64, Option<VerifyAnswer>>, String> {
        if *want == Want::Tables {
            self.asked = self.others()?;
        }
        self.step += 1;
        let request = VerifyRequest {
            run: self.run.clone(),
            step: self.step,
            by: self.this,
            key: self.key.clone(),
            want: want.clone(),
        };
        let bytes = serde_json::to_vec(&request).unwrap_or_default();
        put(self.shared, REQUEST.to_owned(), bytes)?;
        let began = Instant::now();
        let own = own(self.shared, &request, self.stop).map_err(|e| e.to_string())?;
        let deadline = Instant::now() + PATIENCE.max(4 * began.elapsed());
        let mut pause = FIRST_PAUSE;
        loop {
            let mut answers = self.answers()?;
            if answers.len() == self.asked.len() || Instant::now() > deadline {
                let asked = self.asked.iter();
                let others = asked.map(|id| (*id, answers.remove(id)));
                let mut all: BTreeMap<_, _> = others.collect();
                all.insert(self.this, Some(own));
                return Ok(all);
            }
            if self.stop.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                return Err("stopped".into());
            }
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    fn reader(&self) -> SliceReader<'_> {
        SliceReader::new(self.shared, self.stop)
    }

    fn note(&mut self, report: &VerifyReport) {
        self.work.at(&report.doing, report.rows, report.rows_about);
        self.shared.status.set_report(report.clone());
    }
}
