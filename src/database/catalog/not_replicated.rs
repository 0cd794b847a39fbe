//! Tables of the application that are not replicated, by choice or because they cannot be.

use std::collections::BTreeSet;

use rusqlite::Connection;

use super::{from_cbor, to_cbor};
use crate::config::{Choice, Tables, bookkeeping};
use crate::database::meta::{Meta, get_meta, set_meta};
use crate::database::own_tables;
use crate::database::schema::PREFIX;
use crate::database::selection::{self, Kind, NotReplicated};
use crate::database::table::versions_table;
use crate::database::{Database, Result, triggers, values};

impl Database {
    /// Whether the database has no table of the application.
    pub(crate) fn is_without_tables(&self) -> Result<bool> {
        let mut list = self.conn.prepare_cached(
            "SELECT name FROM pragma_table_list WHERE schema = 'main'
             AND type IN ('table', 'virtual', 'shadow')
             AND name NOT GLOB 'sqlite_*' AND name NOT GLOB '__harmonylite__*'",
        )?;
        for name in list.query_map([], |r| values::lossy(r, 0))? {
            if !bookkeeping::is_of_a_companion(&name?) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Tables of the application that are not replicated, each with the reason.
    pub fn not_replicated(&self) -> &[NotReplicated] {
        &self.catalog.not_replicated
    }

    /// Names of the tables that are not replicated for a reason of that kind.
    pub(crate) fn not_replicated_as(&self, kind: Kind) -> Vec<String> {
        let all = self
            .not_replicated()
            .iter()
            .filter(|left| left.kind == kind);
        all.map(|left| left.table.clone()).collect()
    }

    /// Whether this node excludes some table, by choice, that a node with the selection `others`
    /// replicates.
    pub fn lacks_tables_of(&self, others: &Tables) -> Result<bool> {
        if self.let_go_by_choice().any(|name| others.replicates(name)) {
            return Ok(true);
        }
        for left in self.not_replicated().iter().filter(|l| l.kind.is_chosen()) {
            let columns = selection::column_names(&self.conn, &left.table)?;
            let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
            if others.choose(&left.table, &columns) == Choice::Replicated {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether some table is not replicated by choice.
    pub fn chooses_tables(&self) -> bool {
        self.not_replicated()
            .iter()
            .any(|left| left.kind.is_chosen())
    }

    /// Removes all that is left from the time when local tables were replicated. If such a table is
    /// replicated again, a snapshot brings the rows of the other nodes.
    pub(super) fn forget_local(&mut self) -> Result<()> {
        for table in self.not_replicated_as(Kind::Local) {
            if forget_table(&self.conn, &table)? {
                self.note_let_go(&table.to_ascii_lowercase())?;
            }
        }
        Ok(())
    }

    /// Tables (lower case) that were in the database and not replicated when the catalog was read
    /// last. If one of them is included later, its rows do not count as written at that moment.
    pub(super) fn known_not_replicated(&self) -> Result<BTreeSet<String>> {
        let stored: Option<Vec<u8>> = get_meta(&self.conn, Meta::NotReplicated)?;
        stored.map_or(Ok(BTreeSet::new()), |bytes| from_cbor(&bytes))
    }

    /// Whether the catalog was once read by a release that distinguishes the storage of virtual
    /// tables from tables that only have such a name.
    pub(super) fn knows_storage(&self) -> Result<bool> {
        Ok(get_meta::<i64>(&self.conn, Meta::KnowsStorage)?.is_some())
    }

    pub(super) fn note_not_replicated(&self) -> Result<()> {
        if !self.knows_storage()? {
            set_meta(&self.conn, Meta::KnowsStorage, 1)?;
        }
        let is_table = |left: &&NotReplicated| {
            !matches!(left.kind, Kind::Virtual | Kind::Storage | Kind::Refused)
        };
        let tables = self.not_replicated().iter().filter(is_table);
        let not_replicated: BTreeSet<String> =
            tables.map(|l| l.table.to_ascii_lowercase()).collect();
        if not_replicated != self.known_not_replicated()? {
            set_meta(&self.conn, Meta::NotReplicated, to_cbor(&not_replicated))?;
        }
        Ok(())
    }
}

/// Notes in a copy which tables are local to the node that made it. If a node that begins with the
/// copy replicates one of them, its rows do not count as written at that moment.
pub(crate) fn note_local(copy: &Connection, local: &[String]) -> rusqlite::Result<()> {
    let lower: BTreeSet<String> = local.iter().map(|t| t.to_ascii_lowercase()).collect();
    set_meta(copy, Meta::NotReplicated, to_cbor(&lower))
}

/// Removes the versions, marks and displaced rows of a table that was once replicated: versions
/// without rows would look like deletes. Its held rows stay. Returns false if the table had no
/// number.
pub(crate) fn forget_table(conn: &Connection, table: &str) -> rusqlite::Result<bool> {
    let text = "SELECT id FROM __harmonylite___tables WHERE name = ?1";
    let mut list = conn.prepare_cached(text)?;
    let ids = list.query_map([table], |r| r.get(0))?;
    let ids = ids.collect::<rusqlite::Result<Vec<i64>>>()?;
    for id in &ids {
        let lives = own_tables::has_lives(conn)?.then_some("lives");
        for known in ["unsent", "displaced", "displaced_by_tuple"]
            .into_iter()
            .chain(lives)
        {
            let text = format!("DELETE FROM __harmonylite___{known} WHERE table_id = ?1");
            conn.execute(&text, [id])?;
        }
        let text = format!("DELETE FROM {} WHERE table_id = ?1", triggers::LOG);
        conn.execute(&text, [id])?;
        conn.execute("DELETE FROM __harmonylite___tables WHERE id = ?1", [id])?;
    }
    let versions = format!("{PREFIX}{table}_versions");
    let text = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?1 COLLATE NOCASE";
    if conn.prepare_cached(text)?.exists([&versions])? {
        conn.execute_batch(&format!("DROP TABLE {}", versions_table(table)))?;
    }
    Ok(!ids.is_empty())
}
