//! The settings of this node's database, and limits on what peers may send.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::{MAX_HELD_BYTES, Tables};
use crate::model::frame::{FRAME_BYTES, row_bytes};

/// The settings of this node's database.
pub struct Settings {
    /// The database file.
    pub path: PathBuf,
    /// The id from the configuration or the machine. If none, a random id is drawn and kept in the
    /// database.
    pub node_id: Option<u64>,
    /// Whether local changes are published.
    pub publish: bool,
    /// Number of shards, that is of streams for changes.
    pub shards: u32,
    /// Names of the streams that this node reads; it forgets positions in others. Empty: all
    /// streams.
    pub streams: BTreeSet<String>,
    /// KiB of the database that SQLite keeps in memory.
    pub cache_size: u32,
    /// How often acknowledged marks are cleared, and positions of own messages are stored.
    pub cleanup_interval: Duration,
    /// Entries of the change log that one transaction captures, however long that takes.
    pub scan_max_changes: usize,
    /// A frame is complete when it reaches this size, in bytes before compression.
    pub max_transaction_bytes: usize,
    /// How far ahead of the broker's time a local write may be stamped.
    pub max_clock_drift: Duration,
    /// How long a write of ours waits for a moment in which no application reads; 0: not at all.
    pub courtesy: Duration,
    /// How long the tombstone of a deleted row is kept.
    pub tombstone_retention: Duration,
    /// Whether rows that SQLite numbers get births.
    pub births: bool,
    /// Whether they get births as soon as all nodes know them, or this file has some.
    pub births_later: bool,
    /// Whether tables without a primary key are replicated, by their rowid.
    pub allow_rowid_tables: bool,
    /// Whether snapshots are kept. If so, this node does not publish until it has met the others by
    /// one, and rows from before HarmonyLite are demoted against theirs. Otherwise the node counts
    /// as joined.
    pub joins_by_snapshot: bool,
    /// File that mirrors the positions, where the Go version kept its own; none in most tests.
    pub seq_map_path: Option<PathBuf>,
    /// How each table takes part.
    pub tables: Tables,
    /// Names of the triggers of the application that also run for changes that arrive.
    pub apply_triggers: Vec<String>,
}

/// How much this node accepts of input that peers could send without end.
#[derive(Debug)]
pub(crate) struct Limits {
    /// Largest frame that is put together from parts, in bytes after unpacking.
    pub frame_bytes: usize,
    /// Largest row that is sent, in bytes.
    pub row_bytes: usize,
    /// Bytes of parts that wait for the rest of their frame.
    pub parts_bytes: u64,
    /// Bytes of rows that are held for tables that this node does not have.
    pub held_bytes: u64,
    /// Messages in quarantine, and their bytes.
    pub quarantined: u64,
    pub quarantined_bytes: u64,
}

impl Limits {
    /// Sets the largest frame, and all that depends on it.
    pub(crate) fn set_frame_bytes(&mut self, frame_bytes: usize) {
        self.frame_bytes = frame_bytes;
        self.row_bytes = row_bytes(frame_bytes);
        self.parts_bytes = 4 * frame_bytes as u64;
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            frame_bytes: FRAME_BYTES,
            row_bytes: row_bytes(FRAME_BYTES),
            parts_bytes: 4 * FRAME_BYTES as u64,
            held_bytes: MAX_HELD_BYTES,
            quarantined: 1000,
            quarantined_bytes: 16 << 20,
        }
    }
}
