//! Statements that change rows which they do not name.

use super::support::{Node, cluster, converge};

#[test]
fn replace_evicts_through_every_kind_of_index() {
    let mut n = cluster(
        3,
        "CREATE TABLE u(id INTEGER PRIMARY KEY, a UNIQUE, b TEXT COLLATE NOCASE, c, d, UNIQUE(c, \
         d));
         CREATE UNIQUE INDEX b ON u(b); CREATE UNIQUE INDEX low ON u(lower(trim(b, '.'))) WHERE d \
         > 10;
         CREATE UNIQUE INDEX part ON u(c) WHERE a IS NULL",
    );
    n[0].run(
        "INSERT INTO u VALUES (1, 'a', 'b1', 1, 1), (2, 'b', 'b2', 1, 2), (3, 'c', '.b3', 3, 30),
         (4, 'd', 'b4', 4, 4), (5, NULL, 'b5', 5, 5), (6, 'e', 'b6', 6, 6)",
    );
    converge(&mut n);
    n[1].run("REPLACE INTO u VALUES (11, 'a', 'B2', 9, 9)"); // two at once
    n[1].run("INSERT OR REPLACE INTO u VALUES (12, 'n', 'b3..', 8, 80)"); // by expression
    n[1].run("UPDATE OR REPLACE u SET c = 4, d = 4 WHERE id = 6"); // by a composite one
    n[1].run("INSERT OR REPLACE INTO u VALUES (13, NULL, 'b13', 5, 13)"); // by the partial one
    let all = converge(&mut n);
    assert_eq!(
        n[2].rows("SELECT id FROM u ORDER BY id"),
        "i6\ni11\ni12\ni13",
        "{all}"
    );
}

/// In the index a is a number and b is text, so that 10 = '10' there.
#[test]
fn replace_evicts_where_an_expression_compares_across_types() {
    let mut n = cluster(
        2,
        "CREATE TABLE u(id INTEGER PRIMARY KEY, a INTEGER, b TEXT, c);
         CREATE UNIQUE INDEX same ON u(a = b, c);
         CREATE UNIQUE INDEX less ON u((CASE WHEN b < a THEN 'less' || c END))",
    );
    n[0].run(
        "INSERT INTO u VALUES (1, 10, '10', 'x'), (2, 9, '10', 'x'), (3, 11, '10', 'y'),
         (4, 'text', '5', 'z'), (5, 5, 'text', 'w')",
    );
    converge(&mut n);
    n[1].run("REPLACE INTO u VALUES (11, 7, '7', 'x')");
    n[1].run("REPLACE INTO u VALUES (13, 3, '20', 'y'), (14, 'texts', '6', 'z')");
    n[1].run("UPDATE OR REPLACE u SET a = 8, b = '8' WHERE id = 2");
    converge(&mut n);
    let plan = "EXPLAIN QUERY PLAN SELECT id FROM u WHERE (a = b) COLLATE \"BINARY\"
                IN ((SELECT (a = b) FROM (SELECT 1 AS a, 2 AS b)), 1) AND c = 'x'";
    let mut plan = n[0].app.prepare(plan).unwrap();
    let steps = plan.query_map([], |r| r.get::<_, String>(3)).unwrap();
    let steps: Vec<String> = steps.map(Result::unwrap).collect();
    assert!(
        steps[0].contains("SEARCH u USING") && steps[0].contains("INDEX same"),
        "{steps:?}"
    );
}

#[test]
fn a_statement_that_changes_nothing_stamps_nothing() {
    let mut n = cluster(
        2,
        "CREATE TABLE u(id INTEGER PRIMARY KEY, a UNIQUE, n DEFAULT 0)",
    );
    n[0].run("INSERT INTO u VALUES (1, 'a', 0), (2, 'b', 0)");
    converge(&mut n);
    let before = n[0].versions();
    n[0].run(
        "INSERT OR IGNORE INTO u VALUES (1, 'x', 0), (3, 'a', 0);
         INSERT INTO u VALUES (4, 'b', 0) ON CONFLICT DO NOTHING;
         UPDATE OR IGNORE u SET a = 'b' WHERE id = 1",
    );
    assert!(
        n[0].app
            .execute_batch("BEGIN; INSERT INTO u VALUES (9, 'z', 0); ROLLBACK")
            .is_ok()
    );
    assert!(
        n[0].app
            .execute_batch("INSERT INTO u VALUES (9, 'a', 0)")
            .is_err()
    );
    converge(&mut n);
    assert_eq!(n[0].versions(), before);
    n[0].run(
        "INSERT INTO u VALUES (5, 'a', 7) ON CONFLICT(a) DO UPDATE SET n = n + excluded.n;
         INSERT INTO u VALUES (2, 'q', 7) ON CONFLICT(id) DO UPDATE SET n = n + excluded.n",
    );
    converge(&mut n);
    assert_eq!(
        n[1].rows("SELECT id, a, n FROM u ORDER BY id"),
        "i1 t'a' i7\ni2 t'b' i7"
    );
}

#[test]
fn a_constraint_may_replace_by_itself() {
    let mut n = cluster(
        2,
        "CREATE TABLE u(k TEXT PRIMARY KEY ON CONFLICT REPLACE, a UNIQUE ON CONFLICT REPLACE, n) \
         WITHOUT ROWID",
    );
    n[0].run("INSERT INTO u VALUES ('x', 1, 1), ('y', 2, 2), ('z', 3, 3)");
    converge(&mut n);
    n[1].run("INSERT INTO u VALUES ('x', 2, 9); UPDATE u SET a = 3 WHERE k = 'x'");
    converge(&mut n);
    assert_eq!(n[0].rows("SELECT k, a FROM u"), "t'x' i3");
}

/// Versions alone settle incoming rows, whatever the table's ON CONFLICT clause says.
#[test]
fn a_constraint_has_no_say_in_what_arrives() {
    for clause in ["REPLACE", "IGNORE", "FAIL", "ROLLBACK", "ABORT"] {
        let schema =
            format!("CREATE TABLE u(id INTEGER PRIMARY KEY, a UNIQUE ON CONFLICT {clause}, n)");
        let mut n = cluster(3, &schema);
        n[0].run("INSERT INTO u VALUES (1, 'a', 'older')");
        n[1].clock.advance(std::time::Duration::from_secs(1));
        n[1].run("INSERT INTO u VALUES (2, 'a', 'newer')");
        converge(&mut n);
        assert_eq!(n[2].rows("SELECT id FROM u"), "i2", "{clause}");
        n[1].clock.advance(std::time::Duration::from_secs(1));
        n[1].run("UPDATE u SET a = 'b'");
        converge(&mut n);
        assert_eq!(n[2].rows("SELECT id FROM u ORDER BY id"), "i1\ni2");
    }
}

/// A row with a NULL that only this node forbids is held; no ON CONFLICT clause drops it.
#[test]
fn a_constraint_of_one_node_leaves_out_no_row() {
    for clause in ["IGNORE", "ROLLBACK", "FAIL", "REPLACE"] {
        let not_null = format!("a NOT NULL ON CONFLICT {clause}");
        let mut n = vec![
            Node::new(1, "CREATE TABLE u(id INTEGER PRIMARY KEY, a, n)"),
            Node::new(
                2,
                &format!("CREATE TABLE u(id INTEGER PRIMARY KEY, {not_null}, n)"),
            ),
        ];
        n[0].run("INSERT INTO u VALUES (1, NULL, 'x'), (2, 'y', 'y')");
        super::support::exchange(&mut n);
        assert_eq!(n[1].rows("SELECT id FROM u"), "i2");
        assert_eq!(n[1].db.held().unwrap(), 1, "{clause}");
    }
}

#[test]
fn foreign_keys_act_where_the_write_was_and_arrive_everywhere() {
    let mut n = cluster(
        2,
        "CREATE TABLE p(id INTEGER PRIMARY KEY, name TEXT UNIQUE);
         CREATE TABLE c1(id INTEGER PRIMARY KEY, p REFERENCES p ON DELETE CASCADE ON UPDATE \
         CASCADE);
         CREATE TABLE c2(id INTEGER PRIMARY KEY, p REFERENCES p ON DELETE SET NULL ON UPDATE SET \
         NULL);
         CREATE TABLE c3(id INTEGER PRIMARY KEY, p DEFAULT 3 REFERENCES p ON DELETE SET DEFAULT);
         CREATE TABLE c4(id INTEGER PRIMARY KEY, p REFERENCES c1 ON DELETE CASCADE)",
    );
    n[0].run(
        "INSERT INTO p VALUES (1, 'a'), (2, 'b'), (3, 'c'), (4, 'd');
         INSERT INTO c1 VALUES (1, 1), (2, 2); INSERT INTO c2 VALUES (1, 1), (2, 2), (4, 4);
         INSERT INTO c3 VALUES (1, 1), (2, 2); INSERT INTO c4 VALUES (1, 1), (2, 2)",
    );
    converge(&mut n);
    n[1].run("DELETE FROM p WHERE id = 1; UPDATE p SET id = 20 WHERE id = 4");
    n[1].run("INSERT OR REPLACE INTO p VALUES (30, 'b')"); // evicts 2, and that cascades
    converge(&mut n);
    assert_eq!(n[0].rows("SELECT count(*) FROM c4"), "i0");
    assert_eq!(
        n[0].rows("SELECT p FROM c2 ORDER BY id"),
        "null\nnull\nnull"
    );
    // Child rows that come before their parents, or without them, are no error.
    n[0].run("PRAGMA foreign_keys = OFF; INSERT INTO c1 VALUES (77, 777)");
    converge(&mut n);
}

#[test]
fn the_applications_own_triggers_fire_once() {
    let mut n = cluster(
        2,
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v, changed DEFAULT 0); CREATE TABLE log(id INTEGER \
         PRIMARY KEY, what);
         CREATE TABLE sums(k PRIMARY KEY, total);
         CREATE TRIGGER ti AFTER INSERT ON t BEGIN INSERT INTO log(what) VALUES ('new ' || NEW.id);
           INSERT INTO sums VALUES ('all', NEW.v) ON CONFLICT DO UPDATE SET total = total + NEW.v; \
           END;
         CREATE TRIGGER tu AFTER UPDATE OF v ON t BEGIN UPDATE t SET changed = changed + 1 WHERE \
         id = NEW.id; END;
         CREATE TRIGGER td BEFORE DELETE ON t BEGIN INSERT INTO log(what) VALUES ('gone ' || \
         OLD.id); END;
         CREATE VIEW w AS SELECT id, v FROM t;
         CREATE TRIGGER wi INSTEAD OF INSERT ON w BEGIN INSERT INTO t(id, v) VALUES (NEW.id, \
         NEW.v); END",
    );
    n[0].run(
        "INSERT INTO t(id, v) VALUES (1, 10), (2, 20); INSERT INTO w VALUES (3, 30); UPDATE t \
        SET v = 11 WHERE id = 1; DELETE FROM t WHERE id = 2",
    );
    converge(&mut n);
    assert_eq!(n[1].rows("SELECT count(*) FROM log"), "i4");
    assert_eq!(n[1].rows("SELECT total FROM sums"), "i60");
    assert_eq!(n[1].rows("SELECT changed FROM t WHERE id = 1"), "i1");
}

#[test]
fn generated_columns_are_worked_out_by_every_node() {
    let mut n = cluster(
        2,
        "CREATE TABLE g(id INTEGER PRIMARY KEY, a INT, v INT AS (a * 2), s TEXT AS ('<' || a || \
         '>') STORED, b UNIQUE);
         CREATE UNIQUE INDEX gv ON g(v)",
    );
    n[0].run("INSERT INTO g(id, a, b) VALUES (1, 1, 'x'), (2, 2, 'y')");
    n[1].run("INSERT INTO g(id, a, b) VALUES (3, 2, 'z')");
    let all = converge(&mut n);
    assert!(all.contains("t'<2>'") && n[0].db.displaced().unwrap() == 1);
    n[0].run("REPLACE INTO g(id, a, b) VALUES (9, 1, 'n')");
    converge(&mut n);
    n[1].run("UPDATE g SET a = a + 5");
    converge(&mut n);
}

/// A long backlog is read in pieces. When an earlier piece lets displaced rows come back, a later
/// piece's changes of these rows must count already.
#[test]
fn displaced_rows_stay_aside_until_the_backlog_is_read() {
    let schema = "CREATE TABLE u(id INTEGER PRIMARY KEY, a UNIQUE, n)";
    let one_by_one = |id| Node::with(id, schema, |settings| settings.scan_max_changes = 1);
    for (then, expected) in [
        // The displaced row is written again and deleted: it must not come back.
        (
            "INSERT INTO u VALUES (1, 'z', 'new'); DELETE FROM u WHERE id = 1",
            "i2 t'y' t'high'",
        ),
        // A different row took the place: it was written last, and stays.
        (
            "INSERT INTO u VALUES (7, 'x', 'new')",
            "i2 t'y' t'high'\ni7 t'x' t'new'",
        ),
    ] {
        let mut n = vec![one_by_one(1), one_by_one(2)];
        n[1].run("INSERT INTO u VALUES (1, 'x', 'low')");
        n[0].clock.advance(std::time::Duration::from_secs(1));
        n[0].run("INSERT INTO u VALUES (2, 'x', 'high')");
        converge(&mut n);
        assert_eq!(n[0].db.displaced().unwrap(), 1);
        n[0].clock.advance(std::time::Duration::from_secs(1));
        n[0].run(&format!("UPDATE u SET a = 'y' WHERE id = 2; {then}"));
        converge(&mut n);
        assert_eq!(n[1].rows("SELECT * FROM u ORDER BY id"), expected);
    }
}

/// SQLite allows the name in a WHERE and a CHECK; triggers and the probe know the table by a
/// different name.
#[test]
fn an_index_may_name_its_table() {
    let mut n = cluster(
        2,
        "CREATE TABLE t(id INTEGER PRIMARY KEY, a, b INT CHECK (t.b >= 0), c);
         CREATE UNIQUE INDEX i ON t(lower(a)) WHERE t.b > 0 AND main.\"T\".c IS NULL",
    );
    n[0].run("INSERT INTO t VALUES (1, 'x', 1, NULL), (2, 'X', 0, NULL)");
    converge(&mut n);
    n[1].run("REPLACE INTO t VALUES (3, 'X', 1, NULL); UPDATE t SET b = 7 WHERE id = 3");
    converge(&mut n);
    assert_eq!(n[0].rows("SELECT id FROM t"), "i2\ni3");
}

#[test]
fn a_default_with_control_characters_evicts() {
    let mut n = cluster(
        2,
        "CREATE TABLE t(id TEXT PRIMARY KEY, u TEXT NOT NULL DEFAULT 'it''s\ta\n' UNIQUE)",
    );
    n[0].run("INSERT INTO t(id) VALUES ('x')");
    converge(&mut n);
    n[0].run("REPLACE INTO t VALUES ('y', NULL)");
    converge(&mut n);
    n[1].run("UPDATE t SET u = 'z' WHERE id = 'y'");
    converge(&mut n);
    assert_eq!(n[0].rows("SELECT id FROM t"), "t'y'");
}

/// In a trigger SQLite knows only those columns of NEW that the trigger names.
#[test]
fn replace_evicts_through_a_generated_column_of_columns_that_stay() {
    let mut n = cluster(
        2,
        "CREATE TABLE g(id INTEGER PRIMARY KEY, a, b, c, h AS (a || '-' || b), g AS (h || '!') \
         UNIQUE);
         CREATE UNIQUE INDEX i ON g(lower(h))",
    );
    n[0].run("INSERT INTO g(id, a, b) VALUES (1, 'x', 'y'), (2, 'z', 'y')");
    converge(&mut n);
    n[0].run("UPDATE OR REPLACE g SET a = 'x' WHERE id = 2; ALTER TABLE g DROP COLUMN c");
    n[1].run("ALTER TABLE g DROP COLUMN c");
    converge(&mut n);
    n[0].run("UPDATE g SET a = 'q'");
    converge(&mut n);
    assert_eq!(n[1].rows("SELECT id FROM g"), "i2");
}

/// The same holds for a value of a different class, and for rows that a CHECK or the index's WHERE
/// excludes.
#[test]
fn an_expression_of_an_index_keeps_no_write_off() {
    let mut n = cluster(
        2,
        "CREATE TABLE d(id INTEGER PRIMARY KEY, data TEXT CHECK (json_valid(d.data)), free TEXT);
         CREATE UNIQUE INDEX i ON d(json_extract(data, '$.k'));
         CREATE UNIQUE INDEX f ON d(abs(free)) WHERE typeof(free) <> \"text\"",
    );
    n[0].run(
        "INSERT OR IGNORE INTO d(data) VALUES ('{\"k\":1}'), ('bad'), ('{\"k\":2}'), (NULL);
         INSERT INTO d(id, free) VALUES (10, 'text'), (11, x'31')",
    );
    converge(&mut n);
    assert_eq!(
        n[1].rows("SELECT id FROM d ORDER BY 1"),
        "i1\ni2\ni3\ni10\ni11"
    );
    n[1].run(
        "REPLACE INTO d(id, data) VALUES (4, '{\"k\": 1}'); REPLACE INTO d(id, free) VALUES \
        (12, x'31')",
    );
    converge(&mut n);
    assert_eq!(
        n[0].rows("SELECT id FROM d ORDER BY 1"),
        "i2\ni3\ni4\ni10\ni12"
    );
}

/// The index may come from a time when SQLite took double quotes for text.
#[test]
fn an_application_that_takes_double_quotes_for_names_writes() {
    let mut n = cluster(
        2,
        "CREATE TABLE t(id INTEGER PRIMARY KEY, a, b);
         CREATE UNIQUE INDEX i ON t(a) WHERE b = \"it's\"",
    );
    n[0].run("INSERT INTO t VALUES (1, 'x', 'it''s')");
    converge(&mut n);
    let config = rusqlite::config::DbConfig::SQLITE_DBCONFIG_DQS_DML;
    n[1].app.set_db_config(config, false).unwrap();
    n[1].run("REPLACE INTO t VALUES (2, 'x', 'it''s')");
    converge(&mut n);
    assert_eq!(n[0].rows("SELECT id FROM t"), "i2");
}

#[test]
fn replace_evicts_where_a_check_goes_by_a_collation() {
    let mut n = cluster(
        2,
        "CREATE TABLE t(id INTEGER PRIMARY KEY,
                        s TEXT COLLATE NOCASE NOT NULL DEFAULT 'new' CHECK (s IN ('new', 'done')));
         CREATE UNIQUE INDEX i ON t(lower(s))",
    );
    n[0].run("INSERT INTO t VALUES (1, 'new')");
    converge(&mut n);
    n[0].run("REPLACE INTO t VALUES (2, 'NEW')");
    converge(&mut n);
    n[0].run("REPLACE INTO t VALUES (3, NULL)");
    converge(&mut n);
    n[1].run("UPDATE t SET s = 'done'");
    converge(&mut n);
    assert_eq!(n[0].rows("SELECT id FROM t"), "i3");
}

/// The cost of statements: bytes of the WAL, changed rows and entries of the change log.
fn cost(node: &Node, statements: &[String]) -> (u64, u64, String) {
    let wal = node.dir.path().join("app.db-wal");
    let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
    node.app.query_row(checkpoint, [], |_| Ok(())).unwrap();
    let before = node.app.total_changes();
    for sql in statements {
        node.app.execute(sql, []).unwrap();
    }
    (
        std::fs::metadata(wal).unwrap().len(),
        node.app.total_changes() - before,
        node.rows("SELECT kind, k1 FROM __harmonylite___change_log_global"),
    )
}

/// Feed readers and importers insert known rows all day.
#[test]
fn an_insert_that_is_left_out_writes_nothing() {
    for table in [
        "id INTEGER PRIMARY KEY, email TEXT UNIQUE, n",
        "id INTEGER PRIMARY KEY, email TEXT COLLATE NOCASE NOT NULL UNIQUE, n",
        "id TEXT PRIMARY KEY, email, n, UNIQUE(email, n)",
        "id INTEGER PRIMARY KEY, email, n); CREATE UNIQUE INDEX i ON u(email",
        "email TEXT UNIQUE, id, n",
        "id INTEGER PRIMARY KEY, email, n NOT NULL); CREATE UNIQUE INDEX i ON u(email) WHERE n = \
         0; --",
        "id INTEGER PRIMARY KEY, email, n, gone TEXT); CREATE UNIQUE INDEX i ON u(email) WHERE \
         gone IS NULL; --",
    ] {
        let mut n = cluster(2, &format!("CREATE TABLE u({table})"));
        n[0].run(
            "WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < 100)
                  INSERT INTO u(id, email, n) SELECT i, 'e' || i, 0 FROM i",
        );
        converge(&mut n);
        let all = (1..=100).flat_map(|i| {
            let ids = ["NULL".to_owned(), i.to_string(), (i + 1000).to_string()];
            ids.into_iter().flat_map(move |id| {
                let values = format!("INTO u(id, email, n) VALUES ({id}, 'e{i}', 0)");
                [
                    format!("INSERT OR IGNORE {values}"),
                    format!("INSERT {values} ON CONFLICT DO NOTHING"),
                ]
            })
        });
        let all: Vec<String> = all.collect();
        assert_eq!(cost(&n[0], &all), (0, 0, String::new()), "{table}");
    }
}

/// In SQLite the outermost statement decides how a conflict is resolved.
#[test]
fn replace_evicts_from_within_triggers() {
    let mut n = cluster(
        2,
        "CREATE TABLE a(id INTEGER PRIMARY KEY, v); CREATE TABLE u(id INTEGER PRIMARY KEY, v \
         UNIQUE, w);
         CREATE TRIGGER i AFTER INSERT ON a WHEN NEW.id < 100 BEGIN INSERT OR IGNORE INTO u(v) \
         VALUES (NEW.v); END;
         CREATE TRIGGER j AFTER INSERT ON a WHEN NEW.id >= 100 BEGIN REPLACE INTO u(v) VALUES \
         (NEW.v); END;
         CREATE TRIGGER k AFTER UPDATE ON a BEGIN
           INSERT INTO u(id, v) VALUES (NEW.id, NEW.v) ON CONFLICT(id) DO UPDATE SET w = 1; END",
    );
    n[0].run(
        "INSERT INTO u(id, v) VALUES (1, 'a'), (2, 'b'), (3, 'c'), (4, 'd'); INSERT INTO a \
        VALUES (9, 'z')",
    );
    converge(&mut n);
    n[0].run("INSERT INTO a VALUES (1, 'a'); INSERT OR IGNORE INTO a VALUES (101, 'a')");
    assert_eq!(n[0].rows("SELECT count(*) FROM u WHERE id < 5"), "i4");
    n[0].run("REPLACE INTO a VALUES (2, 'b'); INSERT INTO a VALUES (102, 'c')");
    n[0].run("UPDATE OR REPLACE a SET v = 'd' WHERE id = 9");
    converge(&mut n);
    assert_eq!(n[1].rows("SELECT v FROM u WHERE id < 5"), "t'a'");
    n[1].run(
        "REPLACE INTO u(id, v) SELECT id + 1000, v FROM u; REPLACE INTO u(rowid, v) VALUES \
        (1005, 'z')",
    );
    converge(&mut n);
}

/// An INSERT fails exactly if it fails without our triggers.
#[test]
fn no_insert_fails_for_what_it_may_evict() {
    let mut n = cluster(
        2,
        "CREATE TABLE u(id INTEGER PRIMARY KEY, v UNIQUE, w UNIQUE, gone);
         CREATE UNIQUE INDEX part ON u(gone) WHERE w > 0;
         CREATE TABLE soft(id INTEGER PRIMARY KEY, v TEXT, n INT NOT NULL DEFAULT 0, s TEXT \
         COLLATE NOCASE);
         CREATE UNIQUE INDEX soft_n ON soft(v) WHERE n = 0; CREATE UNIQUE INDEX soft_s ON soft(n) \
         WHERE s = 'x';
         CREATE TABLE freed(id INTEGER PRIMARY KEY, v UNIQUE);
         CREATE TRIGGER frees BEFORE INSERT ON freed BEGIN DELETE FROM freed WHERE v = NEW.v; END",
    );
    n[0].run(
        "INSERT INTO u VALUES (1, 'a', 1, 'x'), (2, 'b', -2, 'x'); INSERT INTO freed VALUES \
        (1, 'a')",
    );
    n[0].run("INSERT INTO soft VALUES (1, 'a', 0, NULL), (2, 'b', 9, 'X')");
    converge(&mut n);
    for (i, policy) in (10..)
        .step_by(10)
        .zip(["ABORT", "FAIL", "ROLLBACK", "REPLACE", "IGNORE"])
    {
        // The first row is outside of the index, the second has a different value there.
        n[0].run(&format!(
            "INSERT OR {policy} INTO soft VALUES ({i}, 'a', '{i}', 'y')"
        ));
        n[0].run(&format!(
            "INSERT OR {policy} INTO soft VALUES ({i} + 1, 'a', 9, 'y')"
        ));
        assert_eq!(n[0].rows("SELECT count(*) FROM soft WHERE id < 10"), "i2");
    }
    n[0].run("REPLACE INTO soft VALUES (7, 'a', NULL, NULL), (8, 'q', '9', 'x')");
    assert_eq!(n[0].rows("SELECT id FROM soft WHERE id < 10"), "i7\ni8");
    for policy in ["ABORT", "FAIL", "ROLLBACK"] {
        n[0].run(&format!(
            "INSERT OR {policy} INTO u(v, w, gone) VALUES (random(), NULL, 'x')"
        ));
        n[0].run(&format!("INSERT OR {policy} INTO freed(v) VALUES ('a')"));
        let sql = format!("INSERT OR {policy} INTO u(v) VALUES ('a')");
        let error = n[0].app.execute(&sql, []).unwrap_err();
        assert!(
            error.to_string().contains("UNIQUE constraint failed"),
            "{error}"
        );
    }
    for sql in [
        "INSERT INTO u(v) VALUES ('a')",
        "INSERT INTO u(id, v) VALUES (2, 'q') ON CONFLICT(id) DO UPDATE SET v = 'a'",
    ] {
        let error = n[0].app.execute(sql, []).unwrap_err();
        assert!(error.to_string().contains("u.v"), "{error}");
    }
    n[0].run("INSERT INTO u(v) VALUES ('a') ON CONFLICT(v) DO UPDATE SET w = 7");
    converge(&mut n);
    assert_eq!(n[1].rows("SELECT count(*) FROM u"), "i5");
    assert_eq!(n[1].rows("SELECT count(*) FROM freed"), "i1");
}

/// This must hold whichever of our tables or triggers is lost, and for tables that come later with
/// keys of any width.
#[test]
fn evictions_are_seen_after_our_tables_were_made_anew() {
    let schema = "CREATE TABLE u(id INTEGER PRIMARY KEY, v UNIQUE)";
    let mut n = cluster(2, schema);
    let mut id = 0;
    let mut evict = |n: &mut Vec<Node>, before: &str| {
        id += 2;
        n[0].run(&format!("INSERT INTO u VALUES ({id}, 'v{id}')"));
        converge(n);
        n[0].run(before);
        n[0].run(&format!("REPLACE INTO u VALUES ({id} + 1, 'v{id}')"));
        converge(n);
        assert_eq!(
            n[1].rows(&format!("SELECT id FROM u WHERE v = 'v{id}'")),
            format!("i{}", id + 1)
        );
    };
    evict(&mut n, "");
    evict(&mut n, "DROP TRIGGER __harmonylite___replaced");
    evict(&mut n, "DELETE FROM __harmonylite___replacing");
    let wide = "CREATE TABLE w(a, b, c, v UNIQUE, PRIMARY KEY(a, b, c))";
    n.iter().for_each(|node| node.run(wide));
    evict(&mut n, "");
    n[0].run("INSERT INTO w VALUES (1, 2, 3, 'x')");
    converge(&mut n);
    n[0].run("REPLACE INTO w VALUES (4, 5, 6, 'x')");
    evict(&mut n, "");
    assert_eq!(n[1].rows("SELECT a FROM w"), "i4");
    n[0].restart();
    n.iter().for_each(|node| node.run("DROP TABLE w"));
    evict(&mut n, "");
}
