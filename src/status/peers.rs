//! The entries of the other nodes in the broker's bucket, and their present meaning.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::entry::{KEY, MAX_BYTES, NodeEntry};
use super::local::NodeFacts;
use super::report::{KnownBy, Lag, Node, SchemaHash, Status, StreamProgress, VERSION};
use crate::cluster::broker::meta_bucket;
use crate::cluster::registry::{PUBLISHER, TABLES};
use crate::stream::StreamError;
use crate::stream::client::Client;
use crate::stream::jetstream::{last_sequences, times_stored};
use crate::stream::key_value::KeyValue;

/// Largest number of other nodes that is listed: anybody may write any number of entries.
const MAX_NODES: usize = 1000;

/// Largest number of messages whose time is asked for at once: the broker sends them whole.
const MAX_ASKED: usize = 16;

/// A running node writes its entry at least this often.
pub const WRITTEN_EVERY: Duration = Duration::from_secs(600);

/// A node is silent if it was last heard of longer ago than this.
const SILENT_AFTER: Duration = Duration::from_secs(900);

/// A node that has everything says so within this time. If an older entry says that something is
/// lacking, the node lacks it.
const SETTLES_WITHIN: Duration = Duration::from_secs(30);

/// The state of the bucket and the streams, as of one moment.
#[derive(Debug, Clone, Default)]
pub struct PeerStates {
    /// Every known node by its id, with its entry and the time at which the broker stored that, in
    /// unix milliseconds. `None` if it keeps no valid entry.
    pub nodes: BTreeMap<u64, Option<(NodeEntry, i64)>>,
    /// Number of entries beyond the 1000 that are read.
    pub omitted: u64,
    /// Per stream, the sequence of its last message.
    pub ends: BTreeMap<String, u64>,
    /// Of the first messages that nodes lack: by stream and sequence, when the broker stored them.
    pub stored_ms: BTreeMap<(String, u64), i64>,
}

impl PeerStates {
    /// Reads the bucket and the ends of the streams. `known` has times of messages that were asked
    /// for before.
    pub fn fetch(
        client: &Client,
        stream_prefix: &str,
        streams: &[String],
        known: &BTreeMap<(String, u64), i64>,
    ) -> Result<PeerStates, StreamError> {
        let bucket = meta_bucket(stream_prefix);
        let bucket = KeyValue::open(client, &bucket);
        let keys = bucket.keys("")?;
        let mut ids = with_number(&keys, KEY);
        let older = |prefix| with_number(&keys, prefix);
        let older: BTreeSet<u64> = older(PUBLISHER).union(&older(TABLES)).copied().collect();
        let omitted = ids.len().saturating_sub(MAX_NODES) as u64;
        ids = ids.into_iter().take(MAX_NODES).collect();
        let mut nodes = BTreeMap::new();
        let keys: Vec<String> = ids.iter().map(|id| format!("{KEY}{id}")).collect();
        for (id, found) in ids.iter().zip(bucket.get_all(&keys, MAX_BYTES)?) {
            if let Some(timed) = found {
                let entry = NodeEntry::parse(&timed.value).map(|entry| (entry, timed.time_ms));
                nodes.insert(*id, entry);
            }
        }
        // The node's release keeps no entry, or the node was forgotten, and the bucket still lists
        // its keys without a value.
        let others: Vec<u64> = older.difference(&ids).copied().take(MAX_NODES).collect();
        let keys: Vec<String> = others.iter().map(|id| format!("{PUBLISHER}{id}")).collect();
        for (id, found) in others.iter().zip(bucket.get_all(&keys, MAX_BYTES)?) {
            if found.is_some() {
                nodes.insert(*id, None);
            }
        }
        let mut states = PeerStates {
            nodes,
            omitted,
            ends: last_sequences(client, streams)?,
            stored_ms: BTreeMap::new(),
        };
        let lacking = states.lacking(streams);
        let known = known.iter().filter(|(at, _)| lacking.contains(*at));
        states.stored_ms = known.map(|(at, ms)| (at.clone(), *ms)).collect();
        let asked = lacking.into_iter();
        let asked: Vec<(String, u64)> = asked
            .filter(|at| !states.stored_ms.contains_key(at))
            .take(MAX_ASKED)
            .collect();
        for (at, time_ms) in asked.iter().zip(times_stored(client, &asked)?) {
            states.stored_ms.extend(time_ms.map(|ms| (at.clone(), ms)));
        }
        Ok(states)
    }

    /// The first messages that nodes lack.
    fn lacking(&self, streams: &[String]) -> BTreeSet<(String, u64)> {
        let entries = self.nodes.values().flatten().map(|(entry, _)| entry);
        let places = entries.flat_map(|entry| streams.iter().zip(&entry.positions));
        let is_behind = |stream: &String, seq: u64| self.ends.get(stream) > Some(&seq);
        let behind = places.filter(|(stream, seq)| is_behind(stream, **seq));
        behind
            .map(|(stream, seq)| (stream.clone(), seq.saturating_add(1)))
            .collect()
    }
}

/// Ids in the keys that consist of `prefix` and a number.
fn with_number(keys: &[String], prefix: &str) -> BTreeSet<u64> {
    let number = |key: &String| key.strip_prefix(prefix)?.parse().ok();
    keys.iter().filter_map(number).collect()
}

/// Builds the status from the facts of this node and the entries of the others.
pub fn status(facts: &NodeFacts, streams: &[String], peers: Result<PeerStates, String>) -> Status {
    let (peers, others_unknown) = match peers {
        Ok(peers) => (peers, None),
        Err(why) => (PeerStates::default(), Some(why)),
    };
    let view = PeerView {
        facts,
        streams,
        ends: &peers.ends,
        stored_ms: &peers.stored_ms,
    };
    let this = view.this();
    let others = peers.nodes.iter().filter(|(id, _)| **id != facts.node);
    let others: Vec<Node> = others
        .map(|(id, entry)| view.other(*id, entry.as_ref()))
        .collect();
    let is_well = |node: &Node| node.lacks.is_empty() && !node.silent;
    let mut lag: Vec<Lag> = facts.lag_ms.iter().map(lag_of).collect();
    lag.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    Status {
        version: VERSION,
        fine: facts.problems.is_empty() && is_well(&this) && others.iter().all(is_well),
        running: true,
        time_ms: facts.now_ms,
        this,
        lag,
        offline: facts.offline.clone(),
        problems: facts.problems.clone(),
        others,
        others_left_out: peers.omitted,
        others_unknown,
        newest_snapshot: facts.snapshot.clone(),
        ..Status::default()
    }
}

fn lag_of((origin, ms): (&u64, &u64)) -> Lag {
    Lag {
        origin: origin.to_string(),
        seconds: *ms as f64 / 1000.0,
    }
}

/// The facts with which nodes are compared.
struct PeerView<'a> {
    facts: &'a NodeFacts,
    streams: &'a [String],
    ends: &'a BTreeMap<String, u64>,
    stored_ms: &'a BTreeMap<(String, u64), i64>,
}

impl PeerView<'_> {
    fn this(&self) -> Node {
        let mut node = self.node(self.facts.node, &self.facts.entry);
        // Changes are only under way, unless something fails.
        let is_stuck = !self.facts.problems.is_empty();
        node.lacks = lacks(&node, is_stuck);
        node.lacks_since_ms = self.lacks_since(&node, self.facts.entry.trouble_ms);
        node.seen_ms = self.facts.now_ms;
        node.seen_seconds_ago = self.facts.now_ms.map(|_| 0.0);
        node
    }

    fn other(&self, id: u64, known: Option<&(NodeEntry, i64)>) -> Node {
        let heard = self.facts.heard_ms.get(&id).copied();
        let Some((entry, stored_ms)) = known else {
            let mut node = Node {
                node: id.to_string(),
                known_by: KnownBy::Messages,
                ..Node::default()
            };
            self.date(&mut node, heard);
            // Such a node sends nothing while nothing is written there.
            node.silent = false;
            return node;
        };
        let mut node = self.node(id, entry);
        self.date(&mut node, Some(*stored_ms).max(heard));
        let age = self.facts.now_ms.map_or(0, |now| now - stored_ms);
        node.lacks = lacks(&node, age >= SETTLES_WITHIN.as_millis() as i64);
        // A node that means ill may name any time.
        let now_ms = self.facts.now_ms.unwrap_or(i64::MAX);
        let trouble_ms = entry.trouble_ms.filter(|ms| *ms > 0);
        node.lacks_since_ms = self.lacks_since(&node, trouble_ms.map(|ms| ms.min(now_ms)));
        node
    }

    /// Since when a node lacks something: the broker has stored a message that it has not read, it
    /// tells so itself, or it is silent.
    fn lacks_since(&self, node: &Node, trouble_ms: Option<i64>) -> Option<i64> {
        if node.lacks.is_empty() && !node.silent {
            return None;
        }
        let behind = node.streams.iter().filter(|s| s.behind > Some(0));
        let stored = behind.filter_map(|s| {
            let first = (s.stream.clone(), s.position.saturating_add(1));
            self.stored_ms.get(&first).copied()
        });
        let silent = node.seen_ms.filter(|_| node.silent);
        stored.chain(trouble_ms).chain(silent).min()
    }

    fn date(&self, node: &mut Node, seen_ms: Option<i64>) {
        node.seen_ms = seen_ms;
        let ago = self.facts.now_ms.zip(seen_ms);
        node.seen_seconds_ago = ago.map(|(now, seen)| (now - seen).max(0) as f64 / 1000.0);
        let ago = node.seen_seconds_ago.unwrap_or_default();
        node.silent = ago > SILENT_AFTER.as_secs_f64();
    }

    fn node(&self, id: u64, entry: &NodeEntry) -> Node {
        let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        let streams = self.streams.iter().zip(&entry.positions).enumerate();
        let streams = streams.map(|(i, (stream, position))| StreamProgress {
            stream: stream.clone(),
            position: *position,
            behind: self
                .ends
                .get(stream)
                .map(|end| end.saturating_sub(*position)),
            gap: entry.gaps.get(i).copied().unwrap_or_default(),
        });
        Node {
            node: id.to_string(),
            name: entry.name.clone(),
            known_by: KnownBy::Entry,
            release: some(&entry.release),
            schema: SchemaHash {
                hash: some(&entry.schema),
                previous: some(&entry.previous),
            },
            streams: streams.collect(),
            unsent: Some(entry.unsent),
            held: Some(entry.held),
            displaced: Some(entry.displaced),
            rejected: Some(entry.rejected),
            quarantined: Some(entry.quarantined),
            problems: Some(entry.problems),
            lag_seconds: Some(entry.lag_ms as f64 / 1000.0),
            snapshot: entry.snapshot.clone(),
            ..Node::default()
        }
    }
}

/// The rows that a node lacks, and the changes that wait there, in a few words each. With
/// `is_settled`, enough time has passed for changes that were under way to arrive.
fn lacks(node: &Node, is_settled: bool) -> Vec<String> {
    let mut lacks = Vec::new();
    for stream in &node.streams {
        let name = &stream.stream;
        if stream.gap {
            lacks.push(format!("missed messages of {name}: needs a snapshot"));
        }
        match stream.behind {
            Some(behind @ 1..) if is_settled => {
                lacks.push(format!("{behind} message(s) behind in {name}"));
            }
            _ => {}
        }
    }
    let lag = node.lag_seconds.unwrap_or_default();
    if lag >= SETTLES_WITHIN.as_secs_f64() {
        lacks.push(format!("{lag:.0} s behind"));
    }
    if let (Some(unsent @ 1..), true) = (node.unsent, is_settled) {
        lacks.push(format!("{unsent} row(s) not sent yet"));
    }
    if let Some(held @ 1..) = node.held {
        lacks.push(format!("{held} row(s) held, see harmonylite held there"));
    }
    if let Some(problems @ 1..) = node.problems {
        lacks.push(format!("{problems} thing(s) do not work, see its health"));
    }
    lacks
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_000_000_000;

    fn streams() -> Vec<String> {
        vec!["c-1".into()]
    }

    fn facts() -> NodeFacts {
        NodeFacts {
            node: 1,
            entry: NodeEntry {
                positions: vec![50],
                ..NodeEntry::default()
            },
            now_ms: Some(NOW),
            ..NodeFacts::default()
        }
    }

    fn peers(entry: NodeEntry, seconds_ago: i64) -> PeerStates {
        let known = Some((entry, NOW - seconds_ago * 1000));
        PeerStates {
            nodes: BTreeMap::from([(2, known)]),
            ends: BTreeMap::from([("c-1".into(), 50)]),
            omitted: 0,
            stored_ms: BTreeMap::from([(("c-1".into(), 41), NOW - 90_000)]),
        }
    }

    fn of(entry: NodeEntry, seconds_ago: i64) -> Status {
        status(&facts(), &streams(), Ok(peers(entry, seconds_ago)))
    }

    fn at(position: u64) -> NodeEntry {
        NodeEntry {
            positions: vec![position],
            ..NodeEntry::default()
        }
    }

    #[test]
    fn a_node_is_fine_until_it_had_time_to_settle() {
        assert!(of(at(50), 5).fine);
        assert!(of(at(40), 5).fine, "its entry is a moment old");
        let late = of(at(40), 60);
        assert!(!late.fine);
        assert_eq!(late.others[0].lacks, ["10 message(s) behind in c-1"]);
        assert_eq!(late.others[0].streams[0].behind, Some(10));
        assert_eq!(late.others[0].lacks_since_ms, Some(NOW - 90_000));
        assert_eq!(of(at(40), 5).others[0].lacks_since_ms, None);
        let unsent = NodeEntry {
            unsent: 3,
            ..at(50)
        };
        assert!(of(unsent.clone(), 5).fine);
        assert_eq!(
            of(unsent.clone(), 60).others[0].lacks,
            ["3 row(s) not sent yet"]
        );
        let told = NodeEntry {
            trouble_ms: Some(NOW - 70_000),
            ..unsent
        };
        assert_eq!(of(told, 60).others[0].lacks_since_ms, Some(NOW - 70_000));
    }

    #[test]
    fn a_node_that_is_gone_stays_listed() {
        let gone = of(at(50), 3600);
        assert!(!gone.fine && gone.others[0].silent);
        assert_eq!(gone.others[0].seen_seconds_ago, Some(3600.0));
        assert_eq!(gone.others[0].lacks_since_ms, gone.others[0].seen_ms);
        assert!(!of(at(50), 700).others[0].silent, "it may be idle");
    }

    #[test]
    fn an_older_release_is_listed_as_far_as_it_is_known() {
        let mut facts = facts();
        facts.heard_ms.insert(2, NOW - 5000);
        let peers = PeerStates {
            nodes: BTreeMap::from([(2, None), (3, None)]),
            ..PeerStates::default()
        };
        let status = status(&facts, &streams(), Ok(peers));
        let [heard, unheard] = &status.others[..] else {
            panic!("{status:?}")
        };
        assert_eq!(heard.known_by, KnownBy::Messages);
        assert_eq!(heard.seen_seconds_ago, Some(5.0));
        assert_eq!(unheard.seen_ms, None);
        assert!(status.fine);
    }

    #[test]
    fn this_node_is_told_without_the_broker() {
        let mut facts = facts();
        facts.lag_ms = BTreeMap::from([(2, 1500), (3, 90_000)]);
        let why = "no route".to_owned();
        let status = status(&facts, &streams(), Err(why.clone()));
        assert_eq!(status.others_unknown, Some(why));
        assert_eq!(status.lag[0].origin, "3");
        assert_eq!(status.lag[1].seconds, 1.5);
        let json = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), status);
    }
}
