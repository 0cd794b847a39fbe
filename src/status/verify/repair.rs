//! Single rows: their state, and how they are made equal again.
//!
//! A node that has the newest version of a row publishes it once more. That is enough if others
//! have an older version. Where a node has different content under the newest version, because the
//! row was changed behind the triggers' back, the publisher gives the row the next version first:
//! that of node 0, one step above. It wins against every copy of the row, and loses against every
//! write of a node. It is stored in one transaction with its mark, so a crash loses none of it.

use std::sync::Arc;

use super::digest::{Digester, Key};
use super::message::{Fix, RowAnswer, RowKey};
use crate::capture::{Captured, Frames};
use crate::database::rows::Rows;
use crate::database::table::Table;
use crate::database::{CompareReason, Database, Result};
use crate::model::cbor;
use crate::model::merge::{FLOOR, RowState};
use crate::model::value::{OwnedValue, Value};
use crate::model::version::{HLC_LIMIT, Version, stamp};
use crate::mutation::{self, Mutation};

use super::answer::unhex;

/// Number of a transaction, and the states of rows after it.
pub type StatesAt = (i64, Vec<RowAnswer>);

impl Database {
    /// Captures what the application wrote, and reads the states of rows as of that moment. No
    /// states: more waits to be captured.
    pub fn verify_states(
        &mut self,
        key: &Key,
        rows: &[RowKey],
    ) -> Result<(Option<StatesAt>, Captured)> {
        self.write(|db| {
            let mut captured = Captured::default();
            if !db.capture_locked(&mut captured)? {
                return Ok((None, captured));
            }
            let states = rows.iter().map(|row| {
                let state = db.verify_state(key, row)?;
                Ok(state.unwrap_or_default())
            });
            let states = states.collect::<Result<_>>()?;
            let local_tx = db.reservation.peek_number() - 1;
            Ok((Some((local_tx, states)), captured))
        })
    }

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
        let mut state = RowAnswer {
            present: content.is_some(),
            waits: self.waits_for(&row.table, table.id)?,
            ..RowAnswer::default()
        };
        if let Some(content) = &content {
            let content: Vec<Value<'_>> = content.iter().map(OwnedValue::borrow).collect();
            let digest = Digester::new(key, &table).row(&key_bytes, &content);
            state.digest = format!("{digest:x}");
        }
        if let Some(stored) = stored {
            let Version { hlc, node } = stored.state.version;
            (state.version, state.deleted) = (Some((hlc, node)), stored.state.deleted);
            let is_away = || self.displaced_row(&table, &key_bytes);
            state.intact = match (stored.state.deleted, state.present) {
                (true, present) => !present,
                (false, true) => content.as_ref().is_some_and(|content| {
                    table.is_content(&stored, content.iter().map(OwnedValue::borrow))
                }),
                (false, false) => is_away()?.is_some(),
            };
        }
        Ok(Some(state))
    }

    /// Whether changes wait for a table, or it is being compared with its versions. `lower` is its
    /// name in lower case, `id` its id.
    pub(super) fn waits_for(&self, lower: &str, id: i64) -> Result<bool> {
        if self.catalog.comparing.contains_key(&id) {
            return Ok(true);
        }
        // The catalog remembers tables of which rows were held at some time.
        let text = "SELECT 1 FROM __harmonylite___held WHERE table_name = ?1 LIMIT 1";
        let is_held = || self.conn.prepare_cached(text)?.exists([lower]);
        Ok(self.catalog.held.contains(lower) && is_held()?)
    }

    /// Whether changes of this node are sent.
    pub(super) fn publishes(&self) -> bool {
        self.settings.publish
    }

    /// Does this node's part of repairs. Returns the number of rows that it publishes, and the
    /// frames. No number: nothing is done, because more waits to be captured.
    pub fn repair(&mut self, fixes: &[Fix]) -> Result<(Option<u64>, Captured)> {
        self.write(|db| {
            let (mut captured, mut repaired) = (Captured::default(), 0);
            if !db.capture_locked(&mut captured)? {
                return Ok((None, captured));
            }
            let mut frames = Frames::new(db);
            for fix in fixes {
                repaired += u64::from(db.repair_row(fix, &mut frames)?);
            }
            db.take_captured(frames, &mut captured);
            Ok((Some(repaired), captured))
        })
    }

    fn repair_row(&mut self, fix: &Fix, frames: &mut Frames) -> Result<bool> {
        let Some((table, key_bytes)) = self.verify_row(&fix.row) else {
            return Ok(false);
        };
        let state = self.verify_state(&Key([0; 32]), &fix.row)?;
        let Some(state) = state.filter(|s| !s.waits) else {
            return Ok(false);
        };
        if state.version.is_none() && state.present {
            // No node has heard of the row: it counts as written now.
            return self.compare_key(&table, &key_bytes, CompareReason::Unwatched, frames);
        }
        let is_written =
            state.version != Some(fix.newest) && !mutation::is(Mutation::RepairOfLaterWrite);
        if is_written || fix.from != self.node {
            return Ok(false);
        }
        if !state.intact {
            // No node has what was recorded with the version. This content takes its place.
            return self.compare_key(&table, &key_bytes, CompareReason::Rebuilt, frames);
        }
        if mutation::is(Mutation::RepairCountsAsNow) {
            let now = stamp(self.stamp_now()?, fix.newest.0);
            self.stamp_row(&table, &key_bytes, now)?;
        } else if fix.stamps && !mutation::is(Mutation::RepairKeepsVersion) {
            self.stamp_row(&table, &key_bytes, fix.newest.0 + 1)?;
        }
        self.mark_republished(&table, &key_bytes, frames)?;
        Ok(true)
    }

    /// Gives the row, as it is, a version of node 0 with the given hlc. No node writes under that
    /// id, and nodes that repair the same row give it the same version.
    fn stamp_row(&mut self, table: &Table, key: &[u8], hlc: i64) -> Result<()> {
        let values = cbor::key_values(key)?;
        let values: Vec<Value<'_>> = values.iter().map(OwnedValue::borrow).collect();
        let mut rows = Rows::new(&self.conn, table)?;
        let Some(mut stored) = rows.version(&self.sites, &values)? else {
            return Ok(());
        };
        let floor = stored.state.exceptions.get(FLOOR).copied();
        stored.state = RowState {
            version: Version {
                hlc: hlc.min(HLC_LIMIT - 1),
                node: 0,
            },
            deleted: stored.state.deleted,
            exceptions: floor.map(|v| (FLOOR.to_owned(), v)).into_iter().collect(),
        };
        rows.put_version(&mut self.sites, &values, &stored)
    }

    fn verify_row(&self, row: &RowKey) -> Option<(Arc<Table>, Vec<u8>)> {
        let table = self.catalog.by_name.get(&row.table)?.clone();
        let key = unhex(&row.key)?;
        let values = cbor::key_values(&key).ok()?;
        let is_whole = values.len() == table.key_len();
        is_whole.then_some((table, key))
    }
}
