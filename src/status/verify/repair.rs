//! Single rows: their state, and how they are made equal again.
//!
//! A node that has the newest version of a row publishes it once more. That is enough if others
//! have an older version. A row that was changed behind the triggers' back has the newest version
//! already, but different content. It gets the lowest version there is for it, so that the
//! published one wins. A crash in between leaves it so, and the next run finds it again.

use super::digest::{Digester, Key};
use super::message::{Fix, RowAnswer, RowKey};
use crate::capture::{Captured, Frames};
use crate::database::rows::{Rows, Stored};
use crate::database::{CompareReason, Database, Result};
use crate::model::cbor;
use crate::model::merge::{Exceptions, FLOOR, RowState as Versions};
use crate::model::value::{OwnedValue, Value};
use crate::model::version::{HLC_BEFORE, Version};

use super::answer::unhex;

impl Database {
    /// The state of a row. `None` if there is no such table, or the key is not valid.
    pub(super) fn verify_state(&self, key: &Key, row: &RowKey) -> Result<Option<RowAnswer>> {
        let Some((table, key_bytes)) = self.verify_row(row) else {
            return Ok(None);
        };
        let values = cbor::key_values(&key_bytes)?;
        let values: Vec<Value<'_>> = values.iter().map(OwnedValue::borrow).collect();
        let mut rows = Rows::new(&self.conn, &table)?;
        let stored = rows.version(&self.sites, &values)?;
        let content = rows.owned_row(&values)?;
        let hash = rows.stored_hash(&values)?;
        let mut state = RowAnswer {
            present: content.is_some(),
            ..RowAnswer::default()
        };
        if let Some(content) = &content {
            let content: Vec<Value<'_>> = content.iter().map(OwnedValue::borrow).collect();
            let digest = Digester::new(key, &table).row(&key_bytes, &content);
            state.digest = format!("{digest:x}");
        }
        if let Some(stored) = stored {
            let Version { hlc, node } = stored.state.version;
            state.version = Some((hlc, node));
            state.deleted = stored.state.deleted;
            let is_away = || self.displaced_row(&table, &key_bytes);
            state.intact = match (stored.state.deleted, state.present) {
                (true, present) => !present,
                (false, true) => stored.hash == hash,
                (false, false) => is_away()?.is_some(),
            };
        }
        Ok(Some(state))
    }

    /// Whether changes wait for a table, or it is being compared with its versions. `lower` is its
    /// name in lower case, `id` its id.
    pub(super) fn waits_for(&self, lower: &str, id: i64) -> bool {
        let catalog = &self.catalog;
        catalog.held.contains(lower) || catalog.comparing.contains_key(&id)
    }

    /// Whether changes of this node are sent.
    pub(super) fn publishes(&self) -> bool {
        self.settings.publish
    }

    /// Does this node's part of repairs. Returns the number of rows it changed or marked, and the
    /// frames to publish.
    pub(super) fn repair(&mut self, fixes: &[Fix]) -> Result<(u64, Captured)> {
        self.write(|db| {
            let (mut captured, mut repaired) = (Captured::default(), 0);
            if !db.capture_locked(&mut captured)? {
                return Ok((0, captured));
            }
            let mut frames = Frames::new(db);
            for fix in fixes {
                repaired += u64::from(db.repair_row(fix, &mut frames)?);
            }
            db.take_captured(frames, &mut captured);
            Ok((repaired, captured))
        })
    }

    fn repair_row(&mut self, fix: &Fix, frames: &mut Frames) -> Result<bool> {
        let Some((table, key_bytes)) = self.verify_row(&fix.row) else {
            return Ok(false);
        };
        let none = Key([0; 32]);
        let Some(state) = self.verify_state(&none, &fix.row)? else {
            return Ok(false);
        };
        let is_newest = state.version == Some(fix.newest);
        if state.version.is_none() && state.present {
            // No node has heard of the row: it counts as written now.
            return self.compare_key(&table, &key_bytes, CompareReason::Unwatched, frames);
        }
        if is_newest && fix.from.contains(&self.node) {
            self.mark_republished(&table, &key_bytes, frames)?;
            return Ok(true);
        }
        let gives_up = is_newest && fix.gives_up && !state.intact;
        if gives_up {
            self.give_up_version(&table, &key_bytes)?;
        }
        Ok(gives_up)
    }

    /// Gives the row the lowest version that it may have: any version that arrives is above it.
    fn give_up_version(&mut self, table: &crate::database::table::Table, key: &[u8]) -> Result<()> {
        let values = cbor::key_values(key)?;
        let values: Vec<Value<'_>> = values.iter().map(OwnedValue::borrow).collect();
        let mut rows = Rows::new(&self.conn, table)?;
        let Some(stored) = rows.version(&self.sites, &values)? else {
            return Ok(());
        };
        let hash = rows.stored_hash(&values)?;
        let lowered = Stored {
            state: lowest(&stored.state),
            hash,
            local_tx: stored.local_tx,
        };
        rows.put_version(&mut self.sites, &values, &lowered)?;
        self.given_up.insert((table.id, key.to_vec()));
        Ok(())
    }

    fn verify_row(
        &self,
        row: &RowKey,
    ) -> Option<(std::sync::Arc<crate::database::table::Table>, Vec<u8>)> {
        let table = self.catalog.by_name.get(&row.table)?.clone();
        let key = unhex(&row.key)?;
        let values = cbor::key_values(&key).ok()?;
        let is_whole = values.len() == table.key_len();
        is_whole.then_some((table, key))
    }
}

/// A state below the present one, and below each of its columns. A row that should be deleted has
/// no tombstone in it any more, or its content would be above that.
fn lowest(state: &Versions) -> Versions {
    let before = Version {
        hlc: HLC_BEFORE,
        node: 0,
    };
    if state.deleted {
        return Versions {
            version: before,
            deleted: false,
            exceptions: Exceptions::new(),
        };
    }
    let floor = state.exceptions.get(FLOOR);
    Versions {
        version: state.lowest(),
        deleted: false,
        exceptions: floor.map(|v| (FLOOR.to_owned(), *v)).into_iter().collect(),
    }
}
