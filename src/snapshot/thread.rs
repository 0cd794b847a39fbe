//! Thread: keeps snapshots. It wakes when another thread notifies it, when a node leaves word in
//! the broker's bucket, and when the interval is over; on an idle node it does not wake at all.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Select, Sender, never};
use log::Level;

use crate::clock::{Clock, SystemClock};
use crate::cluster::dialer::Dialer;
use crate::cluster::registry::KeyValueRegistry;
use crate::database::DatabaseError;
use crate::logging::RepeatedFailure;
use crate::memory;
use crate::model::backoff::Backoff;
use crate::progress::{Unit, Work};
use crate::shared::Shared;
use crate::snapshot::error::TransferError;
use crate::snapshot::scheduler::{NextRound, Round, RoundError, Scheduler, SchedulerOptions};
use crate::snapshot::watch::{self, Watch};
use crate::store::{Store, StoreError};
use crate::stream::StreamError;
use crate::thread::{Exited, spawn};

/// How often the log tells how far long work is.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// After this many failures in a row, a person who waits for a snapshot is told: a quarter of a
/// minute, and the time that each attempt takes.
const TRIES: u32 = 6;

/// How to reach the registry and the store.
pub struct Places {
    /// Connects to the registry of snapshots; fails while the broker is away.
    pub registry: Box<dyn Fn() -> Result<KeyValueRegistry, StreamError> + Send>,
    /// Connects to the store of snapshots.
    pub store: Box<dyn Fn() -> Result<Box<dyn Store>, StoreError> + Send>,
    /// When the broker may be tried.
    pub dialer: Arc<Dialer>,
}

/// A person's request for a snapshot.
pub struct SnapshotRequest {
    /// Receives the result: `Ok` once the snapshot is made, else why it cannot be.
    pub reply: Sender<Result<(), String>>,
    /// The newest snapshot will do if nothing was written since.
    pub only_if_new: bool,
}

/// Channels and conditions of the thread.
pub struct Inputs {
    /// Closed to end the thread.
    pub stop: Receiver<()>,
    /// Requests for a snapshot.
    pub asks: Receiver<SnapshotRequest>,
    /// Whether a person waits for a snapshot: then the number of attempts is limited.
    pub is_awaited: bool,
}

struct Snapshots {
    shared: Arc<Shared>,
    scheduler: Scheduler,
    places: Places,
    inputs: Inputs,
    notifications: Receiver<()>,
    registry: Option<KeyValueRegistry>,
    backoff: Backoff,
    /// Closed when an attempt may succeed earlier than expected.
    called: Receiver<()>,
    asked: Vec<SnapshotRequest>,
    failure: RepeatedFailure,
    /// Whether a person asked for a snapshot and was told nothing yet.
    owes_word: bool,
    /// Whether the store failed. Then only a person's request is a reason to try again before the
    /// wait is over: each attempt may copy the whole database, and while rows change there is
    /// always an event.
    holds: bool,
    sweep: Option<super::Sweep>,
}

/// Starts the thread; it ends when `stop` is closed.
pub fn start(
    shared: Arc<Shared>,
    options: SchedulerOptions,
    places: Places,
    inputs: Inputs,
    backoff: Backoff,
    exits: &Sender<Exited>,
) -> JoinHandle<()> {
    let snapshots = Snapshots {
        notifications: shared.scheduler_notifications(),
        shared,
        scheduler: Scheduler::new(options),
        places,
        inputs,
        registry: None,
        backoff,
        called: never(),
        asked: Vec::new(),
        failure: RepeatedFailure::default(),
        owes_word: false,
        holds: false,
        sweep: None,
    };
    spawn("snapshots", exits, move || snapshots.run())
}

/// An event that wakes the thread.
enum SnapshotEvent {
    Stop,
    Poke,
    /// A node wrote to the broker's bucket. `None`: the connection is gone, and the next round
    /// makes a new one.
    Word(Option<nats::Message>),
    Ask(SnapshotRequest),
    Timeout,
}

impl Snapshots {
    fn run(mut self) -> Result<(), String> {
        let mut next_round_at = Some(Instant::now());
        let mut is_word = true;
        let mut failures = 0;
        loop {
            match self.next_event(next_round_at) {
                SnapshotEvent::Stop => return Ok(()),
                SnapshotEvent::Poke => {}
                SnapshotEvent::Word(message) => {
                    if let (Some(registry), Some(message)) = (&mut self.registry, &message) {
                        registry.note(message);
                    }
                    is_word = true;
                }
                SnapshotEvent::Ask(ask) => {
                    self.owes_word = true;
                    self.scheduler.ask(ask.only_if_new);
                    self.asked.push(ask);
                }
                SnapshotEvent::Timeout => is_word = true,
            }
            let done = self.work(is_word);
            self.shared
                .measures
                .heard_of_snapshot(self.scheduler.newest());
            self.shared.let_read();
            is_word = false;
            self.holds = matches!(done, Err(RoundError::Transfer(_)));
            self.called = never();
            next_round_at = match done {
                Ok(next) => {
                    failures = 0;
                    self.backoff.reset();
                    self.failure.ends();
                    self.shared.health.report_ok("snapshots");
                    if self.scheduler.is_asked() && self.owes_word {
                        log::info!(
                            "snapshot: one is asked for; this node makes it as soon as it may"
                        );
                    }
                    self.owes_word = false;
                    self.answer(None);
                    match next {
                        NextRound::Rest => None,
                        NextRound::After(wait) => Some(Instant::now() + wait),
                    }
                }
                Err(RoundError::Stopped | RoundError::Transfer(TransferError::Stopped)) => {
                    return Ok(());
                }
                Err(e) => {
                    self.report(&e);
                    failures += 1;
                    if self.inputs.is_awaited && failures >= TRIES {
                        self.answer(Some(&format!("gave up after {failures} tries: {e}")));
                    }
                    is_word = true;
                    let (next, called) = self.places.dialer.next(self.backoff.wait());
                    self.called = called;
                    Some(next)
                }
            };
        }
    }

    fn next_event(&self, next_round_at: Option<Instant>) -> SnapshotEvent {
        let silence = never();
        let changes = self.registry.as_ref().map_or(&silence, |r| r.changes());
        let mut select = Select::new_biased();
        let stop = select.recv(&self.inputs.stop);
        let ask = select.recv(&self.inputs.asks);
        let call = select.recv(&self.called);
        let (word, notification) = match self.holds {
            // Events in between are handled with the next attempt.
            true => (usize::MAX, usize::MAX),
            false => (select.recv(changes), select.recv(&self.notifications)),
        };
        let operation = match next_round_at {
            Some(at) => match select.select_deadline(at) {
                Ok(operation) => operation,
                Err(_) => return SnapshotEvent::Timeout,
            },
            None => select.select(),
        };
        match operation.index() {
            i if i == ask => operation
                .recv(&self.inputs.asks)
                .map_or(SnapshotEvent::Stop, SnapshotEvent::Ask),
            i if i == call => {
                let _ = operation.recv(&self.called);
                SnapshotEvent::Timeout
            }
            i if i == word => SnapshotEvent::Word(operation.recv(changes).ok()),
            i if i == notification => {
                let _ = operation.recv(&self.notifications);
                SnapshotEvent::Poke
            }
            i => {
                debug_assert_eq!(i, stop);
                let _ = operation.recv(&self.inputs.stop);
                SnapshotEvent::Stop
            }
        }
    }

    fn work(&mut self, is_word: bool) -> Result<NextRound, RoundError> {
        self.drop_tombstones()?;
        if !is_word && !self.scheduler.has_work(&self.shared)? {
            return Ok(self.scheduler.rest(&self.shared));
        }
        let registry = match &mut self.registry {
            Some(registry) => registry,
            none => {
                self.scheduler.connected();
                none.insert((self.places.registry)()?)
            }
        };
        registry.note_all();
        let mut watch = Progress::new(&self.inputs.stop, "snapshot");
        let next = self.scheduler.round(&mut Round {
            shared: &self.shared,
            registry,
            open_store: &*self.places.store,
            watch: &mut watch,
        });
        if watch.has_worked {
            let released = self.shared.lock().database.release_memory();
            released.unwrap_or_else(|e| log::debug!("snapshot: releasing memory: {e}"));
            memory::release();
        }
        next
    }

    /// Drops tombstones whose time is over, in short steps.
    fn drop_tombstones(&mut self) -> Result<(), RoundError> {
        self.shared.lock().database.note_age()?;
        if self.sweep.is_none() && self.shared.all_at_end() {
            self.sweep = self.shared.lock().database.sweep()?;
        }
        while let Some(sweep) = &mut self.sweep {
            let turn = self.shared.take_turn();
            let mut locked = self.shared.lock_to_write();
            let done = locked.database.sweep_step(sweep)?;
            let held = locked.began.elapsed();
            drop(locked);
            if done {
                if sweep.dropped > 0 {
                    log::info!("forgot {} deleted row(s)", sweep.dropped);
                }
                self.sweep = None;
                break;
            }
            let pause = self.shared.rest(turn, held);
            if self.inputs.stop.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                return Err(RoundError::Stopped);
            }
        }
        Ok(())
    }

    /// Answers the requests for a snapshot, once it is made or cannot be.
    fn answer(&mut self, failure: Option<&str>) {
        if self.scheduler.is_asked() && failure.is_none() {
            return; // not yet
        }
        for ask in self.asked.drain(..) {
            let _ = ask
                .reply
                .send(failure.map_or(Ok(()), |text| Err(text.to_owned())));
        }
    }

    fn report(&mut self, e: &RoundError) {
        if let RoundError::Database(DatabaseError::Dropped | DatabaseError::Stopped)
        | RoundError::Transfer(TransferError::Database(
            DatabaseError::Dropped | DatabaseError::Stopped,
        )) = e
        {
            log::debug!("snapshot: {e}"); // the publisher makes them again, and says so
            return self.shared.wake_publisher();
        }
        if matches!(e, RoundError::Stream(_)) {
            let failed = self.registry.take();
            failed.inspect(|registry| registry.doubt());
        }
        if matches!(e, RoundError::Transfer(_)) {
            self.shared.measures.snapshot_failed();
        }
        let text = e.to_string();
        self.shared.health.report_failing("snapshots", &text);
        let news = self
            .failure
            .fails(&without_names(&text), SystemClock.uptime());
        // A person who waits for a snapshot is told at once.
        let news = if self.owes_word {
            Some(Level::Error)
        } else {
            news
        };
        match (e, news) {
            (RoundError::Refused(text), _) => {
                log::error!("snapshot: {text}");
                self.owes_word = false;
                return self.answer(Some(text));
            }
            // While the broker is away, the threads that need it more say so.
            (RoundError::Stream(StreamError::Disconnected(_) | StreamError::Offline(_)), _)
                if !self.owes_word =>
            {
                log::debug!("snapshot: {text}");
            }
            (RoundError::Database(e), Some(_)) if e.is_of_machine() => {
                log::warn!("snapshot: {text}; trying again");
            }
            (_, Some(level)) => log::log!(level, "snapshot: {text}; trying again"),
            (_, None) => log::debug!("snapshot: {text}"),
        }
        self.owes_word = false;
    }
}

/// Removes the names of objects from an error, because each attempt has different ones.
fn without_names(text: &str) -> String {
    let is_name = |word: &&str| word.len() >= 8 && word.contains(|c: char| c.is_ascii_digit());
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    let words: Vec<_> = words.filter(|word| !is_name(word)).collect();
    words.join(" ")
}

/// Ends long work when the process ends, and reports how far the work is.
pub struct Progress<'a> {
    stop: &'a Receiver<()>,
    work: Work,
    reported: Instant,
    /// Whether there was anything to do.
    has_worked: bool,
}

impl<'a> Progress<'a> {
    /// `what` names the work: "snapshot", "restore".
    pub fn new(stop: &'a Receiver<()>, what: &str) -> Self {
        Progress {
            stop,
            work: Work::begin(what, Unit::Bytes),
            reported: Instant::now(),
            has_worked: false,
        }
    }
}

impl Watch for Progress<'_> {
    fn progress(&mut self, step: &'static str, done: u64, total: u64) -> io::Result<()> {
        if self.stop.try_recv() != Err(crossbeam_channel::TryRecvError::Empty) {
            return Err(watch::stop());
        }
        self.has_worked = true;
        self.work.at(step, done, total);
        if self.reported.elapsed() >= REPORT_EVERY && !self.work.is_drawn() {
            self.reported = Instant::now();
            log::info!("snapshot: {step}, {} of {} MB", done >> 20, total >> 20);
        }
        Ok(())
    }

    fn pause(&mut self, time: Duration) -> io::Result<()> {
        match self.stop.recv_timeout(time) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            _ => Err(watch::stop()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::tests::support::Node;

    fn snapshots(shared: Shared, inputs: Inputs) -> Snapshots {
        let options = SchedulerOptions {
            cluster: "c".into(),
            max_entries: 100,
            interval: None,
            leader_ttl: Duration::from_secs(1),
            may_make: true,
            scratch: None,
            selection: String::new(),
        };
        let places = Places {
            registry: Box::new(|| Err(StreamError::Stopped)),
            store: Box::new(|| unreachable!("without a registry")),
            dialer: Arc::new(Dialer::new(Duration::ZERO, Duration::ZERO)),
        };
        Snapshots {
            notifications: shared.scheduler_notifications(),
            shared: Arc::new(shared),
            scheduler: Scheduler::new(options),
            places,
            inputs,
            registry: None,
            backoff: Backoff::new(Duration::ZERO, Duration::ZERO),
            called: never(),
            asked: Vec::new(),
            failure: RepeatedFailure::default(),
            owes_word: false,
            holds: false,
            sweep: None,
        }
    }

    #[test]
    fn after_a_failure_of_the_store_only_a_person_is_heard_at_once() {
        let ((_stop, stop), (ask, asks)) = (
            crossbeam_channel::bounded(0),
            crossbeam_channel::unbounded(),
        );
        let inputs = Inputs {
            stop,
            asks,
            is_awaited: false,
        };
        let mut thread = snapshots(Shared::new(Node::new(1, "").db, 1).0, inputs);
        let soon = || Some(Instant::now() + Duration::from_millis(20));
        thread.shared.notify_scheduler();
        thread.holds = true;
        assert!(matches!(thread.next_event(soon()), SnapshotEvent::Timeout));
        let (reply, only_if_new) = (crossbeam_channel::bounded(1).0, false);
        ask.send(SnapshotRequest { reply, only_if_new }).unwrap();
        assert!(matches!(thread.next_event(soon()), SnapshotEvent::Ask(_)));
        thread.holds = false;
        assert!(matches!(thread.next_event(soon()), SnapshotEvent::Poke));
    }

    #[test]
    fn a_fault_with_other_names_is_told_once_and_again_when_asked() {
        let (one, other) = (
            "store: file /s: c/snapshot-1750000000000-1-0a1b2c3d.db.zst: no space left",
            "store: file /s: c/snapshot-1750000000500-1-99887766.db.zst: no space left",
        );
        assert_eq!(without_names(one), without_names(other));
        assert_ne!(without_names(one), without_names("store: file /s: denied"));
    }
}
