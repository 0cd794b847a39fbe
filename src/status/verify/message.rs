//! What the nodes say to each other, as JSON in the broker's bucket. Nothing of it is trusted.

use serde::{Deserialize, Serialize};

/// Where the request of a run is. One word: every node that watches the bucket hears of it.
pub const REQUEST: &str = "verify";

/// Before the number of the node that answers.
pub const ANSWER: &str = "digest.";

/// Bytes of a request or an answer that is read.
pub const MAX_BYTES: usize = 600 << 10;

/// Bytes of keys and digests in an answer.
pub const MAX_LISTED: usize = 256 << 10;

/// Parts or rows that are asked for at once.
pub const MAX_WANTED: usize = 1000;

/// What a node is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Of the run, drawn at its beginning.
    pub run: String,
    /// Counts the requests of a run.
    pub step: u32,
    /// The node that asks.
    pub by: u64,
    /// 32 bytes, hexadecimal.
    pub key: String,
    pub want: Want,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Want {
    /// One digest of each table.
    Totals,
    /// The digests of the 256 parts below each of these.
    Parts(Vec<Part>),
    /// Keys and digests of the rows in each of these.
    Rows(Vec<Part>),
    /// Versions of these rows.
    States(Vec<RowKey>),
    /// Make these rows equal again.
    Repair(Vec<Fix>),
}

/// Rows of a table whose place begins with these bytes: none, one or two.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Part {
    pub table: String,
    pub under: Vec<u8>,
}

/// One row, by the name of its table in lower case and the bytes of its key in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RowKey {
    pub table: String,
    pub key: String,
}

/// How one row is made equal again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fix {
    pub row: RowKey,
    /// The newest version that a node has: time and node.
    pub newest: (i64, u64),
    /// Who publishes it once more.
    pub from: Vec<u64>,
    /// A node that has this version, and another content than it recorded with it, gives its own
    /// up.
    pub gives_up: bool,
}

/// What a node says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Answer {
    pub run: String,
    pub step: u32,
    /// Why the node cannot say now; then the rest is empty.
    pub not_ready: Option<String>,
    /// Per stream, the last message that was read: its number and its id.
    pub at: Vec<(u64, String)>,
    pub tables: Vec<Total>,
    /// As wanted, in that order: 256 digests in hexadecimal; none if all are 0.
    pub parts: Vec<Vec<String>>,
    /// As wanted, in that order: keys and digests.
    pub rows: Vec<Vec<(String, String)>>,
    pub states: Vec<State>,
    /// Not all fitted in.
    pub more: bool,
    /// Rows that were repaired.
    pub repaired: u64,
}

/// One table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Total {
    pub table: String,
    /// Hash of its definition.
    pub schema: String,
    pub rows: u64,
    pub digest: String,
    /// Something waits for this table, which is no difference.
    pub waits: bool,
}

/// What a node knows of one row.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// Time and node of its version; none if it was never heard of.
    pub version: Option<(i64, u64)>,
    pub deleted: bool,
    /// Whether the row is in the table.
    pub present: bool,
    /// It is what was recorded when its version was. If not, it was changed behind the triggers'
    /// back.
    pub intact: bool,
    pub digest: String,
}
