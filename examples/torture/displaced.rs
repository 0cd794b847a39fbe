//! Displaced rows: another row of the table has their UNIQUE value.

use harmonylite::model::cbor::{self, Cursor};
use harmonylite::model::key::key_bytes;
use harmonylite::model::value::{OwnedValue, Value};
use rusqlite::Connection;

use crate::Result;
use crate::schema::Stamp;

/// The only table with a UNIQUE value beside its key, an integer.
pub const TABLE: &str = "uniq";

/// All displaced rows: key, stamp and padding.
pub fn all(conn: &Connection) -> Result<Vec<(String, Stamp, String)>> {
    let mut statement = conn.prepare("SELECT key, row FROM __harmonylite___displaced")?;
    let mut rows = statement.query([])?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        let (key, row): (Vec<u8>, Vec<u8>) = (row.get(0)?, row.get(1)?);
        let (stamp, pad) = value(&row)?;
        all.push((key_text(&key)?, stamp, pad));
    }
    Ok(all)
}

/// Keys of the rows that this row of the table displaces.
pub fn hidden_by(conn: &Connection, key: &str) -> Result<Vec<String>> {
    let by = key_bytes(
        std::iter::once(Value::Integer(key.parse()?)),
        std::iter::once("BINARY"),
    );
    conn.prepare_cached("SELECT key FROM __harmonylite___displaced WHERE by = ?1")?
        .query_map([by], |r| r.get(0))?
        .map(|key: rusqlite::Result<Vec<u8>>| key_text(&key?))
        .collect()
}

fn key_text(key: &[u8]) -> Result<String> {
    match cbor::key_values(key)?[..] {
        [OwnedValue::Integer(k)] => Ok(k.to_string()),
        ref other => Err(format!("a displaced row has the key {other:?}").into()),
    }
}

/// The value of a row, which is given as names and values in turn.
fn value(row: &[u8]) -> Result<(Stamp, String)> {
    let mut cursor = Cursor::new(row);
    let (mut stamp, mut pad) = ((0, 0), String::new());
    for _ in 0..cursor.array()? / 2 {
        match (cursor.text()?, cursor.value()?) {
            ("writer", Value::Integer(n)) => stamp.0 = n as u64,
            ("seq", Value::Integer(n)) => stamp.1 = n as u64,
            ("pad", Value::Text(text)) => pad = String::from_utf8(text.to_vec())?,
            _ => {}
        }
    }
    Ok((stamp, pad))
}
