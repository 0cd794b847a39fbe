//! Displaced rows of a table whose key definition changed.
//!
//! The rows in the table get versions under the new key. A displaced row is not in the table, so
//! the migration gave it no new key. It is stored as held under the old key shape, like a change
//! from a node that has not migrated yet, and is applied if the table ever has that key shape
//! again.

use rusqlite::{OptionalExtension, params, params_from_iter};

use crate::apply::Incoming;
use crate::apply::held::{Place, shape_of_known};
use crate::database::rows::{Stored, stored};
use crate::database::table::{Shape, versions_table};
use crate::database::{Database, Result};
use crate::model::cbor::{self, Cursor};
use crate::model::merge::FLOOR;
use crate::model::version::Version;

impl Database {
    /// Holds the displaced rows of table number `id`, whose key had the shape `known`. Its versions
    /// are still those of that shape.
    pub(crate) fn hold_displaced(&mut self, id: i64, name: &str, known: &Shape) -> Result<()> {
        let mut after = Vec::new();
        // One by one, because all of them may not fit into memory.
        while let Some((key, row)) = self.next_displaced(id, &after)? {
            after.clone_from(&key);
            if let Some(incoming) = self.incoming_of(name, known, &key, &row)? {
                let at = Place {
                    table: name.to_ascii_lowercase(),
                    shape: shape_of_known(known),
                    key,
                };
                let reason = "it is displaced, and the table has a different key here now";
                self.hold(&at, &incoming, reason)?;
            }
        }
        if self.catalog.births {
            self.hold_lives(id, name, known)?;
            let text = "DELETE FROM __harmonylite___lives WHERE table_id = ?1";
            self.conn.execute(text, params![id])?;
        }
        for table in ["displaced", "displaced_by_tuple"] {
            let text = format!("DELETE FROM __harmonylite___{table} WHERE table_id = ?1");
            self.conn.execute(&text, params![id])?;
        }
        Ok(())
    }

    /// Holds the rows of table number `id` that wait for their number.
    fn hold_lives(&mut self, id: i64, name: &str, known: &Shape) -> Result<()> {
        let mut list = self.conn.prepare(
            "SELECT hlc, site, deleted, at, hash, exc, key, born, row FROM __harmonylite___lives
             WHERE table_id = ?1 AND deleted = 0",
        )?;
        let mut lives = list.query([id])?;
        let mut found = Vec::new();
        while let Some(life) = lives.next()? {
            let of = stored(&self.sites, life)?;
            let blob = |at: usize| life.get_ref(at).ok().and_then(|v| v.as_blob().ok());
            let (key, born) = (blob(6).unwrap_or_default(), blob(7).unwrap_or_default());
            let incoming = incoming_of(known, &of, blob(8).unwrap_or_default())?;
            let at = Place {
                table: name.to_ascii_lowercase(),
                shape: shape_of_known(known),
                key: [key, born].concat(),
            };
            found.push((at, incoming));
        }
        drop(lives);
        drop(list);
        for (at, incoming) in found {
            self.hold(
                &at,
                &incoming,
                "its number had another row, and the key changed",
            )?;
        }
        Ok(())
    }

    /// The next displaced row after key `after`: its key and its encoded values.
    fn next_displaced(&self, id: i64, after: &[u8]) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
        let mut next = self.conn.prepare_cached(
            "SELECT key, row FROM __harmonylite___displaced
             WHERE table_id = ?1 AND key > ?2 ORDER BY key LIMIT 1",
        )?;
        let read = |r: &rusqlite::Row<'_>| Ok((r.get(0)?, r.get(1)?));
        Ok(next.query_row(params![id, after], read).optional()?)
    }

    /// A displaced row as a peer would send it. It counts as unsent, so it is published once it
    /// fits.
    fn incoming_of(
        &self,
        name: &str,
        known: &Shape,
        key: &[u8],
        row: &[u8],
    ) -> Result<Option<Incoming>> {
        let Some(of) = self.version_of_displaced(name, key)? else {
            return Ok(None);
        };
        incoming_of(known, &of, row).map(Some)
    }
    fn version_of_displaced(&self, table: &str, key: &[u8]) -> Result<Option<Stored>> {
        let key = cbor::key_values(key)?;
        let is_key: Vec<String> = (1..=key.len()).map(|i| format!("k{i} = ?{i}")).collect();
        let text = format!(
            "SELECT hlc, site, deleted, at, hash, exc FROM {} WHERE deleted = 0 AND {}",
            versions_table(table),
            is_key.join(" AND ")
        );
        let mut of_key = self.conn.prepare_cached(&text)?;
        let mut found = of_key.query(params_from_iter(&key))?;
        found
            .next()?
            .map(|row| stored(&self.sites, row))
            .transpose()
    }
}

/// A row of a table whose key had the shape `known`, as a peer would send it. It counts as unsent,
/// so it is published once it fits.
fn incoming_of(known: &Shape, of: &Stored, row: &[u8]) -> Result<Incoming> {
    let own = |column: &str| {
        let mut each = of.state.exceptions.iter();
        each.find(|(name, _)| known.named_now(name) == column)
            .map(|(_, version)| *version)
    };
    let mut incoming = Incoming {
        floor: of.state.exceptions.get(FLOOR).copied(),
        row: Some(of.state.version),
        unsent: Some(of.state.version),
        ..Incoming::default()
    };
    let mut cursor = Cursor::new(row);
    for _ in 0..cursor.array()? / 2 {
        let (name, value) = (known.named_now(cursor.text()?), cursor.value()?);
        let version = match own(name) {
            None if known.is_unwritten(name, of.local_tx, value) => Version::NEVER,
            own => own.unwrap_or(of.state.version),
        };
        if version != Version::NEVER {
            incoming.add_column(name.to_owned(), version, value.to_owned());
        }
    }
    Ok(incoming)
}
