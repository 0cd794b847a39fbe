//! Decides what to do about snapshots next, and does it.
//!
//! ```text
//! new here ──▶ is there a snapshot? ──yes──▶ merge it ─────────────▶ joined: may publish
//!                       └─no─▶ has tables, first to ask? ─yes─▶ found it ─▶ joined, make one
//! lacks messages ──▶ is there one that has them? ─yes─▶ merge it      └─no─▶ ask for one
//! much written, interval over, asked for ──▶ lease ──▶ make one
//! ```
//! Whatever goes wrong, replication goes on, and the next round tries again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use crate::cluster::registry::Registry;
use crate::database::DatabaseError;
use crate::logging::Lasting;
use crate::model::manifest::{KEPT, SnapshotEntry};
use crate::shared::Shared;
pub use crate::snapshot::error::RoundError;
use crate::snapshot::transfer;
use crate::snapshot::watch::Watch;
use crate::store::{Store, StoreError};

mod due;
mod join;
mod make;
mod tables;
mod take;

/// Reasons for a snapshot that another node waits for.
const NEWEST_LACKS: &str = "the newest lacks changes that are here";
const A_NODE_LACKS: &str = "a node lacks changes";

/// Pause between two rounds while other nodes have something to do.
const ROUND_PAUSE: Duration = Duration::from_millis(500);

/// Settings of the scheduler.
#[derive(Debug, Clone)]
pub struct SchedulerOptions {
    /// The streams' prefix.
    pub cluster: String,
    /// Number of messages that a stream keeps, as far as this node's configuration says.
    pub max_entries: u64,
    /// Longest time between two snapshots while rows change. `None`: one is made when much was
    /// written since the last, and before a stream drops what is newer than that.
    pub interval: Option<Duration>,
    /// How long a lease lasts unless it is renewed. Joining without a snapshot, publishing beside
    /// gaps and similar fallbacks wait for as long, too.
    pub leader_ttl: Duration,
    /// Whether this node may make snapshots: its rows are those of all nodes, because it sends all
    /// of its own and applies all others, and the configuration does not leave them to others.
    pub may_make: bool,
    /// Folder for scratch files; `None`: the database's.
    pub scratch: Option<PathBuf>,
    /// Describes which tables take part; nodes with the same choice have the same text.
    pub selection: String,
}

/// How a snapshot was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Asked {
    /// The newest snapshot will do if nothing was written since.
    OnlyIfNew,
    Always,
}

/// Time of the next round, if nothing happens before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextRound {
    /// Rest until an event.
    Rest,
    /// After this time.
    After(Duration),
}

/// Opens a new connection to the store.
pub type OpenStore<'a> = dyn Fn() -> Result<Box<dyn Store>, StoreError> + 'a;

/// Everything that a round of the scheduler works with.
pub struct Round<'a> {
    /// The database, the outbox and the signals.
    pub shared: &'a Shared,
    /// The cluster's knowledge of snapshots and nodes.
    pub registry: &'a mut dyn Registry,
    /// Opens the store, once it is needed.
    pub open_store: &'a OpenStore<'a>,
    /// Told of progress; it can end the work.
    pub watch: &'a mut dyn Watch,
}

/// See the module's head.
pub struct Scheduler {
    options: SchedulerOptions,
    /// The newest snapshot that this node knows of, without the streams whose position the broker
    /// lost.
    newest: Option<SnapshotEntry>,
    /// How old the newest snapshot is.
    age: due::Age,
    /// Since when a snapshot is due that this node may not make.
    unmade: Option<Duration>,
    /// Per snapshot, the streams whose position in it the broker lost.
    lost_positions: BTreeMap<String, BTreeSet<String>>,
    asked: Option<Asked>,
    /// When this node looked for a founder first.
    met_broker: Option<Duration>,
    /// Since when this node waits to be joined.
    waiting: Option<Duration>,
    /// Since when this node lacks changes that no snapshot brings.
    lacking: Option<Duration>,
    /// Since when this node has gaps.
    gapped: Option<Duration>,
    /// Since when a snapshot is due that a different node would make better.
    defers: Option<Duration>,
    /// The tables that this node told the others, and the node id under which it did.
    told: Option<(u64, BTreeSet<String>)>,
    /// The schema's version at that time.
    told_schema: Option<i64>,
    /// When this node last read which tables the others told.
    compared: Option<Duration>,
    /// Messages about nodes that have other tables, so that each is logged once.
    pub(super) strangers: Lasting,
    /// The node id under which this node is registered as a publisher.
    registered: Option<u64>,
    /// Whether this node told the others that the newest snapshot is gone.
    forgot: bool,
    /// Snapshots that were lost or torn when they were last fetched.
    lost: BTreeSet<String>,
    /// Name of the snapshot that was merged last.
    merged: Option<String>,
    made: u64,
}

impl Scheduler {
    /// A scheduler that knows of no snapshot yet.
    pub fn new(options: SchedulerOptions) -> Scheduler {
        Scheduler {
            options,
            newest: None,
            age: due::Age::default(),
            unmade: None,
            lost_positions: BTreeMap::new(),
            asked: None,
            met_broker: None,
            waiting: None,
            lacking: None,
            gapped: None,
            defers: None,
            told: None,
            told_schema: None,
            compared: None,
            strangers: Lasting::default(),
            registered: None,
            forgot: false,
            lost: BTreeSet::new(),
            merged: None,
            made: 0,
        }
    }

    /// When the newest known snapshot was made, in unix milliseconds, and its packed size in bytes.
    pub fn newest(&self) -> Option<(i64, u64)> {
        self.newest
            .as_ref()
            .map(|entry| (entry.time_ms, entry.size))
    }

    /// Asks for a snapshot although none is due; with `only_if_new` only if rows changed since the
    /// newest.
    pub fn ask(&mut self, only_if_new: bool) {
        let asked = match only_if_new {
            true => Asked::OnlyIfNew,
            false => Asked::Always,
        };
        self.asked = self.asked.max(Some(asked));
    }

    /// Notes a new connection. The broker may be a different one, so this node tells it everything
    /// again.
    pub fn connected(&mut self) {
        self.registered = None;
        (self.told, self.compared) = (None, None);
        self.lost_positions.clear();
    }

    /// Whether the snapshot that was asked for is still to be made.
    pub fn is_asked(&self) -> bool {
        self.asked.is_some()
    }

    /// Whether a round may have something to do, as far as this node can tell without the broker.
    pub fn has_work(&self, shared: &Shared) -> Result<bool, DatabaseError> {
        let keeps = shared.stream_keeps(self.options.max_entries);
        let mut locked = shared.lock();
        let db = &mut locked.database;
        let is_told = self.told.is_some() && self.told_schema == db.catalog_version();
        let needs = !shared.is_joined() || db.has_gap() || self.is_asked() || !is_told;
        let needs = needs || db.seeks_snapshot()?;
        Ok(needs || self.newest.is_none() || self.due(db, &BTreeMap::new(), &keeps).is_some())
    }

    /// Runs one round. The caller must let reading go on after it ([`Shared::let_read`]).
    pub fn round(&mut self, round: &mut Round<'_>) -> Result<NextRound, RoundError> {
        if self.waiting.is_none() {
            round.shared.hold_reading()?;
        }
        self.note_gaps(round.shared);
        let node = round.shared.lock().database.node();
        if self.registered != Some(node) {
            round.registry.register(node, &self.options.selection)?;
            self.registered = Some(node);
        }
        if self.compare_tables(round)? && !round.shared.is_joined() {
            return Ok(NextRound::After(self.options.leader_ttl)); // or when tables are made here
        }
        self.newest = self.find_newest(round)?;
        if let Some(newest) = self.newest.take() {
            let streams = newest.streams.len();
            let newest = self.verify_positions(newest, round)?;
            if newest.streams.len() < streams {
                // All nodes are told while this can be seen: once the stream is emptied, nobody can
                // see it.
                round.registry.drop_unreliable(&newest)?;
            }
            self.age.note(&newest, &round.shared.lock().database);
            self.newest = Some(newest);
        }
        if !round.shared.is_joined() {
            let next = self.join(round)?;
            if !round.shared.is_joined() {
                return Ok(next);
            }
        }
        self.merge_for_lost_streams(round)?;
        if round.shared.lock().database.has_gap() {
            let next = self.make_up(round)?;
            self.note_gaps(round.shared);
            return Ok(next);
        }
        self.forgot = false; // nothing is needed of the store: the next loss is another one
        let wanted = round.registry.requested()?;
        let keeps = round.shared.stream_keeps(self.options.max_entries);
        self.make_if(round, |scheduler, db| scheduler.due(db, &wanted, &keeps))
    }

    /// Marked rows wait to be sent until the missed changes are here, but no longer than
    /// `leader_ttl`.
    fn note_gaps(&mut self, shared: &Shared) {
        let locked = shared.lock();
        let now = locked.database.clock.uptime();
        self.gapped = match locked.database.has_gap() {
            true => self.gapped.or(Some(now)),
            false => None,
        };
        drop(locked);
        let is_long = |since| now - since >= self.options.leader_ttl;
        shared.publish_beside_gaps(self.gapped.is_some_and(is_long));
    }

    fn find_newest(&mut self, round: &mut Round<'_>) -> Result<Option<SnapshotEntry>, RoundError> {
        if let Some(entry) = round.registry.newest()? {
            return Ok(Some(entry));
        }
        // The broker is new, or lost its data; the store may still have a manifest.
        let manifest = match (round.open_store)() {
            Ok(mut store) => transfer::read_manifest(&mut *store, &self.options.cluster),
            // A node that only reads does not make it.
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(e) => Err(e.into()),
        };
        let manifest = manifest.map_err(RoundError::from);
        match manifest {
            Ok(mut manifest) => {
                if let Some(manifest) = &mut manifest {
                    take::anchor(manifest, &round.registry.announced()?, round.shared);
                }
                let newest = manifest.and_then(|m| m.newest().cloned());
                if let Some(newest) = &newest {
                    round.registry.set_newest(newest)?;
                }
                Ok(newest)
            }
            // A torn manifest lists no snapshot, and the next snapshot replaces it.
            Err(RoundError::Transfer(e)) if round.shared.is_joined() && transfer::is_torn(&e) => {
                Ok(None)
            }
            Err(e) if round.shared.is_joined() => Err(e),
            Err(e) => {
                self.join_without(round, &e.to_string())?;
                Err(e)
            }
        }
    }

    /// Drops from an entry the streams in which the broker lost the message with which the snapshot
    /// ends. The broker gives such numbers out again, so a snapshot that seems to reach as far as
    /// this node lacks the messages that came under them.
    fn verify_positions(
        &mut self,
        mut entry: SnapshotEntry,
        round: &mut Round<'_>,
    ) -> Result<SnapshotEntry, RoundError> {
        if self.lost_positions.len() > 2 * KEPT {
            self.lost_positions.clear();
        }
        let lost = self.lost_positions.entry(entry.name.clone()).or_default();
        for (stream, place) in &entry.streams {
            // Asked each time: a server may lose messages while the connection lives on.
            if !lost.contains(stream) && round.registry.is_lost(stream, place)? {
                log::info!(
                    "snapshot {} does not count for {stream}: the broker lost or dropped the \
                     message with which the snapshot ends",
                    entry.name
                );
                lost.insert(stream.clone());
            }
        }
        entry.streams.retain(|stream, _| !lost.contains(stream));
        Ok(entry)
    }
}
