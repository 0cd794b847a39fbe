//! Rows that were in the file before its node joined the others, and lost against theirs.
//!
//! Two nodes that were set up apart, each by its own migrations, give one key to different rows:
//! content types and permissions of Django, settings, users. The founder's rows win, and rows that
//! refer to the others' by key mean different ones from then on. Nobody but a person can mend that,
//! so it is said.

use std::collections::BTreeMap;

use crate::database::rows::Stored;
use crate::database::table::Table;
use crate::database::{Database, Result, values};
use crate::model::merge::State;
use crate::model::version::{HLC_BEFORE, Version};

/// By table: rows of before that got other values.
pub(crate) type Demoted = BTreeMap<String, u64>;

/// The version of a row that gave way.
const NOBODYS: Version = Version {
    hlc: HLC_BEFORE,
    node: 0,
};

/// Notes that a row of before became `after`, if it has other values by that.
pub(super) fn note(
    counts: &mut Demoted,
    table: &Table,
    before: Option<&State>,
    old: i64,
    after: &Stored,
) {
    let is_of_before = before.is_some_and(|b| b.version == NOBODYS && !b.deleted);
    if is_of_before && !after.state.deleted && after.state.version != NOBODYS && after.hash != old {
        *counts.entry(table.name().to_owned()).or_default() += 1;
    }
}

impl Database {
    /// This node has met the others: says what that changed of the rows that it brought along.
    pub(crate) fn report_demoted(&mut self) -> Result<()> {
        for (table, count) in std::mem::take(&mut self.demoted) {
            log::warn!(
                "table {table}: {count} row(s) that were here before this node joined have other \
                 values on the other nodes under the same keys, and were replaced; rows that refer \
                 to them may mean others now. Set up one node and copy its file to the others: see \
                 \"Adding a node\""
            );
        }
        let mut aside = self.conn.prepare_cached(
            "SELECT t.name, count(*) FROM __harmonylite___displaced d
             JOIN __harmonylite___tables t ON t.id = d.table_id GROUP BY 1",
        )?;
        let mut rows = aside.query([])?;
        while let Some(row) = rows.next()? {
            let (table, count) = (values::lossy(row, 0)?, row.get::<_, i64>(1)?);
            log::warn!(
                "table {table}: {count} row(s) are displaced, since others have their values in a \
                 UNIQUE index: see `harmonylite conflicts`"
            );
        }
        Ok(())
    }
}
