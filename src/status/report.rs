//! The JSON of `/status` and of `harmonylite status --json`: a contract.
//!
//! Fields may be added; [`VERSION`] rises when one goes or changes its meaning. Ids of nodes are
//! text, because not every reader of JSON takes 64 bits for a number. Times are unix milliseconds
//! by the broker's clock.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Number of the JSON's layout.
pub const VERSION: u32 = 1;

/// Everything that one node knows of itself and of all others.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// See [`VERSION`].
    pub version: u32,
    /// Whether nothing is wrong here and every node has everything, as far as this node knows.
    pub fine: bool,
    /// Whether a daemon answered. If not, `this` comes from the file, and `others` is empty.
    pub running: bool,
    /// The broker's clock; `null` before this node heard of it.
    pub time_ms: Option<i64>,
    /// This node.
    pub this: Node,
    /// Per origin of changes, how far this node is behind it. The largest lag first.
    pub lag: Vec<Lag>,
    /// Why this node is offline on purpose; `null` if it is not.
    #[serde(default)]
    pub offline: Option<String>,
    /// Failing subjects of this node and their texts, as in `/health`.
    pub problems: BTreeMap<String, String>,
    /// The other nodes, in the order of their ids.
    pub others: Vec<Node>,
    /// Number of known nodes that are not listed in `others`, because there are too many.
    pub others_left_out: u64,
    /// Why `others` may be old or empty; `null` if the broker was asked just now.
    pub others_unknown: Option<String>,
    /// Work of this node that takes longer than two seconds.
    #[serde(default)]
    pub progress: Vec<LongWork>,
    /// The newest snapshot that this node knows of.
    #[serde(default)]
    pub newest_snapshot: Option<NewestSnapshot>,
    /// The last warnings and errors in this node's log, at most 20, the oldest first.
    #[serde(default)]
    pub warnings: Vec<RecentWarning>,
}

/// Work that is under way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LongWork {
    /// The subject: "snapshot", "verify".
    pub what: String,
    /// The present step.
    pub step: String,
    /// Percent done in this step; `null` if that is not known.
    pub percent: Option<u64>,
    /// For how long it has been under way.
    pub seconds: u64,
}

/// A snapshot in the store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewestSnapshot {
    /// When it was made, in unix milliseconds by its maker's clock.
    pub made_ms: i64,
    /// How long ago that was, by this machine's clock.
    pub age_seconds: u64,
    /// Its size in bytes.
    pub size: u64,
}

/// A line of the log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecentWarning {
    /// When it was written last, in unix milliseconds by this machine's clock.
    pub time_ms: i64,
    /// `warn` or `error`.
    pub level: String,
    /// The text, without time and level.
    pub text: String,
    /// How often it was written.
    pub count: u64,
}

/// One node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// The node's id.
    pub node: String,
    /// `node_name`, by default the host's name. Empty if the node told none.
    pub name: String,
    /// How the node is known: by the `entry` that it keeps, or by its `messages`, if its release
    /// keeps none or its `status_interval` is 0.
    pub known_by: KnownBy,
    /// Version of HarmonyLite.
    pub release: Option<String>,
    /// The tables of the node.
    pub schema: SchemaHash,
    /// Per stream, how far the node has read.
    pub streams: Vec<StreamProgress>,
    /// Rows written there that the broker has not acknowledged yet.
    pub unsent: Option<u64>,
    /// Rows that wait for a table, a column or another constraint there.
    pub held: Option<u64>,
    /// Rows that are not in their table because another row has their UNIQUE values.
    pub displaced: Option<u64>,
    /// Changes there that cannot be replicated, since the daemon started.
    pub rejected: Option<u64>,
    /// Messages that the node could not read.
    pub quarantined: Option<u64>,
    /// Number of failing subjects there; `null` if that is not known.
    pub problems: Option<u64>,
    /// The largest lag of the node, in seconds, when it was last heard of.
    pub lag_seconds: Option<f64>,
    /// Name of the snapshot that the node merged last, or began with.
    pub snapshot: Option<String>,
    /// When the node was last heard of.
    pub seen_ms: Option<i64>,
    /// How many seconds ago that was.
    pub seen_seconds_ago: Option<f64>,
    /// Whether nothing was heard of the node for longer than a running node is silent.
    pub silent: bool,
    /// The rows that the node lacks, and the changes that wait there, in a few words each. Empty if
    /// it has everything.
    pub lacks: Vec<String>,
    /// Since when it lacks something or is silent, by the broker's clock; `null` if it does not, or
    /// if that is not known.
    #[serde(default)]
    pub lacks_since_ms: Option<i64>,
}

impl Node {
    /// Whether the node was heard of lately, and is of a release that answers questions.
    pub fn tells(&self) -> bool {
        self.known_by == KnownBy::Entry && !self.silent
    }
}

/// How another node is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KnownBy {
    /// By the entry that it keeps in the broker's bucket.
    #[default]
    Entry,
    /// By its messages alone.
    Messages,
}

/// The tables of a node, as a hash over their definitions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaHash {
    /// SHA-256 in hexadecimal. Nodes with equal hashes have equal tables.
    pub hash: Option<String>,
    /// The hash before the last change of the tables.
    pub previous: Option<String>,
}

/// How far a node has read one stream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamProgress {
    /// Name of the stream.
    pub stream: String,
    /// Sequence of the last message read.
    pub position: u64,
    /// Messages that the stream holds beyond that; `null` if that is not known.
    pub behind: Option<u64>,
    /// Whether the node missed messages that only a snapshot brings.
    pub gap: bool,
}

/// How far this node is behind the changes of one origin.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Lag {
    /// The id of the node that wrote.
    pub origin: String,
    /// Seconds since the broker stored the newest message of that origin that is applied here; 0
    /// when all streams are read to their end.
    pub seconds: f64,
}
