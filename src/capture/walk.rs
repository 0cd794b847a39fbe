//! How far the comparison of a table has come. The key that it has reached tells that: no row is
//! counted, and a few index look-ups answer.

use crate::database::schema::quote;
use crate::database::table::{Table, versions_table};
use crate::database::{Compare, CompareReason, Database, Phase, Result, values};
use crate::model::cbor;
use crate::model::value::{OwnedValue, Value};

/// Unit of [`WalkProgress::done`]: a whole comparison has this many parts.
pub const PARTS: u64 = 1000;

/// A table whose rows are compared with their versions.
#[derive(Debug, PartialEq, Eq)]
pub struct WalkProgress {
    /// Name as in the schema.
    pub table: String,
    /// Whether its rows were in the file before HarmonyLite was.
    pub is_new: bool,
    /// Progress in [`PARTS`]: the rows are the first half, the versions the second.
    pub done: u64,
}

impl Database {
    /// The table that is compared now; none if no comparison is under way.
    pub fn walk(&self) -> Result<Option<WalkProgress>> {
        let Some((table, compare)) = self.under_comparison() else {
            return Ok(None);
        };
        let begins_at = match compare.phase {
            Phase::Former | Phase::Rows => 0,
            Phase::Versions => PARTS / 2,
            Phase::LeftOut => PARTS,
        };
        let reached = match &compare.after {
            Some(key) if matches!(compare.phase, Phase::Rows | Phase::Versions) => {
                self.reached(table, compare, key)?
            }
            _ => 0.0,
        };
        Ok(Some(WalkProgress {
            table: table.name().to_owned(),
            is_new: matches!(
                compare.cause,
                CompareReason::Before | CompareReason::BeforeRebuilt
            ),
            done: begins_at + (reached * (PARTS / 2) as f64) as u64,
        }))
    }

    /// Where a key lies between the first and the last one of its phase, from 0 to 1.
    fn reached(&self, table: &Table, compare: &Compare, key: &[u8]) -> Result<f64> {
        let (from, column) = match compare.phase {
            Phase::Versions => (versions_table(table.name()), "k1".to_owned()),
            _ => (quote(table.name()), table.schema.column_sql(0)),
        };
        let order = match table.schema.key.first() {
            Some(key) => format!("{column} COLLATE {}", quote(&key.collation)),
            None => column.clone(),
        };
        let end = |direction: &str| {
            format!(
                "(SELECT {column} FROM {from} WHERE {column} IS NOT NULL
                  ORDER BY {order} {direction} LIMIT 1)"
            )
        };
        let text = format!("SELECT {}, {}", end("ASC"), end("DESC"));
        let mut statement = self.conn.prepare_cached(&text)?;
        let key = cbor::key_values(key)?;
        let after = key.first().map_or(Value::Null, OwnedValue::borrow);
        Ok(statement.query_row([], |row| {
            let ends = (values::column(row, 0), values::column(row, 1));
            Ok(between(ends, after))
        })?)
    }
}

/// Where `value` lies between the two ends; 0 if that is unknown, as with values of different
/// types.
fn between((first, last): (Value<'_>, Value<'_>), value: Value<'_>) -> f64 {
    let (from, to, at) = match (first, last, value) {
        (Value::Integer(a), Value::Integer(b), Value::Integer(v)) => (a as f64, b as f64, v as f64),
        (Value::Real(a), Value::Real(b), Value::Real(v)) => (a, b, v),
        (Value::Text(a), Value::Text(b), Value::Text(v))
        | (Value::Blob(a), Value::Blob(b), Value::Blob(v)) => {
            // Compares the bytes after the prefix that both ends share.
            let same = a.iter().zip(b).take_while(|(a, b)| a == b).count();
            let number = |text: &[u8]| {
                let rest = text.iter().skip(same).chain(std::iter::repeat(&0));
                rest.take(6)
                    .fold(0.0, |sum, byte| sum * 256.0 + f64::from(*byte))
            };
            (number(a), number(b), number(v))
        }
        _ => return 0.0,
    };
    let part = (at - from) / (to - from);
    if part.is_finite() {
        part.clamp(0.0, 1.0)
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::tests::support::Node;
    use crate::model::key::key_bytes;

    #[test]
    fn keys_of_every_kind() {
        let text = |a: &'static str| Value::Text(a.as_bytes());
        let integers = (Value::Integer(-100), Value::Integer(100));
        assert_eq!(between(integers, Value::Integer(50)), 0.75);
        let ends = (Value::Integer(i64::MIN), Value::Integer(i64::MAX));
        assert!((between(ends, Value::Integer(0)) - 0.5).abs() < 0.01);
        assert_eq!(
            between((text("user-a"), text("user-c")), text("user-b")),
            0.5
        );
        assert_eq!(between((text("user-a"), text("user-c")), text("a")), 0.0);
        let blobs = (Value::Blob(&[0]), Value::Blob(&[255]));
        assert!((between(blobs, Value::Blob(&[127, 9])) - 0.5).abs() < 0.01);
        for (ends, at) in [
            ((Value::Integer(1), Value::Integer(1)), Value::Integer(1)),
            ((Value::Null, Value::Null), Value::Null),
            ((Value::Integer(1), text("a")), Value::Integer(1)),
            (
                (Value::Real(f64::MIN), Value::Real(f64::MAX)),
                Value::Real(0.0),
            ),
        ] {
            assert_eq!(between(ends, at), 0.0);
        }
    }

    #[test]
    fn a_table_that_is_walked_through() {
        let mut node = Node::new(
            1,
            "CREATE TABLE item (id INTEGER PRIMARY KEY, value);
             INSERT INTO item VALUES (1, 'a'), (2, 'a'), (3, 'a'), (4, 'a')",
        );
        let _ = node.db.capture().unwrap();
        assert_eq!(node.db.walk().unwrap(), None);
        let id = node.db.tables()["item"].id;
        let key = |n| key_bytes([Value::Integer(n)].into_iter(), ["BINARY"].into_iter());
        for (phase, at, done) in [
            (Phase::Rows, None, 0),
            (Phase::Rows, Some(4), 500),
            (Phase::Versions, Some(1), 500),
            (Phase::Versions, Some(4), 1000),
        ] {
            let compare = Compare {
                phase,
                after: at.map(key),
                ..Compare::start(CompareReason::Before)
            };
            node.db.set_compare(id, Some(compare)).unwrap();
            let table = "item".to_owned();
            let expected = WalkProgress {
                table,
                is_new: true,
                done,
            };
            assert_eq!(node.db.walk().unwrap(), Some(expected));
        }
    }
}
