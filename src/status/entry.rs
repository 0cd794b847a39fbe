//! The entry of a node: one value in the broker's bucket, under `node.<id>`.
//!
//! The key has two parts on purpose: it wakes nobody who watches the bucket (`$KV.<bucket>.*`).
//! Entries of others are not trusted: their size, number and texts are bounded, and control
//! characters are removed before anything is shown.

use serde::{Deserialize, Serialize};

use crate::model::text::printable;

/// Prefix of the key; the node's id follows.
pub const KEY: &str = "node.";

/// Largest entry of another node that is read, in bytes.
pub const MAX_BYTES: usize = 16 << 10;

/// Largest number of streams that is read from an entry: there are no more shards.
const MAX_STREAMS: usize = 256;

/// See the module's head.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeEntry {
    /// `node_name`; empty if the node told none.
    pub name: String,
    /// Version of HarmonyLite.
    pub release: String,
    /// A number that the process drew when it started; empty from older releases.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub start: String,
    /// Hash of the tables, see [`crate::status::report::SchemaHash`].
    pub schema: String,
    /// Hash before the tables last changed.
    pub previous: String,
    /// By shard, the sequence of the last message read.
    pub positions: Vec<u64>,
    /// By shard, whether messages were missed. Empty if none were.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gaps: Vec<bool>,
    /// Rows that the broker has not acknowledged, counted up to 10,000.
    pub unsent: u64,
    /// Rows that are held, counted up to 10,000.
    pub held: u64,
    /// Rows that are displaced, counted up to 10,000.
    pub displaced: u64,
    /// Changes that could not be replicated, since the daemon started.
    pub rejected: u64,
    /// Messages in quarantine.
    pub quarantined: u64,
    /// Number of subjects that health reports as failing.
    pub problems: u64,
    /// Since when rows wait there or something fails, in unix milliseconds by the broker's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble_ms: Option<i64>,
    /// The largest lag behind any origin, in milliseconds.
    pub lag_ms: u64,
    /// Whether the node knows births of rows, see [`crate::model::birth`].
    pub births: bool,
    /// Name of the snapshot that the node merged last, or began with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// When the entry was written, in unix milliseconds by the broker's clock; 0 if that is not
    /// known.
    pub time_ms: i64,
}

impl NodeEntry {
    /// The entry as it is stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Parses an entry of another node. `None` if it is too large or is no entry.
    pub fn parse(bytes: &[u8]) -> Option<NodeEntry> {
        if bytes.len() > MAX_BYTES {
            return None;
        }
        let mut entry: NodeEntry = serde_json::from_slice(bytes).ok()?;
        let texts = [
            &mut entry.name,
            &mut entry.release,
            &mut entry.start,
            &mut entry.schema,
            &mut entry.previous,
        ];
        for text in texts.into_iter().chain(&mut entry.snapshot) {
            *text = printable(text);
        }
        entry.positions.truncate(MAX_STREAMS);
        entry.gaps.truncate(MAX_STREAMS);
        Some(entry)
    }

    /// Whether the entry says something different from `other`, apart from the time that passed.
    pub fn differs(&self, other: &NodeEntry) -> bool {
        let timeless = |entry: &NodeEntry| NodeEntry {
            time_ms: 0,
            lag_ms: 0,
            trouble_ms: None,
            ..entry.clone()
        };
        timeless(self) != timeless(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::text::MAX_PRINTED;

    #[test]
    fn an_entry_is_read_as_it_was_written() {
        let entry = NodeEntry {
            name: "box".into(),
            positions: vec![1, 2],
            snapshot: Some("s".into()),
            ..NodeEntry::default()
        };
        assert_eq!(NodeEntry::parse(&entry.to_bytes()), Some(entry));
    }

    #[test]
    fn an_entry_of_a_later_release_is_read_as_far_as_it_is_known() {
        let entry = NodeEntry::parse(br#"{"name":"box","mood":[1]}"#).unwrap();
        assert_eq!(entry.name, "box");
    }

    #[test]
    fn entries_that_mean_ill() {
        let name = format!("\u{1b}[31m\n{}", "x".repeat(1000));
        let entry = NodeEntry {
            name,
            positions: vec![u64::MAX; 300],
            ..NodeEntry::default()
        };
        let read = NodeEntry::parse(&entry.to_bytes()).unwrap();
        assert!(read.name.starts_with("[31mxxx") && read.name.len() == MAX_PRINTED);
        assert_eq!(read.positions.len(), MAX_STREAMS);
        for bytes in [&b""[..], b"{\"positions\":-1}", b"\xff"] {
            assert_eq!(NodeEntry::parse(bytes), None, "{bytes:?}");
        }
        let large = format!("{{\"name\":\"{}\"}}", "x".repeat(MAX_BYTES));
        assert_eq!(NodeEntry::parse(large.as_bytes()), None);
    }

    #[test]
    fn time_alone_is_no_change() {
        let before = NodeEntry::default();
        let later = NodeEntry {
            time_ms: 5,
            lag_ms: 7,
            ..NodeEntry::default()
        };
        assert!(!later.differs(&before));
        let moved = NodeEntry {
            positions: vec![1],
            ..later
        };
        assert!(moved.differs(&before));
    }
}
