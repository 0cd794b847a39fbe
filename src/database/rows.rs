//! Versions and rows of one table, and the statements that run for every row, prepared once.

use rusqlite::{CachedStatement, Connection, Row, Statement};

use crate::database::DatabaseError;
use crate::database::sites::Sites;
use crate::database::table::Table;
use crate::database::values;
use crate::model::birth::Birth;
use crate::model::cbor::{self, Cursor};
use crate::model::merge::{Exceptions, RowState};
use crate::model::value::{OwnedValue, Value};
use crate::model::version::Version;

/// The version of a row as the versions table stores it.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// The row's version, and those of columns that differ.
    pub state: RowState,
    /// This node's local transaction number when it learnt the version.
    pub local_tx: i64,
    /// Hash of the content, see [`Table::content_hash`]; 0 for a deleted row.
    pub hash: i64,
    /// Birth of the row.
    pub birth: Birth,
}

/// Prepared statements on one table.
pub struct Rows<'c> {
    /// The connection on which the statements are prepared.
    pub conn: &'c Connection,
    /// The table that they read and write.
    pub table: &'c Table,
    get_version: CachedStatement<'c>,
    put_version: CachedStatement<'c>,
    get_row: CachedStatement<'c>,
    upsert: Option<CachedStatement<'c>>,
    delete: Option<CachedStatement<'c>>,
}

/// Binds values from the first parameter on.
pub fn bind(statement: &mut Statement<'_>, values: &[Value<'_>]) -> rusqlite::Result<()> {
    values
        .iter()
        .enumerate()
        .try_for_each(|(i, v)| statement.raw_bind_parameter(i + 1, v))
}

/// Values of all columns of a row.
pub fn row_values<'r>(row: &'r Row<'_>, count: usize) -> impl ExactSizeIterator<Item = Value<'r>> {
    (0..count).map(|i| values::column(row, i))
}

/// [`keys`] reads no further once the keys take this many bytes.
pub const KEY_BYTES: usize = 1 << 20;

/// The keys that `scan`, one of the table's texts for that, finds after a key. It returns fewer
/// than the limit of `scan` if they are long, but at least one if there is one.
pub fn keys(
    conn: &Connection,
    table: &Table,
    scan: &str,
    after: Option<&[OwnedValue]>,
) -> rusqlite::Result<Vec<Vec<OwnedValue>>> {
    let mut scan = conn.prepare_cached(scan)?;
    let mut found = scan.query(rusqlite::params_from_iter(after.unwrap_or_default()))?;
    let (mut keys, mut bytes) = (Vec::new(), 0);
    while bytes < KEY_BYTES
        && let Some(row) = found.next()?
    {
        let values = row_values(row, table.key_len());
        bytes += values.map(cbor::value_bytes).sum::<usize>();
        let values = row_values(row, table.key_len());
        keys.push(values.map(Value::to_owned).collect());
    }
    Ok(keys)
}

impl<'c> Rows<'c> {
    /// Prepares the statements on `table`; fails if SQLite cannot compile one.
    pub fn new(conn: &'c Connection, table: &'c Table) -> rusqlite::Result<Self> {
        Ok(Rows {
            conn,
            table,
            get_version: conn.prepare_cached(&table.sql.get_version)?,
            put_version: conn.prepare_cached(&table.sql.put_version)?,
            get_row: conn.prepare_cached(&table.sql.get_row)?,
            upsert: None,
            delete: None,
        })
    }

    /// The version of the row with this key, tombstones included.
    pub fn version(
        &mut self,
        sites: &Sites,
        key: &[Value<'_>],
    ) -> Result<Option<Stored>, DatabaseError> {
        bind(&mut self.get_version, key)?;
        let mut rows = self.get_version.raw_query();
        let Some(row) = rows.next()? else {
            return Ok(None);
        };
        let mut stored = stored(sites, row)?;
        stored.state.exceptions = self.table.named_now(stored.state.exceptions);
        if self.table.has_births {
            stored.birth = birth(values::column(row, 6), stored.state.version)?;
        }
        Ok(Some(stored))
    }

    /// Stores the version of the row with this key, and replaces an earlier one.
    pub fn put_version(
        &mut self,
        sites: &mut Sites,
        key: &[Value<'_>],
        stored: &Stored,
    ) -> Result<(), DatabaseError> {
        let site = sites.site(self.conn, stored.state.version.node)?;
        let n = key.len();
        let statement = &mut self.put_version;
        bind(statement, key)?;
        statement.raw_bind_parameter(n + 1, stored.state.version.hlc)?;
        statement.raw_bind_parameter(n + 2, site)?;
        statement.raw_bind_parameter(n + 3, stored.state.deleted)?;
        statement.raw_bind_parameter(n + 4, stored.local_tx)?;
        statement.raw_bind_parameter(n + 5, stored.hash)?;
        let exceptions = encode_exceptions(&stored.state.exceptions);
        statement.raw_bind_parameter(n + 6, exceptions)?;
        if self.table.has_births {
            let birth = stored.birth.beside(stored.state.version);
            statement.raw_bind_parameter(n + 7, birth.borrow())?;
        }
        statement.raw_execute()?;
        Ok(())
    }

    /// Deletes the version of this key, tombstones included.
    pub fn forget_version(&mut self, key: &[Value<'_>]) -> rusqlite::Result<()> {
        let mut statement = self.conn.prepare_cached(&self.table.sql.forget_version)?;
        bind(&mut statement, key)?;
        statement.raw_execute()?;
        Ok(())
    }

    /// The result of `read` on the row with this key; none if there is no such row.
    pub fn row<T>(
        &mut self,
        key: &[Value<'_>],
        read: impl FnOnce(&Row<'_>) -> T,
    ) -> rusqlite::Result<Option<T>> {
        bind(&mut self.get_row, key)?;
        let mut rows = self.get_row.raw_query();
        Ok(rows.next()?.map(read))
    }

    /// Values of all columns of the row with this key; none if there is no such row.
    pub fn owned_row(&mut self, key: &[Value<'_>]) -> rusqlite::Result<Option<Vec<OwnedValue>>> {
        let count = self.table.schema.columns.len();
        self.row(key, |r| row_values(r, count).map(Value::to_owned).collect())
    }

    /// Whether the row with this key has these values, one per column.
    pub fn has_values(
        &mut self,
        key: &[Value<'_>],
        values: &[Value<'_>],
    ) -> rusqlite::Result<bool> {
        let same = |row: &Row<'_>| {
            let here = row_values(row, values.len());
            here.zip(values).all(|(here, value)| here.same(value))
        };
        Ok(self.row(key, same)? == Some(true))
    }

    /// Whether the table has a row with this key.
    pub fn exists(&mut self, key: &[Value<'_>]) -> rusqlite::Result<bool> {
        Ok(self.row(key, |_| ())?.is_some())
    }

    /// Hash of the content of the row with this key, if it is learnt in transaction `local_tx`; 0
    /// if there is no such row.
    pub fn stored_hash(&mut self, key: &[Value<'_>], local_tx: i64) -> rusqlite::Result<i64> {
        let table = self.table;
        let count = table.schema.columns.len();
        let hash = self.row(key, |r| table.content_hash(local_tx, row_values(r, count)))?;
        Ok(hash.unwrap_or(0))
    }

    /// Inserts or updates a whole row, one value per column.
    pub fn upsert(&mut self, values: &[Value<'_>]) -> rusqlite::Result<()> {
        if self.upsert.is_none() {
            self.upsert = Some(self.conn.prepare_cached(&self.table.sql.upsert)?);
        }
        let statement = self.upsert.as_mut().expect("just prepared");
        bind(statement, values)?;
        written(self.table, statement.raw_execute()?)
    }

    /// Writes the columns `which` of the row with this key. A row that is missing is inserted with
    /// the defaults of the other columns.
    pub fn upsert_some(
        &mut self,
        key: &[Value<'_>],
        which: &[usize],
        values: &[Value<'_>],
    ) -> rusqlite::Result<()> {
        let mut statement = self.conn.prepare_cached(&self.table.upsert_some(which))?;
        let n = key.len();
        // If the key's columns are written, the row gets the spelling that arrives.
        let key_values = (0..n).map(|i| {
            which
                .iter()
                .position(|w| *w == i)
                .map_or(key[i], |p| values[p])
        });
        let others = which
            .iter()
            .zip(values)
            .filter(|(w, _)| **w >= n)
            .map(|(_, v)| *v);
        let all: Vec<Value<'_>> = key_values.chain(others).collect();
        bind(&mut statement, &all)?;
        written(self.table, statement.raw_execute()?)
    }

    /// Writes the columns `which` of a row that exists. An upsert would fail if other columns are
    /// NOT NULL: SQLite checks that on the row that it might insert.
    pub fn update_some(
        &mut self,
        key: &[Value<'_>],
        which: &[usize],
        values: &[Value<'_>],
    ) -> rusqlite::Result<()> {
        // A rowid is the same however it is spelled.
        let skip = usize::from(self.table.schema.rowid.is_some() && which.first() == Some(&0));
        let (which, values) = (&which[skip..], &values[skip..]);
        if which.is_empty() {
            return Ok(());
        }
        let mut statement = self.conn.prepare_cached(&self.table.update_some(which))?;
        bind(&mut statement, &[key, values].concat())?;
        written(self.table, statement.raw_execute()?)
    }

    /// Deletes the row with this key, if it exists. Fails if a trigger of the application keeps it.
    pub fn delete(&mut self, key: &[Value<'_>]) -> rusqlite::Result<()> {
        if self.delete.is_none() {
            self.delete = Some(self.conn.prepare_cached(&self.table.sql.delete_row)?);
        }
        let statement = self.delete.as_mut().expect("just prepared");
        bind(statement, key)?;
        let deleted = statement.raw_execute()?;
        match deleted == 0 && self.table.fires && self.exists(key)? {
            true => written(self.table, deleted),
            false => Ok(()),
        }
    }
}

/// Turns a write that changed no row into an error: a trigger of the application may skip the row
/// by RAISE(IGNORE), without an error of its own.
fn written(table: &Table, rows: usize) -> rusqlite::Result<()> {
    if rows > 0 || !table.fires {
        return Ok(());
    }
    let text = "a trigger leaves the row as it was: RAISE(IGNORE)";
    let error = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CONSTRAINT_TRIGGER);
    Err(rusqlite::Error::SqliteFailure(error, Some(text.into())))
}

pub(crate) fn encode_exceptions(exceptions: &Exceptions) -> Option<Vec<u8>> {
    if exceptions.is_empty() {
        return None;
    }
    let mut out = Vec::new();
    cbor::write_array(&mut out, 3 * exceptions.len());
    for (column, version) in exceptions {
        cbor::write_text(&mut out, column);
        cbor::write_unsigned(&mut out, version.node);
        cbor::write_integer(&mut out, version.hlc);
    }
    Some(out)
}

/// Reads a version as it is stored: (hlc, site, deleted, at, hash, exc). Its exceptions have the
/// names that the columns had then.
pub(crate) fn stored(sites: &Sites, row: &Row<'_>) -> Result<Stored, DatabaseError> {
    let exceptions = match values::column(row, 5) {
        Value::Blob(bytes) => decode_exceptions(bytes)?,
        _ => Exceptions::new(),
    };
    let version = Version {
        hlc: row.get(0)?,
        node: sites.node(row.get(1)?)?,
    };
    Ok(Stored {
        state: RowState {
            version,
            deleted: row.get(2)?,
            exceptions,
        },
        local_tx: row.get(3)?,
        hash: row.get(4)?,
        birth: Birth::None,
    })
}

/// Reads a birth beside its row's version.
fn birth(value: Value<'_>, version: Version) -> Result<Birth, DatabaseError> {
    let broken = || DatabaseError::Damaged("a birth is not valid".to_owned());
    Birth::read(value, version).ok_or_else(broken)
}

/// Decodes the exceptions of a stored version. Fails if they are not valid CBOR.
pub fn decode_exceptions(bytes: &[u8]) -> Result<Exceptions, DatabaseError> {
    let mut cursor = Cursor::new(bytes);
    let count = cursor.array()? / 3;
    let mut exceptions = Exceptions::new();
    for _ in 0..count {
        let column = cursor.text()?.to_owned();
        let node = cursor.unsigned()?;
        exceptions.insert(
            column,
            Version {
                hlc: cursor.integer()?,
                node,
            },
        );
    }
    Ok(exceptions)
}
