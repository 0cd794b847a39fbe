//! The key of a database's content hashes ([`crate::model::content`]), as `___meta` stores it.

use rusqlite::Connection;

use super::Result;
use super::meta::{Meta, get_meta, set_meta};
use crate::model::cbor::{self, Cursor};
use crate::model::content::ContentKey;

/// The stored key; none in a database that only earlier releases opened.
pub(crate) fn load(conn: &Connection) -> Result<Option<ContentKey>> {
    let Some(bytes) = get_meta::<Vec<u8>>(conn, Meta::ContentKey)? else {
        return Ok(None);
    };
    let mut cursor = Cursor::new(&bytes);
    cursor.array()?;
    Ok(Some(ContentKey {
        halves: (cursor.unsigned()?, cursor.unsigned()?),
        since: cursor.integer()?,
    }))
}

/// The stored key, or a new one for the rows of transaction `next` and later.
pub(super) fn load_or_draw(conn: &Connection, next: i64) -> Result<ContentKey> {
    if let Some(key) = load(conn)? {
        return Ok(key);
    }
    let half = || conn.query_row("SELECT random()", [], |r| r.get::<_, i64>(0));
    let key = ContentKey {
        halves: (half()? as u64, half()? as u64),
        since: next,
    };
    store(conn, &key)?;
    Ok(key)
}

/// Stores the key.
pub(super) fn store(conn: &Connection, key: &ContentKey) -> Result<()> {
    let mut bytes = Vec::new();
    cbor::write_array(&mut bytes, 3);
    cbor::write_unsigned(&mut bytes, key.halves.0);
    cbor::write_unsigned(&mut bytes, key.halves.1);
    cbor::write_integer(&mut bytes, key.since);
    Ok(set_meta(conn, Meta::ContentKey, bytes)?)
}
