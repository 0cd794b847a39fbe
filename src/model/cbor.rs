//! CBOR (RFC 8949) as frames and stored keys use it: definite lengths, shortest integers.
//!
//! SQLite's storage classes map to null, integer, float, text and bytes. Text that is not UTF-8
//! travels as bytes under [`RAW_TEXT_TAG`]. The reader borrows from the input and trusts nothing in
//! it: it compares every length with the number of bytes left before it uses the length.

use ciborium_ll::{Decoder, Encoder, Header, simple};

use crate::model::value::{OwnedValue, Value};

/// Tag of text that is not UTF-8, from the range that RFC 8949 leaves to first come, first served.
pub const RAW_TEXT_TAG: u64 = 41_000;

/// The reason why bytes are not CBOR of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CborError {
    /// The bytes end before the item does, or a length exceeds them.
    #[error("ends in the middle of an item")]
    Truncated,
    /// An item of a different kind than this one came.
    #[error("expected {0}")]
    Expected(&'static str),
    /// A number, named by this text, is above its limit.
    #[error("{0} is out of bounds")]
    OutOfBounds(&'static str),
}

fn push(out: &mut Vec<u8>, header: Header) {
    Encoder::from(out)
        .push(header)
        .expect("writing to memory does not fail");
}

/// Appends the start of an array of `length` items, which the caller appends next.
pub fn write_array(out: &mut Vec<u8>, length: usize) {
    push(out, Header::Array(Some(length)));
}

/// Appends an unsigned integer.
pub fn write_unsigned(out: &mut Vec<u8>, value: u64) {
    push(out, Header::Positive(value));
}

/// Appends a signed integer.
pub fn write_integer(out: &mut Vec<u8>, value: i64) {
    // CBOR's negative n stands for -1 - n, which is the complement.
    push(
        out,
        if value < 0 {
            Header::Negative(!value as u64)
        } else {
            Header::Positive(value as u64)
        },
    );
}

/// Appends UTF-8 text.
pub fn write_text(out: &mut Vec<u8>, text: &str) {
    push(out, Header::Text(Some(text.len())));
    out.extend_from_slice(text.as_bytes());
}

/// Appends a byte string.
pub fn write_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    push(out, Header::Bytes(Some(bytes.len())));
    out.extend_from_slice(bytes);
}

/// Appends a value in its storage class; text that is not UTF-8 under [`RAW_TEXT_TAG`].
pub fn write_value(out: &mut Vec<u8>, value: Value<'_>) {
    match value {
        Value::Null => push(out, Header::Simple(simple::NULL)),
        Value::Integer(i) => write_integer(out, i),
        Value::Real(r) => push(out, Header::Float(r)),
        Value::Text(t) => match std::str::from_utf8(t) {
            Ok(text) => write_text(out, text),
            Err(_) => {
                push(out, Header::Tag(RAW_TEXT_TAG));
                write_bytes(out, t);
            }
        },
        Value::Blob(b) => write_bytes(out, b),
    }
}

/// Upper bound of the bytes that [`write_value`] appends.
pub fn value_bytes(value: Value<'_>) -> usize {
    const TAG_AND_LENGTH: usize = 3 + 9;
    match value {
        Value::Null | Value::Integer(_) | Value::Real(_) => 9,
        Value::Text(bytes) | Value::Blob(bytes) => TAG_AND_LENGTH + bytes.len(),
    }
}

/// The values of a key that [`crate::model::key::key_bytes`] wrote. Fails if the bytes are not such
/// a key.
pub fn key_values(bytes: &[u8]) -> Result<Vec<OwnedValue>, CborError> {
    let mut cursor = Cursor::new(bytes);
    let length = cursor.array()?;
    let values = (0..length)
        .map(|_| Ok(cursor.value()?.to_owned()))
        .collect::<Result<_, _>>()?;
    cursor.end()?;
    Ok(values)
}

/// The values of a key, and the bytes after it. Fails if the bytes do not begin with a key.
pub fn key_and_rest(bytes: &[u8]) -> Result<(Vec<OwnedValue>, &[u8]), CborError> {
    let mut cursor = Cursor::new(bytes);
    let length = cursor.array()?;
    let values = (0..length)
        .map(|_| Ok(cursor.value()?.to_owned()))
        .collect::<Result<_, _>>()?;
    let rest = &bytes[bytes.len() - cursor.remaining()..];
    Ok((values, rest))
}

/// Reads items one after the other, without copying. A method that returns a [`Result`] fails on an
/// item of a different kind, and at the end of the bytes.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    /// A cursor at the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Cursor { rest: bytes }
    }

    fn header(&mut self) -> Result<Header, CborError> {
        let mut decoder = Decoder::from(self.rest);
        let header = decoder.pull().map_err(|e| match e {
            ciborium_ll::Error::Io(_) => CborError::Truncated,
            ciborium_ll::Error::Syntax(_) => CborError::Expected("a well-formed item"),
        })?;
        let used = decoder.offset();
        self.rest = &self.rest[used..];
        Ok(header)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], CborError> {
        if length > self.rest.len() {
            return Err(CborError::Truncated);
        }
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        Ok(taken)
    }

    /// Number of items of an array. Fails if fewer bytes than items are left.
    pub fn array(&mut self) -> Result<usize, CborError> {
        match self.header()? {
            Header::Array(Some(n)) if n <= self.rest.len() => Ok(n),
            Header::Array(Some(_)) => Err(CborError::Truncated),
            _ => Err(CborError::Expected("an array")),
        }
    }

    /// Number of entries of a map. Fails if fewer than two bytes per entry are left.
    pub fn map(&mut self) -> Result<usize, CborError> {
        match self.header()? {
            Header::Map(Some(n)) if n <= self.rest.len() / 2 => Ok(n),
            Header::Map(Some(_)) => Err(CborError::Truncated),
            _ => Err(CborError::Expected("a map")),
        }
    }

    /// The next item's tag. None if the next item has no tag; the cursor does not move then.
    pub fn tag(&mut self) -> Option<u64> {
        let mut ahead = self.clone();
        let Ok(Header::Tag(tag)) = ahead.header() else {
            return None;
        };
        *self = ahead;
        Some(tag)
    }

    /// The next truth value. None if the next item is none; the cursor does not move then.
    pub fn boolean(&mut self) -> Option<bool> {
        let mut ahead = self.clone();
        let is_true = match ahead.header() {
            Ok(Header::Simple(simple::TRUE)) => true,
            Ok(Header::Simple(simple::FALSE)) => false,
            _ => return None,
        };
        *self = ahead;
        Some(is_true)
    }

    /// The next item, an unsigned integer.
    pub fn unsigned(&mut self) -> Result<u64, CborError> {
        match self.header()? {
            Header::Positive(n) => Ok(n),
            _ => Err(CborError::Expected("an unsigned integer")),
        }
    }

    /// The next item, an index or a count below `limit`; `what` names it in the error.
    pub fn below(&mut self, limit: usize, what: &'static str) -> Result<usize, CborError> {
        let n = self.unsigned()?;
        usize::try_from(n)
            .ok()
            .filter(|n| *n < limit)
            .ok_or(CborError::OutOfBounds(what))
    }

    /// The next item, a signed integer.
    pub fn integer(&mut self) -> Result<i64, CborError> {
        match self.value()? {
            Value::Integer(i) => Ok(i),
            _ => Err(CborError::Expected("an integer")),
        }
    }

    /// The next item, UTF-8 text.
    pub fn text(&mut self) -> Result<&'a str, CborError> {
        match self.value()? {
            Value::Text(t) => std::str::from_utf8(t).map_err(|_| CborError::Expected("UTF-8")),
            _ => Err(CborError::Expected("text")),
        }
    }

    /// The next item, a byte string.
    pub fn bytes(&mut self) -> Result<&'a [u8], CborError> {
        match self.value()? {
            Value::Blob(b) => Ok(b),
            _ => Err(CborError::Expected("bytes")),
        }
    }

    /// The next item as a value of SQLite. Bytes under [`RAW_TEXT_TAG`] become text, NaN becomes
    /// NULL.
    pub fn value(&mut self) -> Result<Value<'a>, CborError> {
        let out_of_range = CborError::OutOfBounds("an integer");
        Ok(match self.header()? {
            Header::Simple(simple::NULL) => Value::Null,
            Header::Positive(n) => Value::Integer(i64::try_from(n).map_err(|_| out_of_range)?),
            Header::Negative(n) => Value::Integer(!i64::try_from(n).map_err(|_| out_of_range)?),
            // SQLite has no NaN: it stores NULL in its place.
            Header::Float(r) if r.is_nan() => Value::Null,
            Header::Float(r) => Value::Real(r),
            Header::Text(Some(n)) => Value::Text(self.take(n)?),
            Header::Bytes(Some(n)) => Value::Blob(self.take(n)?),
            Header::Tag(RAW_TEXT_TAG) => match self.header()? {
                Header::Bytes(Some(n)) => Value::Text(self.take(n)?),
                _ => return Err(CborError::Expected("bytes")),
            },
            _ => return Err(CborError::Expected("a value")),
        })
    }

    /// The bytes between this cursor and a `later` state of it.
    pub fn up_to(&self, later: &Cursor<'a>) -> &'a [u8] {
        &self.rest[..self.rest.len() - later.rest.len()]
    }

    /// Fails if bytes are left.
    pub fn end(&self) -> Result<(), CborError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(CborError::Expected("the end"))
        }
    }

    /// Number of bytes not yet read.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_bit_for_bit() {
        let bad_utf8 = [0xff, 0, b'x'];
        for value in [
            Value::Null,
            Value::Integer(0),
            Value::Integer(i64::MAX),
            Value::Integer(i64::MIN),
            Value::Integer(-1),
            Value::Real(-0.0),
            Value::Real(0.1),
            Value::Real(1.0),
            Value::Real(f64::NEG_INFINITY),
            Value::Real(f64::MIN_POSITIVE / 3.0),
            Value::Text(b""),
            Value::Text(b"a\0b"),
            Value::Text(&bad_utf8),
            Value::Blob(b""),
            Value::Blob(&bad_utf8),
        ] {
            let mut bytes = Vec::new();
            write_value(&mut bytes, value);
            let mut cursor = Cursor::new(&bytes);
            let back = cursor.value().unwrap();
            assert!(back.same(&value), "{value:?} came back as {back:?}");
            cursor.end().unwrap();
        }
    }

    #[test]
    fn lengths_are_not_trusted() {
        for bytes in [
            &[0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff][..], // array of 2^64 - 1
            &[0x5b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],     // as many bytes
            &[0x7a, 0x7f, 0xff, 0xff, 0xff, b'x'],                       // 2 GB of text
            &[0x9f],                                                     // indefinite array
            &[0x5f],                                                     // indefinite bytes
            &[0x3b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],     // below i64
            &[0xc1, 0x00],                                               // another tag
            &[],
        ] {
            assert!(Cursor::new(bytes).array().is_err());
            assert!(Cursor::new(bytes).value().is_err());
        }
    }

    #[test]
    fn keys_come_back() {
        let key = [Value::Integer(7), Value::Text(b"x")];
        let bytes = crate::model::key::key_bytes(key.iter().copied(), ["BINARY"; 2].into_iter());
        let back = key_values(&bytes).unwrap();
        assert_eq!(
            back,
            [OwnedValue::Integer(7), OwnedValue::Text(b"x".to_vec())]
        );
    }
}
