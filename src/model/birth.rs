//! The birth of a row: it tells two rows apart that were inserted under one number.
//!
//! Two nodes that insert between two exchanges may give two rows one number, where the number is
//! the rowid. Such a row is a *life*: its table, its number and its birth, which never changes.

use xxhash_rust::xxh3::xxh3_64;

use crate::model::value::{OwnedValue, Value};
use crate::model::version::Version;

/// Bits of the content's hash that are part of a birth.
const BITS: i64 = 0xffff;

/// A birth. Births of one number are ordered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Birth {
    /// None was assigned: the table is keyed otherwise, or the row is from a node that assigns
    /// none.
    #[default]
    None,
    /// In the file before HarmonyLite was: hash of the values then.
    Before(u64),
    /// Inserted under a number that the statement gave: hash of the values.
    Given(u64),
    /// Inserted under a number that SQLite chose: the version of the insert, with bits of the
    /// hash of the values in the place of the counter. Two copies of one file may give one version
    /// to two inserts.
    Chosen(Version),
}

impl Birth {
    /// Birth of a row whose first version is this one.
    pub fn chosen(version: Version, hash: u64) -> Birth {
        Birth::Chosen(Version {
            hlc: ((version.hlc & !BITS) | (hash as i64 & BITS)).max(1),
            ..version
        })
    }

    /// The hlc in it; 0 if it has none.
    pub fn hlc(self) -> i64 {
        match self {
            Birth::Chosen(version) => version.hlc,
            _ => 0,
        }
    }

    /// The short form beside the version of the row. While the row has its first version, only the
    /// bits of the hash are left of its birth.
    pub fn beside(self, version: Version) -> OwnedValue {
        match self {
            Birth::None => OwnedValue::Null,
            Birth::Chosen(Version { hlc, node })
                if node == version.node && hlc & !BITS == version.hlc & !BITS =>
            {
                OwnedValue::Integer(hlc & BITS)
            }
            birth => OwnedValue::Blob(birth.to_bytes()),
        }
    }

    /// Reads the short form. None if it is no birth.
    pub fn read(value: Value<'_>, version: Version) -> Option<Birth> {
        match value {
            Value::Null => Some(Birth::None),
            Value::Integer(bits) if (0..=BITS).contains(&bits) => {
                Some(Birth::chosen(version, bits as u64))
            }
            Value::Blob(bytes) => Birth::from_bytes(bytes),
            _ => None,
        }
    }

    /// The form by which lives are stored beside each other.
    pub fn to_bytes(self) -> Vec<u8> {
        let (tag, number, node) = match self {
            Birth::None => return Vec::new(),
            Birth::Before(hash) => (1, hash, None),
            Birth::Given(hash) => (2, hash, None),
            Birth::Chosen(version) => (3, version.hlc as u64, Some(version.node)),
        };
        let numbers = [Some(number), node].into_iter().flatten();
        let bytes = numbers.flat_map(u64::to_be_bytes);
        std::iter::once(tag).chain(bytes).collect()
    }

    /// Reads [`Self::to_bytes`]. None if these are no such bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Birth> {
        let Some((tag, rest)) = bytes.split_first() else {
            return Some(Birth::None);
        };
        let number = |bytes: &[u8]| Some(u64::from_be_bytes(bytes.try_into().ok()?));
        match (tag, rest.len()) {
            (1, 8) => number(rest).map(Birth::Before),
            (2, 8) => number(rest).map(Birth::Given),
            (3, 16) => {
                let version = Version {
                    hlc: number(&rest[..8])? as i64,
                    node: number(&rest[8..])?,
                };
                version.is_valid().then_some(Birth::Chosen(version))
            }
            _ => None,
        }
    }
}

/// Hash of a row's values without its key: equal rows have equal hashes on all nodes. A column that
/// is NULL does not count, so a column that was added does not change it.
pub fn content<'v>(columns: impl Iterator<Item = (&'v str, Value<'v>)>) -> u64 {
    let each = columns.filter(|(_, value)| !value.is_null());
    let hashes = each.map(|(name, value)| value.hash(xxh3_64(name.as_bytes())));
    hashes.fold(0, u64::wrapping_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn births_are_read_as_they_were_written() {
        let version = |ms: i64, counter, node| Version {
            hlc: ms << 16 | counter,
            node,
        };
        let now = version(5, 0, 7);
        for birth in [
            Birth::None,
            Birth::Before(u64::MAX),
            Birth::Given(0),
            Birth::chosen(now, 0x1234_5678),
            Birth::chosen(version(4, 3, 7), 1),
            Birth::chosen(version(5, 3, u64::MAX), u64::MAX),
        ] {
            assert_eq!(Birth::from_bytes(&birth.to_bytes()), Some(birth));
            let short = birth.beside(now);
            assert_eq!(Birth::read(short.borrow(), now), Some(birth));
        }
        let first = version(0, 2, 7);
        let birth = Birth::chosen(first, 0);
        assert_eq!(
            Birth::read(birth.beside(first).borrow(), first),
            Some(birth)
        );
        assert_eq!(Birth::from_bytes(&birth.to_bytes()), Some(birth));
        let own = Birth::chosen(version(5, 9, 7), 0x1234_5678);
        assert_eq!(own.beside(now), OwnedValue::Integer(0x5678));
        assert_eq!(own.hlc(), version(5, 0x5678, 7).hlc);
        for bad in [
            Value::Integer(-1),
            Value::Integer(1 << 16),
            Value::Text(b"x"),
        ] {
            assert_eq!(Birth::read(bad, now), None);
        }
        for bad in [&[4][..], &[3; 9], &[2; 8], &[3; 16]] {
            assert_eq!(Birth::from_bytes(bad), None);
        }
    }

    #[test]
    fn a_column_without_a_value_does_not_count() {
        let text = Value::Text(b"x");
        let one = content([("a", text)].into_iter());
        assert_eq!(one, content([("b", Value::Null), ("a", text)].into_iter()));
        assert_ne!(one, content([("b", text)].into_iter()));
    }
}
