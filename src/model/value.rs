//! A value as SQLite stores it: five storage classes, bit for bit.
//!
//! Source: <https://www.sqlite.org/datatype3.html>. Text is kept as bytes, because SQLite does not
//! require it to be UTF-8 and it may hold NUL.

use std::cmp::Ordering;

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A borrowed value.
#[derive(Debug, Clone, Copy)]
pub enum Value<'a> {
    Null,
    Integer(i64),
    Real(f64),
    Text(&'a [u8]),
    Blob(&'a [u8]),
}

/// A value that stands by itself.
#[derive(Debug, Clone)]
pub enum OwnedValue {
    Null,
    Integer(i64),
    Real(f64),
    Text(Vec<u8>),
    Blob(Vec<u8>),
}

impl Value<'_> {
    pub fn is_null(&self) -> bool {
        matches!(self, Value::Null)
    }

    /// Length of a text or a blob, 8 for a number.
    pub fn bytes(&self) -> usize {
        match self {
            Value::Null => 0,
            Value::Integer(_) | Value::Real(_) => 8,
            Value::Text(bytes) | Value::Blob(bytes) => bytes.len(),
        }
    }

    pub fn to_owned(self) -> OwnedValue {
        match self {
            Value::Null => OwnedValue::Null,
            Value::Integer(i) => OwnedValue::Integer(i),
            Value::Real(r) => OwnedValue::Real(r),
            Value::Text(t) => OwnedValue::Text(t.to_vec()),
            Value::Blob(b) => OwnedValue::Blob(b.to_vec()),
        }
    }

    /// Rank of the storage class, for a total order.
    fn class(&self) -> u64 {
        match self {
            Value::Null => 0,
            Value::Integer(_) => 1,
            Value::Real(_) => 2,
            Value::Text(_) => 3,
            Value::Blob(_) => 4,
        }
    }

    /// A total order that tells all values apart that SQLite's `typeof` and bytes tell apart. It
    /// decides between two contents that carry one version; it means nothing else.
    pub fn total_cmp(&self, other: &Value<'_>) -> Ordering {
        match (self, other) {
            (Value::Integer(a), Value::Integer(b)) => a.cmp(b),
            (Value::Real(a), Value::Real(b)) => a.total_cmp(b),
            (Value::Text(a), Value::Text(b)) | (Value::Blob(a), Value::Blob(b)) => a.cmp(b),
            _ => self.class().cmp(&other.class()),
        }
    }

    /// Whether both are the same bits of the same storage class.
    pub fn same(&self, other: &Value<'_>) -> bool {
        self.total_cmp(other) == Ordering::Equal
    }

    /// 64-bit hash of class and bits.
    pub fn hash(&self, seed: u64) -> u64 {
        let seed = seed.wrapping_add(self.class());
        match self {
            Value::Null => xxh3_64_with_seed(&[], seed),
            Value::Integer(i) => xxh3_64_with_seed(&i.to_le_bytes(), seed),
            Value::Real(r) => xxh3_64_with_seed(&r.to_bits().to_le_bytes(), seed),
            Value::Text(t) => xxh3_64_with_seed(t, seed),
            Value::Blob(b) => xxh3_64_with_seed(b, seed),
        }
    }
}

impl OwnedValue {
    pub fn borrow(&self) -> Value<'_> {
        match self {
            OwnedValue::Null => Value::Null,
            OwnedValue::Integer(i) => Value::Integer(*i),
            OwnedValue::Real(r) => Value::Real(*r),
            OwnedValue::Text(t) => Value::Text(t),
            OwnedValue::Blob(b) => Value::Blob(b),
        }
    }
}

impl PartialEq for OwnedValue {
    fn eq(&self, other: &Self) -> bool {
        self.borrow().same(&other.borrow())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_differ_in_class_or_bits_are_told_apart() {
        let all = [
            Value::Null,
            Value::Integer(0),
            Value::Integer(i64::MAX),
            Value::Real(0.0),
            Value::Real(-0.0),
            Value::Real(f64::INFINITY),
            Value::Text(b""),
            Value::Text(b"0"),
            Value::Blob(b""),
            Value::Blob(b"0"),
        ];
        for (i, a) in all.iter().enumerate() {
            for (j, b) in all.iter().enumerate() {
                assert_eq!(a.same(b), i == j, "{a:?} {b:?}");
                assert_eq!(a.hash(1) == b.hash(1), i == j, "{a:?} {b:?}");
                assert_eq!(a.total_cmp(b), b.total_cmp(a).reverse());
            }
        }
    }
}
