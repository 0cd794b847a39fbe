//! Checks whether tables with own names are really own tables. A dump of another program, a
//! framework's schema file or an earlier HarmonyLite may have made such tables with other columns.
//! A trigger that writes into such a table makes the application's writes fail. So the check comes
//! before any trigger is made.

use rusqlite::Connection;

use super::schema::{PREFIX, quote};
use super::{own_tables, values};

/// A versions table, as far as all of them are equal: they differ in the types of their keys.
const VERSIONS: &str = "CREATE TABLE versions(k1, hlc INTEGER, site INTEGER, deleted INTEGER, \
                        at INTEGER, hash INTEGER, exc BLOB, PRIMARY KEY(k1)) WITHOUT ROWID";

/// Tables whose names begin with the prefix of own tables.
#[derive(Debug, Default)]
pub(super) struct OwnNames {
    /// Tables with an own name, and with all columns that they need.
    pub ours: Vec<String>,
    /// Tables with an own name, and with other columns.
    pub others: Vec<String>,
    /// Tables that begin with the prefix, but have no own name.
    pub unknown: Vec<String>,
}

/// A column: name, declared type, place in the primary key.
type ColumnShape = (String, String, i64);

/// Classifies every table whose name begins with the prefix.
pub(super) fn classify(conn: &Connection) -> rusqlite::Result<OwnNames> {
    let model = Connection::open_in_memory()?;
    model.execute_batch(own_tables::CREATE)?;
    model.execute_batch(own_tables::CREATE_LIVES)?;
    model.execute_batch(VERSIONS)?;
    let mut found = OwnNames::default();
    for name in with_prefix(conn)? {
        let lower = name.to_ascii_lowercase();
        let is_versions = lower.ends_with("_versions");
        let wanted = match is_versions {
            true => columns(&model, "versions")?,
            false => columns(&model, &lower)?,
        };
        let there = columns(conn, &name)?;
        let has = |c: &ColumnShape| there.contains(c) || is_versions && c.0 == "k1";
        let of_model = if is_versions { "versions" } else { &lower };
        let is_ours = wanted.iter().all(has)
            && is_without_rowid(conn, &name)? == is_without_rowid(&model, of_model)?;
        match wanted.is_empty() {
            true => found.unknown.push(name),
            false if is_ours => found.ours.push(name),
            false => found.others.push(name),
        }
    }
    Ok(found)
}

/// Whether the table has any row.
pub(super) fn has_rows(conn: &Connection, table: &str) -> rusqlite::Result<bool> {
    let text = format!("SELECT EXISTS (SELECT 1 FROM main.{})", quote(table));
    conn.query_row(&text, [], |r| r.get(0))
}

/// Whether the table has a column with that name.
pub(super) fn has_column(conn: &Connection, table: &str, column: &str) -> rusqlite::Result<bool> {
    conn.prepare("SELECT 1 FROM pragma_table_info(?1) WHERE name = ?2 COLLATE NOCASE")?
        .exists([table, column])
}

pub(super) fn drop_tables<'n>(
    conn: &Connection,
    names: impl IntoIterator<Item = &'n String>,
) -> rusqlite::Result<()> {
    names.into_iter().try_for_each(|name| {
        let text = format!("DROP TABLE IF EXISTS main.{}", quote(name));
        conn.execute_batch(&text)
    })
}

fn with_prefix(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut list = conn.prepare(
        "SELECT name FROM main.sqlite_schema WHERE type = 'table' AND lower(name) GLOB ?1 || '*'
         ORDER BY name",
    )?;
    let names = list.query_map([PREFIX], |r| values::lossy(r, 0))?;
    names.collect()
}

fn columns(conn: &Connection, table: &str) -> rusqlite::Result<Vec<ColumnShape>> {
    let mut list =
        conn.prepare("SELECT lower(name), upper(type), pk FROM pragma_table_info(?1)")?;
    let columns = list.query_map([table], |r| {
        Ok((values::lossy(r, 0)?, values::lossy(r, 1)?, r.get(2)?))
    })?;
    columns.collect()
}

fn is_without_rowid(conn: &Connection, table: &str) -> rusqlite::Result<bool> {
    conn.prepare(
        "SELECT 1 FROM pragma_table_list WHERE schema = 'main' AND name = ?1 COLLATE NOCASE AND wr",
    )?
    .exists([table])
}
