//! Keys of every shape.

use super::support::{Node, cluster, converge};

#[test]
fn composite_and_text_keys() {
    for suffix in ["", " WITHOUT ROWID"] {
        let mut n = cluster(
            3,
            &format!("CREATE TABLE k(a TEXT, n, b INTEGER, PRIMARY KEY(b, a)){suffix}"),
        );
        n[0].run("INSERT INTO k VALUES ('x', 1, 1), ('y', 1, 1), ('x', 1, 2)");
        n[1].run("INSERT INTO k VALUES ('x', 2, 1), ('z', 2, 9)");
        converge(&mut n);
        n[2].run("DELETE FROM k WHERE b = 2; UPDATE k SET b = b + 10, a = a || '!' WHERE a = 'x'");
        assert!(converge(&mut n).contains("x!"));
    }
}

#[test]
fn keys_are_updated_and_swapped() {
    let schema = "CREATE TABLE i(id INTEGER PRIMARY KEY, v); CREATE TABLE t(k TEXT PRIMARY KEY, v);
        CREATE TABLE c(a, b, v, PRIMARY KEY(a, b)) WITHOUT ROWID;
        CREATE TABLE d(id INTEGER PRIMARY KEY DESC, v)";
    let mut n = cluster(2, schema);
    for t in ["i", "t", "d"] {
        n[0].run(&format!(
            "INSERT INTO {t} VALUES (1, 'one'), (2, 'two'), (3, 'three')"
        ));
    }
    n[0].run("INSERT INTO c VALUES (1, 2, 'x'), (2, 1, 'y')");
    converge(&mut n);
    for (t, k) in [("i", "id"), ("t", "k"), ("d", "id")] {
        n[1].run(&format!(
            "BEGIN; UPDATE {t} SET {k} = -9 WHERE {k} = 1; UPDATE {t} SET {k} = 1 WHERE {k} = 2;
             UPDATE {t} SET {k} = 2 WHERE {k} = -9; COMMIT; UPDATE {t} SET {k} = 30 WHERE {k} = 3"
        ));
    }
    n[1].run(
        "BEGIN; UPDATE c SET a = 9 WHERE a = 1; UPDATE c SET a = b, b = a WHERE a = 2;
              UPDATE c SET a = 2, b = 1 WHERE a = 9; COMMIT",
    );
    converge(&mut n);
    assert_eq!(
        n[0].rows("SELECT v FROM i ORDER BY id"),
        "t'two'\nt'one'\nt'three'"
    );
    assert_eq!(n[0].rows("SELECT v FROM c ORDER BY a"), "t'y'\nt'x'");
}

#[test]
fn keys_that_are_spelled_anew() {
    for (collation, old, new) in [("NOCASE", "'key'", "'KEY'"), ("RTRIM", "'key'", "'key  '")] {
        for suffix in ["", " WITHOUT ROWID"] {
            let mut n = cluster(
                2,
                &format!("CREATE TABLE k(k TEXT COLLATE {collation} PRIMARY KEY, v){suffix}"),
            );
            n[0].run(&format!("INSERT INTO k VALUES ({old}, 1)"));
            converge(&mut n);
            n[1].run(&format!("UPDATE k SET k = {new}"));
            converge(&mut n);
            assert_eq!(n[0].rows("SELECT k FROM k"), format!("t{new}"));
            n[0].run(&format!("DELETE FROM k; INSERT INTO k VALUES ({old}, 2)"));
            converge(&mut n);
            n[1].run(&format!("REPLACE INTO k VALUES ({new}, 3)"));
            n[0].run(&format!("UPDATE k SET v = 4 WHERE k = {new}"));
            converge(&mut n);
            n[1].run("DELETE FROM k");
            converge(&mut n);
        }
    }
}

/// The key's index may have a different collation than the column itself.
#[test]
fn keys_with_a_collation_of_their_own() {
    for suffix in ["", " WITHOUT ROWID"] {
        for (column, key) in [("NOCASE", "BINARY"), ("BINARY", "NOCASE")] {
            let mut n = cluster(
                2,
                &format!(
                    "CREATE TABLE k(a TEXT COLLATE {column}, v, PRIMARY KEY(a COLLATE \
                     {key})){suffix}"
                ),
            );
            n[0].run("INSERT INTO k VALUES ('a', 1), ('b', 1)");
            converge(&mut n);
            n[0].run("UPDATE k SET a = upper(a) WHERE a = 'a'");
            converge(&mut n);
            assert_eq!(n[1].rows("SELECT a FROM k ORDER BY 1"), "t'A'\nt'b'");
            n[1].run(
                "UPDATE k SET v = 2; DELETE FROM k WHERE a = 'A'; INSERT OR REPLACE INTO k \
                VALUES ('B', 9)",
            );
            converge(&mut n);
        }
    }
}

/// 1 and 1.0 are one key in a column without type, and so are spellings that differ only in what
/// NOCASE ignores. This also holds while such a row is displaced, held or marked.
#[test]
fn spellings_of_one_key_are_one_row_everywhere() {
    for (declared, one, other) in [
        ("k PRIMARY KEY", "1", "1.0"),
        ("k TEXT COLLATE NOCASE PRIMARY KEY", "'a'", "'A'"),
        ("k TEXT COLLATE RTRIM PRIMARY KEY", "'a'", "'a '"),
    ] {
        let mut n = cluster(3, &format!("CREATE TABLE k({declared}, u UNIQUE, v)"));
        n[0].run(&format!("INSERT INTO k VALUES ({one}, 'u', 1)"));
        n[1].clock.advance(std::time::Duration::from_millis(5));
        n[1].run("INSERT INTO k VALUES ('other', 'u', 2)");
        converge(&mut n);
        // Wherever the row is displaced, a newer version under a different spelling replaces it.
        n[0].clock.advance(std::time::Duration::from_millis(9));
        n[0].run(&format!("REPLACE INTO k VALUES ({other}, 'w', 3)"));
        converge(&mut n);
        n[1].run("DELETE FROM k WHERE k = 'other'");
        converge(&mut n);
        assert_eq!(n[2].rows("SELECT count(*) FROM k"), "i1", "{declared}");
        assert_eq!(n[2].rows("SELECT v FROM k"), "i3");
    }
}

#[test]
fn null_in_a_key_is_rejected_and_the_rest_goes_on() {
    let mut n = cluster(
        2,
        "CREATE TABLE k(a TEXT, b INT, v, PRIMARY KEY(a, b)); CREATE TABLE t(k TEXT PRIMARY KEY)",
    );
    n[0].run(
        "INSERT INTO k VALUES (NULL, 1, 'x'), ('a', NULL, 'y'), ('a', 1, 'z'); INSERT INTO t \
         VALUES (NULL), ('t');
         UPDATE k SET a = 'b' WHERE a IS NULL; UPDATE k SET v = 'w'",
    );
    super::support::exchange(&mut n);
    assert_eq!(
        n[1].rows("SELECT a, b, v FROM k ORDER BY a"),
        "t'a' i1 t'w'\nt'b' i1 t'w'"
    );
    assert_eq!(n[1].rows("SELECT k FROM t"), "t't'");
    assert!(n[0].db.rejected() >= 4);
    n[0].run("DELETE FROM k WHERE b IS NULL; DELETE FROM t WHERE k IS NULL");
    converge(&mut n);
}

#[test]
fn tables_without_a_primary_key() {
    let mut n = cluster(
        2,
        "CREATE TABLE r(a, b); CREATE TABLE s(rowid, x); CREATE TABLE a(id INTEGER PRIMARY KEY \
         AUTOINCREMENT, v)",
    );
    n[0].run(
        "INSERT INTO r VALUES (1, 'x'), (1, 'x'), (2, 'y'); INSERT INTO s VALUES ('mine', 1);
         INSERT INTO a(v) VALUES ('p'), ('q')",
    );
    converge(&mut n);
    n[1].run(
        "DELETE FROM r WHERE rowid = 1; UPDATE s SET rowid = 'yours'; UPDATE r SET a = 7; \
        DELETE FROM a; INSERT INTO a(v) VALUES ('r')",
    );
    converge(&mut n);
    assert_eq!(
        n[0].rows("SELECT id FROM a"),
        "i3",
        "AUTOINCREMENT goes on where the others were"
    );
    assert_eq!(n[0].rows("SELECT \"rowid\" FROM s"), "t'yours'");
}

#[test]
fn a_table_that_hides_its_rowid_is_left_alone() {
    let mut n = cluster(
        2,
        "CREATE TABLE h(rowid, _rowid_, oid); CREATE TABLE k(id INTEGER PRIMARY KEY)",
    );
    n[0].run("INSERT INTO h VALUES (1, 2, 3); INSERT INTO k VALUES (1)");
    super::support::exchange(&mut n);
    assert_eq!(n[1].rows("SELECT count(*) FROM h"), "i0");
    assert_eq!(n[1].rows("SELECT count(*) FROM k"), "i1");
    let without = Node::with(9, "CREATE TABLE r(a)", |s| s.allow_rowid_tables = false);
    assert!(without.db.tables().is_empty());
}
