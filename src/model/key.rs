//! The canonical bytes of a row's key.
//!
//! One key can be spelled in several ways: 1 and 1.0 are equal to SQLite, and so are 'a' and 'A'
//! under NOCASE. The tables that store things by key outside of the user's table (marks, displaced
//! and held rows) need one spelling, or a row would be in them twice. Equal keys have equal bytes,
//! and different keys have different bytes.

use crate::model::cbor::{write_array, write_value};
use crate::model::value::Value;

/// Whether equality under the collation is known here: it is for the three that SQLite brings.
pub fn is_known_collation(name: &str) -> bool {
    matches!(name, "BINARY" | "NOCASE" | "RTRIM")
}

/// The canonical bytes of a key whose columns compare by these collations (upper case).
pub fn key_bytes<'v, 'c>(
    values: impl ExactSizeIterator<Item = Value<'v>>,
    collations: impl Iterator<Item = &'c str>,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(16);
    write_array(&mut out, values.len());
    for (value, collation) in values.zip(collations) {
        fold(value, collation, |folded| write_value(&mut out, folded));
    }
    out
}

/// Calls `f` with the one value that represents all values equal to this one, as SQLite compares.
pub fn fold<T>(value: Value<'_>, collation: &str, f: impl FnOnce(Value<'_>) -> T) -> T {
    match value {
        Value::Text(t) if collation == "NOCASE" => f(Value::Text(&no_case(t))),
        Value::Text(t) if collation == "RTRIM" => {
            let spaces = t.iter().rev().take_while(|b| **b == b' ').count();
            f(Value::Text(&t[..t.len() - spaces]))
        }
        // An integral real equals the integer. Of the two bounds of an i64, only -2^63 is exactly a
        // real.
        Value::Real(r) if r.fract() == 0.0 && (-TWO_63..TWO_63).contains(&r) => {
            f(Value::Integer(r as i64))
        }
        other => f(other),
    }
}

const TWO_63: f64 = 9_223_372_036_854_775_808.0;

/// SQLite's NOCASE folds ASCII letters and stops at a NUL; after that only the length counts.
fn no_case(text: &[u8]) -> Vec<u8> {
    let mut folded = text.to_ascii_lowercase();
    if let Some(end) = folded.iter().position(|b| *b == 0) {
        folded[end..].fill(0);
    }
    folded
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::Connection;

    /// SQLite itself compares every value with every other.
    #[test]
    fn keys_are_equal_exactly_when_sqlite_says_so() {
        let texts = [
            "", " ", "a", "A", "a ", "a\t", "É", "é", "a\0x", "A\0Y", "a\0xy", "1",
        ];
        let reals = [
            0.0,
            -0.0,
            1.0,
            1.5,
            2f64.powi(53),
            TWO_63,
            -TWO_63,
            f64::INFINITY,
            f64::NEG_INFINITY,
            1e300,
            9e15,
            9.2e18,
        ];
        let integers = [
            0,
            1,
            i64::MIN,
            i64::MAX,
            1 << 53,
            (1 << 53) + 1,
            9_000_000_000_000_000,
        ];
        let mut all: Vec<Value<'_>> = texts.iter().map(|t| Value::Text(t.as_bytes())).collect();
        all.extend(texts.iter().map(|t| Value::Blob(t.as_bytes())));
        all.extend(reals.iter().map(|r| Value::Real(*r)));
        all.extend(integers.iter().map(|i| Value::Integer(*i)));
        let conn = Connection::open_in_memory().unwrap();
        for collation in ["BINARY", "NOCASE", "RTRIM"] {
            let bytes = |v: Value<'_>| key_bytes([v].into_iter(), [collation].into_iter());
            let text = format!("SELECT ?1 = ?2 COLLATE {collation}");
            for a in &all {
                for b in &all {
                    let equal: bool = conn.query_row(&text, [a, b], |r| r.get(0)).unwrap();
                    assert_eq!(bytes(*a) == bytes(*b), equal, "{a:?} {b:?} {collation}");
                }
            }
        }
    }
}
