//! The broker's bucket and the lease in it, in simulated time. A wipe of the broker empties it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use harmonylite::cluster::registry::{Registry, Told};
use harmonylite::cluster::stream_continuity;
use harmonylite::model::manifest::{KEPT, SnapshotEntry, StreamPosition};
use harmonylite::stream::{Retention, StreamError, StreamState};

use crate::broker::Broker;

/// How long a lease is kept without being renewed.
pub const LEASE_MS: i64 = 30_000;

/// The content of the bucket.
#[derive(Default)]
struct Bucket {
    founder: Option<u64>,
    newest: Option<SnapshotEntry>,
    announced: Vec<SnapshotEntry>,
    wanted: BTreeMap<String, StreamPosition>,
    publishers: BTreeMap<u64, String>,
    tables: BTreeMap<u64, Told>,
    /// The node whose process has the lease, and the time at which the lease ends.
    leader: Option<(usize, i64)>,
}

#[derive(Default)]
struct Inner {
    bucket: Bucket,
    now_ms: i64,
    /// Nodes that do not reach the broker.
    cut_off: BTreeSet<usize>,
    /// The streams' states, and the ids of their messages.
    streams: BTreeMap<String, (StreamState, Vec<String>)>,
}

/// The registry, one for all nodes.
#[derive(Clone, Default)]
pub struct Bulletin(Arc<Mutex<Inner>>);

impl Bulletin {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub fn wipe(&self) {
        self.lock().bucket = Bucket::default();
    }

    pub fn pass(&self, now_ms: i64) {
        self.lock().now_ms = now_ms;
    }

    pub fn cut_off(&self, place: usize, is_cut_off: bool) {
        let cut_off = &mut self.lock().cut_off;
        match is_cut_off {
            true => cut_off.insert(place),
            false => cut_off.remove(&place),
        };
    }

    pub fn is_cut_off(&self, place: usize) -> bool {
        self.lock().cut_off.contains(&place)
    }

    pub fn see(&self, broker: &Broker) {
        let seen = broker.streams.iter().map(|stream| {
            let state = StreamState {
                first: stream.first(),
                last: stream.last(),
                created: stream.created.clone(),
                now_ms: stream.now_ms,
                retention: Retention::default(),
            };
            let ids = stream.from(0).map(|(_, message)| message.id.clone());
            (stream.name.clone(), (state, ids.collect()))
        });
        self.lock().streams = seen.collect();
    }

    /// Ends the lease, as if its process was killed and time passed.
    pub fn expire_lease(&self) {
        self.lock().bucket.leader = None;
    }

    pub fn will_publish(&self, node: u64) {
        let publishers = &mut self.lock().bucket.publishers;
        publishers.entry(node).or_default();
    }

    pub fn publishers(&self) -> BTreeSet<u64> {
        self.lock().bucket.publishers.keys().copied().collect()
    }

    pub fn announced(&self) -> Option<SnapshotEntry> {
        self.lock().bucket.newest.clone()
    }

    pub fn of(&self, place: usize) -> Seen {
        let all = self.clone();
        Seen { all, place }
    }
}

/// The registry as one node sees it.
pub struct Seen {
    all: Bulletin,
    place: usize,
}

impl Seen {
    fn with<T>(&self, f: impl FnOnce(&mut Bucket, i64) -> T) -> Result<T, StreamError> {
        let mut shared = self.all.lock();
        if shared.cut_off.contains(&self.place) {
            return Err(StreamError::Disconnected("cut off".into()));
        }
        let now_ms = shared.now_ms;
        Ok(f(&mut shared.bucket, now_ms))
    }
}

impl Registry for Seen {
    fn lease(&mut self) -> Result<bool, StreamError> {
        let place = self.place;
        self.with(|b, now| {
            let free = b.leader.is_none_or(|(who, end)| who == place || end <= now);
            if free {
                b.leader = Some((place, now + LEASE_MS));
            }
            free
        })
    }

    fn give_lease_back(&mut self) {
        let place = self.place;
        let _ = self.with(|b, _| b.leader = b.leader.filter(|(who, _)| *who != place));
    }

    fn lease_is_held(&mut self) -> Result<bool, StreamError> {
        self.with(|b, now| b.leader.is_some_and(|(_, end)| end > now))
    }

    fn claim_founder(&mut self, node: u64) -> Result<bool, StreamError> {
        self.with(|b, _| *b.founder.get_or_insert(node) == node)
    }

    fn register(&mut self, node: u64, selection: &str) -> Result<(), StreamError> {
        self.with(|b, _| drop(b.publishers.insert(node, selection.to_owned())))
    }

    fn publishers(&mut self) -> Result<BTreeMap<u64, String>, StreamError> {
        self.with(|b, _| b.publishers.clone())
    }

    fn tell_tables(&mut self, node: u64, tables: &BTreeSet<String>) -> Result<(), StreamError> {
        self.with(|b, _| drop(b.tables.insert(node, Some(tables.clone()))))
    }

    fn tables(&mut self) -> Result<BTreeMap<u64, Told>, StreamError> {
        self.with(|b, _| b.tables.clone())
    }

    fn founder(&mut self) -> Result<Option<u64>, StreamError> {
        self.with(|b, _| b.founder)
    }

    fn newest(&mut self) -> Result<Option<SnapshotEntry>, StreamError> {
        self.with(|b, _| b.newest.clone())
    }

    fn announced(&mut self) -> Result<Vec<SnapshotEntry>, StreamError> {
        self.with(|b, _| b.announced.clone())
    }

    fn set_newest(&mut self, entry: &SnapshotEntry) -> Result<(), StreamError> {
        self.with(|b, _| {
            b.announced.retain(|known| known.name != entry.name);
            b.announced.insert(0, entry.clone());
            b.announced.truncate(KEPT);
            b.newest = Some(entry.clone());
        })
    }

    fn drop_unreliable(&mut self, entry: &SnapshotEntry) -> Result<(), StreamError> {
        self.with(|b, _| {
            b.newest
                .as_mut()
                .map(|newest| newest.drop_unreliable(entry))
        })?;
        Ok(())
    }

    fn forget_newest(&mut self) -> Result<(), StreamError> {
        self.with(|b, _| b.newest = None)
    }

    fn requested(&mut self) -> Result<BTreeMap<String, StreamPosition>, StreamError> {
        self.with(|b, _| b.wanted.clone())
    }

    fn request(&mut self, places: &BTreeMap<String, StreamPosition>) -> Result<(), StreamError> {
        self.with(|b, _| {
            for (stream, place) in places {
                let known = b.wanted.entry(stream.clone()).or_default();
                if known.created != place.created || known.seq < place.seq {
                    known.clone_from(place);
                }
            }
        })
    }

    fn is_lost(&mut self, stream: &str, place: &StreamPosition) -> Result<bool, StreamError> {
        self.with(|_, _| ())?;
        let shared = self.all.lock();
        let Some((state, ids)) = shared.streams.get(stream) else {
            return Ok(false);
        };
        let look_up = |seq: u64| Ok(ids.get((seq - state.first) as usize).cloned());
        stream_continuity::is_lost(state, place, look_up)
    }
}
