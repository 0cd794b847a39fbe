//! Displaced rows of a table whose key is of another kind now.
//!
//! The rows of the table get versions under the new key. What is displaced is not in the table, so
//! that whoever rebuilt that has not given it such a key: it is held as a row of the old one, as
//! what arrives from a node that still has the old key is, and is back when the table has it again.

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
    /// Holds what is displaced of table number `id`, which was of shape `known`; its versions are
    /// still those of that.
    pub(crate) fn hold_displaced(&mut self, id: i64, name: &str, known: &Shape) -> Result<()> {
        let mut after = Vec::new();
        // One by one: memory need not be large enough for all.
        while let Some((key, row)) = self.next_displaced(id, &after)? {
            after.clone_from(&key);
            if let Some(incoming) = self.incoming_of(name, known, &key, &row)? {
                let at = Place {
                    table: name.to_ascii_lowercase(),
                    shape: shape_of_known(known),
                    key,
                };
                let reason = "it is displaced, and the key of the table is another one here now";
                self.hold(&at, &incoming, reason)?;
            }
        }
        for table in ["displaced", "displaced_by_tuple"] {
            let text = format!("DELETE FROM __harmonylite___{table} WHERE table_id = ?1");
            self.conn.execute(&text, params![id])?;
        }
        Ok(())
    }

    /// The key and the row that come after `after`.
    fn next_displaced(&self, id: i64, after: &[u8]) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
        let mut next = self.conn.prepare_cached(
            "SELECT key, row FROM __harmonylite___displaced
             WHERE table_id = ?1 AND key > ?2 ORDER BY key LIMIT 1",
        )?;
        let read = |r: &rusqlite::Row<'_>| Ok((r.get(0)?, r.get(1)?));
        Ok(next.query_row(params![id, after], read).optional()?)
    }

    /// A displaced row as a peer would send it. It may be marked unsent: it is to be sent when it
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
                None if known.is_unwritten(name, of.at, value) => Version::NEVER,
                own => own.unwrap_or(of.state.version),
            };
            if version != Version::NEVER {
                incoming.add_column(name.to_owned(), version, value.to_owned());
            }
        }
        Ok(Some(incoming))
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
