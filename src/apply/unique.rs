//! UNIQUE indexes: which of two rows that collide is in the table.
//!
//! Two nodes may insert rows of different keys that share a value under a UNIQUE index; no node can
//! hold both. Which one is in the table is a function of the set of versions alone, so that all
//! nodes agree: rows are admitted from the highest order down, (hlc, node, key), and a row that
//! collides with an admitted one is *displaced*: kept aside with its values, and back in the table
//! as soon as nothing hides it. Each step here keeps that true ("settles"), so that rows may come
//! one by one and in any order.

use std::sync::Arc;

use crate::apply::aside::Aside;
use crate::apply::settling::Settling;
use crate::apply::tuples::colliding;
use crate::database::rows::Rows;
use crate::database::sites::Sites;
use crate::database::table::Table;
use crate::database::{Database, Result};
use crate::model::cbor;
use crate::model::value::{OwnedValue, Value};

/// SQLITE_CONSTRAINT_UNIQUE, <https://www.sqlite.org/rescode.html>.
const UNIQUE_VIOLATION: i32 = 2067;

pub(super) fn is_unique_violation(e: &rusqlite::Error) -> bool {
    matches!(e, rusqlite::Error::SqliteFailure(f, _) if f.extended_code == UNIQUE_VIOLATION)
}

impl Database {
    /// The values of a displaced row.
    pub(crate) fn displaced_row(
        &self,
        table: &Table,
        key: &[u8],
    ) -> Result<Option<Vec<OwnedValue>>> {
        if !self.catalog.displaced.contains(&table.id) {
            return Ok(None);
        }
        Aside {
            conn: &self.conn,
            table,
        }
        .row(key)
    }

    /// Rows that are displaced.
    pub fn displaced(&self) -> Result<u64> {
        Ok(self
            .conn
            .prepare_cached("SELECT count(*) FROM __harmonylite___displaced")?
            .query_row([], |r| r.get(0))?)
    }

    /// A row was joined, its version is stored: `in_table` is what the table still holds of it,
    /// `arrived` what it is now, none if deleted.
    pub(super) fn settle_joined(
        &mut self,
        table: &Arc<Table>,
        key: &[Value<'_>],
        key_bytes: &[u8],
        in_table: Option<Vec<OwnedValue>>,
        arrived: Option<Vec<OwnedValue>>,
    ) -> Result<()> {
        let mut settling = Settling::new(&self.conn, &self.sites, table)?;
        settling.rows.delete(key)?;
        settling.aside.forget(key_bytes)?;
        if let Some(old) = in_table {
            settling.wake(&old)?;
        }
        if let Some(values) = arrived {
            settling.aside.put(key_bytes, &values, None)?;
            settling.add(key_bytes.to_vec())?;
        }
        settling.run()?;
        self.note_displaced(table)
    }

    /// The application changed these rows; what they were before is not known. Rows that they hid
    /// wait until the raw log is empty: see [`Self::settle_waiting`].
    pub(crate) fn unhide_local(&mut self, table: &Arc<Table>, keys: &[Vec<u8>]) -> Result<()> {
        let aside = Aside {
            conn: &self.conn,
            table,
        };
        for key in keys {
            aside.forget(key)?;
            aside.unhide(key)?;
        }
        self.note_displaced(table)
    }

    /// The same for all tables that are known to be as their versions say.
    pub(crate) fn settle_all_waiting(&mut self) -> Result<()> {
        let mut ids: Vec<i64> = self.catalog.displaced.iter().copied().collect();
        ids.retain(|id| !self.catalog.comparing.contains_key(id));
        for id in ids {
            let Some(table) = self.catalog.by_id.get(&id).cloned() else {
                continue;
            };
            if let Err(reason) = self.guarded(|db| db.settle_waiting(&table))? {
                log::warn!("rows of table {} stay aside: {reason}", table.name());
                let aside = Aside {
                    conn: &self.conn,
                    table: &table,
                };
                for key in aside.unhidden()? {
                    aside.stop_looking(&key)?;
                }
            }
        }
        Ok(())
    }

    /// Looks at the displaced rows that may come back. To be called when the raw log is empty: the
    /// table is ahead of the versions until then, and a displaced row that the application has
    /// since written or deleted would come back over that.
    pub(crate) fn settle_waiting(&mut self, table: &Arc<Table>) -> Result<()> {
        let mut settling = Settling::new(&self.conn, &self.sites, table)?;
        for key in settling.aside.unhidden()? {
            settling.add(key)?;
        }
        if settling.is_idle() {
            return Ok(());
        }
        settling.run()?;
        self.note_displaced(table)
    }

    /// Displaced rows that nothing but the row `key`, which the application deleted, kept out of
    /// the table: the user meant them, too.
    pub(crate) fn hidden_only_by(&self, table: &Arc<Table>, key: &[u8]) -> Result<Vec<Vec<u8>>> {
        let aside = Aside {
            conn: &self.conn,
            table,
        };
        let mut only = Vec::new();
        for hidden in aside.hidden_by(key)? {
            let values = aside.row(&hidden)?.unwrap_or_default();
            if colliding(&self.conn, table, &hidden, &values)?.is_empty() {
                only.push(hidden);
            }
        }
        Ok(only)
    }

    /// All displaced rows of the table are to be looked at anew: its UNIQUE indexes are others now.
    pub(crate) fn unhide_all(&mut self, table: &Arc<Table>) -> Result<()> {
        let aside = Aside {
            conn: &self.conn,
            table,
        };
        for (key, values) in aside.take_all()? {
            aside.put(&key, &values, None)?;
        }
        self.note_displaced(table)
    }

    fn note_displaced(&mut self, table: &Table) -> Result<()> {
        let aside = Aside {
            conn: &self.conn,
            table,
        };
        match aside.is_empty()? {
            false => self.catalog.displaced.insert(table.id),
            true => self.catalog.displaced.remove(&table.id),
        };
        Ok(())
    }
}

/// The highest hlc among the displaced rows that a row with these values collides with: a local
/// write of it must be above, or it would be displaced itself.
pub(crate) fn highest_displaced(
    rows: &mut Rows<'_>,
    sites: &Sites,
    own_values: &[OwnedValue],
    own_key: &[u8],
) -> Result<i64> {
    let (conn, table) = (rows.conn, rows.table);
    let mut highest = 0;
    let waiting = Aside { conn, table }.waiting_on(own_values)?;
    for key in waiting.into_iter().filter(|k| k != own_key) {
        let values = cbor::key_values(&key)?;
        let values: Vec<Value<'_>> = values.iter().map(OwnedValue::borrow).collect();
        let stored = rows.version(sites, &values)?;
        highest = highest.max(stored.map_or(0, |s| s.state.version.hlc));
    }
    Ok(highest)
}
