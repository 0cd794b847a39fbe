//! When nodes begin to give births to rows ([`crate::model::birth`]).
//!
//! A release that does not know births puts changes of such rows in quarantine. So a node that is
//! to give some waits until the entries of all nodes say that they know them. The first that sees
//! it writes this key, which wakes the others.

use std::collections::BTreeMap;

use super::peers::PeerStates;
use crate::cluster::broker::meta_bucket;
use crate::stream::StreamError;
use crate::stream::client::Client;
use crate::stream::key_value::KeyValue;

/// The key in the bucket. It has one part, so a write of it wakes those who watch the bucket.
pub(super) const KEY: &str = "births";

const KNOWN: &[u8] = b"1";

/// The nodes that do not know births. If there are none, the bucket says so from here on.
pub(super) fn not_known_by(client: &Client, stream_prefix: &str) -> Result<Vec<u64>, StreamError> {
    let bucket = meta_bucket(stream_prefix);
    let bucket = KeyValue::open(client, &bucket);
    if bucket.get(KEY)?.is_some_and(|(value, _)| value == KNOWN) {
        return Ok(Vec::new());
    }
    let peers = PeerStates::fetch(client, stream_prefix, &[], &BTreeMap::new())?;
    let without = without(&peers);
    if without.is_empty() {
        bucket.put(KEY, KNOWN)?;
    }
    Ok(without)
}

/// Nodes whose entries do not say that they know births.
fn without(peers: &PeerStates) -> Vec<u64> {
    let nodes = peers.nodes.iter();
    let without = nodes.filter(|(_, known)| !known.as_ref().is_some_and(|(entry, _)| entry.births));
    without.map(|(node, _)| *node).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::entry::NodeEntry;

    #[test]
    fn a_node_that_says_nothing_of_births_does_not_know_them() {
        let entry = |births| NodeEntry {
            births,
            ..NodeEntry::default()
        };
        let older = NodeEntry::parse(br#"{"name":"box","release":"0.2.0"}"#).unwrap();
        let mut peers = PeerStates {
            nodes: BTreeMap::from([
                (1, Some((entry(true), 0))),
                (2, Some((older, 0))),
                (3, None),
                (4, Some((entry(false), 0))),
            ]),
            ..PeerStates::default()
        };
        assert_eq!(without(&peers), [2, 3, 4]);
        peers.nodes.retain(|node, _| *node == 1);
        assert!(without(&peers).is_empty());
    }
}
