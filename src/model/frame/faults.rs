//! Impossible rows of a well-formed frame: each is left out by itself.

use super::Row;

/// Limit of the bytes of such rows that are kept for people.
const KEPT_BYTES: usize = 64 << 10;

/// The rows that were left out of a frame.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults {
    /// Number of rows left out.
    pub rows: usize,
    /// The fault of the first of them, for people.
    pub first: String,
    /// The bytes of some of them as they came.
    pub bytes: Vec<u8>,
    /// The highest hlc of the rows that are not left out.
    pub newest: i64,
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

    /// Names the table of the rows that were added since the previous call.
    pub(super) fn name_table(&mut self, table: &str) {
        if self.rows > 0 && !self.is_named {
            self.first = format!("table {table:?}: {}", self.first);
            self.is_named = true;
        }
    }
}
