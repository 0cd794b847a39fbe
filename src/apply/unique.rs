//! UNIQUE indexes: decides which of two colliding rows is in the table.
//!
//! Two nodes may insert rows with different keys that share a value under a UNIQUE index. No table
//! can hold both. The set of versions alone decides which one is in the table, so all nodes agree.
//! Rows are admitted from the highest order (hlc, node, key) down. A row that collides with an
//! admitted one is *displaced*: it is stored with its values, and returns to the table as soon as
//! nothing hides it. Each step here keeps that true ("settles"), so rows may come one by one and in
//! any order.

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

/// Whether the error is a collision in a UNIQUE index of this table, and not in a table that one of
/// its triggers writes.
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
    /// The values of a displaced row; none if the row is not displaced.
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

    /// Number of displaced rows, those that wait for their number included.
    pub fn displaced(&self) -> Result<u64> {
        let displaced: u64 = self
            .conn
            .prepare_cached("SELECT count(*) FROM __harmonylite___displaced")?
            .query_row([], |r| r.get(0))?;
        Ok(displaced + self.waiting_up_to(u64::MAX)?)
    }

    /// Number of displaced rows, counted up to `most`.
    pub fn displaced_up_to(&self, most: u64) -> Result<u64> {
        let text = "SELECT count(*) FROM (SELECT 1 FROM __harmonylite___displaced LIMIT ?1)";
        let mut statement = self.conn.prepare_cached(text)?;
        let displaced: u64 = statement.query_row([most as i64], |r| r.get(0))?;
        Ok((displaced + self.waiting_up_to(most)?).min(most))
    }

    /// Settles a row that was joined and whose version is stored. `in_table` is the row that the
    /// table still holds; `arrived` is the row as it is now, none if it is deleted. Fails if the
    /// row breaks another constraint: then it is held, as it would be without displaced rows.
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

    /// Settles rows that the application changed. Their previous values are not known.
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

    /// Logs that rows of a table are displaced, now that the first one is.
    fn say_displaced(&mut self, table: &Table) {
        let text = "are displaced: other rows have their values in a UNIQUE index; `harmonylite \
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

    /// Displaced rows that only the row `key` kept out of the table, which the application deleted:
    /// the user meant to delete them, too.
    pub(crate) fn hidden_only_by(&self, table: &Arc<Table>, key: &[u8]) -> Result<Vec<Vec<u8>>> {
        let displaced = DisplacedRows {
            conn: &self.conn,
            table,
        };
        let mut only = Vec::new();
        for hidden in displaced.hidden_by(key)? {
            let values = displaced.row(&hidden)?.unwrap_or_default();
            if colliding(&self.conn, table, &hidden, &values)?.is_empty() {
                only.push(hidden);
            }
        }
        Ok(only)
    }

    /// Settles all displaced rows of a table anew, because its UNIQUE indexes changed.
    pub(crate) fn resettle(&mut self, table: &Arc<Table>) -> Result<()> {
        let mut settling = self.settling(table)?;
        for (key, values) in settling.displaced.take_all()? {
            settling.displaced.put(&key, &values, &[])?;
            settling.add(key)?;
        }
        settling.run()?; // they were counted when they were displaced
        self.note_displaced(table)
    }

    /// Removes these rows from the displaced ones: they have new versions.
    pub(crate) fn forget_displaced(&self, table: &Table, keys: &[Vec<u8>]) -> Result<()> {
        let displaced = DisplacedRows {
            conn: &self.conn,
            table,
        };
        keys.iter().try_for_each(|key| displaced.forget(key))
    }

    fn settling<'c>(&'c self, table: &'c Table) -> Result<Settling<'c>> {
        let comparing = self.catalog.comparing.contains_key(&table.id);
        Settling::new(&self.conn, &self.sites, table, comparing)
    }

    fn note_displaced(&mut self, table: &Table) -> Result<()> {
        let displaced = DisplacedRows {
            conn: &self.conn,
            table,
        };
        match displaced.is_empty()? {
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

/// The values of a displaced row in this database; none if the row is not displaced.
pub(crate) fn displaced_row(
    conn: &Connection,
    table: &Table,
    key: &[u8],
) -> Result<Option<Vec<OwnedValue>>> {
    DisplacedRows { conn, table }.row(key)
}

/// The highest hlc among the displaced rows that collide with a row of these values; 0 if there are
/// none. A local write must have a higher one, or it would be displaced itself.
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
