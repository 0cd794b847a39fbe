//! UNIQUE indexes: which of two rows that collide is in the table.
//!
//! Two nodes may insert rows of different keys that share a value under a UNIQUE index; no node can
//! hold both. Which one is in the table is a function of the set of versions alone, so that all
//! nodes agree: rows are admitted from the highest order down, (hlc, node, key), and a row that
//! collides with an admitted one is *displaced*: stored with its values, and back in the table
//! as soon as nothing hides it. Each step here keeps that true ("settles"), so that rows may come
//! one by one and in any order.

use std::sync::Arc;

use rusqlite::Connection;

use crate::apply::displaced::DisplacedRows;
use crate::apply::settling::Settling;
use crate::apply::tuples::colliding;
use crate::database::rows::Rows;
use crate::database::schema::UniqueIndex;
use crate::database::sites::Sites;
use crate::database::table::Table;
use crate::database::{Database, Result, is_unique_violation};
use crate::model::cbor;
use crate::model::value::{OwnedValue, Value};

/// Whether it is one of a UNIQUE index of the table, not of one to which a trigger writes.
pub(super) fn is_collision(table: &Table, e: &rusqlite::Error) -> bool {
    let names_it = || {
        let text = e.to_string();
        let place = text.rsplit_once("failed: ").map_or("", |(_, place)| place);
        let column = place.strip_prefix(table.name());
        let is_index = |u: &UniqueIndex| place == format!("index '{}'", u.name);
        column.is_some_and(|rest| rest.starts_with('.')) || table.schema.unique.iter().any(is_index)
    };
    is_unique_violation(e) && !table.schema.unique.is_empty() && (!table.fires || names_it())
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
        displaced_row(&self.conn, table, key)
    }

    /// Rows that are displaced.
    pub fn displaced(&self) -> Result<u64> {
        Ok(self
            .conn
            .prepare_cached("SELECT count(*) FROM __harmonylite___displaced")?
            .query_row([], |r| r.get(0))?)
    }

    /// Rows that are displaced, counted up to a bound.
    pub fn displaced_up_to(&self, most: u64) -> Result<u64> {
        let text = "SELECT count(*) FROM (SELECT 1 FROM __harmonylite___displaced LIMIT ?1)";
        let mut statement = self.conn.prepare_cached(text)?;
        Ok(statement.query_row([most as i64], |r| r.get(0))?)
    }

    /// A row was joined, its version is stored: `in_table` is what the table still holds of it,
    /// `arrived` what it is now, none if deleted. Fails if that breaks another constraint: then it
    /// is held, as it would be if nothing were displaced.
    pub(super) fn settle_joined(
        &mut self,
        table: &Arc<Table>,
        key: &[Value<'_>],
        key_bytes: &[u8],
        in_table: Option<Vec<OwnedValue>>,
        arrived: Option<Vec<OwnedValue>>,
    ) -> Result<()> {
        let mut settling = self.settling(table)?;
        settling.rows.delete(key)?;
        settling.displaced.forget(key_bytes)?;
        if let Some(old) = in_table {
            settling.wake(&old)?;
        }
        if let Some(values) = arrived {
            settling.try_row(&values)?;
            settling.displaced.put(key_bytes, &values, &[])?;
            settling.add(key_bytes.to_vec())?;
        }
        self.counts.conflicts += settling.run()?;
        self.note_displaced(table)
    }

    /// The application changed these rows; what they were before is not known.
    pub(crate) fn settle_local(&mut self, table: &Arc<Table>, keys: &[Vec<u8>]) -> Result<()> {
        let mut settling = self.settling(table)?;
        for key in keys {
            settling.displaced.forget(key)?;
            for hidden in settling.displaced.hidden_by(key)? {
                settling.add(hidden)?;
            }
            settling.add(key.clone())?;
        }
        self.counts.conflicts += settling.run()?;
        self.note_displaced(table)
    }

    /// The first row of a table is displaced.
    fn say_displaced(&mut self, table: &Table) {
        let text = "are displaced: others have their values in a UNIQUE index; `harmonylite \
            conflicts` shows them";
        match self.displaced_alarm.rings(self.clock.uptime()) {
            Some(0) => log::warn!("rows of table {} {text}", table.name()),
            Some(more) => log::warn!(
                "rows of table {} {text}, as {more} times before",
                table.name()
            ),
            None => {}
        }
    }

    /// Displaced rows that nothing but the row `key`, which the application deleted, kept out of
    /// the table: the user meant them, too.
    pub(crate) fn hidden_only_by(&self, table: &Arc<Table>, key: &[u8]) -> Result<Vec<Vec<u8>>> {
        let aside = DisplacedRows {
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

    /// All displaced rows of the table anew: its UNIQUE indexes are others now.
    pub(crate) fn resettle(&mut self, table: &Arc<Table>) -> Result<()> {
        let mut settling = self.settling(table)?;
        for (key, values) in settling.displaced.take_all()? {
            settling.displaced.put(&key, &values, &[])?;
            settling.add(key)?;
        }
        settling.run()?; // they were counted when they were put aside
        self.note_displaced(table)
    }

    /// These rows have new versions: what was displaced of them is void.
    pub(crate) fn forget_displaced(&self, table: &Table, keys: &[Vec<u8>]) -> Result<()> {
        let aside = DisplacedRows {
            conn: &self.conn,
            table,
        };
        keys.iter().try_for_each(|key| aside.forget(key))
    }

    fn settling<'c>(&'c self, table: &'c Table) -> Result<Settling<'c>> {
        let comparing = self.catalog.comparing.contains_key(&table.id);
        Settling::new(&self.conn, &self.sites, table, comparing)
    }

    fn note_displaced(&mut self, table: &Table) -> Result<()> {
        let aside = DisplacedRows {
            conn: &self.conn,
            table,
        };
        match aside.is_empty()? {
            false => {
                let is_new = self.catalog.displaced.insert(table.id);
                if is_new {
                    self.say_displaced(table);
                }
                is_new
            }
            true => self.catalog.displaced.remove(&table.id),
        };
        Ok(())
    }
}

/// The values of a row that is displaced in this database.
pub(crate) fn displaced_row(
    conn: &Connection,
    table: &Table,
    key: &[u8],
) -> Result<Option<Vec<OwnedValue>>> {
    DisplacedRows { conn, table }.row(key)
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
    let waiting = DisplacedRows { conn, table }.waiting_on(own_values)?;
    for key in waiting.into_iter().filter(|k| k != own_key) {
        let values = cbor::key_values(&key)?;
        let values: Vec<Value<'_>> = values.iter().map(OwnedValue::borrow).collect();
        let stored = rows.version(sites, &values)?;
        highest = highest.max(stored.map_or(0, |s| s.state.version.hlc));
    }
    Ok(highest)
}
