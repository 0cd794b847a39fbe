//! A snapshot's file, opened to be read row by row.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use rusqlite::limits::Limit;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params, params_from_iter};

use crate::apply::{
    Incoming, Lives, Place, RowLife, displaced_row, has_lives, held_after, read_held,
};
use crate::capture::{has_mark, unwritten};
use crate::database::content_key;
use crate::database::meta::{Meta, get_meta};
use crate::database::own_tables;
use crate::database::rows::{Rows, Stored, keys};
use crate::database::schema::{self, Column, PREFIX};
use crate::database::selection;
use crate::database::sites::{MAX_NODES, Sites};
use crate::database::table::{Shape, Table, versions_table};
use crate::database::{DatabaseError, Result};
use crate::model::birth::Birth;
use crate::model::cbor;
use crate::model::frame::MAX_ROW_BYTES;
use crate::model::merge::{FLOOR, RowState};
use crate::model::value::{OwnedValue, Value};
use crate::model::version::Version;
use crate::snapshot::scratch;

/// See the module's head.
pub(super) struct SnapshotSource {
    pub conn: Connection,
    pub sites: Sites,
    /// In the order of their ids.
    pub tables: Vec<Arc<Table>>,
    /// Per table id, the query for the number of bytes in a row.
    measure: HashMap<i64, String>,
    /// Tables (by id) of which numbers have several lives.
    with_lives: HashSet<i64>,
    /// Whether the file may have births.
    pub has_births: bool,
}

/// A row of the snapshot: its key and its version.
pub(super) struct SourceRow {
    pub key: Vec<OwnedValue>,
    pub key_bytes: Vec<u8>,
    pub stored: Stored,
    /// Whether the row is a life that does not have its number.
    pub is_aside: bool,
}

impl SnapshotSource {
    /// Opens a file that was checked before. Its content still comes from a peer, and is not
    /// trusted.
    pub(super) fn open(path: &Path) -> Result<SnapshotSource> {
        SnapshotSource::read(path).map_err(|e| match e {
            // The snapshot lacks the tables: the database here has them.
            DatabaseError::Dropped => damaged("it lacks tables of HarmonyLite".to_owned()),
            e => e,
        })
    }

    fn read(path: &Path) -> Result<SnapshotSource> {
        let conn = scratch::connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        // No value may be longer than a row that can be sent: SQLite refuses it without reading it.
        conn.set_limit(Limit::SQLITE_LIMIT_LENGTH, MAX_ROW_BYTES as i32)?;
        // One transaction for everything that is read, or every look-up locks the file anew.
        conn.execute_batch("PRAGMA query_only = ON; PRAGMA trusted_schema = OFF; BEGIN")?;
        // A view in place of a table may take for ever to read.
        let made_up =
            "SELECT 1 FROM sqlite_schema WHERE name LIKE '\\_\\_harmonylite\\_\\_%' ESCAPE '\\'
             AND (type = 'view' OR (type = 'table' AND rootpage = 0))";
        if conn.prepare(made_up)?.exists([])? {
            return Err(damaged(
                "tables of HarmonyLite are something else".to_owned(),
            ));
        }
        let format: Option<i64> = get_meta(&conn, Meta::Format)?;
        match format {
            Some(format) if format > own_tables::FORMAT => {
                return Err(DatabaseError::LaterFormat(path.to_owned(), format));
            }
            Some(_) => {}
            None => return Err(damaged("it has no tables of HarmonyLite".to_owned())),
        }
        let sites = Sites::load(&conn)?;
        if sites.count() > MAX_NODES {
            return Err(damaged(format!("it names {} nodes", sites.count())));
        }
        let tables = tables(&conn)?;
        let measure = tables.iter().map(|t| (t.id, measure(t))).collect();
        let mut with_lives = HashSet::new();
        for table in tables.iter().filter(|t| t.has_births) {
            if has_lives(&conn, table.id)? {
                with_lives.insert(table.id);
            }
        }
        Ok(SnapshotSource {
            has_births: get_meta::<bool>(&conn, Meta::Births)?.is_some(),
            conn,
            sites,
            tables,
            measure,
            with_lives,
        })
    }

    /// Number of rows of which it has a version.
    pub(super) fn count(&self) -> Result<u64> {
        let count = |table: &Arc<Table>| {
            let text = format!("SELECT count(*) FROM {}", versions_table(table.name()));
            self.conn.query_row(&text, [], |r| r.get::<_, u64>(0))
        };
        let each: rusqlite::Result<Vec<u64>> = self.tables.iter().map(count).collect();
        Ok(each?.into_iter().sum())
    }

    /// The next keys of a table after a given one, with their versions, tombstones included. A
    /// number with several lives comes once for each.
    pub(super) fn rows(
        &self,
        table: &Table,
        after: Option<&[OwnedValue]>,
        limit: usize,
    ) -> Result<Vec<SourceRow>> {
        let scan = table.scan_all_versions(after.is_none(), limit);
        let mut rows = Rows::new(&self.conn, table)?;
        let mut all = Vec::new();
        for key in keys(&self.conn, table, &scan, after)? {
            let borrowed: Vec<Value<'_>> = key.iter().map(OwnedValue::borrow).collect();
            let stored = rows.version(&self.sites, &borrowed)?;
            let Some(stored) = stored.filter(is_sound) else {
                return Err(damaged(format!("a version of table {}", table.name())));
            };
            let key_bytes = table.key_bytes(borrowed.into_iter());
            // First, so that the others wait behind it as they come.
            all.push(SourceRow {
                key: key.clone(),
                key_bytes: key_bytes.clone(),
                stored,
                is_aside: false,
            });
            // Without their values, which may be more than fit in memory.
            for stored in self.lives(table, &key_bytes, i64::MAX)? {
                if !is_sound(&stored) {
                    return Err(damaged(format!("a life of table {}", table.name())));
                }
                all.push(SourceRow {
                    key: key.clone(),
                    key_bytes: key_bytes.clone(),
                    stored,
                    is_aside: true,
                });
            }
        }
        Ok(all)
    }

    /// Whether the snapshot's maker had not sent that row.
    pub(super) fn is_marked(&self, table: &Table, row: &SourceRow) -> Result<bool> {
        has_mark(&self.conn, table, &row.key_bytes, row.stored.local_tx)
    }

    /// The version of one row.
    pub(super) fn version(&self, table: &Table, key: &[Value<'_>]) -> Result<Option<Stored>> {
        Rows::new(&self.conn, table)?.version(&self.sites, key)
    }

    /// The lives of a number that do not have it, and were learnt by transaction `local_tx`; all
    /// for `i64::MAX`.
    pub(super) fn lives(&self, table: &Table, key: &[u8], local_tx: i64) -> Result<Vec<Stored>> {
        let mut all = Vec::new();
        if let Some(lives) = self.lives_of(table) {
            lives.each_learnt_by(&self.sites, (key, local_tx), |life| {
                all.push(life.stored);
                Ok(())
            })?;
        }
        Ok(all)
    }

    fn lives_of<'a>(&'a self, table: &'a Table) -> Option<Lives<'a>> {
        let has_lives = table.has_births && self.with_lives.contains(&table.id);
        let conn = &self.conn;
        has_lives.then_some(Lives { conn, table })
    }

    /// Whether the file has the life of a number with this birth.
    pub(super) fn has_life(&self, table: &Table, key: &[Value<'_>], birth: Birth) -> Result<bool> {
        let is_it = |b: Birth| b == birth || b == Birth::None && matches!(birth, Birth::Before(_));
        if self.version(table, key)?.is_some_and(|s| is_it(s.birth)) {
            return Ok(true);
        }
        let key_bytes = table.key_bytes(key.iter().copied());
        let life = |birth| self.life(table, &key_bytes, birth);
        let is_before = matches!(birth, Birth::Before(_));
        Ok(life(birth)?.is_some() || is_before && life(Birth::None)?.is_some())
    }

    fn life(&self, table: &Table, key: &[u8], birth: Birth) -> Result<Option<RowLife>> {
        match self.lives_of(table) {
            Some(lives) => lives.get(&self.sites, key, birth),
            None => Ok(None),
        }
    }

    /// The row as a peer would send it to a node that has `local` as its table of that name. `None`
    /// if the file lacks the row's values.
    pub(super) fn incoming(
        &self,
        table: &Table,
        row: &SourceRow,
        most: usize,
        local: Option<&Table>,
    ) -> Result<Option<Incoming>> {
        let state = &row.stored.state;
        let mut incoming = Incoming {
            birth: row.stored.birth,
            ..Incoming::default()
        };
        if state.deleted {
            incoming.floor = Some(state.version);
            return Ok(Some(incoming));
        }
        incoming.row = Some(state.version);
        incoming.floor = state.exceptions.get(FLOOR).copied();
        let Some(values) = self.all_values(table, row, most)? else {
            return Ok(None);
        };
        for (i, value) in values.into_iter().enumerate() {
            let column = &table.schema.columns[i];
            if let Some(version) = version_of(table, &row.stored, i, &value, local) {
                incoming.add_column(column.lower.clone(), version, value);
            }
        }
        Ok(Some(incoming))
    }

    /// The row's values, in its table or displaced; else as [`Self::values`].
    pub(super) fn all_values(
        &self,
        table: &Table,
        row: &SourceRow,
        most: usize,
    ) -> Result<Option<Vec<OwnedValue>>> {
        match self.values(table, row, most)? {
            Some(values) => Ok(Some(values)),
            None => displaced_row(&self.conn, table, &row.key_bytes),
        }
    }

    /// The row's values, if it is in its table. A row of more than `most` bytes is only measured:
    /// it is an error.
    pub(super) fn values(
        &self,
        table: &Table,
        row: &SourceRow,
        most: usize,
    ) -> Result<Option<Vec<OwnedValue>>> {
        if row.is_aside {
            let life = self.life(table, &row.key_bytes, row.stored.birth)?;
            let values = life.map(|life| life.values).unwrap_or_default();
            let bytes: usize = values.iter().map(|v| v.borrow().bytes()).sum();
            return match bytes > most {
                true => Err(DatabaseError::RowTooLarge(bytes, most)),
                false => Ok(Some(values)),
            };
        }
        let mut measure = self.conn.prepare_cached(&self.measure[&table.id])?;
        let bytes: Option<usize> = measure
            .query_row(params_from_iter(&row.key), |r| r.get(0))
            .optional()?;
        match bytes {
            None => Ok(None),
            Some(bytes) if bytes > most => Err(DatabaseError::RowTooLarge(bytes, most)),
            Some(_) => {
                let key: Vec<Value<'_>> = row.key.iter().map(OwnedValue::borrow).collect();
                Ok(Rows::new(&self.conn, table)?.owned_row(&key)?)
            }
        }
    }

    /// The next places after a given one of which something is held.
    pub(super) fn held_places(&self, after: Option<&Place>) -> Result<Vec<Place>> {
        held_after(&self.conn, after)
    }

    /// The held row of a place, if it has no more than `most` bytes.
    pub(super) fn held(&self, at: &Place, most: usize) -> Result<Incoming> {
        let mut measure = self.conn.prepare_cached(
            "SELECT ifnull(sum(octet_length(value)), 0) FROM __harmonylite___held
             WHERE table_name = ?1 AND shape = ?2 AND key = ?3",
        )?;
        let bytes: usize = measure.query_row(params![at.table, at.shape, at.key], |r| r.get(0))?;
        if bytes > most {
            return Err(DatabaseError::RowTooLarge(bytes, most));
        }
        let mut incoming = Incoming::default();
        read_held(&self.conn, &self.sites, at, &mut incoming)?;
        Ok(incoming)
    }
}

/// The query for a row's bytes. SQLite knows the length of a text or a blob without reading it. It
/// accepts 2000 columns, but no sum of more than 1000 terms.
fn measure(table: &Table) -> String {
    let columns = 0..table.schema.columns.len();
    let bytes: Vec<String> = columns
        .map(|i| format!("ifnull(octet_length({}), 0)", table.schema.column_sql(i)))
        .collect();
    let sums = bytes
        .chunks(100)
        .map(|some| format!("({})", some.join(" + ")));
    format!(
        "SELECT {} FROM {} WHERE {}",
        sums.collect::<Vec<_>>().join(" + "),
        schema::quote(table.name()),
        table.key_match()
    )
}

/// The version of a column of a live row. `None` if the value belongs to no version: the column was
/// added later and still has its default.
fn version_of(
    table: &Table,
    stored: &Stored,
    column: usize,
    value: &OwnedValue,
    local: Option<&Table>,
) -> Option<Version> {
    let schema = &table.schema.columns[column];
    let same = |c: &&Column| c.lower == schema.lower;
    // The default may have changed since the file was made.
    let local = local.and_then(|t| t.schema.columns.iter().find(same));
    let local = local.filter(|_| schema.default == schema.default_now);
    let now = &local.unwrap_or(schema).default_now;
    let own = stored.state.exceptions.get(&schema.lower).copied();
    let is_late = stored.local_tx < table.born[column] && *value == schema.default;
    let version = match own {
        Some(version) if version != Version::NEVER => version,
        None if !is_late => stored.state.version,
        _ => unwritten(schema, now, &stored.state, value.borrow()),
    };
    Some(version).filter(|v| *v != Version::NEVER)
}

fn is_sound(stored: &Stored) -> bool {
    let RowState {
        version,
        exceptions,
        ..
    } = &stored.state;
    let valid = |v: &Version| *v == Version::NEVER || v.is_valid();
    version.is_valid() && exceptions.values().all(valid)
}

/// The replicated tables whose rows and versions are both in the file.
fn tables(conn: &Connection) -> Result<Vec<Arc<Table>>> {
    let mut known = conn.prepare("SELECT name, id, shape FROM __harmonylite___tables")?;
    let known: Vec<(String, i64, Vec<u8>)> = known
        .query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let key = content_key::load(conn)?;
    let mut tables = Vec::new();
    for mut schema in selection::read(conn, &selection::all, true)?.replicated {
        let same = |(name, ..): &&(String, i64, Vec<u8>)| name.eq_ignore_ascii_case(&schema.name);
        let Some((_, id, shape)) = known.iter().find(same) else {
            continue;
        };
        let shape: Shape = ciborium::from_reader(&shape[..]).map_err(|e| damaged(e.to_string()))?;
        // Rows older than a column have the default of that time in it, not the present one.
        shape.clone().keep_known(&shape, &[], &mut schema.columns)?;
        let born = |lower: &String| {
            let mut columns = shape.columns.iter();
            columns.find(|(c, _)| c == lower).map_or(0, |(_, at)| *at)
        };
        let born = schema.columns.iter().map(|c| born(&c.lower)).collect();
        let mut table = Table::new(*id, schema, born);
        table.set_key(key);
        tables.push(Arc::new(match has_births(conn, &table)? {
            true => table.with_births(),
            false => table,
        }));
    }
    tables.sort_by_key(|t| t.id);
    Ok(tables)
}

/// Whether the file has births of the table's rows: an earlier release made none.
fn has_births(conn: &Connection, table: &Table) -> Result<bool> {
    let mut has = conn.prepare("SELECT 1 FROM pragma_table_info(?1) WHERE name = 'born'")?;
    let versions = format!("{PREFIX}{}_versions", table.name());
    let is_numbered = table.schema.is_numbered();
    Ok(is_numbered && own_tables::has_lives(conn)? && has.exists([versions])?)
}

fn damaged(what: String) -> DatabaseError {
    DatabaseError::Damaged(format!("the snapshot: {what}"))
}

/// The values of a key that is stored as bytes.
pub(super) fn key_values(bytes: &[u8]) -> Result<Vec<OwnedValue>> {
    Ok(cbor::key_values(bytes)?)
}
