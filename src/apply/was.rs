//! The old key of a row whose table got a key that does not tell it.
//!
//! Nothing in such a row says which row it was under the former key. So each row that is sent says
//! it in a column of its own ([`crate::model::frame::WAS`]) with the version (0, 0), for as long as
//! the former key is remembered. A node that migrated without the row learns from that which row a
//! change under the former key means, and whether it was deleted under it. What it holds of the row
//! ends. A node whose table never had the former key remembers it from then on.

use std::sync::Arc;

use crate::apply::Incoming;
use crate::apply::former_key::KeyPart;
use crate::apply::held::{Place, read_held, shape_of_known};
use crate::database::table::{Shape, Table};
use crate::database::{Database, Former, FormerRow, Result};
use crate::model::cbor::{self, Cursor};
use crate::model::value::{OwnedValue, Value};
use crate::model::version::Version;
use crate::mutation::{self, Mutation};

/// Longest shape of a key, and longest key in bytes, that are sent and read.
const MOST_BYTES: usize = 1024;

/// A row under a former key: the number of that key, the key, and the row if it is known.
type RowThatWas = (i64, Arc<Former>, Option<FormerRow>);

/// The key that a row had before: its shape, and its canonical bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OldKey {
    pub shape: String,
    pub key: Vec<u8>,
}

impl OldKey {
    /// As a row carries it; none if it is too long.
    fn encode(&self) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        cbor::write_array(&mut out, 2);
        cbor::write_text(&mut out, &self.shape);
        cbor::write_bytes(&mut out, &self.key);
        (out.len() <= MOST_BYTES).then_some(out)
    }

    /// Reads what a peer sent; none if it makes no sense.
    pub(super) fn decode(value: Value<'_>) -> Option<OldKey> {
        let Value::Blob(bytes) = value else {
            return None;
        };
        let mut cursor = Cursor::new(bytes);
        let is_pair = bytes.len() <= MOST_BYTES && cursor.array().ok()? == 2;
        let (shape, key) = (
            cursor.text().ok()?.to_owned(),
            cursor.bytes().ok()?.to_vec(),
        );
        cursor.end().ok()?;
        Some(OldKey { shape, key }).filter(|was| is_pair && was.is_sound())
    }

    /// As held entries store it.
    pub(super) fn to_held(&self) -> Option<OwnedValue> {
        self.encode().map(OwnedValue::Blob)
    }

    /// The former key of a table, as far as a row tells it; none if that makes no sense.
    pub(super) fn former(&self) -> Option<Former> {
        let parts = KeyPart::of_text(&self.shape)?;
        cbor::key_values(&self.key)
            .ok()
            .filter(|values| values.len() == parts.len())?;
        let key = parts.iter();
        let shape = Shape {
            key: key
                .map(|p| (p.affinity.to_owned(), p.collation.to_owned()))
                .collect(),
            columns: parts.iter().map(|p| (p.name.to_owned(), 0)).collect(),
            ..Shape::default()
        };
        let former = Former {
            shape,
            ..Former::default()
        };
        (former.is_sound() && shape_of_known(&former.shape) == self.shape).then_some(former)
    }

    /// Whether a peer may say this.
    pub(crate) fn is_sound(&self) -> bool {
        let values = cbor::key_values(&self.key).unwrap_or_default();
        !values.is_empty() && !values.contains(&OwnedValue::Null)
    }
}

impl Database {
    /// The old key of a row, as frames carry it; none if the row tells it, or none is known.
    pub(crate) fn was(&self, table: &Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        if mutation::is(Mutation::OldKeyNotSent) {
            return Ok(None);
        }
        Ok(self.former_key(table, key)?.and_then(|was| was.encode()))
    }

    fn former_key(&self, table: &Table, key: &[u8]) -> Result<Option<OldKey>> {
        let Some(former) = self.catalog.former.get(&table.id).filter(|f| f.has_was) else {
            return Ok(None);
        };
        let old = self.old_key(table.id, key)?;
        Ok(old.map(|key| OldKey {
            shape: shape_of_known(&former.shape),
            key,
        }))
    }

    /// The row that an incoming one was under a former key, with the number of that key.
    pub(super) fn row_that_was(
        &self,
        table: &Table,
        incoming: &Incoming,
    ) -> Result<Option<RowThatWas>> {
        let Some(was) = &incoming.was else {
            return Ok(None);
        };
        let mut formers = self.formers(table.id).into_iter();
        let Some((id, former)) = formers.find(|(_, f)| shape_of_known(&f.shape) == was.shape)
        else {
            return Ok(None);
        };
        let old = cbor::key_values(&was.key)?;
        if old.len() != former.shape.key.len() {
            return Ok(None);
        }
        let row = self.former_by_key(id, &old)?;
        Ok(Some((id, former, row)))
    }

    /// Whether the row with this key here is, as far as is known, the one that had the former key
    /// which the incoming row names.
    pub(super) fn is_that_row(
        &self,
        table: &Table,
        key: &[u8],
        incoming: &Incoming,
    ) -> Result<bool> {
        let (own, was) = (self.former_key(table, key)?, &incoming.was);
        let is_other = |own: &OldKey| {
            let mut was = was.iter();
            was.any(|was| was.shape == own.shape && was.key != own.key)
        };
        Ok(!own.as_ref().is_some_and(is_other))
    }

    /// Remembers which row a joined row was, and ends what is held of that one.
    pub(crate) fn learn_was(
        &mut self,
        table: &Table,
        key: &[u8],
        incoming: &Incoming,
        (version, is_deleted): (Version, bool),
        local_tx: i64,
    ) -> Result<()> {
        let Some(was) = &incoming.was else {
            return Ok(());
        };
        let at = Place {
            table: table.name().to_ascii_lowercase(),
            shape: was.shape.clone(),
            key: was.key.clone(),
        };
        if self.catalog.held.contains(&at.table) {
            let mut held = Incoming::default();
            read_held(&self.conn, &self.sites, &at, &mut held)?;
            if held.newest().is_some_and(|newest| newest <= version) {
                self.end_held_at(&at)?;
            }
        }
        if is_deleted {
            return Ok(());
        }
        if !self.catalog.former.contains_key(&table.id)
            && let Some(former) = was.former().filter(|f| !f.shape.key_gone(table).is_empty())
        {
            // The table was created with its present key here.
            self.adopt_former(table, &former)?;
        }
        let Some((id, former, known)) = self.row_that_was(table, incoming)? else {
            return Ok(());
        };
        let is_last = id == table.id && former.has_was;
        let old = cbor::key_values(&was.key)?;
        match known {
            _ if !is_last => Ok(()), // the keys of two migrations lie in between
            None => self.put_former(id, &old, (version, false, local_tx), Some(key)),
            Some(row) if row.became.as_deref() == Some(key) => Ok(()),
            Some(_) => self.note_became(id, &old, key),
        }
    }
}
