//! Hashes of a row's content.
//!
//! A versions table keeps 8 bytes of what a row was. They tell whether the row changed while no
//! trigger watched it. An application's users choose values, so they must not be able to choose
//! two with one hash: the hash is SipHash under a key that each database draws for itself. Nothing
//! on the wire has the key or a hash; a snapshot, which has every row, has both.
//!
//! The hash of a row is a sum over its columns. So columns may change their places, a column that
//! has its default counts for nothing, and the part of a known value can be subtracted.

use std::hash::Hasher;
#[expect(
    deprecated,
    reason = "std's SipHash-2-4 takes keys under no other name"
)]
use std::hash::SipHasher;

use xxhash_rust::xxh3::xxh3_64;

use crate::model::value::Value;

/// The key of a database's content hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentKey {
    /// Both halves of the key.
    pub halves: (u64, u64),
    /// Rows that were learnt in transactions below this one may have a hash without a key, of an
    /// earlier release.
    pub since: i64,
}

/// Computes the parts of one column in the hashes of its rows.
#[derive(Debug, Clone)]
#[expect(deprecated, reason = "see above")]
pub struct ColumnHash {
    /// `None`: the database has no key.
    keyed: Option<SipHasher>,
    /// As an earlier release computed it.
    seed: u64,
}

impl ColumnHash {
    /// For the column with this name, in lower case.
    pub fn new(key: Option<&ContentKey>, column: &str) -> Self {
        #[expect(deprecated, reason = "see above")]
        let keyed = key.map(|key| {
            let mut hasher = SipHasher::new_with_keys(key.halves.0, key.halves.1);
            hasher.write(column.as_bytes());
            hasher.write(&[0xff]);
            hasher
        });
        ColumnHash {
            keyed,
            seed: xxh3_64(column.as_bytes()),
        }
    }

    /// The part of a value.
    pub fn part(&self, value: Value<'_>) -> u64 {
        let Some(mut hasher) = self.keyed.clone() else {
            return self.part_without_key(value);
        };
        let mut number = |class: u8, bits: [u8; 8]| {
            let mut bytes = [class; 9];
            bytes[1..].copy_from_slice(&bits);
            hasher.write(&bytes);
        };
        match value {
            Value::Null => hasher.write(&[0]),
            Value::Integer(i) => number(1, i.to_le_bytes()),
            Value::Real(r) => number(2, r.to_bits().to_le_bytes()),
            Value::Text(bytes) => {
                hasher.write(&[3]);
                hasher.write(bytes);
            }
            Value::Blob(bytes) => {
                hasher.write(&[4]);
                hasher.write(bytes);
            }
        }
        hasher.finish()
    }

    /// The part of a value as an earlier release computed it.
    pub fn part_without_key(&self, value: Value<'_>) -> u64 {
        value.hash(self.seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: ContentKey = ContentKey {
        halves: (7, 9),
        since: 0,
    };

    #[test]
    fn a_part_depends_on_key_column_class_and_bits() {
        let of =
            |key: &ContentKey, column: &str, value| ColumnHash::new(Some(key), column).part(value);
        let part = of(&KEY, "a", Value::Text(b"x"));
        assert_eq!(part, of(&KEY, "a", Value::Text(b"x")));
        let other = ContentKey {
            halves: (7, 8),
            since: 0,
        };
        let others = [
            of(&other, "a", Value::Text(b"x")),
            of(&KEY, "b", Value::Text(b"x")),
            of(&KEY, "a", Value::Blob(b"x")),
            of(&KEY, "a", Value::Text(b"y")),
            of(&KEY, "a", Value::Null),
            ColumnHash::new(None, "a").part(Value::Text(b"x")),
        ];
        assert!(others.iter().all(|o| *o != part), "{others:?}");
        let (one, zero) = (Value::Integer(1), Value::Real(f64::from_bits(1)));
        assert_ne!(of(&KEY, "a", one), of(&KEY, "a", zero));
    }
}
