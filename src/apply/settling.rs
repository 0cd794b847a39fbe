//! The algorithm of [`super::unique`]. It takes the rows that may have to move from the highest
//! order down, and after each move the rows that it may concern.

use std::collections::BTreeSet;

use rusqlite::Connection;

use crate::apply::displaced::DisplacedRows;
use crate::apply::tuples::colliding;
use crate::apply::unique::is_collision;
use crate::database::rows::Rows;
use crate::database::sites::Sites;
use crate::database::table::Table;
use crate::database::{Result, is_unfit, savepoint};
use crate::model::cbor;
use crate::model::value::{OwnedValue, Value};
use crate::model::version::Version;

/// Version of a row with NULL in its key: no other node can know that row, so it stays, whatever
/// collides with it. For the moment it is also the version of a row that the application wrote and
/// that is not captured yet.
const UNMOVABLE: Version = Version {
    hlc: i64::MAX,
    node: u64::MAX,
};

/// Bound of the steps of one settling: only a damaged index makes it endless.
const MAX_STEPS: u32 = 1_000_000;

/// Decides between colliding rows: the one with the larger order is in the table.
type Order = (Version, Vec<u8>);

/// One run of the algorithm over one table.
pub(super) struct Settling<'c> {
    sites: &'c Sites,
    pub rows: Rows<'c>,
    pub displaced: DisplacedRows<'c>,
    /// Some rows may have changed without an entry in the change log, and lack their new versions.
    comparing: bool,
    /// Rows to decide on, highest order last.
    todo: BTreeSet<Order>,
    done: BTreeSet<Order>,
    /// How many rows were displaced by another one.
    conflicts: u64,
}

impl<'c> Settling<'c> {
    pub(super) fn new(
        conn: &'c Connection,
        sites: &'c Sites,
        table: &'c Table,
        comparing: bool,
    ) -> Result<Self> {
        let rows = Rows::new(conn, table)?;
        Ok(Settling {
            sites,
            rows,
            displaced: DisplacedRows { conn, table },
            comparing,
            todo: BTreeSet::new(),
            done: BTreeSet::new(),
            conflicts: 0,
        })
    }

    /// Fails if the row, which is not in the table, breaks a constraint whatever the other rows
    /// are. SQLite checks UNIQUE indexes last, so a collision means that the rest is fine.
    pub(super) fn try_row(&mut self, values: &[OwnedValue]) -> Result<()> {
        let values: Vec<Value<'_>> = values.iter().map(OwnedValue::borrow).collect();
        match savepoint(self.displaced.conn, true, || self.rows.upsert(&values)) {
            Err(e) if !is_collision(self.displaced.table, &e) => Err(e.into()),
            _ => Ok(()),
        }
    }

    /// Decides on every row of `todo`, from the highest order down. Returns how many rows were
    /// displaced by another one.
    pub(super) fn run(mut self) -> Result<u64> {
        for steps in 0.. {
            let Some(next) = self.todo.pop_last() else {
                break;
            };
            if steps == MAX_STEPS {
                let table = self.displaced.table.name();
                log::error!(
                    "UNIQUE collisions of table {table} are not settled after {steps} steps"
                );
                break;
            }
            if self.done.insert(next.clone()) {
                self.settle_row(next)?;
            }
        }
        Ok(self.conflicts)
    }

    fn settle_row(&mut self, order: Order) -> Result<()> {
        let key_bytes = order.1.clone();
        let key = cbor::key_values(&key_bytes)?;
        let key: Vec<Value<'_>> = key.iter().map(OwnedValue::borrow).collect();
        let in_table = self.rows.owned_row(&key)?;
        let is_in_table = in_table.is_some();
        let Some(values) =
            in_table.map_or_else(|| self.displaced.row(&key_bytes), |values| Ok(Some(values)))?
        else {
            return Ok(());
        };
        if is_in_table && self.is_uncaptured(&key, &values)? {
            return Ok(()); // settled when it has its version
        }
        let rows_key = self.displaced.table.key_len();
        let mut others = Vec::new();
        for (other, other_values) in colliding(
            self.displaced.conn,
            self.displaced.table,
            &key_bytes,
            &values,
        )? {
            let other_key: Vec<Value<'_>> = other_values[..rows_key]
                .iter()
                .map(OwnedValue::borrow)
                .collect();
            let order = match other_key.iter().any(Value::is_null)
                || self.is_uncaptured(&other_key, &other_values)?
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
            self.conflicts += 1;
            return self.displaced.put(&key_bytes, &values, &by.1);
        }
        for ((_, other), other_values) in others {
            let other_key = cbor::key_values(&other)?;
            let other_key: Vec<Value<'_>> = other_key.iter().map(OwnedValue::borrow).collect();
            self.rows.delete(&other_key)?;
            self.conflicts += 1;
            self.displaced.put(&other, &other_values, &key_bytes)?;
            self.wake(&other_values)?;
        }
        if !is_in_table {
            let values: Vec<Value<'_>> = values.iter().map(OwnedValue::borrow).collect();
            match self.rows.upsert(&values) {
                Ok(()) => self.displaced.forget(&key_bytes)?,
                // Another constraint, newer than the row: it stays displaced, and the log says why.
                Err(e) if is_unfit(&e) && !self.displaced.table.fires => {
                    log::warn!(
                        "a row of table {} stays displaced: {e}",
                        self.displaced.table.name()
                    );
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Whether a row of the table differs from its version: the comparison has not come to it yet.
    fn is_uncaptured(&mut self, key: &[Value<'_>], values: &[OwnedValue]) -> Result<bool> {
        if !self.comparing {
            return Ok(false);
        }
        let table = self.displaced.table;
        let values = values.iter().map(OwnedValue::borrow);
        let stored = self.rows.version(self.sites, key)?;
        Ok(stored.is_none_or(|s| s.state.deleted || !table.is_content(&s, values)))
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

    pub(super) fn add(&mut self, key: Vec<u8>) -> Result<()> {
        if let Some(order) = self.order(&key)?.filter(|o| !self.done.contains(o)) {
            self.todo.insert(order);
        }
        Ok(())
    }

    /// Adds the displaced rows that share a tuple with a row that left the table.
    pub(super) fn wake(&mut self, values: &[OwnedValue]) -> Result<()> {
        for key in self.displaced.waiting_on(values)? {
            if let Some(order) = self.order(&key)? {
                self.done.remove(&order);
                self.todo.insert(order);
            }
        }
        Ok(())
    }
}
