//! The snapshot that a node merged last, or began with.

use crate::database::meta::{Meta, get_meta, set_meta};
use crate::database::{Database, Result};

impl Database {
    /// Notes that a snapshot was merged, or that the file is one.
    pub fn note_merged_snapshot(&mut self, name: &str) -> Result<()> {
        self.write(|db| Ok(set_meta(&db.conn, Meta::MergedSnapshot, name)?))
    }

    /// Name of the snapshot that was merged last, or that the file began with.
    pub fn merged_snapshot(&self) -> Result<Option<String>> {
        Ok(get_meta(&self.conn, Meta::MergedSnapshot)?)
    }
}
