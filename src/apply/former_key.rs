//! The key that a row gets when it arrives under a key that its table had before.

use rusqlite::params_from_iter;

use crate::apply::Incoming;
use crate::apply::affinity::is_storable_key;
use crate::apply::held::{Place, shape_of_known};
use crate::database::schema::{Affinity, quote};
use crate::database::table::{Shape, Table};
use crate::database::{Database, Former, FormerRow, Result, is_one, values};
use crate::model::cbor;
use crate::model::key::key_bytes;
use crate::model::value::{OwnedValue, Value};

/// A column of a key.
pub(super) struct KeyPart<'a> {
    /// In lower case.
    pub name: &'a str,
    pub affinity: &'a str,
    pub collation: &'a str,
}

/// The key that came after a former one: that of another migration, or the table's own.
#[derive(Clone, Copy)]
pub(super) enum NextKey<'a> {
    Former(&'a Former),
    Own(&'a Table),
}

/// Keys of one row: it must be deleted under the key `gone`; `new` is the key that it gets.
pub(super) struct Keys {
    pub gone: Option<Vec<OwnedValue>>,
    pub new: Vec<OwnedValue>,
}

impl Place {
    /// The place of a row of a table (lower case) under a key of this shape.
    pub(crate) fn under(table: &str, shape: &Shape, key: &[OwnedValue]) -> Place {
        Place {
            table: table.to_owned(),
            shape: shape_of_known(shape),
            key: shape.key_bytes(key),
        }
    }
}

impl<'a> KeyPart<'a> {
    /// The columns of a key that a table had before.
    pub(super) fn of_shape(shape: &'a Shape) -> Vec<KeyPart<'a>> {
        let key = shape.columns.iter().zip(&shape.key);
        key.map(|((name, _), (affinity, collation))| KeyPart {
            name,
            affinity,
            collation,
        })
        .collect()
    }

    /// The columns of a key by the text of its shape; none if that does not tell them.
    pub(super) fn of_text(shape: &'a str) -> Option<Vec<KeyPart<'a>>> {
        let part = |text: &'a str| {
            let mut words = text.rsplitn(3, ' ');
            let (collation, affinity) = (words.next()?, words.next()?);
            let known = ["INTEGER", "TEXT", "BLOB", "REAL", "NUMERIC"].contains(&affinity);
            let name = words.next().filter(|_| known)?;
            Some(KeyPart {
                name,
                affinity,
                collation,
            })
        };
        shape.split(", ").map(part).collect()
    }

    fn of_table(table: &'a Table) -> Vec<KeyPart<'a>> {
        let key = table.schema.columns.iter().zip(&table.schema.key);
        key.map(|(column, key)| KeyPart {
            name: &column.lower,
            affinity: column.affinity.name(),
            collation: &key.collation,
        })
        .collect()
    }

    /// Whether the value is that of a key, once the column stores it.
    pub(super) fn is_that(&self, value: &OwnedValue, key: &OwnedValue) -> bool {
        self.stored(value)
            .is_some_and(|value| is_one(self.collation, &value, key))
    }

    /// The value that the column stores for `value`; none if `value` is NULL, or if SQLite's
    /// conversion of it is not reproduced here.
    pub(super) fn stored(&self, value: &OwnedValue) -> Option<OwnedValue> {
        let is_text = self.affinity == Affinity::Text.name();
        let is_number = !is_text && self.affinity != Affinity::Blob.name();
        match value {
            OwnedValue::Null => None,
            OwnedValue::Integer(i) if is_text => Some(OwnedValue::Text(i.to_string().into())),
            OwnedValue::Real(_) if is_text => None,
            OwnedValue::Text(text) if is_number => {
                let number = std::str::from_utf8(text)
                    .ok()
                    .and_then(|t| t.parse::<i64>().ok());
                let plain = number.filter(|n| n.to_string().as_bytes() == &text[..]);
                plain
                    .map(OwnedValue::Integer)
                    .or_else(|| Some(value.clone()))
            }
            _ => Some(value.clone()),
        }
    }
}

impl<'a> NextKey<'a> {
    pub(super) fn parts(self) -> Vec<KeyPart<'a>> {
        match self {
            NextKey::Former(former) => KeyPart::of_shape(&former.shape),
            NextKey::Own(table) => KeyPart::of_table(table),
        }
    }

    /// The bytes of such a key.
    pub(super) fn key_bytes(self, key: &[OwnedValue]) -> Vec<u8> {
        let parts = self.parts();
        let collations = parts.iter().map(|part| part.collation);
        key_bytes(key.iter().map(OwnedValue::borrow), collations)
    }

    /// The keys of a row that arrives under the key `old`; none if they cannot be told.
    pub(super) fn of_row(
        self,
        former: &Former,
        old: &[OwnedValue],
        known: Option<&FormerRow>,
        incoming: &Incoming,
    ) -> Result<Option<Keys>> {
        let computed = || match former.makes_keys() {
            true => self.computed(&former.shape, old, incoming),
            false => None,
        };
        let Some(became) = known.and_then(|k| k.became.as_ref()) else {
            return Ok(computed().map(|new| Keys { gone: None, new }));
        };
        let became = cbor::key_values(became)?;
        let old_key = &former.shape.columns[..old.len()];
        let is_moved = self.parts().iter().zip(&became).any(|(part, was)| {
            let value = incoming.columns.get(part.name).map(|(_, value)| value);
            let was_outside = !old_key.iter().any(|(name, _)| name == part.name);
            was_outside && value.is_some_and(|value| !part.is_that(value, was))
        });
        Ok(match is_moved {
            true => computed().map(|new| Keys {
                gone: Some(became),
                new,
            }),
            false => Some(Keys {
                gone: None,
                new: became,
            }),
        })
    }

    /// The key that the former columns make, if all of them are there and the table can store it.
    fn computed(
        self,
        shape: &Shape,
        old: &[OwnedValue],
        incoming: &Incoming,
    ) -> Option<Vec<OwnedValue>> {
        let of_key = |name: &str| {
            let at = shape.columns[..old.len()]
                .iter()
                .position(|(c, _)| c == name)?;
            // With other collations the bytes are the key as it compares, not as it is spelled.
            (shape.key[at].1 == "BINARY").then(|| &old[at])
        };
        let key = self.parts().into_iter().map(|part| {
            let carried = incoming.columns.get(part.name).map(|(_, value)| value);
            part.stored(carried.or_else(|| of_key(part.name))?)
        });
        let key: Vec<OwnedValue> = key.collect::<Option<_>>()?;
        let is_storable = match self {
            NextKey::Former(_) => true,
            NextKey::Own(table) => {
                let key: Vec<Value<'_>> = key.iter().map(OwnedValue::borrow).collect();
                is_storable_key(table, &key)
            }
        };
        is_storable.then_some(key)
    }

    /// The row with the values of its new key, and without the columns of `former` that the table
    /// has no more: they are not waited for.
    pub(super) fn with_key(
        self,
        table: &Table,
        former: &Shape,
        new: &[OwnedValue],
        mut incoming: Incoming,
    ) -> Incoming {
        let is_here = |name: &str| table.schema.columns.iter().any(|c| c.is_or_was(name));
        for (name, _) in former.columns.iter().filter(|(c, _)| !is_here(c)) {
            incoming.columns.remove(name);
        }
        for (part, key) in self.parts().iter().zip(new) {
            if let Some((_, value)) = incoming.columns.get_mut(part.name) {
                // The row keeps the spelling that arrives.
                let own = part.stored(value).filter(|_| part.is_that(value, key));
                *value = own.unwrap_or_else(|| key.clone());
            }
        }
        incoming
    }
}

impl Database {
    /// Keys of the rows that have this former key in their columns; none if the table lacks one of
    /// these columns.
    /// Reads the whole table if no index begins with these columns.
    pub(super) fn rows_of_former(
        &self,
        table: &Table,
        shape: &Shape,
        old: &[OwnedValue],
    ) -> Result<Vec<Vec<OwnedValue>>> {
        if !shape.key_gone(table).is_empty() {
            return Ok(Vec::new());
        }
        let parts = KeyPart::of_shape(shape);
        let columns: Vec<String> = parts.iter().map(|part| quote(part.name)).collect();
        // SQLite can use an index for the collation of the column. That of the former key must be
        // named, unless it is the finest: then the values are compared below.
        let is_that = parts.iter().zip(&columns).enumerate();
        let is_that = is_that.map(|(i, (part, column))| match part.collation {
            "BINARY" => format!("{column} = ?{}", i + 1),
            other => format!("{column} = ?{} COLLATE {other}", i + 1),
        });
        let key = (0..table.key_len()).map(|i| table.schema.column_sql(i));
        let all: Vec<String> = key.chain(columns.iter().cloned()).collect();
        let mut find = self.conn.prepare_cached(&format!(
            "SELECT {} FROM {} WHERE {}",
            all.join(", "),
            quote(table.name()),
            is_that.collect::<Vec<_>>().join(" AND ")
        ))?;
        let mut rows = find.query(params_from_iter(old))?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let value = |i| values::column(row, i).to_owned();
            let mut each = parts.iter().zip(old).enumerate();
            if each.all(|(i, (part, old))| part.is_that(&value(table.key_len() + i), old)) {
                found.push((0..table.key_len()).map(value).collect());
            }
        }
        Ok(found)
    }
}

/// Whether a row of this table, by its values, is the one that had a former key. Two rows may have
/// got one key: a migration keeps one of them, and the tombstone of the other one does not concern
/// it.
pub(super) fn is_of_former(
    table: &Table,
    shape: &Shape,
    former: &FormerRow,
    values: &[OwnedValue],
) -> bool {
    let parts = KeyPart::of_shape(shape);
    let mut each = parts.iter().zip(&former.key);
    former.content.is_some()
        || each.all(|(part, old)| {
            let at = table
                .schema
                .columns
                .iter()
                .position(|c| c.lower == part.name);
            let value = at.and_then(|at| part.stored(&values[at]));
            value.is_none_or(|value| is_one(part.collation, &value, old))
        })
}
