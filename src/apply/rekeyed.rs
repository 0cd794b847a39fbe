//! Displaced rows of a table whose key is of another kind now.
//!
//! The rows of the table get versions under the new key. What is displaced is not in the table, so that
//! whoever rebuilt that has not given it such a key: it is held as a row of the old one, as what arrives
//! from a node that still has the old key is, and is back when the table has it again.

use rusqlite::{OptionalExtension, params, params_from_iter};

use crate::apply::Incoming;
use crate::apply::held::{Place, shape_of_known};
use crate::database::rows::decode_exceptions;
use crate::database::table::{Shape, versions_table};
use crate::database::{Database, Result};
use crate::model::cbor::{self, Cursor};
use crate::model::merge::{Exceptions, FLOOR};
use crate::model::version::Version;

/// The version of a displaced row.
struct Displaced {
    version: Version,
    at: i64,
    exceptions: Exceptions,
}

impl Database {
    /// Holds what is displaced of table number `id`, which was of shape `known`; its versions are still
    /// those of that.
    pub(crate) fn hold_displaced(&mut self, id: i64, name: &str, known: &Shape) -> Result<()> {
        let mut list = self
            .conn
            .prepare("SELECT key, row FROM __harmonylite___displaced WHERE table_id = ?1")?;
        let displaced: Vec<(Vec<u8>, Vec<u8>)> = list
            .query_map([id], |r| Ok((r.get(0)?, r.get(1)?)))?
            .collect::<rusqlite::Result<_>>()?;
        drop(list);
        for (key, row) in displaced {
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

    /// A displaced row as a peer would send it. It may be marked unsent: it is to be sent when it fits.
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
            let mut each = of.exceptions.iter();
            each.find(|(name, _)| known.named_now(name) == column)
                .map(|(_, version)| *version)
        };
        let mut incoming = Incoming {
            floor: of.exceptions.get(FLOOR).copied(),
            row: Some(of.version),
            unsent: Some(of.version),
            ..Incoming::default()
        };
        let mut cursor = Cursor::new(row);
        for _ in 0..cursor.array()? / 2 {
            let (name, value) = (known.named_now(cursor.text()?), cursor.value()?);
            let version = match own(name) {
                None if known.is_unwritten(name, of.at, value) => Version::NEVER,
                own => own.unwrap_or(of.version),
            };
            if version != Version::NEVER {
                incoming.add_column(name.to_owned(), version, value.to_owned());
            }
        }
        Ok(Some(incoming))
    }

    fn version_of_displaced(&self, table: &str, key: &[u8]) -> Result<Option<Displaced>> {
        let key = cbor::key_values(key)?;
        let is_key: Vec<String> = (1..=key.len()).map(|i| format!("k{i} = ?{i}")).collect();
        let text = format!(
            "SELECT hlc, site, at, exc FROM {} WHERE deleted = 0 AND {}",
            versions_table(table),
            is_key.join(" AND ")
        );
        let read = |r: &rusqlite::Row<'_>| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?));
        let found: Option<(i64, i64, i64, Option<Vec<u8>>)> = self
            .conn
            .prepare(&text)?
            .query_row(params_from_iter(&key), read)
            .optional()?;
        let Some((hlc, site, at, exceptions)) = found else {
            return Ok(None);
        };
        let node = self.sites.node(site)?;
        Ok(Some(Displaced {
            version: Version { hlc, node },
            at,
            exceptions: match exceptions {
                Some(bytes) => decode_exceptions(&bytes)?,
                None => Exceptions::new(),
            },
        }))
    }
}
