//! Tables of the application that are not replicated, by choice or because they cannot be.

use std::collections::BTreeSet;

use super::{from_cbor, to_cbor};
use crate::database::own_tables::{get_meta, set_meta};
use crate::database::{Database, Result, values};

impl Database {
    /// Whether there is no table of the application.
    pub(crate) fn is_without_tables(&self) -> Result<bool> {
        Ok(self.tables_of_application("'table', 'virtual'")?.is_empty())
    }

    /// Tables of the application that are not replicated by choice.
    pub(crate) fn left_out(&self) -> Result<Vec<String>> {
        let mut tables = self.tables_of_application("'table'")?;
        tables.retain(|name| !(self.settings.selects)(name));
        Ok(tables)
    }

    /// Whether there are such.
    pub fn excludes_tables(&self) -> Result<bool> {
        Ok(!self.left_out()?.is_empty())
    }

    fn tables_of_application(&self, kinds: &str) -> Result<Vec<String>> {
        let mut list = self.conn.prepare_cached(&format!(
            "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type IN ({kinds})
             AND name NOT GLOB 'sqlite_*' AND name NOT GLOB '__harmonylite__*'"
        ))?;
        let names = list.query_map([], |r| values::lossy(r, 0))?;
        Ok(names.collect::<rusqlite::Result<_>>()?)
    }

    /// Tables (lower case) that were in the database and not replicated when it was looked at last:
    /// when one is included, what it holds by then does not count as written just now.
    pub(super) fn known_left_out(&self) -> Result<BTreeSet<String>> {
        let stored: Option<Vec<u8>> = get_meta(&self.conn, "left_out")?;
        stored.map_or(Ok(BTreeSet::new()), |bytes| from_cbor(&bytes))
    }

    pub(super) fn note_left_out(&self) -> Result<()> {
        let mut tables = self.conn.prepare_cached(
            "SELECT lower(name) FROM pragma_table_list WHERE schema = 'main' AND type = 'table'
             AND name NOT GLOB 'sqlite_*' AND name NOT GLOB '__harmonylite__*'",
        )?;
        let by_name = &self.catalog.by_name;
        let left_out: BTreeSet<String> = tables
            .query_map([], |r| values::lossy(r, 0))?
            .filter(|name| {
                name.as_ref()
                    .map_or(true, |n: &String| !by_name.contains_key(n))
            })
            .collect::<rusqlite::Result<_>>()?;
        if left_out != self.known_left_out()? {
            set_meta(&self.conn, "left_out", to_cbor(&left_out))?;
        }
        Ok(())
    }
}
