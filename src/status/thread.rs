//! Thread: tells the others how this node is doing, and asks the broker about them.
//!
//! It exists while there is something to do: when something changed, when its entry is ten minutes
//! old, or when a request comes. The daemon's main thread waits for that ([`Waits`]). It writes the
//! entry at most once per interval, so that a busy node starts it once in that time, and an idle
//! one every ten minutes.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Select, Sender, never, unbounded};

use super::births;
use super::board::StatusRequest;
use super::entry::{KEY, NodeEntry};
use super::local::NodeFacts;
use super::peers::{PeerStates, WRITTEN_EVERY};
use crate::cluster::broker::{JetStreamBroker, meta_bucket};
use crate::cluster::registry::{PUBLISHER, TABLES};
use crate::logging::Lasting;
use crate::model::backoff::Backoff;
use crate::shared::Shared;
use crate::status::verify::message::{MAX_BYTES, REQUEST, VerifyRequest};
use crate::stream::client::Client;
use crate::stream::key_value::KeyValue;
use crate::stream::link::Inbox;
use crate::stream::{StreamError, names_a_right};
use crate::thread::{Exited, OnDemand};

/// An answer that is younger than this is given again: a page may be open on many screens. In a
/// large cluster it is given for longer, by so much per node: to ask for a thousand nodes takes a
/// megabyte.
const FRESH: Duration = Duration::from_secs(2);
const FRESH_PER_NODE: Duration = Duration::from_millis(20);

/// The first entry is written this long after the start. The connection of the registry, which is
/// used here as well, is there by then.
const FIRST_AFTER: Duration = Duration::from_secs(2);

/// A node that only reads tries again after this time, if its login may not write the entry.
const DENIED_AGAIN: Duration = Duration::from_secs(24 * 3600);

/// The thread ends after this long without a request: one is often followed by another.
const RESTS_AFTER: Duration = Duration::from_millis(500);

/// A node that was heard of more recently than this may be running.
const GONE_AFTER: Duration = WRITTEN_EVERY;

/// Settings of the status thread.
#[derive(Debug, Clone)]
pub struct StatusOptions {
    /// Prefix of the cluster's streams and buckets.
    pub stream_prefix: String,
    /// Shortest time between two writes of the entry.
    pub interval: Duration,
}

/// What the thread waits for while it does not exist.
pub struct Waits {
    /// Receives a message when something changed.
    pub changes: Receiver<()>,
    /// Messages of other nodes; closed when the connection is gone.
    pub words: Receiver<nats::Message>,
    /// Closed when the broker may be back.
    pub called: Receiver<()>,
    /// When the entry must be written next.
    pub due: Instant,
}

/// State of the thread.
pub(super) struct StatusThread {
    shared: Arc<Shared>,
    broker: Arc<JetStreamBroker>,
    options: StatusOptions,
    stop: Receiver<()>,
    asks: Receiver<StatusRequest>,
    client: Option<Client>,
    /// Changes of the bucket, which other nodes write.
    words: Option<Inbox>,
    /// A number that no other process has: it stands in the entry.
    start: String,
    /// The entry that the others have of this node.
    told: Option<WrittenEntry>,
    /// Whether something changed since, or no entry is written yet.
    is_changed: bool,
    /// No entry is written before this time, after a failure.
    not_before: Option<Instant>,
    /// Closed when an attempt may succeed earlier than that.
    called: Receiver<()>,
    backoff: Backoff,
    failure: Lasting,
    known: Option<(PeerStates, Instant)>,
    /// Run and step of the request to compare rows that was taken up last.
    taken_up: Option<(String, u32)>,
    /// When the entries of all nodes were read to see whether they know births.
    births_read: Option<Instant>,
    without_births: Lasting,
}

/// An entry that was written.
struct WrittenEntry {
    node: u64,
    entry: NodeEntry,
    at: Instant,
    revision: u64,
}

/// Answers and tells from now on, until `stop` is closed.
pub fn start(
    shared: Arc<Shared>,
    broker: Arc<JetStreamBroker>,
    options: StatusOptions,
    stop: Receiver<()>,
    exits: &Sender<Exited>,
) {
    let (asker, asks) = unbounded();
    let state = StatusThread {
        shared: shared.clone(),
        broker,
        options,
        stop,
        asks,
        client: None,
        words: None,
        start: format!("{:016x}", RandomState::new().hash_one(())),
        told: None,
        is_changed: true,
        not_before: Some(Instant::now() + FIRST_AFTER),
        called: never(),
        backoff: Backoff::new(Duration::from_secs(1), Duration::from_secs(60)),
        failure: Lasting::default(),
        known: None,
        taken_up: None,
        births_read: None,
        without_births: Lasting::default(),
    };
    state.tell_waits();
    let thread = OnDemand::new("status", exits, state, StatusThread::run);
    shared.status.open((asker, thread));
}

/// An event that wakes the thread.
enum StatusEvent {
    Stop,
    Ask(StatusRequest),
    Change,
    /// A node wrote under this subject. `None`: the connection is gone.
    Word(Option<String>),
    /// The broker may be back.
    Call,
    Due,
    /// Nothing happened for a while.
    Rest,
}

impl StatusThread {
    fn run(mut self, thread: &OnDemand<StatusThread>) {
        loop {
            match self.next_event() {
                StatusEvent::Stop => return,
                StatusEvent::Change => self.is_changed = true,
                StatusEvent::Ask(ask) => self.answer(ask),
                StatusEvent::Word(Some(subject)) => self.hear(&subject),
                StatusEvent::Word(None) => (self.client, self.words) = (None, None),
                StatusEvent::Call => (self.called, self.not_before) = (never(), None),
                StatusEvent::Due => self.tell(),
                StatusEvent::Rest => {
                    self.tell_waits();
                    match thread.rest(self, |state| state.asks.is_empty()) {
                        Some(again) => self = again,
                        None => return,
                    }
                }
            }
        }
    }

    fn tell_waits(&self) {
        self.shared.status.tell_waits(Waits {
            changes: self.changes(),
            words: match &self.words {
                Some(words) => words.messages.clone(),
                None => never(),
            },
            called: self.called.clone(),
            due: self.due(),
        });
    }

    fn changes(&self) -> Receiver<()> {
        match self.is_changed {
            true => never(), // known already
            false => self.shared.status.changes(),
        }
    }

    /// When the entry must be written next.
    fn due(&self) -> Instant {
        let due = match &self.told {
            Some(told) if self.is_changed => told.at + self.options.interval,
            Some(told) => told.at + WRITTEN_EVERY,
            None => Instant::now(),
        };
        self.not_before.map_or(due, |at| at.max(due))
    }

    fn next_event(&self) -> StatusEvent {
        let changes = self.changes();
        let mut select = Select::new_biased();
        let stop = select.recv(&self.stop);
        let ask = select.recv(&self.asks);
        let change = select.recv(&changes);
        let call = select.recv(&self.called);
        let silence = never();
        let words = self.words.as_ref().map_or(&silence, |w| &w.messages);
        let word = select.recv(words);
        let due = self.due();
        let rests = Instant::now() + RESTS_AFTER;
        let Ok(operation) = select.select_deadline(due.min(rests)) else {
            return match due <= rests {
                true => StatusEvent::Due,
                false => StatusEvent::Rest,
            };
        };
        match operation.index() {
            i if i == ask => operation
                .recv(&self.asks)
                .map_or(StatusEvent::Stop, StatusEvent::Ask),
            i if i == change => {
                let _ = operation.recv(&changes);
                StatusEvent::Change
            }
            i if i == call => {
                let _ = operation.recv(&self.called);
                StatusEvent::Call
            }
            i if i == word => StatusEvent::Word(operation.recv(words).ok().map(|m| m.subject)),
            i => {
                debug_assert_eq!(i, stop);
                let _ = operation.recv(&self.stop);
                StatusEvent::Stop
            }
        }
    }

    /// Writes the entry, if something in it is new or it is old. Lets go of an answer that is too
    /// old to be given again.
    fn tell(&mut self) {
        let known = self.known.take();
        self.known = known.filter(|(peers, at)| at.elapsed() < fresh_for(peers));
        match self.write_entry() {
            Ok(()) => {
                (self.not_before, self.called) = (None, never());
                self.backoff.reset();
                self.failure.ends();
                self.begin_births();
            }
            Err(text) if self.broker.only_reads() && names_a_right(&text) => {
                log::info!(
                    "this node's login may not tell the other nodes how it is doing: their status \
                     shows nothing of it (status_interval = 0 spares the attempt)"
                );
                (self.not_before, self.called) = (Some(Instant::now() + DENIED_AGAIN), never());
            }
            Err(text) => {
                // The threads that need the broker more report its absence.
                if self.failure.is_news(&text) {
                    log::debug!("status: {text}");
                }
                let (next, called) = self.broker.dialer.next(self.backoff.wait());
                (self.not_before, self.called) = (Some(next), called);
            }
        }
    }

    fn write_entry(&mut self) -> Result<(), String> {
        while self.shared.status.changes().try_recv().is_ok() {}
        let locked = self.shared.lock();
        let mut facts =
            NodeFacts::gather(&self.shared, &locked).map_err(|e| format!("database: {e}"))?;
        drop(locked);
        facts.entry.start.clone_from(&self.start);
        let told = self.told.as_ref().filter(|told| told.node == facts.node);
        let is_news = told.is_none_or(|told| {
            told.at.elapsed() >= WRITTEN_EVERY || facts.entry.differs(&told.entry)
        });
        if is_news {
            let key = format!("{KEY}{}", facts.node);
            let (bytes, known) = (facts.entry.to_bytes(), told.map(|told| told.revision));
            let start = self.start.clone();
            let (revision, is_of_other) =
                self.with_bucket(|bucket| write_entry(bucket, &key, &bytes, known, &start))?;
            self.told = Some(WrittenEntry {
                node: facts.node,
                entry: facts.entry,
                at: Instant::now(),
                revision,
            });
            if is_of_other {
                let noted = self.shared.lock().database.note_other_process();
                noted.map_err(|e| format!("database: {e}"))?;
            }
        }
        self.is_changed = false;
        Ok(())
    }

    fn answer(&mut self, ask: StatusRequest) {
        match ask {
            StatusRequest::Bucket(query, reply) => {
                let _ = reply.send(self.with_bucket(query));
            }
            StatusRequest::Peers(reply) => {
                let _ = reply.send(self.peers());
            }
            StatusRequest::Forget(node, dry_run, reply) => {
                let _ = reply.send(self.forget(node, dry_run));
            }
            StatusRequest::Word(subject) => self.hear(&subject),
        }
    }

    fn peers(&mut self) -> Result<PeerStates, String> {
        if let Some((peers, at)) = &self.known
            && at.elapsed() < fresh_for(peers)
        {
            return Ok(peers.clone());
        }
        let streams = self.shared.status.about().streams;
        let prefix = self.options.stream_prefix.clone();
        let known = self.known.take().map(|(peers, _)| peers.stored_ms);
        let times = known.unwrap_or_default();
        let peers =
            self.with_client(|client| PeerStates::fetch(client, &prefix, &streams, &times))?;
        self.known = Some((peers.clone(), Instant::now()));
        Ok(peers)
    }

    /// Deletes everything that the bucket has of a node.
    fn forget(&mut self, node: u64, dry_run: bool) -> Result<(), String> {
        self.known = None;
        let peers = self.peers()?;
        let locked = self.shared.lock();
        let db = &locked.database;
        let (own, now_ms) = (db.node(), db.broker_time_ms());
        let heard_ms = db.newest_by_origin().find(|(origin, _)| *origin == node);
        drop(locked);
        may_forget(node, own, &peers, (heard_ms.map(|(_, ms)| ms), now_ms))?;
        if dry_run {
            return Ok(());
        }
        self.known = None;
        self.with_bucket(|bucket| {
            // The entry goes last: if this fails in between, the node is still listed.
            [PUBLISHER, TABLES, KEY]
                .iter()
                .try_for_each(|prefix| bucket.delete(&format!("{prefix}{node}")))
        })?;
        self.births_read = None;
        self.is_changed = true; // the others may know births
        Ok(())
    }

    fn with_bucket<T>(
        &mut self,
        ask: impl FnOnce(&KeyValue<'_>) -> Result<T, StreamError>,
    ) -> Result<T, String> {
        let bucket = meta_bucket(&self.options.stream_prefix);
        self.with_client(|client| ask(&KeyValue::open(client, &bucket)))
    }

    fn hear(&mut self, subject: &str) {
        match subject.rsplit('.').next() {
            Some(REQUEST) => self.answer_request(),
            Some(births::KEY) => {
                self.births_read = None;
                self.begin_births();
            }
            _ => {}
        }
    }

    /// Begins births, if this node waits for that and all nodes know them.
    fn begin_births(&mut self) {
        let is_due = self
            .births_read
            .is_none_or(|at| at.elapsed() >= WRITTEN_EVERY);
        if !is_due || !self.shared.lock().database.waits_for_births() {
            return;
        }
        self.births_read = Some(Instant::now());
        let prefix = self.options.stream_prefix.clone();
        let without = match self.with_client(|client| births::not_known_by(client, &prefix)) {
            Ok(without) => without,
            Err(text) => {
                log::debug!("births: {text}");
                return;
            }
        };
        if !without.is_empty() {
            let nodes: Vec<String> = without.iter().map(u64::to_string).collect();
            let nodes = nodes.join(", ");
            if self.without_births.is_news(&nodes) {
                log::info!(
                    "on_collision = \"keep\" waits until all nodes run a release that knows it, or \
                     are forgotten (`harmonylite forget`). Without it: {nodes}"
                );
            }
            return;
        }
        match self.shared.lock().database.begin_births() {
            Ok(()) => log::info!(
                "all nodes know on_collision = \"keep\": rows here are kept from now on when their \
                 number is taken"
            ),
            Err(e) => log::warn!("on_collision = \"keep\" does not begin: {e}"),
        }
    }

    /// Takes up a request to compare rows, which is for every node. Two changes in quick succession
    /// read the same request, and one job of the thread that answers may wait: the request is taken
    /// up once, or it would take the place of the next.
    fn answer_request(&mut self) {
        let request = self.with_bucket(|bucket| bucket.get(REQUEST));
        let Ok(Some((bytes, _))) = request else {
            return; // its run is over
        };
        let request = (bytes.len() <= MAX_BYTES).then_some(bytes);
        let request =
            request.and_then(|bytes| serde_json::from_slice::<VerifyRequest>(&bytes).ok());
        let own = self.shared.lock().database.node();
        let Some(request) = request.filter(|r| r.by != own) else {
            return;
        };
        let this = (request.run.clone(), request.step);
        if self.taken_up.replace(this.clone()) != Some(this) {
            self.shared.status.answer(request);
        }
    }

    /// Runs a query on the present connection, or on a new one. Gives the connection up if that
    /// fails.
    fn with_client<T>(
        &mut self,
        ask: impl FnOnce(&Client) -> Result<T, StreamError>,
    ) -> Result<T, String> {
        let client = match self.client.take() {
            Some(client) => client,
            None => {
                let client = self.broker.beside().map_err(|e| e.to_string())?;
                let bucket = meta_bucket(&self.options.stream_prefix);
                let words = KeyValue::watch(&client, &bucket);
                self.words = Some(words.map_err(|e| e.to_string())?);
                client
            }
        };
        let answer = ask(&client).map_err(|e| e.to_string());
        match answer.is_ok() {
            true => self.client = Some(client),
            false => self.words = None,
        }
        answer
    }
}

/// Writes this node's entry; `known` is the revision that this process wrote last. Returns the new
/// revision, and whether a different process wrote the entry in between.
fn write_entry(
    bucket: &KeyValue<'_>,
    key: &str,
    bytes: &[u8],
    known: Option<u64>,
    start: &str,
) -> Result<(u64, bool), StreamError> {
    let mut is_of_other = false;
    if let Some(known) = known {
        if let Some(revision) = bucket.replace(key, bytes, known)? {
            return Ok((revision, false));
        }
        let entry = bucket.get(key)?.filter(|(_, revision)| *revision > known);
        let entry = entry.and_then(|(value, _)| NodeEntry::parse(&value));
        is_of_other = entry.is_some_and(|entry| entry.start != start);
    }
    Ok((bucket.put(key, bytes)?, is_of_other))
}

/// How long an answer is given again.
fn fresh_for(peers: &PeerStates) -> Duration {
    FRESH.max(FRESH_PER_NODE * peers.nodes.len() as u32)
}

/// Whether a node may be forgotten. An error says why not.
fn may_forget(
    node: u64,
    own: u64,
    peers: &PeerStates,
    (heard_ms, now_ms): (Option<i64>, Option<i64>),
) -> Result<(), String> {
    if node == own {
        return Err(format!("node {node} is this node"));
    }
    let Some(known) = peers.nodes.get(&node) else {
        return Err(format!("no node {node} is known"));
    };
    let seen = known.as_ref().map(|(_, stored_ms)| *stored_ms);
    let ago = seen
        .max(heard_ms)
        .zip(now_ms)
        .map(|(seen, now)| (now - seen).max(0) / 1000);
    match ago.filter(|ago| *ago < GONE_AFTER.as_secs() as i64) {
        Some(ago) => Err(format!(
            "node {node} was heard of {ago} s ago: stop it first, and wait {} minutes",
            GONE_AFTER.as_secs() / 60
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_large_cluster_is_asked_for_more_rarely() {
        let of = |count: u64| PeerStates {
            nodes: (0..count).map(|node| (node, None)).collect(),
            ..PeerStates::default()
        };
        assert_eq!(fresh_for(&of(3)), FRESH);
        assert_eq!(fresh_for(&of(1000)), Duration::from_secs(20));
    }

    #[test]
    fn only_a_node_that_is_gone_is_forgotten() {
        let known = |time_ms| Some((NodeEntry::default(), time_ms));
        let peers = PeerStates {
            nodes: BTreeMap::from([(2, known(1_000_000)), (3, known(0)), (4, None)]),
            ..PeerStates::default()
        };
        let may = |node| may_forget(node, 1, &peers, (None, Some(1_200_000)));
        assert_eq!(may(3), Ok(()));
        let writes = may_forget(4, 1, &peers, (Some(1_100_000), Some(1_200_000)));
        assert!(
            writes.unwrap_err().contains("100 s ago"),
            "its changes arrive"
        );
        assert_eq!(may(4), Ok(()), "of an older release");
        for (node, why) in [
            (1, "is this node"),
            (2, "200 s ago: stop it first"),
            (9, "no node 9 is known"),
        ] {
            let refused = may(node).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
    }
}
