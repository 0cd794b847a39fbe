//! The report of a run: the JSON of `harmonylite verify --json`.

use serde::{Deserialize, Serialize};

/// Number of the JSON's layout.
pub const VERSION: u32 = 1;

/// See the module's head.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// See [`VERSION`].
    pub version: u32,
    /// Whether all nodes were compared and hold the same rows.
    pub fine: bool,
    /// Whether the run is still under way.
    pub running: bool,
    /// The present step of the run; empty at its end.
    pub doing: String,
    /// Why the run has no result.
    pub error: Option<String>,
    /// Number of tables of this node that were compared.
    pub tables: u64,
    /// Number of rows of this node that were compared.
    pub rows: u64,
    /// About how many rows there are to compare, while the run is under way; 0: not known.
    #[serde(default)]
    pub rows_about: u64,
    /// Every node that was asked.
    pub nodes: Vec<Compared>,
    /// Tables that were not compared, each with the reason.
    pub left_out: Vec<(String, String)>,
    /// Tables whose rows differ.
    pub differ: Vec<String>,
    /// Rows that differ.
    pub different_rows: Vec<RowDifference>,
    /// Whether more rows differ than are listed.
    pub more: bool,
    /// Number of rows that are not comparable yet: changes of them are under way.
    #[serde(default)]
    pub unsettled: u64,
    /// Number of rows that were published again; with `dry_run`, of rows that would be.
    pub repaired: u64,
    /// Whether the run only counts what it would repair.
    pub dry_run: bool,
}

/// A node that was asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    /// The node's id.
    pub node: String,
    /// Whether its rows could be compared.
    pub comparable: bool,
    /// Why they could not yet.
    pub why: Option<String>,
}

/// A row that differs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowDifference {
    /// Name of the table in lower case.
    pub table: String,
    /// The key as SQL literals.
    pub key: String,
    /// The row on each node that was compared.
    pub nodes: Vec<RowOn>,
}

/// A row as one node has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowOn {
    /// The node's id.
    pub node: String,
    /// When the row's version was written, in unix milliseconds; `null` if the node never heard of
    /// the row.
    pub written_ms: Option<i64>,
    /// Id of the node that wrote it.
    pub written_by: Option<String>,
    /// Whether the row is in the table.
    pub present: bool,
    /// Whether the content is what was recorded with its version. If not, it was changed behind the
    /// triggers' back.
    pub intact: bool,
    /// Digest of the content in hexadecimal, equal on nodes with the same content.
    pub digest: String,
}
