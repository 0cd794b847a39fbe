//! Information that nodes share about snapshots: the cluster's founder, the newest snapshot, the
//! requested one, and the lease of the node that is making one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use crate::cluster::broker::meta_bucket;
use crate::cluster::stream_continuity;
use crate::model::manifest::{KEPT, Manifest, SnapshotEntry, StreamPosition};
use crate::stream::client::Client;
use crate::stream::jetstream::{is_stream_name, message_id, stream_state};
use crate::stream::key_value::KeyValue;
use crate::stream::link::{Inbox, WATCHED};
use crate::stream::{StreamError, names_a_right};

/// The tables that a node has, in lower case. None: it may have any.
pub type Told = Option<BTreeSet<String>>;

/// The broker's part in snapshots. Simulations bring their own. Methods return an error if the
/// broker cannot be reached or refuses the request.
pub trait Registry: Send {
    /// Takes or renews the lease. Returns false if a different node has it.
    fn lease(&mut self) -> Result<bool, StreamError>;
    /// Gives the lease back, if this node has it. A failure is ignored: the lease then expires.
    fn give_lease_back(&mut self);
    /// Whether some node has the lease.
    fn lease_is_held(&mut self) -> Result<bool, StreamError>;
    /// Makes this node the founder if there is none yet. Returns true if it is the founder.
    fn claim_founder(&mut self, node: u64) -> Result<bool, StreamError>;
    /// Registers a node as a publisher, with its selection of tables.
    fn register(&mut self, node: u64, selection: &str) -> Result<(), StreamError>;
    /// Every node that has ever published, with its selection of tables.
    fn publishers(&mut self) -> Result<BTreeMap<u64, String>, StreamError>;
    /// Publishes the tables (in lower case) that a node replicates.
    fn tell_tables(&mut self, node: u64, tables: &BTreeSet<String>) -> Result<(), StreamError>;
    /// The tables that each node has published; nodes that published none are absent.
    fn tables(&mut self) -> Result<BTreeMap<u64, Told>, StreamError>;
    /// The node that founded the cluster; none if there is none yet.
    fn founder(&mut self) -> Result<Option<u64>, StreamError>;
    /// The newest snapshot; none if there is none, or if its entry cannot be read.
    fn newest(&mut self) -> Result<Option<SnapshotEntry>, StreamError>;
    /// The snapshots that nodes announced, the newest first, also after [`Self::forget_newest`]: a
    /// store may withhold a snapshot, but not bring in another one.
    fn announced(&mut self) -> Result<Vec<SnapshotEntry>, StreamError>;
    /// Publishes `entry` as the newest snapshot.
    fn set_newest(&mut self, entry: &SnapshotEntry) -> Result<(), StreamError>;
    /// Reduces the positions of the newest snapshot to those of `entry`, if it is still the same
    /// snapshot.
    fn drop_unreliable(&mut self, entry: &SnapshotEntry) -> Result<(), StreamError>;
    /// Removes the entry of the newest snapshot, which no longer exists.
    fn forget_newest(&mut self) -> Result<(), StreamError>;
    /// The position up to which a snapshot is requested, per stream.
    fn requested(&mut self) -> Result<BTreeMap<String, StreamPosition>, StreamError>;
    /// Requests a snapshot that reaches these positions. A higher position that is already
    /// requested in the same stream remains.
    fn request(&mut self, places: &BTreeMap<String, StreamPosition>) -> Result<(), StreamError>;
    /// Whether the broker lost the message at this position of a stream, or may have lost it (see
    /// [`stream_continuity::is_lost`]). False if the position is too old to tell, or if the stream
    /// does not exist or was created anew.
    fn is_lost(&mut self, stream: &str, place: &StreamPosition) -> Result<bool, StreamError>;
}

/// The registry in two buckets: `<stream_prefix>-meta`, and `<stream_prefix>-lease`, whose values
/// expire. A node that only reads has no part in what nodes agree on here: it takes no lease, and
/// writes nothing but a request for a snapshot that it lacks.
pub struct KeyValueRegistry {
    client: Client,
    /// Prefix of the streams' names.
    prefix: String,
    meta: String,
    lease: String,
    /// Distinguishes this process from others with the same node id.
    token: Vec<u8>,
    /// This node publishes nothing: it writes nothing here but a request for a snapshot.
    only_reads: bool,
    /// Whether the login may write not even that.
    is_denied: bool,
    /// Revision of the lease while this node holds it.
    held: Option<u64>,
    inbox: Inbox,
    nodes: NodeKeys,
}

/// The keys that nodes keep of themselves, [`PUBLISHER`] and [`TABLES`], as they were last read: to
/// read those of a thousand nodes takes a megabyte.
#[derive(Default)]
struct NodeKeys {
    values: BTreeMap<String, Vec<u8>>,
    /// Keys that were written since.
    stale: BTreeSet<String>,
    /// When all were read.
    read_at: Option<Instant>,
}

impl NodeKeys {
    fn is_one(key: &str) -> bool {
        key.starts_with(PUBLISHER) || key.starts_with(TABLES)
    }

    /// Notes a write to this key. If too many wait to be read, all are read.
    fn note(&mut self, key: &str) {
        if NodeKeys::is_one(key) {
            self.stale.insert(key.to_owned());
        }
        if self.stale.len() > MAX_KEYS {
            self.missed_some();
        }
    }

    /// Writes went unnoticed.
    fn missed_some(&mut self) {
        self.stale.clear();
        self.read_at = None;
    }

    fn bytes(&self) -> usize {
        self.values.values().map(Vec::len).sum()
    }
}

/// Prefix of a key: the id of a publishing node follows.
pub const PUBLISHER: &str = "publisher-";

/// Prefix of a key: the id of a node that publishes its tables follows.
pub const TABLES: &str = "tables-";

/// Most bytes of table names that a node publishes; more may not fit into a message.
const MAX_TOLD: usize = 64 << 10;

/// Most bytes of such a value: the names of the tables and, at worst, four bytes of JSON for each.
const MAX_VALUE: usize = 5 * MAX_TOLD;

/// Most keys of nodes: anybody may invent some.
const MAX_KEYS: usize = 20_000;

/// Most bytes of their values in all.
const MAX_BYTES: usize = 32 << 20;

/// Number of values that are read at a time.
const READ_AT_ONCE: usize = 32;

/// All keys of nodes are read again after this time, although each write to one is told.
const READ_ALL_AGAIN: Duration = Duration::from_secs(3600);

pub(super) const FOUNDER: &str = "founder";
pub(super) const NEWEST: &str = "snapshot";
pub(super) const ANNOUNCED: &str = "snapshots";
pub(super) const WANTED: &str = "wanted";
const LEADER: &str = "leader";

/// The snapshots that nodes announced in `bucket`, the newest first. A release that keeps no list
/// announces the newest alone.
pub fn announced(bucket: &KeyValue<'_>) -> Result<Vec<SnapshotEntry>, StreamError> {
    let stored = bucket.get(ANNOUNCED)?;
    let mut all = stored.map_or_else(Vec::new, |(bytes, _)| parse_announced(&bytes));
    let newest = bucket.get(NEWEST)?;
    let newest = newest.and_then(|(bytes, _)| SnapshotEntry::parse(&bytes).ok());
    if let Some(newest) = newest.filter(|n| !all.iter().any(|known| known.name == n.name)) {
        all.insert(0, newest);
    }
    Ok(all)
}

/// The entries that make sense.
fn parse_announced(bytes: &[u8]) -> Vec<SnapshotEntry> {
    let all: Vec<serde_json::Value> = serde_json::from_slice(bytes).unwrap_or_default();
    let parse = |entry: &serde_json::Value| SnapshotEntry::parse(entry.to_string().as_bytes()).ok();
    all.iter().take(2 * KEPT).filter_map(parse).collect()
}

impl KeyValueRegistry {
    /// Opens both buckets. The broker of `client` must have the streams already. The lease expires
    /// `leader_ttl` after its last renewal; `token` identifies this process in it. With
    /// `only_reads` nothing is made.
    pub fn open(
        client: Client,
        stream_prefix: &str,
        replicas: u32,
        leader_ttl: Duration,
        (token, only_reads): (String, bool),
    ) -> Result<Self, StreamError> {
        let (meta, lease) = (meta_bucket(stream_prefix), format!("{stream_prefix}-lease"));
        if !only_reads {
            KeyValue::ensure_bucket(&client, &lease, replicas, Some(leader_ttl))?;
        }
        let inbox = KeyValue::watch(&client, &meta)?;
        Ok(KeyValueRegistry {
            client,
            prefix: stream_prefix.to_owned(),
            meta,
            lease,
            token: token.into_bytes(),
            only_reads,
            is_denied: false,
            held: None,
            inbox,
            nodes: NodeKeys::default(),
        })
    }

    /// Lets no further thread use the connection: a request on it failed.
    pub fn doubt(&self) {
        self.client.doubt();
    }

    /// Receives a message for every write to the meta bucket; closed when the connection is gone.
    /// Each must be passed to [`KeyValueRegistry::note`].
    pub fn changes(&self) -> &Receiver<nats::Message> {
        &self.inbox.messages
    }

    /// Notes which key a message of [`KeyValueRegistry::changes`] is about.
    pub fn note(&mut self, message: &nats::Message) {
        if self.inbox.messages.len() + 1 >= WATCHED {
            self.nodes.missed_some();
        }
        if let Some(key) = message.subject.rsplit('.').next() {
            self.nodes.note(key);
        }
    }

    /// Notes the messages that have arrived.
    pub fn note_all(&mut self) {
        while let Ok(message) = self.inbox.messages.try_recv() {
            self.note(&message);
        }
    }

    /// The values of all nodes under keys with this prefix. Reads only those that changed, unless
    /// changes are told less surely because the bucket is in a different domain.
    fn of_nodes(&mut self, prefix: &str) -> Result<Vec<(u64, Vec<u8>)>, StreamError> {
        self.note_all();
        let read_at = self.nodes.read_at.filter(|_| !self.client.is_elsewhere());
        if read_at.is_none_or(|at| at.elapsed() >= READ_ALL_AGAIN) {
            let keys = self.meta().keys("")?;
            self.nodes.values.clear();
            self.nodes.stale = keys.into_iter().filter(|k| NodeKeys::is_one(k)).collect();
            self.nodes.read_at = Some(Instant::now());
        }
        if self.nodes.stale.len() > MAX_KEYS {
            return Err(self.too_much(&format!("{} keys", self.nodes.stale.len())));
        }
        let stale: Vec<String> = self.nodes.stale.iter().cloned().collect();
        for keys in stale.chunks(READ_AT_ONCE) {
            let values = self.meta().get_all(keys, MAX_VALUE)?;
            for (key, value) in keys.iter().zip(values) {
                self.nodes.stale.remove(key);
                match value {
                    Some(timed) => self.nodes.values.insert(key.clone(), timed.value),
                    None => self.nodes.values.remove(key),
                };
            }
            if self.nodes.bytes() > MAX_BYTES {
                self.nodes = NodeKeys::default();
                return Err(self.too_much(&format!("more than {} MB", MAX_BYTES >> 20)));
            }
        }
        let id = |key: &str| key.strip_prefix(prefix)?.parse().ok();
        let all = self.nodes.values.iter();
        Ok(all
            .filter_map(|(key, value)| Some((id(key)?, value.clone())))
            .collect())
    }

    fn too_much(&self, what: &str) -> StreamError {
        StreamError::Refused(format!(
            "bucket {}: {what} of nodes, more than a cluster has: somebody invents nodes; take the \
             right to write there from that login, and remove the keys \
             ({PUBLISHER}…, {TABLES}…)",
            self.meta
        ))
    }

    /// Writes the value of a node's key, if it is a different one.
    fn put_of_node(&mut self, key: &str, value: &[u8]) -> Result<(), StreamError> {
        let is_known =
            |known: Option<(Vec<u8>, u64)>| known.is_some_and(|(known, _)| known == value);
        if self.only_reads || is_known(self.meta().get(key)?) {
            return Ok(());
        }
        self.meta().put(key, value)?;
        self.nodes.note(key);
        Ok(())
    }

    fn meta(&self) -> KeyValue<'_> {
        KeyValue::open(&self.client, &self.meta)
    }

    fn leases(&self) -> KeyValue<'_> {
        KeyValue::open(&self.client, &self.lease)
    }

    fn parse_newest(&self, bytes: &[u8]) -> Option<SnapshotEntry> {
        let parsed = SnapshotEntry::parse(bytes);
        parsed
            .map_err(|e| log::warn!("bucket {}, key {NEWEST}: {e}; left out", self.meta))
            .ok()
    }
}

impl Registry for KeyValueRegistry {
    fn lease(&mut self) -> Result<bool, StreamError> {
        if self.only_reads {
            return Ok(false);
        }
        if let Some(revision) = self.held.take() {
            if !self.leases().update(LEADER, &self.token, revision)? {
                return Ok(false);
            }
        } else if !self.leases().create(LEADER, &self.token)? {
            return Ok(false);
        }
        // Read back, because the revision is needed to renew the lease, and the value may have
        // expired meanwhile.
        match self.leases().get(LEADER)? {
            Some((value, revision)) if value == self.token => {
                self.held = Some(revision);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn give_lease_back(&mut self) {
        if let Some(revision) = self.held.take() {
            // Deletes only this node's revision: the lease may have expired and belong to a
            // different node. If this fails, the lease expires by itself.
            let _ = self.leases().delete_revision(LEADER, revision);
        }
    }

    fn lease_is_held(&mut self) -> Result<bool, StreamError> {
        match self.leases().get(LEADER) {
            Err(StreamError::Refused(_)) if self.only_reads => Ok(false), // nobody made the bucket
            leader => Ok(leader?.is_some()),
        }
    }

    fn claim_founder(&mut self, node: u64) -> Result<bool, StreamError> {
        let name = node.to_string();
        if !self.only_reads && self.meta().create(FOUNDER, name.as_bytes())? {
            return Ok(true);
        }
        let founder = self.meta().get(FOUNDER)?;
        Ok(founder.is_some_and(|(value, _)| value == name.as_bytes()))
    }

    fn register(&mut self, node: u64, selection: &str) -> Result<(), StreamError> {
        self.put_of_node(&format!("{PUBLISHER}{node}"), selection.as_bytes())
    }

    fn publishers(&mut self) -> Result<BTreeMap<u64, String>, StreamError> {
        let all = self.of_nodes(PUBLISHER)?.into_iter();
        Ok(all
            .map(|(id, selection)| (id, String::from_utf8_lossy(&selection).into_owned()))
            .collect())
    }

    fn tell_tables(&mut self, node: u64, tables: &BTreeSet<String>) -> Result<(), StreamError> {
        let bytes: usize = tables.iter().map(String::len).sum();
        let told: Told = (bytes <= MAX_TOLD).then(|| tables.clone());
        let text = serde_json::to_vec(&told).expect("names are JSON");
        self.put_of_node(&format!("{TABLES}{node}"), &text)
    }

    fn tables(&mut self) -> Result<BTreeMap<u64, Told>, StreamError> {
        let all = self.of_nodes(TABLES)?.into_iter();
        Ok(all
            .map(|(id, told)| (id, serde_json::from_slice(&told).unwrap_or_default()))
            .collect())
    }

    fn founder(&mut self) -> Result<Option<u64>, StreamError> {
        let founder = self.meta().get(FOUNDER)?;
        let text = founder.and_then(|(value, _)| String::from_utf8(value).ok());
        Ok(text.and_then(|text| text.parse().ok()))
    }

    fn newest(&mut self) -> Result<Option<SnapshotEntry>, StreamError> {
        let stored = self.meta().get(NEWEST)?;
        Ok(stored.and_then(|(bytes, _)| self.parse_newest(&bytes)))
    }

    fn announced(&mut self) -> Result<Vec<SnapshotEntry>, StreamError> {
        announced(&self.meta())
    }

    fn set_newest(&mut self, entry: &SnapshotEntry) -> Result<(), StreamError> {
        if self.only_reads {
            return Ok(());
        }
        // First, so that a crash in between leaves no newest snapshot that is not announced.
        self.meta().amend(ANNOUNCED, |stored| {
            let known = stored.map(parse_announced).unwrap_or_default();
            let with = Manifest {
                snapshots: known,
                ..Manifest::default()
            };
            let snapshots = with.with("", entry.clone()).snapshots;
            Some(serde_json::to_vec(&snapshots).expect("writing to memory does not fail"))
        })?;
        self.meta().put(NEWEST, &entry.to_bytes()).map(drop)
    }

    fn drop_unreliable(&mut self, entry: &SnapshotEntry) -> Result<(), StreamError> {
        if self.only_reads {
            return Ok(());
        }
        self.meta().amend(NEWEST, |stored| {
            let mut newest = self.parse_newest(stored?)?;
            newest.drop_unreliable(entry).then(|| newest.to_bytes())
        })
    }

    fn forget_newest(&mut self) -> Result<(), StreamError> {
        match self.only_reads {
            true => Ok(()),
            false => self.meta().delete(NEWEST),
        }
    }

    fn requested(&mut self) -> Result<BTreeMap<String, StreamPosition>, StreamError> {
        let wanted = self.meta().get(WANTED)?;
        Ok(wanted.map_or_else(BTreeMap::new, |(bytes, _)| parse_requested(&bytes)))
    }

    fn request(&mut self, places: &BTreeMap<String, StreamPosition>) -> Result<(), StreamError> {
        if self.is_denied {
            return Ok(());
        }
        let asked = self.meta().amend(WANTED, |stored| {
            let before = stored.map_or_else(BTreeMap::new, parse_requested);
            let mut wanted = before.clone();
            for (stream, place) in places {
                let known = wanted.entry(stream.clone()).or_default();
                if known.created != place.created || known.seq < place.seq {
                    known.clone_from(place);
                }
            }
            (wanted != before).then(|| serde_json::to_vec(&wanted).unwrap_or_default())
        });
        if let (true, Err(e)) = (self.only_reads, &asked)
            && names_a_right(&e.to_string())
        {
            self.is_denied = true;
            log::warn!(
                "this node lacks changes, and its login may not ask for a snapshot ({e}): it waits \
                 for the next one. SIGUSR1 makes a node that publishes save one"
            );
            return Ok(());
        }
        asked
    }

    fn is_lost(&mut self, stream: &str, place: &StreamPosition) -> Result<bool, StreamError> {
        // The name comes from a peer, and becomes part of a subject.
        if !is_stream_name(&self.prefix, stream) {
            return Ok(false);
        }
        let state = match stream_state(&self.client, stream) {
            Err(StreamError::Refused(_)) => return Ok(false), // there is no such stream
            state => state?,
        };
        let look_up = |seq| message_id(&self.client, stream, seq);
        stream_continuity::is_lost(&state, place, look_up)
    }
}

/// Parses the requested positions as the bucket stores them. Unreadable bytes count as no request.
pub fn parse_requested(bytes: &[u8]) -> BTreeMap<String, StreamPosition> {
    serde_json::from_slice(bytes).unwrap_or_default()
}
