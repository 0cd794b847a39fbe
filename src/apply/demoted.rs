//! Counts rows that were in the file before its node joined the others, and lost to theirs.
//!
//! Two nodes that were set up apart, each by its own migrations, give one key to different rows:
//! content types and permissions of Django, settings, users. The founder's rows win, and rows that
//! refer to the losing rows by key refer to different ones from then on. Only a person can mend
//! that, so the log says it.

use std::collections::BTreeMap;

use crate::database::rows::Stored;
use crate::database::table::Table;
use crate::database::{Database, Result, values};
use crate::model::merge::RowState;
use crate::model::version::{HLC_BEFORE, Version};

/// Number of rows from before that got different values, by table name.
pub(crate) type Demoted = BTreeMap<String, u64>;

/// The version of a demoted row.
const NOBODYS: Version = Version {
    hlc: HLC_BEFORE,
    node: 0,
};

/// Counts a row from before that became `after`, if its values differ by that.
pub(super) fn note(
    counts: &mut Demoted,
    table: &Table,
    before: Option<&RowState>,
    old: i64,
    after: &Stored,
) {
    let is_of_before = before.is_some_and(|b| b.version == NOBODYS && !b.deleted);
    if is_of_before && !after.state.deleted && after.state.version != NOBODYS && after.hash != old {
        *counts.entry(table.name().to_owned()).or_default() += 1;
    }
}

impl Database {
    /// Logs the demoted and displaced rows, once this node has met the others.
    pub(crate) fn report_demoted(&mut self) -> Result<()> {
        for (table, count) in std::mem::take(&mut self.demoted) {
            log::warn!(
                "table {table}: {count} row(s) from before this node joined have different values \
                 on the other nodes under the same keys: the rows of the other nodes replace \
                 them, and rows that refer to them may now refer to something else. Set up one \
                 node and copy its file to the others: see \"Adding a node\""
            );
        }
        let mut displaced = self.conn.prepare_cached(
            "SELECT t.name, count(*) FROM __harmonylite___displaced d
             JOIN __harmonylite___tables t ON t.id = d.table_id GROUP BY 1",
        )?;
        let mut rows = displaced.query([])?;
        while let Some(row) = rows.next()? {
            let (table, count) = (values::lossy(row, 0)?, row.get::<_, i64>(1)?);
            log::warn!(
                "table {table}: {count} row(s) are displaced, because other rows have their \
                 values in a UNIQUE index: see `harmonylite conflicts`"
            );
        }
        Ok(())
    }
}
