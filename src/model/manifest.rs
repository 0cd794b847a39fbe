//! The manifest: the one object of a store that is replaced, and its entries, one per snapshot.
//!
//! It is JSON, so that people can read it. It comes from a server that others can write to, so
//! every entry is checked before it is used.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::gap::Gap;
use crate::model::version::Version;

/// Name of the object.
pub const NAME: &str = "manifest.json";

/// Number of the layout of manifests that this release writes.
pub const FORMAT: u32 = 1;

/// How many snapshots are kept: the newest, and the one before it for nodes that still read that.
pub const KEPT: usize = 2;

/// Largest manifest that is read. One of two snapshots of a cluster with 256 shards has some 60 KB,
/// and some 40 bytes more per shard and node that is heard in a gap.
pub const MAX_BYTES: usize = 1 << 20;

/// No snapshot is larger (16 TiB): an entry with a larger size is torn or was made up.
const MAX_DATABASE_BYTES: u64 = 1 << 44;

const MAX_STREAMS: usize = 1024;

/// Bytes of the names of tables that a snapshot lacks.
const MAX_LACKS_BYTES: usize = 64 << 10;

/// No stream has as many messages; SQLite's integers are signed.
const MAX_SEQ: u64 = 1 << 62;

/// The list of the snapshots in a store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Number of the layout, see [`FORMAT`].
    pub format: u32,
    /// The streams' prefix, which tells this cluster from a different one that uses the same store.
    pub cluster: String,
    /// The snapshots, the newest first, at most [`KEPT`].
    pub snapshots: Vec<SnapshotEntry>,
}

/// One snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotEntry {
    /// Name of the object: a database, compressed with zstd.
    pub name: String,
    /// Bytes of the object.
    pub size: u64,
    /// SHA-256 of the object, in hexadecimal.
    pub sha256: String,
    /// Bytes of the database.
    pub database_size: u64,
    /// Id of the node that made it.
    pub node: u64,
    /// When it was made, in unix milliseconds by that node's clock.
    pub time_ms: i64,
    /// Hash of the schema, as [`crate::database::Database`] has it.
    pub schema: i64,
    /// Per stream: the position up to which the snapshot has its changes.
    pub streams: BTreeMap<String, StreamPosition>,
    /// The newest tombstone that the node which made it ever dropped, as (hlc, node); none if it
    /// dropped none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped: Option<(i64, u64)>,
    /// Tables (lower case) whose rows the snapshot lacks although others may have them: the node
    /// that made it let them go, or dropped the table.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lacks: Vec<String>,
}

/// A position in a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamPosition {
    /// Sequence of the last message whose changes are in the snapshot.
    pub seq: u64,
    /// Message id of that message.
    pub id: String,
    /// When the stream was created, in the broker's spelling.
    pub created: String,
    /// The messages before the position that the snapshot lacks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap: Option<Gap>,
}

/// The reason why a manifest is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It is of no use to any node, and may be replaced.
    #[error("{0}")]
    Torn(String),
    /// It is of use to others: a later release or a different cluster wrote it.
    #[error("{0}")]
    NotOurs(String),
}

impl Manifest {
    /// Reads and checks a manifest, which must be of the cluster with this stream prefix. A later
    /// layout and a different prefix are [`ManifestError::NotOurs`]; any other fault is
    /// [`ManifestError::Torn`].
    pub fn parse(bytes: &[u8], cluster: &str) -> Result<Manifest, ManifestError> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let torn = |e| ManifestError::Torn(format!("it is torn or no manifest: {e}"));
        let Format { format } = serde_json::from_slice(bytes).map_err(torn)?;
        if format > FORMAT {
            return Err(ManifestError::NotOurs(format!(
                "a later release of HarmonyLite wrote it (format {format}): use that one"
            )));
        }
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(torn)?;
        if manifest.cluster != cluster {
            return Err(ManifestError::NotOurs(format!(
                "it is of another cluster: its nats.stream_prefix is {:?}, and {cluster:?} here. \
                 Give each cluster a place of its own",
                manifest.cluster
            )));
        }
        if manifest.snapshots.len() > KEPT {
            let cause = format!("it lists more than {KEPT} snapshots");
            return Err(ManifestError::Torn(cause));
        }
        let mut entries = manifest.snapshots.iter();
        entries
            .try_for_each(SnapshotEntry::check)
            .map_err(ManifestError::Torn)?;
        Ok(manifest)
    }

    /// The newest snapshot, if there is one.
    pub fn newest(&self) -> Option<&SnapshotEntry> {
        self.snapshots.first()
    }

    /// The manifest with `entry` as the newest snapshot, without those beyond [`KEPT`].
    pub fn with(mut self, cluster: &str, entry: SnapshotEntry) -> Manifest {
        self.snapshots.retain(|known| known.name != entry.name);
        self.snapshots.insert(0, entry);
        self.snapshots.truncate(KEPT);
        Manifest {
            format: FORMAT,
            cluster: cluster.to_owned(),
            snapshots: self.snapshots,
        }
    }

    /// Leaves out the snapshots that no node `announced`, and takes what was announced of the
    /// others: the store says nothing but which of them it has. If nothing was announced, the
    /// broker is new or lost its data, and the store is all there is. Returns the names that are
    /// left out.
    pub fn anchor(&mut self, announced: &[SnapshotEntry]) -> Vec<String> {
        if announced.is_empty() {
            return Vec::new();
        }
        let mut strange = Vec::new();
        let listed = std::mem::take(&mut self.snapshots).into_iter();
        let anchored = |listed: SnapshotEntry| {
            let known = announced.iter().find(|known| known.name == listed.name);
            match known.filter(|known| (&known.sha256, known.size) == (&listed.sha256, listed.size))
            {
                Some(known) => Some(SnapshotEntry {
                    streams: listed.reliable_of(known),
                    ..known.clone()
                }),
                None => {
                    strange.push(listed.name);
                    None
                }
            }
        };
        self.snapshots = listed.filter_map(anchored).collect();
        strange
    }

    /// The manifest as JSON.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("writing to memory does not fail")
    }
}

impl SnapshotEntry {
    /// Removes the positions that `other`, if it is the same snapshot, does not have. Returns
    /// whether it removed any.
    pub fn drop_unreliable(&mut self, other: &SnapshotEntry) -> bool {
        let before = self.streams.len();
        if self.name == other.name {
            self.streams
                .retain(|stream, _| other.streams.contains_key(stream));
        }
        self.streams.len() < before
    }

    /// The positions of the announced entry `known` that this one, of the same snapshot, has, too:
    /// a node that found a position lost removed it here.
    fn reliable_of(&self, known: &SnapshotEntry) -> BTreeMap<String, StreamPosition> {
        let streams = known.streams.iter();
        let reliable = streams.filter(|(stream, _)| self.streams.contains_key(*stream));
        reliable.map(|(s, p)| (s.clone(), p.clone())).collect()
    }

    /// Reads and checks a single entry, as the broker's bucket holds it. The error is a text for
    /// people.
    pub fn parse(bytes: &[u8]) -> Result<SnapshotEntry, String> {
        let entry: SnapshotEntry = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        entry.check()?;
        Ok(entry)
    }

    /// The entry alone as JSON.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("writing to memory does not fail")
    }

    /// The newest tombstone that the snapshot's node ever dropped; [`Version::NEVER`] if it dropped
    /// none.
    pub fn dropped(&self) -> Version {
        self.dropped
            .map_or(Version::NEVER, |(hlc, node)| Version { hlc, node })
    }

    /// Whether the snapshot has no gap in any stream.
    pub fn is_whole(&self) -> bool {
        self.streams.values().all(|p| p.gap.is_none())
    }

    fn check(&self) -> Result<(), String> {
        let hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        let is_gap = |g: &Gap| g.heard.len() <= MAX_STREAMS && g.end < MAX_SEQ;
        let sound = is_snapshot(&self.name)
            && self.sha256.len() == 64
            && self.sha256.chars().all(hex)
            && (1..MAX_DATABASE_BYTES).contains(&self.size)
            && (1..MAX_DATABASE_BYTES).contains(&self.database_size)
            && self.streams.len() <= MAX_STREAMS
            && self
                .streams
                .values()
                .all(|p| p.seq < MAX_SEQ && p.gap.as_ref().is_none_or(is_gap))
            && self.dropped.is_none_or(|_| self.dropped().is_valid())
            && self.lacks.iter().map(String::len).sum::<usize>() <= MAX_LACKS_BYTES;
        match sound {
            true => Ok(()),
            false => Err(format!("its entry {:?} makes no sense", self.name)),
        }
    }
}

/// Name of a new snapshot. `random` makes it unique.
pub fn fresh_name(time_ms: i64, node: u64, random: u64) -> String {
    format!("snapshot-{time_ms}-{node}-{random:08x}.db.zst")
}

/// Whether an object's name is that of a snapshot, complete or interrupted while it was written.
pub fn is_snapshot(name: &str) -> bool {
    let sign = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    name.starts_with("snapshot-") && name.len() < 128 && name.chars().all(sign)
}

/// Time (unix milliseconds) and node in a snapshot's name; none if it is no such name.
pub fn made(name: &str) -> Option<(i64, u64)> {
    let mut parts = name.strip_prefix("snapshot-")?.split('-');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(time_ms: i64) -> SnapshotEntry {
        SnapshotEntry {
            name: fresh_name(time_ms, 7, 0xabc),
            size: 10,
            sha256: "0".repeat(64),
            database_size: 4096,
            node: 7,
            time_ms,
            schema: -5,
            streams: BTreeMap::from([("s-1".into(), StreamPosition::default())]),
            dropped: Some((5 << 16, u64::MAX)),
            lacks: vec!["jobs".into()],
        }
    }

    #[test]
    fn a_written_manifest_is_read_and_two_snapshots_are_kept() {
        let manifest = Manifest::default().with("c", entry(1));
        let manifest = manifest.with("c", entry(2)).with("c", entry(3));
        let read = Manifest::parse(&manifest.to_bytes(), "c").unwrap();
        assert_eq!(read, manifest);
        assert_eq!(read.snapshots, [entry(3), entry(2)]);
        assert_eq!(SnapshotEntry::parse(&entry(4).to_bytes()), Ok(entry(4)));
        assert_eq!(made(&entry(3).name), Some((3, 7)));
    }

    #[test]
    fn nothing_is_believed() {
        let sound = Manifest::default().with("c", entry(1));
        let text = String::from_utf8(sound.to_bytes()).unwrap();
        for (from, to, says) in [
            ("\"c\"", "\"other\"", "another cluster"),
            ("\"format\": 1", "\"format\": 2", "later release"),
            (".db.zst", "/../x", "makes no sense"),
            ("0000", "00zz", "makes no sense"),
            ("\"size\": 10", "\"size\": 0", "makes no sense"),
            ("4096", "1e30", "torn"),
            ("327680", "-1", "makes no sense"),
            (
                "\"seq\": 0",
                "\"seq\": 18446744073709551615",
                "makes no sense",
            ),
        ] {
            assert!(text.contains(from), "{from}");
            let error = Manifest::parse(text.replace(from, to).as_bytes(), "c").unwrap_err();
            let error = error.to_string();
            assert!(error.contains(says), "{from} -> {to}: {error}");
        }
        for end in 0..text.len() - 1 {
            assert!(Manifest::parse(&text.as_bytes()[..end], "c").is_err());
        }
    }
}
