//! What is chosen for this node, and how much it takes of others.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::{MAX_HELD_BYTES, Tables};
use crate::model::frame::{MAX_FRAME_BYTES, MAX_ROW_BYTES};

/// What is chosen for this node.
pub struct Settings {
    pub path: PathBuf,
    /// From the configuration or the machine; if none, one is drawn and kept in the database.
    pub node_id: Option<u64>,
    /// Whether local changes are published.
    pub publish: bool,
    pub shards: u32,
    /// Names of the streams that are read: what was known of others is left behind. Empty: all are.
    pub streams: BTreeSet<String>,
    /// Entries of the change log that are captured in one transaction, however long that takes.
    pub scan_max_changes: usize,
    /// Frames are cut when they reach this, in bytes before compression.
    pub max_transaction_bytes: usize,
    /// How far ahead of the broker's time a local write may be stamped.
    pub max_clock_drift: Duration,
    /// How long a write of ours is put off until no application reads; 0 = not at all.
    pub courtesy: Duration,
    /// How long a deleted row is remembered.
    pub tombstone_retention: Duration,
    pub allow_rowid_tables: bool,
    /// Snapshots are kept: until this node has met the others by one, it does not publish, and rows
    /// from before HarmonyLite give way to theirs. Without, it counts as joined.
    pub joins_by_snapshot: bool,
    /// Where the positions are mirrored, and the Go version kept its own; none in most tests.
    pub seq_map_path: Option<PathBuf>,
    /// Which tables take part.
    pub tables: Tables,
    /// Triggers of the application that run for changes that arrive, too.
    pub apply_triggers: Vec<String>,
}

/// How much is taken of what others may send without end.
#[derive(Debug)]
pub(crate) struct Limits {
    /// Bytes of a row that is sent.
    pub row_bytes: usize,
    /// Bytes of parts that wait for others.
    pub parts_bytes: u64,
    /// Bytes that are held of tables that are not here.
    pub held_bytes: u64,
    /// Messages in quarantine, and bytes of them.
    pub quarantined: u64,
    pub quarantined_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            row_bytes: MAX_ROW_BYTES,
            parts_bytes: 4 * MAX_FRAME_BYTES as u64,
            held_bytes: MAX_HELD_BYTES,
            quarantined: 1000,
            quarantined_bytes: 16 << 20,
        }
    }
}
