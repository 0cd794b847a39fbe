//! A value as SQLite stores it: five storage classes, bit for bit.
//!
//! Source: <https://www.sqlite.org/datatype3.html>. Text is kept as bytes, because SQLite does not
//! require it to be UTF-8 and it may hold NUL.

use std::cmp::Ordering;

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A borrowed value of SQLite.
#[derive(Debug, Clone, Copy)]
pub enum Value<'a> {
    /// NULL.
    Null,
    /// A 64-bit signed integer.
    Integer(i64),
    /// A 64-bit float; SQLite stores no NaN.
    Real(f64),
    /// Text as bytes, UTF-8 or not.
    Text(&'a [u8]),
    /// Bytes.
    Blob(&'a [u8]),
}

/// A value that owns its text or bytes.
#[derive(Debug, Clone)]
pub enum OwnedValue {
    /// NULL.
    Null,
    /// A 64-bit signed integer.
    Integer(i64),
    /// A 64-bit float; SQLite stores no NaN.
    Real(f64),
    /// Text as bytes, UTF-8 or not.
    Text(Vec<u8>),
    /// Bytes.
    Blob(Vec<u8>),
}

impl Value<'_> {
    /// Whether the value is NULL.
    pub fn is_null(&self) -> bool {
        matches!(self, Value::Null)
    }

    /// Size in bytes: the length of a text or a blob, 8 for a number, 0 for NULL.
    pub fn bytes(&self) -> usize {
        match self {
            Value::Null => 0,
            Value::Integer(_) | Value::Real(_) => 8,
            Value::Text(bytes) | Value::Blob(bytes) => bytes.len(),
        }
    }

    /// A copy that owns its text or bytes.
    pub fn to_owned(self) -> OwnedValue {
        match self {
            Value::Null => OwnedValue::Null,
            Value::Integer(i) => OwnedValue::Integer(i),
            Value::Real(r) => OwnedValue::Real(r),
            Value::Text(t) => OwnedValue::Text(t.to_vec()),
            Value::Blob(b) => OwnedValue::Blob(b.to_vec()),
        }
    }

    /// Rank of the storage class in the total order.
    fn class(&self) -> u64 {
        match self {
            Value::Null => 0,
            Value::Integer(_) => 1,
            Value::Real(_) => 2,
            Value::Text(_) => 3,
            Value::Blob(_) => 4,
        }
    }

    /// A total order that distinguishes all values that SQLite's `typeof` and bytes distinguish. It
    /// decides between two contents with one version, and has no other meaning.
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

    /// 64-bit hash of storage class and bits.
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
    /// The value, borrowed from this one.
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
