//! Counts the rows that are missing in a table since it was made anew. They are deletes for all
//! nodes: resetting a database with seed data empties its tables everywhere. The count is logged
//! and shown in health before the first of these deletes is recorded, and so before any is sent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::database::rows::Rows;
use crate::database::table::Table;
use crate::database::{Compare, Database, Phase, Result};
use crate::model::cbor;
use crate::model::value::{OwnedValue, Value};

/// How long health reports the count.
const IS_NEWS: Duration = Duration::from_secs(600);

/// Counts under way, and counts reported.
#[derive(Debug, Default)]
pub(crate) struct GoneRows {
    /// By number of the table that is compared.
    counts: BTreeMap<i64, GoneCount>,
    /// By name of the table: the time of the report by [`crate::clock::Clock::uptime`], and its
    /// text.
    said: BTreeMap<String, (Duration, String)>,
    /// Rows found gone since the start.
    total: u64,
}

/// Rows that a table had, and those of them that it lacks.
#[derive(Debug, Clone, Default)]
pub(super) struct GoneCount {
    /// Key of the last live version that was counted.
    pub after: Option<Vec<u8>>,
    /// Live versions; `gone` counts those without a row.
    pub known: u64,
    pub gone: u64,
    pub is_done: bool,
}

impl GoneRows {
    /// Forgets the count of a table (by number): its comparison begins, or is over.
    pub(super) fn forget(&mut self, id: i64) {
        self.counts.remove(&id);
    }

    /// Takes out the count of a table, which [`Self::put`] puts back.
    pub(super) fn take(&mut self, id: i64) -> GoneCount {
        self.counts.remove(&id).unwrap_or_default()
    }

    pub(super) fn put(&mut self, id: i64, count: GoneCount) {
        self.counts.insert(id, count);
    }
}

impl Database {
    /// Counts, for one step, the rows that a table lacks. True once all are counted.
    pub(super) fn count_gone(&mut self, table: &Arc<Table>, compare: &Compare) -> Result<bool> {
        let mut count = self.gone_rows.take(table.id);
        if !count.is_done {
            let step = Compare {
                phase: Phase::Versions,
                is_renamed: false,
                after: count.after.take(),
                ..compare.clone()
            };
            let keys = self.next_keys(table, &step)?;
            count.known += keys.len() as u64;
            for key in &keys {
                count.gone += u64::from(self.is_gone(table, key)?);
            }
            count.is_done = keys.len() < super::compare::STEP;
            count.after = keys.into_iter().next_back();
            if count.is_done && count.gone > 0 && self.settings.publish {
                self.say_gone(table.name(), &count);
            }
        }
        let is_done = count.is_done;
        self.gone_rows.put(table.id, count);
        Ok(is_done)
    }

    fn is_gone(&self, table: &Arc<Table>, key_bytes: &[u8]) -> Result<bool> {
        let key = cbor::key_values(key_bytes)?;
        let key: Vec<Value<'_>> = key.iter().map(OwnedValue::borrow).collect();
        let is_here = Rows::new(&self.conn, table)?.exists(&key)?;
        Ok(!is_here && self.displaced_row(table, key_bytes)?.is_none())
    }

    pub(super) fn say_gone(&mut self, table: &str, count: &GoneCount) {
        let text = format!(
            "{} of the {} rows that it had are gone since it was created again: they are deleted \
             on all nodes",
            count.gone, count.known
        );
        log::warn!("table {table}: {text}");
        let now = self.clock.uptime();
        let GoneRows { said, total, .. } = &mut self.gone_rows;
        said.retain(|_, (at, _)| now - *at < IS_NEWS);
        said.insert(table.to_owned(), (now, text));
        *total += count.gone;
    }

    /// Tables in which rows were found gone lately, with the text of the report.
    pub(crate) fn gone_lately(&self) -> impl Iterator<Item = (&str, &str)> {
        let now = self.clock.uptime();
        let said = self.gone_rows.said.iter();
        said.filter(move |(_, (at, _))| now - *at < IS_NEWS)
            .map(|(table, (_, text))| (table.as_str(), text.as_str()))
    }

    /// Number of rows that were found gone since the start.
    pub fn rows_gone(&self) -> u64 {
        self.gone_rows.total
    }
}
