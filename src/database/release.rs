//! Releases rows whose version lies in the future: no write wins against such a row.
//!
//! A node with a wrong clock, or somebody who means ill, gave the row that version, and every node
//! has it. Each node must lower it by itself, because nodes never take a lower version from others;
//! and all must lower it alike, or they would differ. So the new version follows from the old one
//! alone: it is lower than any that a clock gives, keeps the order among the released versions of a
//! row, and keeps the node. Every other version of the row wins against it. This node may have
//! passed over such versions, so it then awaits a snapshot, like after a gap.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::meta::Meta;
use super::rows::{Rows, keys};
use super::table::{Table, versions_table};
use super::{Database, Result, values};
use crate::capture::{Captured, Frames};
use crate::model::merge::{Exceptions, FLOOR, RowState};
use crate::model::value::{OwnedValue, Value};
use crate::model::version::Version;

/// Rows that one transaction releases.
const STEP: usize = 128;

/// The part of an hlc that a released version keeps: the order among those of one row.
const KEPT_BITS: u32 = 40;

/// Number of rows by table whose version is above the time `bound_ms`, unix milliseconds. Changes
/// nothing.
pub fn pinned(path: &Path, bound_ms: i64) -> Result<BTreeMap<String, u64>> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    let mut list = conn.prepare("SELECT name FROM __harmonylite___tables ORDER BY name")?;
    let names = list.query_map([], |r| values::lossy(r, 0))?;
    let mut found = BTreeMap::new();
    for name in names.collect::<rusqlite::Result<Vec<String>>>()? {
        let text = format!(
            "SELECT count(*) FROM {} WHERE hlc > ?1",
            versions_table(&name)
        );
        // The versions of a table that was dropped may be gone.
        let count = conn.query_row(&text, [above(bound_ms)], |r| r.get::<_, u64>(0));
        if let Some(count) = count.ok().filter(|count| *count > 0) {
            found.insert(name, count);
        }
    }
    Ok(found)
}

/// The largest hlc at a time.
fn above(bound_ms: i64) -> i64 {
    bound_ms << 16 | 0xffff
}

/// The version that replaces one above `bound`, in a row whose tombstone was `floor`.
fn released(version: Version, bound: i64, floor: Version) -> Version {
    if version.hlc <= bound {
        return version;
    }
    let base = match floor.hlc {
        0 => 2,
        hlc => hlc + 1,
    };
    Version {
        hlc: base + (version.hlc & ((1 << KEPT_BITS) - 1)),
        node: version.node,
    }
}

/// The state of a row whose versions above `bound` are released.
fn released_state(table: &Table, state: &RowState, bound: i64) -> RowState {
    let floor = match state.deleted {
        true => Version::NEVER,
        false => released(state.floor(), bound, Version::NEVER),
    };
    if state.deleted {
        let version = released(state.version, bound, floor);
        return RowState {
            version,
            ..state.clone()
        };
    }
    let columns = table.schema.columns.iter().map(|c| c.lower.clone());
    let columns = columns.map(|name| {
        let version = match state.column(&name) {
            Version::NEVER => Version::NEVER,
            version => released(version, bound, floor),
        };
        (name, version)
    });
    let columns: Vec<(String, Version)> = columns.collect();
    let newest = columns.iter().map(|(_, version)| *version).max();
    let version = newest.unwrap_or_else(|| released(state.version, bound, floor));
    let own = columns.into_iter().filter(|(_, own)| *own != version);
    let mut exceptions: Exceptions = own.collect();
    if floor != Version::NEVER {
        exceptions.insert(FLOOR.to_owned(), floor);
    }
    RowState {
        version,
        deleted: false,
        exceptions,
    }
}

impl Database {
    /// Releases all rows whose version is above the time `bound_ms`. Returns their number. Must run
    /// on every node that has such rows.
    pub fn release(&mut self, bound_ms: i64) -> Result<u64> {
        let bound = above(bound_ms);
        let mut released = 0;
        for table in self.catalog.by_id.values().cloned().collect::<Vec<_>>() {
            let mut after: Option<Vec<OwnedValue>> = None;
            loop {
                let scan = table.scan_all_versions(after.is_none(), STEP);
                let keys = keys(&self.conn, &table, &scan, after.as_deref())?;
                if keys.is_empty() {
                    break;
                }
                released += self.write(|db| db.release_some(&table, &keys, bound))?;
                after = keys.into_iter().next_back();
            }
        }
        self.reservation.lower(bound_ms);
        self.write(|db| {
            let lower = |key: Meta, most: i64| {
                let text = "UPDATE __harmonylite___meta SET value = min(value, ?2) WHERE key = ?1";
                db.conn.execute(text, (key.name(), most))
            };
            lower(Meta::Forgotten, bound)?;
            lower(Meta::DroppedHlc, bound)?;
            lower(Meta::GivenMs, bound_ms)?;
            if released > 0 && db.settings.joins_by_snapshot {
                db.note_gaps_here();
            } else if released > 0 {
                db.read_from_the_start();
            }
            db.store_positions()
        })?;
        Ok(released)
    }

    fn release_some(&mut self, table: &Table, keys: &[Vec<OwnedValue>], bound: i64) -> Result<u64> {
        let mut frames = Frames::new(self);
        let mut released = 0;
        for key in keys {
            let key: Vec<Value<'_>> = key.iter().map(OwnedValue::borrow).collect();
            let mut rows = Rows::new(&self.conn, table)?;
            let Some(mut stored) = rows.version(&self.sites, &key)? else {
                continue;
            };
            let state = released_state(table, &stored.state, bound);
            if state == stored.state {
                continue;
            }
            stored.state = state;
            rows.put_version(&mut self.sites, &key, &stored)?;
            drop(rows);
            let key_bytes = table.key_bytes(key.iter().copied());
            if self.settings.publish {
                self.mark_republished(table, &key_bytes, &mut frames)?;
            }
            released += 1;
        }
        self.take_captured(frames, &mut Captured::default());
        Ok(released)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::tests::support::{cluster, converge, exchange};
    use crate::clock::Clock;

    const FUTURE: i64 = 70_000_000_000_000; // the year 4188

    /// A wrong clock pins a row and a delete; all nodes have them.
    #[test]
    fn later_writes_win_again_once_every_node_has_released_its_rows() {
        let mut n = cluster(
            2,
            "CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE TABLE u(a, b,
            PRIMARY KEY(a, b))",
        );
        n[0].run(
            "INSERT INTO t VALUES (1, 'a'), (2, 'a'), (3, 'fine'); INSERT INTO u VALUES (1, 2)",
        );
        converge(&mut n);
        let now = n[0].clock.now_ms();
        n[0].clock.set(FUTURE);
        n[0].run("UPDATE t SET v = 'pinned' WHERE id = 1; DELETE FROM t WHERE id = 2");
        converge(&mut n);
        for node in &mut n {
            node.clock.set(now + 10_000);
            node.db.heard_broker_time(now + 10_000);
        }
        n[1].run("UPDATE t SET v = 'later' WHERE id = 1"); // its version is in the future, too
        converge(&mut n);
        for node in &mut n {
            let path = node.db.path().to_owned();
            let found = pinned(&path, now + 60_000).unwrap();
            assert_eq!(found, BTreeMap::from([("t".to_owned(), 2)]));
            assert_eq!(node.db.release(now + 60_000).unwrap(), 2);
            assert_eq!(pinned(&path, now + 60_000).unwrap(), BTreeMap::new());
            assert_eq!(node.rows("SELECT v FROM t WHERE id = 1"), "t'later'");
        }
        exchange(&mut n);
        n[0].run("UPDATE t SET v = 'wins' WHERE id = 1; INSERT INTO t VALUES (2, 'again')");
        exchange(&mut n);
        exchange(&mut n);
        for node in &n {
            assert_eq!(
                node.rows("SELECT v FROM t ORDER BY id"),
                "t'wins'\nt'again'\nt'fine'"
            );
            assert_eq!(
                pinned(node.db.path(), now + 60_000).unwrap(),
                BTreeMap::new()
            );
        }
    }

    #[test]
    fn a_released_version_keeps_the_order_and_is_above_the_tombstone() {
        let version = |hlc| Version { hlc, node: 7 };
        let (bound, floor) = (above(1_700_000_000_000), version(1_600_000_000_000 << 16));
        let (one, two) = (version(FUTURE << 16), version((FUTURE << 16) + 1));
        for floor in [Version::NEVER, floor] {
            let (a, b) = (released(one, bound, floor), released(two, bound, floor));
            assert!(floor < a && a < b && b.hlc <= bound, "{a} {b}");
        }
        let fine = version(bound);
        assert_eq!(released(fine, bound, floor), fine);
    }
}
