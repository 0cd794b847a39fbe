//! FrameRows of a well-formed frame that say what cannot be: each is left out by itself.

use super::Row;

/// Bytes of such rows that are kept for a person to look at.
const KEPT_BYTES: usize = 64 << 10;

/// What was left out of a frame.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults {
    pub rows: usize,
    /// What is wrong with the first of them.
    pub first: String,
    /// Some of them as they came.
    pub bytes: Vec<u8>,
    is_named: bool,
}

impl Faults {
    pub(super) fn add(&mut self, fault: &str, row: &Row<'_>, bytes: &[u8]) {
        if self.rows == 0 {
            let version = row.version;
            let length = bytes.len();
            self.first = format!("{fault} (version {version}, {length} bytes)");
        }
        self.rows += 1;
        if self.bytes.len() + bytes.len() <= KEPT_BYTES {
            self.bytes.extend_from_slice(bytes);
        }
    }

    /// The rows added since the call before are of this table.
    pub(super) fn name_table(&mut self, table: &str) {
        if self.rows > 0 && !self.is_named {
            self.first = format!("table {table:?}: {}", self.first);
            self.is_named = true;
        }
    }
}
