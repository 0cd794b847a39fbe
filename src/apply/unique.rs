//! UNIQUE indexes: which of two rows that collide is in the table.
//!
//! Two nodes may insert rows of different keys that share a value under a UNIQUE index; no node can
//! hold both. Which one is in the table is a function of the set of versions alone, so that all
//! nodes agree: rows are admitted from the highest order down, (hlc, node, key), and a row that
//! collides with an admitted one is *displaced*: kept aside with its values, and back in the table
//! as soon as nothing hides it. Each step here keeps that true ("settles"), so that rows may come
//! one by one and in any order.

use std::collections::BTreeSet;
use std::sync::Arc;

use rusqlite::Connection;

use crate::apply::aside::Aside;
use crate::apply::tuples::colliding;
use crate::database::rows::Rows;
use crate::database::sites::Sites;
use crate::database::table::Table;
use crate::database::{Database, Result};
use crate::model::cbor;
use crate::model::value::{OwnedValue, Value};
use crate::model::version::Version;

/// SQLITE_CONSTRAINT_UNIQUE, <https://www.sqlite.org/rescode.html>.
const UNIQUE_VIOLATION: i32 = 2067;

/// Steps of one settling: a bound for what has no end only if an index is damaged.
const MAX_LOOKS: u32 = 1_000_000;

/// What decides between rows that collide: the larger is in the table.
type Order = (Version, Vec<u8>);

/// Of a row with NULL in its key, which no other node can know: it stays, whatever collides with it.
const UNMOVABLE: Version = Version {
    hlc: i64::MAX,
    node: u64::MAX,
};

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
            settling.aside.put(key_bytes, &values, &[])?;
            settling.add(key_bytes.to_vec())?;
        }
        settling.run()?;
        self.note_displaced(table)
    }

    /// The application changed these rows; what they were before is not known.
    pub(crate) fn settle_local(&mut self, table: &Arc<Table>, keys: &[Vec<u8>]) -> Result<()> {
        let mut settling = Settling::new(&self.conn, &self.sites, table)?;
        for key in keys {
            settling.aside.forget(key)?;
            for hidden in settling.aside.hidden_by(key)? {
                settling.add(hidden)?;
            }
            settling.add(key.clone())?;
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

    /// All displaced rows of the table anew: its UNIQUE indexes are others now.
    pub(crate) fn resettle(&mut self, table: &Arc<Table>) -> Result<()> {
        let mut settling = Settling::new(&self.conn, &self.sites, table)?;
        for (key, values) in settling.aside.take_all()? {
            settling.aside.put(&key, &values, &[])?;
            settling.add(key)?;
        }
        settling.run()?;
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

/// One run of the algorithm over one table.
struct Settling<'c> {
    sites: &'c Sites,
    rows: Rows<'c>,
    aside: Aside<'c>,
    /// Rows to look at, highest order first.
    todo: BTreeSet<Order>,
    done: BTreeSet<Order>,
}

impl<'c> Settling<'c> {
    fn new(conn: &'c Connection, sites: &'c Sites, table: &'c Table) -> Result<Self> {
        let rows = Rows::new(conn, table)?;
        Ok(Settling {
            sites,
            rows,
            aside: Aside { conn, table },
            todo: BTreeSet::new(),
            done: BTreeSet::new(),
        })
    }

    /// Looks at every row of `todo`, from the highest order down.
    fn run(mut self) -> Result<()> {
        for looks in 0.. {
            let Some(next) = self.todo.pop_last() else {
                break;
            };
            if looks == MAX_LOOKS {
                let table = self.aside.table.name();
                log::error!(
                    "UNIQUE collisions of table {table} are not settled after {looks} steps"
                );
                break;
            }
            if self.done.insert(next.clone()) {
                self.look(next)?;
            }
        }
        Ok(())
    }

    fn look(&mut self, order: Order) -> Result<()> {
        let key_bytes = order.1.clone();
        let key = cbor::key_values(&key_bytes)?;
        let key: Vec<Value<'_>> = key.iter().map(OwnedValue::borrow).collect();
        let in_table = self.rows.owned_row(&key)?;
        let is_in_table = in_table.is_some();
        let Some(values) =
            in_table.map_or_else(|| self.aside.row(&key_bytes), |values| Ok(Some(values)))?
        else {
            return Ok(());
        };
        let rows_key = self.aside.table.key_len();
        let mut others = Vec::new();
        for (other, other_values) in
            colliding(self.aside.conn, self.aside.table, &key_bytes, &values)?
        {
            let order = match other_values[..rows_key]
                .iter()
                .any(|v| v.borrow().is_null())
            {
                true => (UNMOVABLE, other),
                false => self.order(&other)?.unwrap_or((Version::NEVER, other)),
            };
            others.push((order, other_values));
        }
        if let Some((by, _)) = others
            .iter()
            .filter(|(o, _)| *o > order)
            .max_by_key(|(o, _)| o)
        {
            if is_in_table {
                self.rows.delete(&key)?;
                self.wake(&values)?;
            }
            return self.aside.put(&key_bytes, &values, &by.1);
        }
        for ((_, other), other_values) in others {
            let other_key = cbor::key_values(&other)?;
            let other_key: Vec<Value<'_>> = other_key.iter().map(OwnedValue::borrow).collect();
            self.rows.delete(&other_key)?;
            self.aside.put(&other, &other_values, &key_bytes)?;
            self.wake(&other_values)?;
        }
        if !is_in_table {
            let values: Vec<Value<'_>> = values.iter().map(OwnedValue::borrow).collect();
            match self.rows.upsert(&values) {
                Ok(()) => self.aside.forget(&key_bytes)?,
                // Another constraint, newer than the row: it stays aside, and the reason is said.
                Err(e) if crate::database::is_unfit(&e) => {
                    log::warn!(
                        "a row of table {} stays aside: {e}",
                        self.aside.table.name()
                    );
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn order(&mut self, key_bytes: &[u8]) -> Result<Option<Order>> {
        let key = cbor::key_values(key_bytes)?;
        let key: Vec<Value<'_>> = key.iter().map(OwnedValue::borrow).collect();
        let stored = self
            .rows
            .version(self.sites, &key)?
            .filter(|s| !s.state.deleted);
        Ok(stored.map(|s| (s.state.version, key_bytes.to_vec())))
    }

    fn add(&mut self, key: Vec<u8>) -> Result<()> {
        if let Some(order) = self.order(&key)?.filter(|o| !self.done.contains(o)) {
            self.todo.insert(order);
        }
        Ok(())
    }

    /// Displaced rows that share a tuple with values which left the table are looked at.
    fn wake(&mut self, values: &[OwnedValue]) -> Result<()> {
        for key in self.aside.waiting_on(values)? {
            if let Some(order) = self.order(&key)? {
                self.done.remove(&order);
                self.todo.insert(order);
            }
        }
        Ok(())
    }
}
