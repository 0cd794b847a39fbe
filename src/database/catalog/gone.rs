//! Removes all traces of tables that the application dropped, once a deleted row would be
//! forgotten.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::params;

use super::forget_table;
use crate::database::table::versions_table;
use crate::database::{Database, Result};
use crate::model::version::Version;

impl Database {
    /// Remembers since which transaction known tables are missing in the database. `known` has the
    /// number and name of those that are not replicated at present.
    pub(super) fn note_gone(&mut self, known: &BTreeMap<i64, String>) -> Result<()> {
        let mut gone = BTreeSet::new();
        for (id, name) in known {
            if !self.has_table(name)? {
                gone.insert(*id);
            }
        }
        let mut noted = self
            .conn
            .prepare_cached("SELECT table_id FROM __harmonylite___gone")?;
        let noted = noted.query_map([], |r| r.get(0))?;
        let noted = noted.collect::<rusqlite::Result<BTreeSet<i64>>>()?;
        for id in noted.difference(&gone) {
            let text = "DELETE FROM __harmonylite___gone WHERE table_id = ?1";
            self.conn.execute(text, [id])?;
        }
        if !gone.is_empty() {
            self.catalog.quiet.await_gone(self.clock.uptime());
        }
        let at = self.reservation.peek_number();
        for id in gone.difference(&noted) {
            let text = "INSERT INTO __harmonylite___gone(table_id, at) VALUES (?1, ?2)";
            self.conn.execute(text, params![id, at])?;
        }
        Ok(())
    }

    /// Whether a known table is missing in the database.
    pub(crate) fn has_gone(&self) -> Result<bool> {
        let text = "SELECT 1 FROM __harmonylite___gone LIMIT 1";
        Ok(self.conn.prepare_cached(text)?.exists([])?)
    }

    /// Names of known tables that are missing in the database.
    pub(crate) fn gone(&self) -> Result<Vec<String>> {
        let text = "SELECT t.name FROM __harmonylite___tables t
                    JOIN __harmonylite___gone g ON g.table_id = t.id";
        let mut names = self.conn.prepare_cached(text)?;
        let names = names.query_map([], |r| r.get(0))?;
        Ok(names.collect::<rusqlite::Result<_>>()?)
    }

    /// Forgets the tables that have been gone since transaction `bound` or longer: their number,
    /// versions, and entries in `___waiting`. Inside a transaction.
    pub(crate) fn forget_gone(&mut self, bound: i64) -> Result<()> {
        let old: Vec<(i64, String)> = {
            let mut old = self.conn.prepare(
                "SELECT t.id, t.name FROM __harmonylite___tables t
                 JOIN __harmonylite___gone g ON g.table_id = t.id WHERE g.at <= ?1",
            )?;
            let old = old.query_map([bound], |r| Ok((r.get(0)?, r.get(1)?)))?;
            old.collect::<rusqlite::Result<_>>()?
        };
        for (id, name) in &old {
            let text = format!("SELECT max(hlc) FROM {}", versions_table(name));
            // Another program may have dropped the versions table.
            let highest = self
                .conn
                .query_row(&text, [], |r| r.get::<_, Option<i64>>(0));
            if let Ok(Some(hlc)) = highest {
                let node = self.node;
                self.note_forgotten(Version { hlc, node })?;
            }
            forget_table(&self.conn, name)?;
            for own in ["waiting", "gone"] {
                let text = format!("DELETE FROM __harmonylite___{own} WHERE table_id = ?1");
                self.conn.execute(&text, [id])?;
            }
            self.catalog.away.remove(id);
            log::info!("table {name} was dropped: its versions are forgotten");
        }
        match old.is_empty() {
            true => Ok(()),
            false => {
                self.restore_detector.forget();
                self.note_schema()
            }
        }
    }
}
