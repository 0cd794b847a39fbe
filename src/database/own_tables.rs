//! HarmonyLite's own tables in the user's database, other than the versions tables.

use rusqlite::Connection;

/// Number of this layout, stored in `___meta` under `format`.
pub const FORMAT: i64 = 1;

/// Statements that create the missing own tables. The guide's chapter on formats describes them. A
/// table that lacks one of these columns does not count as an own table (`own_shape`). So a release
/// that adds a column must add it to files of earlier releases before that check.
pub const CREATE: &str = "
CREATE TABLE IF NOT EXISTS __harmonylite___change_log_global(
    id INTEGER PRIMARY KEY, table_id, kind, created_at, k1);
CREATE TABLE IF NOT EXISTS __harmonylite___replacing(id INTEGER PRIMARY KEY, table_id, created_at, \
k1);
CREATE TABLE IF NOT EXISTS __harmonylite___tables(
    id INTEGER PRIMARY KEY, name TEXT COLLATE NOCASE UNIQUE, shape BLOB, compare BLOB);
CREATE TABLE IF NOT EXISTS __harmonylite___sites(site INTEGER PRIMARY KEY, node INTEGER UNIQUE);
CREATE TABLE IF NOT EXISTS __harmonylite___unsent(
    at INTEGER, table_id INTEGER, key BLOB, PRIMARY KEY(at, table_id, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS __harmonylite___former(
    table_id INTEGER PRIMARY KEY, at INTEGER, shape BLOB);
CREATE TABLE IF NOT EXISTS __harmonylite___gone(table_id INTEGER PRIMARY KEY, at INTEGER);
CREATE TABLE IF NOT EXISTS __harmonylite___waiting(
    table_id INTEGER, key BLOB, kind INTEGER, time_ms INTEGER,
    PRIMARY KEY(table_id, key, kind)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS __harmonylite___held(
    table_name TEXT, shape TEXT, key BLOB, column TEXT,
    hlc INTEGER, site INTEGER, value, reason TEXT,
    PRIMARY KEY(table_name, shape, key, column)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS __harmonylite___held_tables(
    table_name TEXT PRIMARY KEY, at INTEGER, bytes INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS __harmonylite___displaced(
    table_id INTEGER, key BLOB, by BLOB, row BLOB, PRIMARY KEY(table_id, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS __harmonylite___displaced_by_tuple(
    table_id INTEGER, tuple INTEGER, key BLOB, PRIMARY KEY(table_id, tuple, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS __harmonylite___parts(
    id BLOB, part INTEGER, count INTEGER, at_ms INTEGER, bytes BLOB,
    PRIMARY KEY(id, part)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS __harmonylite___quarantine(
    stream TEXT, seq INTEGER, at_ms INTEGER, reason TEXT, data BLOB,
    PRIMARY KEY(stream, seq)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS __harmonylite___seq_map(
    stream TEXT PRIMARY KEY, seq INTEGER, id TEXT, created TEXT, gap TEXT,
    acked_seq INTEGER, acked_id TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS __harmonylite___ages(at INTEGER PRIMARY KEY, ms INTEGER);
CREATE TABLE IF NOT EXISTS __harmonylite___meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
";

/// Name of the table of a file with births.
pub const LIVES: &str = "__harmonylite___lives";

/// Statement that creates it, if it is missing.
pub const CREATE_LIVES: &str = "
CREATE TABLE IF NOT EXISTS __harmonylite___lives(
    table_id INTEGER, key BLOB, born BLOB, hlc INTEGER, site INTEGER, deleted INTEGER, at INTEGER,
    hash INTEGER, exc BLOB, row BLOB, PRIMARY KEY(table_id, key, born)) WITHOUT ROWID;
";

/// Whether the file has the table of a file with births.
pub(crate) fn has_lives(conn: &Connection) -> rusqlite::Result<bool> {
    conn.prepare_cached("SELECT 1 FROM sqlite_schema WHERE name = ?1")?
        .exists([LIVES])
}

/// The tables that [`CREATE`] makes.
pub(crate) fn names() -> Vec<&'static str> {
    let tables = CREATE.split("CREATE TABLE IF NOT EXISTS ").skip(1);
    tables.filter_map(|text| text.split('(').next()).collect()
}

/// Removes every own trigger and table, and returns their number. Runs inside a transaction of the
/// caller.
pub fn drop_all(conn: &Connection) -> rusqlite::Result<usize> {
    let mut list = conn.prepare(
        "SELECT type, name FROM sqlite_schema WHERE name GLOB '__harmonylite__*'
         AND type IN ('trigger', 'table') ORDER BY type DESC",
    )?;
    let ours: Vec<(String, String)> = list
        .query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?
        .collect::<Result<_, _>>()?;
    for (kind, name) in &ours {
        conn.execute_batch(&format!("DROP {kind} {}", super::schema::quote(name)))?;
    }
    Ok(ours.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_have_names_of_ours() {
        assert!(
            names()
                .iter()
                .all(|name| name.starts_with("__harmonylite___"))
        );
        assert!(names().contains(&"__harmonylite___meta"));
    }
}
