//! The journal mode. HarmonyLite sets WAL once: with WAL, readers and writers do not wait for each
//! other, and a snapshot is copied while the application writes. If the application sets a
//! different mode later, that mode stays, and HarmonyLite works in it, too.

use std::path::Path;

use rusqlite::Connection;

use super::meta::{Meta, get_meta, set_meta};
use crate::db_file::number_at;

/// Sets WAL, unless it was set before and somebody set a different mode later.
pub(super) fn set_wal(conn: &Connection, path: &Path) -> rusqlite::Result<()> {
    let mode = get_mode(conn)?;
    if mode == "wal" {
        return Ok(());
    }
    let shown = path.display();
    if is_set_back(conn, path) {
        log::warn!(
            "{shown} was in journal mode wal and is in {mode}: HarmonyLite leaves it in that, \
             though with WAL the application and HarmonyLite would not wait for each other"
        );
        return Ok(());
    }
    // SQLite refuses while the application is inside a transaction. HarmonyLite works without WAL,
    // only slower.
    let set: rusqlite::Result<String> =
        conn.query_row("PRAGMA journal_mode = WAL", [], |r| r.get(0));
    if set.as_deref() != Ok("wal") {
        log::warn!("{shown} stays in journal mode {mode}; WAL is better");
    }
    Ok(())
}

/// Remembers that the file is in WAL mode, if it is. Inside a transaction.
pub(super) fn note_mode(conn: &Connection, path: &Path) -> rusqlite::Result<()> {
    let inode = inode(path);
    if get_mode(conn)? == "wal" && inode.is_some() && get_meta(conn, Meta::WalFile)? != inode {
        set_meta(conn, Meta::WalFile, inode)?;
    }
    Ok(())
}

/// Whether the file was in WAL mode before, by its inode and schema version. The version must be
/// equal because VACUUM INTO makes a file that is not in WAL mode and has a different schema
/// version.
fn is_set_back(conn: &Connection, path: &Path) -> bool {
    let known = |key| get_meta::<i64>(conn, key).ok().flatten();
    let version = conn.query_row("PRAGMA schema_version", [], |r| r.get::<_, i64>(0));
    let inode = inode(path);
    inode.is_some() && known(Meta::WalFile) == inode && known(Meta::SchemaVersion) == version.ok()
}

fn get_mode(conn: &Connection) -> rusqlite::Result<String> {
    conn.query_row("PRAGMA journal_mode", [], |r| r.get(0))
}

fn inode(path: &Path) -> Option<i64> {
    number_at(path).map(|(_, inode)| inode as i64)
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::get_mode;
    use crate::apply::tests::support::Node;

    const SCHEMA: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)";

    /// Restarts a node; nobody has the file open while `change` works on it.
    fn restarted_after(change: impl Fn(&std::path::Path)) -> String {
        let mut node = Node::new(1, SCHEMA);
        node.run("INSERT INTO t VALUES (1, 'a')");
        node.capture();
        assert_eq!(
            get_mode(&node.app).unwrap(),
            "wal",
            "set at the first start"
        );
        node.db.close().unwrap();
        node.db = Node::new(2, "").db;
        node.app = Connection::open_in_memory().unwrap();
        let path = node.dir.path().join("app.db");
        change(&path);
        node.restart();
        node.app = Connection::open(&path).unwrap();
        node.run("INSERT INTO t VALUES (2, 'b')");
        assert_eq!(node.capture(), 1);
        get_mode(&node.app).unwrap()
    }

    #[test]
    fn a_mode_that_was_set_back_stays() {
        for mode in ["delete", "truncate", "persist"] {
            let stays = restarted_after(|path| {
                let app = Connection::open(path).unwrap();
                let text = format!("PRAGMA journal_mode = {mode}");
                let set: String = app.query_row(&text, [], |r| r.get(0)).unwrap();
                assert_eq!(set, mode);
            });
            assert_eq!(
                stays, "delete",
                "but for WAL, a mode is the connection's own"
            );
        }
    }

    #[test]
    fn a_backup_that_is_put_back_is_set_to_wal() {
        for is_moved in [true, false] {
            let mode = restarted_after(|path| {
                let copy = path.with_extension("copy");
                let text = format!("VACUUM INTO '{}'", copy.display());
                Connection::open(path)
                    .unwrap()
                    .execute_batch(&text)
                    .unwrap();
                match is_moved {
                    true => std::fs::rename(&copy, path).unwrap(),
                    false => drop(std::fs::copy(&copy, path).unwrap()),
                }
            });
            assert_eq!(mode, "wal");
        }
    }
}
