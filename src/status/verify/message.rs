//! Messages between the nodes, as JSON in the broker's bucket. None of them is trusted.

use serde::{Deserialize, Serialize};

/// Key of a run's request. It is one word, so that every node that watches the bucket hears of it.
pub const REQUEST: &str = "verify";

/// Prefix of the key of an answer; the id of the node that answers follows.
pub const ANSWER: &str = "digest.";

/// Largest request or answer that is read, in bytes.
pub const MAX_BYTES: usize = 600 << 10;

/// Largest number of bytes of keys and digests in an answer.
pub const MAX_LISTED: usize = 256 << 10;

/// Largest number of ranges or rows in one request.
pub const MAX_WANTED: usize = 1000;

/// Longest key, in hexadecimal digits, that stands in a message.
pub const MAX_KEY: usize = 4096;

/// A request to all nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyRequest {
    /// Id of the run, drawn at its beginning.
    pub run: String,
    /// Counts the requests of a run.
    pub step: u32,
    /// Id of the node that asks.
    pub by: u64,
    /// Key of the run's digests: 32 bytes in hexadecimal.
    pub key: String,
    /// The question.
    pub want: Want,
}

/// The question of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Want {
    /// The node's tables.
    Tables,
    /// Number of rows and digest of each of these.
    Sums(Vec<KeyRange>),
    /// Keys and digests of the rows in each of these.
    Rows(Vec<KeyRange>),
    /// States of single rows.
    States {
        /// The rows.
        rows: Vec<RowKey>,
        /// Per stream, the message up to which the node must have read first.
        read: Vec<u64>,
    },
    /// Make these rows equal again.
    Repair(Vec<Fix>),
}

/// The rows of a table whose keys are in a range.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KeyRange {
    /// Name of the table in lower case.
    pub table: String,
    /// Bytes of the key before the range, in hexadecimal; `None`: it begins with the first row.
    pub after: Option<String>,
    /// Bytes of the last key in the range, in hexadecimal; `None`: it ends with the last row.
    pub up_to: Option<String>,
}

/// One row.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RowKey {
    /// Name of the table in lower case.
    pub table: String,
    /// Bytes of the key in hexadecimal.
    pub key: String,
}

/// How one row is made equal again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fix {
    /// The row.
    pub row: RowKey,
    /// The newest version that a node has: hlc and node.
    pub newest: (i64, u64),
    /// Id of the node that publishes the row once more.
    pub from: u64,
    /// Whether that node gives the row the next version first, because a node has different content
    /// under this one.
    pub stamps: bool,
}

/// The answer of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VerifyAnswer {
    /// Id of the run, from the request.
    pub run: String,
    /// Step of the run, from the request.
    pub step: u32,
    /// Why the node cannot answer now; then the rest is empty.
    pub not_ready: Option<String>,
    /// For [`Want::Tables`]: the node's tables.
    pub tables: Vec<TableAnswer>,
    /// For [`Want::Sums`], in its order.
    pub sums: Vec<Sum>,
    /// For [`Want::Rows`], in its order: keys and digests, in hexadecimal.
    pub rows: Vec<Vec<(String, String)>>,
    /// For [`Want::States`], in its order.
    pub states: Vec<RowAnswer>,
    /// For [`Want::States`]: per stream, a message at or after all that these states stem from.
    pub read: Vec<u64>,
    /// Whether some rows did not fit in.
    pub more: bool,
    /// For [`Want::Repair`]: number of rows that the node repaired.
    pub repaired: u64,
}

/// One table of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableAnswer {
    /// Name of the table in lower case.
    pub table: String,
    /// Hash of the table's definition.
    pub schema: String,
    /// Whether changes wait for this table, so that a difference would mean nothing.
    pub waits: bool,
}

/// The rows of a range, all together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sum {
    /// Number of rows.
    pub rows: u64,
    /// Sum of their digests, in hexadecimal.
    pub digest: String,
}

/// The state of one row on a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RowAnswer {
    /// Hlc and node of the row's version; `None` if the node never heard of the row.
    pub version: Option<(i64, u64)>,
    /// Whether the version is a tombstone.
    pub deleted: bool,
    /// Whether the row is in the table.
    pub present: bool,
    /// Whether the content is what was recorded with the version. If not, it was changed behind the
    /// triggers' back.
    pub intact: bool,
    /// Digest of the content in hexadecimal; empty if the row is not in the table.
    pub digest: String,
    /// Whether changes wait for the row's table, so that a difference would mean nothing.
    pub waits: bool,
}
