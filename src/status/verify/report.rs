//! What a run found: the JSON of `harmonylite verify --json`.

use serde::{Deserialize, Serialize};

/// Number of the JSON's layout.
pub const VERSION: u32 = 1;

/// See the module's head.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub version: u32,
    /// All nodes were compared, and hold the same rows.
    pub fine: bool,
    /// Whether the run is still under way, and what it does.
    pub running: bool,
    pub doing: String,
    /// Why there is no result.
    pub error: Option<String>,
    /// Tables and rows of this node that were compared.
    pub tables: u64,
    pub rows: u64,
    pub nodes: Vec<Compared>,
    /// Tables that were not compared, each with the reason.
    pub left_out: Vec<(String, String)>,
    /// Tables whose rows differ.
    pub differ: Vec<String>,
    /// Rows that differ.
    pub different_rows: Vec<Row>,
    /// More rows differ than are listed.
    pub more: bool,
    /// Rows that were published again; with `dry_run`, rows that would be.
    pub repaired: u64,
    pub dry_run: bool,
}

/// A node that was asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    pub node: String,
    pub comparable: bool,
    /// Why it is not comparable yet.
    pub why: Option<String>,
}

/// A row that differs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    pub table: String,
    /// The key as SQL literals.
    pub key: String,
    pub nodes: Vec<RowOn>,
}

/// A row as one node has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowOn {
    pub node: String,
    /// When and on which node its version was written; none if the row was never heard of.
    pub written_ms: Option<i64>,
    pub written_by: Option<String>,
    /// Whether the row is in the table.
    pub present: bool,
    /// Whether it is what was recorded with its version: if not, it was changed behind the back of
    /// the triggers.
    pub intact: bool,
    /// Equal on nodes that hold the same.
    pub digest: String,
}
