//! Migrated nodes apply rows that other nodes publish under the former key.

use std::time::Duration;

use crate::commands::held;

use super::support::{Node, cluster, converge, exchange};

const MINUTE: Duration = Duration::from_secs(60);

fn rebuild(node: &mut Node, after: &str, from: &str) {
    node.run(&format!(
        "BEGIN; CREATE TABLE new_t({after}); INSERT INTO new_t SELECT {from} FROM t;
         DROP TABLE t; ALTER TABLE new_t RENAME TO t; COMMIT"
    ));
    node.capture();
}

/// Two nodes with these rows; the first one has migrated.
fn one_is_migrated(before: &str, rows: &str, after: &str, from: &str) -> Vec<Node> {
    let mut n = cluster(2, &format!("CREATE TABLE t({before})"));
    n[0].run(&format!("INSERT INTO t VALUES {rows}"));
    converge(&mut n);
    n.iter().for_each(|node| node.clock.advance(MINUTE));
    rebuild(&mut n[0], after, from);
    exchange(&mut n);
    n
}

/// The first node has these rows; after the migration of the second node both have them.
fn both_have(n: &mut [Node], after: &str, from: &str, query: &str, expected: &str) {
    exchange(n);
    assert_eq!(n[0].rows(query), expected, "before the migration");
    n.iter().for_each(|node| node.clock.advance(MINUTE));
    rebuild(&mut n[1], after, from);
    converge(n);
    assert_eq!(n[1].rows(query), expected, "after it");
    let nothing = (n[0].db.held().unwrap(), n[1].db.held().unwrap());
    assert_eq!(nothing, (0, 0), "held");
}

const BY_ID: &str = "id INTEGER PRIMARY KEY, a TEXT UNIQUE, v";
const BY_A: &str = "a TEXT PRIMARY KEY, v";

/// All keys change in one transaction, so at one time.
#[test]
fn new_keys_that_change_hands_at_one_time_lose_no_row() {
    let rows = "(1, 'x', 'one'), (2, 'y', 'two'), (3, 'z', 'three')";
    let query = "SELECT a, v FROM t ORDER BY 1";
    for (change, expected) in [
        (
            "UPDATE t SET a = 'free' WHERE id = 1; UPDATE t SET a = 'x' WHERE id = 2;
             UPDATE t SET a = 'y' WHERE id = 1",
            "t'x' t'two'\nt'y' t'one'\nt'z' t'three'",
        ),
        (
            "DELETE FROM t WHERE id = 1; INSERT INTO t VALUES (9, 'x', 'nine')",
            "t'x' t'nine'\nt'y' t'two'\nt'z' t'three'",
        ),
        (
            "INSERT OR REPLACE INTO t VALUES (9, 'x', 'nine')",
            "t'x' t'nine'\nt'y' t'two'\nt'z' t'three'",
        ),
        (
            "UPDATE t SET a = 'new' WHERE id = 1; DELETE FROM t WHERE id = 3",
            "t'new' t'one'\nt'y' t'two'",
        ),
    ] {
        let mut n = one_is_migrated(BY_ID, rows, BY_A, "a, v");
        n[1].run(&format!("BEGIN; {change}; COMMIT"));
        both_have(&mut n, BY_A, "a, v", query, expected);
    }
}

/// The migration computes new keys from the old ones. Rows under the old key must not be applied
/// with a made-up key.
#[test]
fn keys_that_a_migration_works_out_are_not_made_up() {
    let before = "id INTEGER PRIMARY KEY, v";
    let (after, from) = ("id TEXT PRIMARY KEY, v", "printf('%03d', id), v");
    let mut n = one_is_migrated(before, "(1, 'old'), (2, 'old')", after, from);
    n[1].run("UPDATE t SET v = 'new' WHERE id = 1; INSERT INTO t VALUES (3, 'new')");
    exchange(&mut n);
    let query = "SELECT id, v FROM t ORDER BY 1";
    assert_eq!(n[0].rows(query), "t'001' t'new'\nt'002' t'old'");
    assert_eq!(n[0].db.held().unwrap(), 1);
    rebuild(&mut n[1], after, from);
    converge(&mut n);
    assert_eq!(
        n[0].rows(query),
        "t'001' t'new'\nt'002' t'old'\nt'003' t'new'"
    );
}

#[test]
fn a_row_keeps_its_spelling() {
    let (before, after) = (
        "id TEXT PRIMARY KEY, v",
        "id TEXT COLLATE NOCASE PRIMARY KEY, v",
    );
    for (before, after) in [(before, after), (after, before)] {
        let mut n = one_is_migrated(before, "('Ab', 'old'), ('cD', 'old')", after, "id, v");
        n[1].run(
            "UPDATE t SET v = 'new' WHERE id = 'Ab'; INSERT INTO t VALUES ('eF', 'new');
             DELETE FROM t WHERE id = 'cD'",
        );
        let query = "SELECT id, v FROM t ORDER BY 1";
        let expected = "t'Ab' t'new'\nt'eF' t'new'";
        both_have(&mut n, after, "id, v", query, expected);
    }
}

/// No value is made up for a column that was added to the key: a row that was not here is held.
#[test]
fn a_row_that_lacks_a_key_column_waits_for_its_own_migration() {
    let before = "id INTEGER PRIMARY KEY, v";
    let after = "id INTEGER, v, w TEXT NOT NULL DEFAULT 'z', PRIMARY KEY(id, w)";
    let from = "id, v, 'w' || id";
    let mut n = one_is_migrated(before, "(1, 'old'), (2, 'old')", after, from);
    n[1].run(
        "UPDATE t SET v = 'new' WHERE id = 1; INSERT INTO t VALUES (3, 'new'), (4, 'new');
         DELETE FROM t WHERE id = 2",
    );
    exchange(&mut n);
    let query = "SELECT id, v, w FROM t ORDER BY 1";
    assert_eq!(n[0].rows(query), "i1 t'new' t'w1'");
    assert_eq!(n[0].db.held().unwrap(), 2);
    let mut out = Vec::new();
    held::show(&n[0].dir.path().join("app.db"), false, &mut out).unwrap();
    let out = String::from_utf8(out).unwrap();
    for says in [
        "2 row(s): it has the key that the table had here before",
        "on the nodes that have not run it: their rows have the key (id INTEGER BINARY), and \
         arrive again under (id INTEGER BINARY, w TEXT BINARY);",
    ] {
        assert!(out.contains(says), "{says}: {out}");
    }
    assert!(!out.contains("migrate the table:"), "{out}");
    n[1].run("DELETE FROM t WHERE id = 4");
    exchange(&mut n);
    assert_eq!(n[0].db.held().unwrap(), 1, "a delete ends what is held");
    n[0].restart();
    rebuild(&mut n[1], after, from);
    converge(&mut n);
    assert_eq!(n[1].rows(query), "i1 t'new' t'w1'\ni3 t'new' t'w3'");
    assert_eq!(n[0].db.held().unwrap(), 0);
}

/// The clock of the deleting node is ahead.
#[test]
fn a_row_that_is_written_again_is_above_its_former_tombstone() {
    let before = "id INTEGER PRIMARY KEY, v";
    let after = "id INTEGER, v, w TEXT NOT NULL DEFAULT 'z', PRIMARY KEY(w, id)";
    let mut n = cluster(3, &format!("CREATE TABLE t({before})"));
    n[0].run("INSERT INTO t VALUES (1, 'old'), (2, 'old')");
    converge(&mut n);
    n[1].clock.advance(60 * MINUTE);
    n[1].run("DELETE FROM t WHERE id = 1");
    exchange(&mut n);
    n.iter_mut()
        .for_each(|node| rebuild(node, after, "id, v, 'z'"));
    n[0].run("INSERT INTO t VALUES (1, 'again', 'z')");
    converge(&mut n);
    assert_eq!(
        n[2].rows("SELECT id, v FROM t ORDER BY 1"),
        "i1 t'again'\ni2 t'old'"
    );
}

/// A displaced row is not in the table during the rebuild.
#[test]
fn a_displaced_row_waits_where_its_new_key_cannot_be_told() {
    let mut n = cluster(2, &format!("CREATE TABLE t({BY_ID})"));
    n[0].run("INSERT INTO t VALUES (1, 'same', 'first'), (5, 'other', 'x')");
    n[1].clock.advance(MINUTE);
    n[1].run("INSERT INTO t VALUES (2, 'same', 'second')");
    converge(&mut n);
    let after = "id INTEGER, a TEXT UNIQUE, v, w TEXT NOT NULL DEFAULT 'z', PRIMARY KEY(w, id)";
    for node in &mut n {
        node.clock.advance(60 * MINUTE);
        rebuild(node, after, "id, a, v, 'z'");
        assert_eq!(node.db.held().unwrap(), 1);
    }
    exchange(&mut n);
    n[0].run("UPDATE t SET a = 'free' WHERE id = 2");
    converge(&mut n);
    for node in &mut n {
        assert_eq!(node.db.held().unwrap(), 1, "not lost");
        rebuild(node, BY_ID, "id, a, v");
    }
    converge(&mut n);
    let all = "i1 t'same' t'first'\ni2 t'free' t'second'\ni5 t'other' t'x'";
    assert_eq!(n[1].rows("SELECT * FROM t ORDER BY 1"), all);
}

/// Nothing tells which of two rows with equal content became which.
#[test]
fn equal_rows_of_a_table_without_a_key_stay_two() {
    let after = "k INTEGER PRIMARY KEY, a TEXT, v";
    let rows = "('x', 'same'), ('x', 'same'), ('y', 'other')";
    for changed in [1, 2] {
        let mut n = one_is_migrated("a TEXT, v", rows, after, "rowid, a, v");
        n[1].run(&format!("UPDATE t SET v = 'new' WHERE rowid = {changed}"));
        n[1].run("UPDATE t SET v = 'new' WHERE rowid = 3");
        exchange(&mut n);
        let here = "SELECT v FROM t ORDER BY k";
        assert_eq!(n[0].rows(here), "t'same'\nt'same'\nt'new'");
        rebuild(&mut n[1], after, "rowid, a, v");
        converge(&mut n);
        let expected = ["t'new'\nt'same'\nt'new'", "t'same'\nt'new'\nt'new'"];
        assert_eq!(n[0].rows(here), expected[changed - 1]);
    }
}

/// What a migration leaves out is deleted as of then on every node, migrated or not; what others
/// wrote since stays.
#[test]
fn a_row_that_a_migration_leaves_out_is_deleted() {
    for (before, after, from) in [
        (
            "id INTEGER PRIMARY KEY, v",
            "id TEXT PRIMARY KEY, v",
            "id, v",
        ),
        (
            "id INTEGER PRIMARY KEY, v",
            "id INTEGER, v, w TEXT NOT NULL DEFAULT 'z', PRIMARY KEY(w, id)",
            "id, v, 'z'",
        ),
    ] {
        for (is_written, is_first) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut n = cluster(3, &format!("CREATE TABLE t({before})"));
            n[0].run("INSERT INTO t VALUES (1, 'a'), (2, 'b')");
            converge(&mut n);
            if is_first {
                rebuild(&mut n[1], after, from);
                exchange(&mut n);
            }
            n[1].clock.advance(MINUTE);
            if is_written {
                n[1].run("UPDATE t SET v = 'since' WHERE id = 2");
            }
            let kept = format!("{from} FROM t WHERE v <> 'b'; --");
            rebuild(&mut n[0], after, &kept);
            assert_eq!(n[0].db.rows_gone(), 1);
            n[0].restart();
            exchange(&mut n);
            exchange(&mut n);
            let query = "SELECT CAST(id AS INTEGER), v FROM t ORDER BY 1";
            // One node is not migrated: it holds what migrated ones wrote.
            let written = match (is_written, is_first) {
                (true, false) => "i1 t'a'\ni2 t'since'",
                _ => "i1 t'a'",
            };
            assert_eq!(n[2].rows(query), written, "{after} {is_written} {is_first}");
            if !is_first {
                rebuild(&mut n[1], after, from);
            }
            rebuild(&mut n[2], after, from);
            converge(&mut n);
            let expected = if is_written {
                "i1 t'a'\ni2 t'since'"
            } else {
                "i1 t'a'"
            };
            assert_eq!(
                n[0].rows(query),
                expected,
                "{after} {is_written} {is_first}"
            );
            n[1].run("DELETE FROM t WHERE id = 2; INSERT INTO t(id, v) VALUES ('2', 'again')");
            converge(&mut n);
            assert_eq!(n[0].rows("SELECT v FROM t WHERE id = 2"), "t'again'");
            assert!(n.iter().all(|node| node.db.held().unwrap() == 0));
        }
    }
}

/// Each node keeps a different one of two rows that get one key: one of them stays.
#[test]
fn of_rows_that_get_one_key_one_stays() {
    let binary = (
        "a TEXT PRIMARY KEY, v",
        "a TEXT COLLATE NOCASE PRIMARY KEY, v",
        "a, v",
    );
    let by_id = (
        "id INTEGER PRIMARY KEY, a TEXT, v",
        "id, a TEXT PRIMARY KEY, v",
        "id, a, v",
    );
    for ((before, after, from), rows) in [
        (binary, "('Ab', 'one'), ('aB', 'two'), ('x', 'x')"),
        (by_id, "(1, 'ab', 'one'), (2, 'ab', 'two'), (3, 'x', 'x')"),
    ] {
        let mut n = cluster(2, &format!("CREATE TABLE t({before})"));
        n[0].run(&format!("INSERT INTO t VALUES {rows}"));
        converge(&mut n);
        for (node, out) in [(0, "two"), (1, "one")] {
            rebuild(
                &mut n[node],
                after,
                &format!("{from} FROM t WHERE v <> '{out}'; --"),
            );
        }
        converge(&mut n);
        assert_eq!(n[0].rows("SELECT count(*) FROM t"), "i2", "{after}");
    }
}

/// Where the old key cannot be computed, or nothing is left, nothing is deleted.
#[test]
fn a_row_without_a_known_key_is_no_delete() {
    for (after, from) in [
        ("a TEXT PRIMARY KEY, v", "a, v FROM t WHERE id <> 2"),
        ("id TEXT PRIMARY KEY, a, v", "id, a, v FROM t WHERE id > 9"),
        (
            "id INTEGER, a TEXT PRIMARY KEY, v",
            "id, nullif(a, 'b'), v FROM t",
        ),
    ] {
        let mut n = cluster(2, "CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT, v)");
        n[0].run("INSERT INTO t VALUES (1, 'a', 'one'), (2, 'b', 'two')");
        converge(&mut n);
        n[0].run(&format!(
            "BEGIN; CREATE TABLE new_t({after}); INSERT INTO new_t SELECT {from};
             DROP TABLE t; ALTER TABLE new_t RENAME TO t; COMMIT"
        ));
        n[0].capture();
        n[0].clock.advance(20 * MINUTE);
        n[0].capture();
        let columns = if after.starts_with("a") {
            "a, v"
        } else {
            "id, a, v"
        };
        rebuild(&mut n[1], after, columns);
        exchange(&mut n);
        exchange(&mut n);
        let query = "SELECT count(*) FROM t WHERE v = 'two' AND a IS NOT NULL";
        assert_eq!(n[1].rows(query), "i1", "{after}");
        assert_eq!(n[0].rows(query), "i1", "{after}");
    }
}

/// A node migrates while its table is empty, so it does not see how keys are made, and writes the
/// rows that others have not migrated write and delete. The older write is not left on it alone.
#[test]
fn a_delete_counts_for_a_row_that_was_written_under_the_new_key() {
    let tenant = "w TEXT NOT NULL DEFAULT 'z'";
    for (before, after, from, keys) in [
        (
            "a INTEGER, id TEXT, v, PRIMARY KEY(a, id)".to_owned(),
            "a INTEGER, id TEXT, v, PRIMARY KEY(id, a)".to_owned(),
            "a, id, v",
            ["5, 'one'", "5, 'two'"],
        ),
        (A.to_owned(), B.to_owned(), "id, v", ["1", "2"]),
        (
            "id TEXT COLLATE NOCASE PRIMARY KEY, v".to_owned(),
            B.to_owned(),
            "id, v",
            ["'One'", "'Two'"],
        ),
        (
            A.to_owned(),
            format!("id INTEGER, v, {tenant}, PRIMARY KEY(w, id)"),
            "id, v, 'z'",
            ["1", "2"],
        ),
        (
            A.to_owned(),
            "id INTEGER, v, u INTEGER PRIMARY KEY DEFAULT NULL".to_owned(),
            "id, v, 100 + id",
            ["1", "2"],
        ),
    ] {
        let names = if keys[0].contains(',') {
            "a, id, v"
        } else {
            "id, v"
        };
        let mut n = cluster(3, &format!("CREATE TABLE t({before})"));
        let write = |node: &mut Node, key: &str, value: &str| {
            node.clock.advance(MINUTE);
            node.run(&format!(
                "REPLACE INTO t({names}) VALUES ({key}, '{value}')"
            ));
        };
        rebuild(&mut n[0], &after, from);
        n.iter_mut().for_each(|node| node.clock.advance(MINUTE));
        keys.iter().for_each(|key| write(&mut n[0], key, "new"));
        n[1].clock.advance(2 * MINUTE);
        keys.iter().for_each(|key| write(&mut n[1], key, "old"));
        exchange(&mut n);
        assert_eq!(n[0].rows("SELECT DISTINCT v FROM t"), "t'new'", "{after}");
        n[1].run("DELETE FROM t");
        n[0].clock.advance(60 * MINUTE);
        let update = format!("UPDATE t SET v = 'newer' WHERE id = {}", last(keys[1]));
        n[0].run(&update);
        exchange(&mut n);
        assert_eq!(n[0].rows("SELECT v FROM t"), "t'newer'", "{after}");
        for node in &mut n[1..] {
            rebuild(node, &after, from);
        }
        converge(&mut n);
        for node in &n {
            assert_eq!(node.rows("SELECT v FROM t"), "t'newer'", "{after}");
            assert_eq!(node.db.held().unwrap(), 0, "{after}");
        }
    }
}

/// The last value of a list.
fn last(values: &str) -> &str {
    values.rsplit(", ").next().unwrap_or_default()
}

const A: &str = "id INTEGER PRIMARY KEY, v";
const B: &str = "id TEXT PRIMARY KEY, v";

/// One node ran two migrations, the other none, one, or both at once. Frames under way have the
/// shapes of all of them.
#[test]
fn two_migrations_are_passed_through_one_after_the_other() {
    let nocase = "id TEXT COLLATE NOCASE PRIMARY KEY, v";
    let tenant = "id TEXT, v, w TEXT NOT NULL DEFAULT 'z', PRIMARY KEY(w, id)";
    for (last, from, is_told) in [(nocase, "id, v", true), (tenant, "id, v, 'z'", false)] {
        for (at_once, first) in [(false, 0), (false, 1), (true, 0), (true, 1)] {
            let mut n = cluster(2, &format!("CREATE TABLE t({A})"));
            n[0].run("INSERT INTO t VALUES (1, 'old'), (2, 'old'), (3, 'old'), (4, 'old')");
            converge(&mut n);
            n.iter().for_each(|node| node.clock.advance(MINUTE));
            let (early, late) = (first, 1 - first);
            rebuild(&mut n[early], B, "id, v");
            exchange(&mut n);
            n[early].run("UPDATE t SET v = 'as B' WHERE id = '4'");
            exchange(&mut n);
            rebuild(&mut n[early], last, from);
            exchange(&mut n);
            n[late].run("UPDATE t SET v = 'as A' WHERE id = 1; DELETE FROM t WHERE id = 2");
            n[late].run("INSERT INTO t VALUES (5, 'as A')");
            exchange(&mut n);
            let five = if is_told { "\nt'5' t'as A'" } else { "" };
            let query = "SELECT id, v FROM t ORDER BY 1";
            let expected = format!("t'1' t'as A'\nt'3' t'old'\nt'4' t'as B'{five}");
            assert_eq!(n[early].rows(query), expected, "{last}");
            assert_eq!(n[early].db.held().unwrap(), u64::from(!is_told), "{last}");
            if !at_once {
                rebuild(&mut n[late], B, "id, v");
                n[late].run("UPDATE t SET v = 'late B' WHERE id = '3'");
                exchange(&mut n);
            }
            rebuild(&mut n[late], last, from);
            converge(&mut n);
            let three = if at_once { "old" } else { "late B" };
            let expected = format!("t'1' t'as A'\nt'3' t'{three}'\nt'4' t'as B'\nt'5' t'as A'");
            assert_eq!(n[early].rows(query), expected, "{last}, at once: {at_once}");
            for node in &n {
                assert_eq!(node.db.held().unwrap(), 0, "{last}, at once: {at_once}");
            }
        }
    }
}

/// The row was deleted under the first key, and comes under the third.
#[test]
fn a_row_that_was_deleted_two_migrations_ago_stays_deleted() {
    let last = "id TEXT COLLATE NOCASE PRIMARY KEY, v";
    let mut n = cluster(2, &format!("CREATE TABLE t({A})"));
    n[0].run("INSERT INTO t VALUES (1, 'old'), (2, 'old')");
    converge(&mut n);
    n[0].run("DELETE FROM t WHERE id = 2");
    n[0].publish();
    for (after, from) in [(B, "id, v"), (last, "id, v")] {
        rebuild(&mut n[0], after, from);
        n[0].publish();
    }
    rebuild(&mut n[1], last, "id, v");
    exchange(&mut n);
    converge(&mut n);
    assert_eq!(n[1].rows("SELECT id, v FROM t"), "t'1' t'old'");
}

/// The next migration drops the column that was the key.
#[test]
fn rows_arrive_where_the_column_of_the_former_key_is_dropped_later() {
    let mut n = cluster(2, "CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT, v)");
    n[0].run("INSERT INTO t VALUES (1, 'a', 'old'), (2, 'b', 'old'), (3, 'c', 'old')");
    converge(&mut n);
    n[1].run("DELETE FROM t WHERE id = 3");
    for node in &mut n {
        rebuild(node, "id INTEGER, a TEXT PRIMARY KEY, v", "id, a, v");
    }
    converge(&mut n);
    for node in &mut n {
        node.run("ALTER TABLE t DROP COLUMN id");
        node.capture();
    }
    n[0].run("INSERT INTO t VALUES ('d', 'new'); UPDATE t SET v = 'changed' WHERE a = 'a'");
    n[1].run("DELETE FROM t WHERE a = 'b'");
    converge(&mut n);
    let rows = "SELECT a, v FROM t ORDER BY 1";
    assert_eq!(n[1].rows(rows), "t'a' t'changed'\nt'd' t'new'");
}

/// By rowid, the rows of two copies would take each other's place.
#[test]
fn a_table_that_loses_its_key_is_refused_until_it_has_one() {
    for tool in ["id, v", "id, v FROM t ORDER BY v DESC; --"] {
        let mut n = cluster(2, &format!("CREATE TABLE t({B})"));
        n[0].run("INSERT INTO t VALUES ('a', '1'), ('b', '2'), ('c', '3')");
        converge(&mut n);
        n[0].run("DELETE FROM t WHERE id = 'c'");
        rebuild(&mut n[0], "id TEXT, v", tool);
        n[1].run("UPDATE t SET v = 'since' WHERE id = 'b'");
        exchange(&mut n);
        n[0].restart();
        exchange(&mut n);
        let left = &n[0].db.not_replicated()[0];
        assert_eq!((left.kind.name(), left.table.as_str()), ("refused", "t"));
        assert!(
            left.reason.contains("the primary key (id)"),
            "{}",
            left.reason
        );
        let health = crate::health::report(&Default::default(), Some(&n[0].db)).unwrap();
        let problem = health["problems"]["table t"].as_str().unwrap();
        assert!(problem.contains("until it has a primary key"), "{problem}");
        assert_eq!(n[0].rows("SELECT v FROM t ORDER BY 1"), "t'1'\nt'2'");
        assert_eq!(n[1].rows("SELECT count(*) FROM t"), "i3", "nothing is sent");
        assert_eq!(n[0].db.held().unwrap(), 1);
        let reason = n[0].rows("SELECT DISTINCT reason FROM __harmonylite___held");
        assert_eq!(reason, "t'the table lost its primary key here'");
        rebuild(&mut n[1], "id TEXT, v", "id, v");
        exchange(&mut n);
        assert_eq!(n[1].rows("SELECT count(*) FROM t"), "i3");
        for node in &mut n {
            rebuild(node, B, "id, v");
        }
        converge(&mut n);
        assert_eq!(
            n[1].rows("SELECT id, v FROM t ORDER BY 1"),
            "t'a' t'1'\nt'b' t'since'"
        );
        assert_eq!(n[0].db.held().unwrap(), 0);
    }
}
