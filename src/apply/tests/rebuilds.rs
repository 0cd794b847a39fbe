//! Tables that are rebuilt as tools do it: step by step, each in a transaction of its own. The
//! daemon and the other node work between the steps.

use std::time::Duration;

use super::support::{Node, cluster, converge};
use crate::health::{self, Health};

const SCHEMA: &str = "CREATE TABLE \"User\"(id TEXT NOT NULL PRIMARY KEY, email TEXT NOT NULL);
    CREATE UNIQUE INDEX uek ON \"User\"(email)";

/// The statements by which a tool rebuilds `User`, a transaction each.
struct Way {
    tool: &'static str,
    steps: &'static [&'static str],
}

const WAYS: [Way; 8] = [
    Way {
        tool: "Prisma",
        steps: &[
            "CREATE TABLE \"new_User\"(id TEXT NOT NULL PRIMARY KEY, email TEXT NOT NULL,
                role TEXT NOT NULL DEFAULT 'user')",
            "INSERT INTO \"new_User\"(id, email) SELECT id, email FROM \"User\"",
            "DROP TABLE \"User\"",
            "ALTER TABLE \"new_User\" RENAME TO \"User\"",
            "CREATE UNIQUE INDEX uek ON \"User\"(email)",
        ],
    },
    Way {
        tool: "Alembic",
        steps: &[
            "CREATE TABLE \"_alembic_tmp_User\"(id TEXT NOT NULL, email TEXT NOT NULL,
                role TEXT NOT NULL DEFAULT 'user', PRIMARY KEY(id))",
            "INSERT INTO \"_alembic_tmp_User\"(id, email) SELECT id, email FROM \"User\"",
            "DROP TABLE \"User\"",
            "ALTER TABLE \"_alembic_tmp_User\" RENAME TO \"User\"",
            "CREATE UNIQUE INDEX uek ON \"User\"(email)",
        ],
    },
    Way {
        tool: "Drizzle",
        steps: &[
            "CREATE TABLE `__new_User`(id TEXT PRIMARY KEY NOT NULL, email TEXT NOT NULL,
                role TEXT NOT NULL DEFAULT 'user')",
            "INSERT INTO `__new_User`(id, email) SELECT id, email FROM `User`",
            "DROP TABLE `User`",
            "ALTER TABLE `__new_User` RENAME TO `User`",
            "CREATE UNIQUE INDEX uek ON `User`(email)",
        ],
    },
    Way {
        tool: "Drizzle's push",
        steps: &[
            "DROP INDEX uek",
            "ALTER TABLE `User` RENAME TO `__old_push_User`",
            "CREATE TABLE `User`(id TEXT PRIMARY KEY NOT NULL, email TEXT NOT NULL,
                role TEXT NOT NULL DEFAULT 'user')",
            "INSERT INTO `User`(id, email) SELECT id, email FROM `__old_push_User`",
            "DROP TABLE `__old_push_User`",
            "CREATE UNIQUE INDEX uek ON `User`(email)",
        ],
    },
    Way {
        tool: "Sequelize",
        steps: &[
            "CREATE TABLE IF NOT EXISTS `User_backup`(id TEXT PRIMARY KEY, email TEXT NOT NULL,
                role TEXT NOT NULL DEFAULT 'user')",
            "INSERT INTO `User_backup`(id, email) SELECT id, email FROM `User`",
            "DROP TABLE `User`",
            "CREATE TABLE IF NOT EXISTS `User`(id TEXT PRIMARY KEY NOT NULL, email TEXT NOT NULL,
                role TEXT NOT NULL DEFAULT 'user')",
            "INSERT INTO `User` SELECT * FROM `User_backup`",
            "DROP TABLE `User_backup`",
            "CREATE UNIQUE INDEX uek ON `User`(email)",
        ],
    },
    Way {
        tool: "one that nobody knows",
        steps: &[
            "CREATE TABLE zwischen(id TEXT PRIMARY KEY NOT NULL, email TEXT NOT NULL,
                role TEXT NOT NULL DEFAULT 'user')",
            "INSERT INTO zwischen(id, email) SELECT id, email FROM \"User\"",
            "DROP TABLE \"User\"",
            "ALTER TABLE zwischen RENAME TO \"User\"",
            "CREATE UNIQUE INDEX uek ON \"User\"(email)",
        ],
    },
    Way {
        tool: "one that nobody knows, the old one first",
        steps: &[
            "DROP INDEX uek",
            "ALTER TABLE \"User\" RENAME TO zwischen",
            "CREATE TABLE \"User\"(id TEXT PRIMARY KEY NOT NULL, email TEXT NOT NULL,
                role TEXT NOT NULL DEFAULT 'user')",
            "INSERT INTO \"User\"(id, email) SELECT id, email FROM zwischen",
            "DROP TABLE zwischen",
            "CREATE UNIQUE INDEX uek ON \"User\"(email)",
        ],
    },
    Way {
        tool: "a transaction",
        steps: &[
            "BEGIN; CREATE TABLE neu(id TEXT PRIMARY KEY NOT NULL, email TEXT NOT NULL,
                role TEXT NOT NULL DEFAULT 'user');
             INSERT INTO neu(id, email) SELECT id, email FROM \"User\"; DROP TABLE \"User\";
             ALTER TABLE neu RENAME TO \"User\"; CREATE UNIQUE INDEX uek ON \"User\"(email); \
             COMMIT",
        ],
    },
];

const QUIET: Duration = Duration::from_secs(2);

fn nodes() -> Vec<Node> {
    let mut n = cluster(2, SCHEMA);
    n.iter_mut().for_each(Node::be_quiet);
    n
}

fn pass(n: &mut [Node], time: Duration) {
    for node in n {
        node.clock.advance(time);
        node.capture();
    }
}

/// Passes enough time for every waiting table.
fn calm(n: &mut [Node]) {
    (0..3).for_each(|_| pass(n, QUIET));
}

fn all(sql: &str) -> String {
    format!("SELECT id, email{sql} FROM \"User\" ORDER BY id")
}

/// Runs the steps. The other node publishes something before each step, and the daemon captures
/// after each.
fn migrate(n: &mut [Node], node: usize, way: &Way) {
    for (i, step) in way.steps.iter().enumerate() {
        let other = 1 - node;
        let text = format!("INSERT INTO \"User\"(id, email) VALUES ('{node}{i}', '{node}{i}@b')");
        n[other].run(&text);
        n[other].run(&format!(
            "UPDATE \"User\" SET email = 'b{node}{i}' WHERE id = 'b'"
        ));
        n[other].run(&format!("DELETE FROM \"User\" WHERE id = 'd{node}{i}'"));
        let sent = n[other].publish();
        n[node].apply(&sent);
        n[node].run(step);
        let sent = n[node].publish();
        n[other].apply(&sent);
        pass(n, Duration::from_millis(10));
    }
}

#[test]
fn a_table_is_rebuilt_step_by_step_on_one_node_after_the_other() {
    for way in &WAYS {
        for at_once in [true, false] {
            let mut n = nodes();
            n[0].run("INSERT INTO \"User\" VALUES ('a', 'a@b'), ('b', 'b@b')");
            for i in 0..8 {
                let text =
                    format!("INSERT INTO \"User\" VALUES ('d0{i}', '0{i}'), ('d1{i}', '1{i}')");
                n[0].run(&text);
            }
            converge(&mut n);
            migrate(&mut n, 0, way);
            if !at_once {
                calm(&mut n);
            }
            migrate(&mut n, 1, way);
            calm(&mut n);
            converge(&mut n);
            let found = n[1].rows(&all(", role"));
            let tool = way.tool;
            let steps = way.steps.len();
            let last = format!("t'b' t'b1{}'", steps - 1);
            assert!(found.contains(&last), "{tool}: {found}");
            assert!(found.contains("t'a' t'a@b' t'user'"), "{tool}: {found}");
            for node in 0..2 {
                for i in 0..steps {
                    assert!(found.contains(&format!("t'{node}{i}' ")), "{tool}: {found}");
                    assert!(
                        !found.contains(&format!("t'd{node}{i}'")),
                        "{tool}: {found}"
                    );
                }
            }
            for node in &n {
                let left =
                    "SELECT (SELECT count(*) FROM __harmonylite___tables), name FROM sqlite_schema
                     WHERE name GLOB '__harmonylite__*_versions'";
                assert_eq!(
                    node.rows(left),
                    "i1 t'__harmonylite__User_versions'",
                    "{tool}"
                );
                assert_eq!(
                    node.rows("SELECT * FROM __harmonylite___held"),
                    "",
                    "{tool}"
                );
                assert_eq!(
                    node.rows("SELECT * FROM __harmonylite___waiting"),
                    "",
                    "{tool}"
                );
            }
        }
    }
}

/// The only table with triggers is dropped on the way. A daemon that starts then must not take that
/// for a first start.
#[test]
fn a_start_between_two_steps_deletes_and_sends_nothing_of_them() {
    for way in &WAYS {
        for stop in 1..way.steps.len() {
            let mut n = nodes();
            n[0].run("INSERT INTO \"User\" VALUES ('a', 'a@b'), ('b', 'b@b')");
            converge(&mut n);
            let before = n[1].rows(&all(""));
            way.steps[..stop].iter().for_each(|step| n[0].run(step));
            n[0].restart();
            n[0].db.wait_for_quiet(QUIET);
            let sent = n[0].publish();
            n[1].apply(&sent);
            let tool = way.tool;
            assert_eq!(n[1].rows(&all("")), before, "{tool}, {stop}");
            assert_eq!(n[1].db.held().unwrap(), 0, "{tool}, {stop}");
            way.steps[stop..].iter().for_each(|step| n[0].run(step));
            calm(&mut n);
            migrate(&mut n, 1, way);
            calm(&mut n);
            converge(&mut n);
            let found = n[0].rows(&all(", role"));
            assert!(
                found.contains("t'a' t'a@b' t'user'"),
                "{tool}, {stop}: {found}"
            );
        }
    }
}

/// A marked row waits with its table; nobody deleted it.
#[test]
fn rows_that_were_not_sent_yet_are_no_deletes_of_a_table_made_anew() {
    for rows in [1, 50] {
        let mut n = nodes();
        let text = "WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < ?1)
                    INSERT INTO \"User\" SELECT 'r' || i, i || '@b' FROM s";
        n[0].run(&text.replace("?1", &rows.to_string()));
        n[0].capture();
        let sent = n[0].db.backlog(1 << 20).unwrap(); // and no acknowledgement
        n[1].apply(&sent);
        let before = n[1].rows(&all(""));
        n[0].run("DROP TABLE \"User\"");
        n[0].capture();
        n[0].run(SCHEMA);
        calm(&mut n);
        calm(&mut n);
        let sent = n[0].publish();
        n[1].apply(&sent);
        assert_eq!(n[1].rows(&all("")), before, "{rows}");
    }
}

/// `migrate reset` does this beside a stopped daemon.
#[test]
fn all_tables_made_anew_without_rows_before_a_start_are_no_delete() {
    let mut n = nodes();
    n[0].run("INSERT INTO \"User\" VALUES ('a', 'a@b'), ('b', 'b@b')");
    converge(&mut n);
    let before = n[1].rows(&all(""));
    n[0].run("DROP TABLE \"User\"");
    n[0].run(SCHEMA);
    n[0].restart();
    n[0].db.wait_for_quiet(QUIET);
    calm(&mut n);
    let sent = n[0].publish();
    n[1].apply(&sent);
    assert_eq!(n[1].rows(&all("")), before);
}

#[test]
fn a_table_that_waits_for_its_rows_says_so_until_it_goes_on() {
    let mut n = nodes();
    n[0].run("INSERT INTO \"User\" VALUES ('a', 'a@b')");
    converge(&mut n);
    n[0].run("DROP TABLE \"User\"");
    n[0].run(SCHEMA);
    calm(&mut n);
    let told = health::report(&Health::default(), Some(&n[0].db)).unwrap();
    let waiting = &told["waiting_tables"][0];
    assert_eq!(waiting["table"], "User", "{told}");
    assert!(
        waiting["reason"]
            .as_str()
            .unwrap()
            .contains("created again and is empty"),
        "{told}"
    );
    assert!(
        (500..=600).contains(&waiting["seconds_left"].as_u64().unwrap()),
        "{told}"
    );
    assert_eq!(told["status"], "healthy");
    n[0].run("INSERT INTO \"User\" VALUES ('b', 'b@b')");
    calm(&mut n);
    assert!(n[0].db.held_up().is_empty());
}

/// Columns before, columns after, and the expressions that fill the new table. The old key can be
/// computed from the new row.
const KEYS: [(&str, &str, &str, &str); 9] = [
    (
        "the same key",
        "id INTEGER PRIMARY KEY, a TEXT, v",
        "id INTEGER PRIMARY KEY, a TEXT NOT NULL DEFAULT '', v, w DEFAULT 7",
        "id, a, v, 7",
    ),
    (
        "a column less",
        "id INTEGER, a TEXT, v, PRIMARY KEY(id, a)",
        "id INTEGER PRIMARY KEY, a TEXT, v",
        "id, a, v",
    ),
    (
        "without rowid",
        "id INTEGER, a TEXT, v, PRIMARY KEY(id, a)",
        "id INTEGER, a TEXT, v, PRIMARY KEY(id, a)) WITHOUT ROWID; --",
        "id, a, v",
    ),
    (
        "another order",
        "id INTEGER, a TEXT, v, PRIMARY KEY(id, a)",
        "id INTEGER, a TEXT, v, PRIMARY KEY(a, id)",
        "id, a, v",
    ),
    (
        "a column more",
        "id INTEGER PRIMARY KEY, a TEXT, v",
        "id INTEGER, a TEXT, v, w TEXT NOT NULL DEFAULT 'z', PRIMARY KEY(id, w)",
        "id, a, v, 'z'",
    ),
    (
        "a column more, which is computed, without rowid",
        "id INTEGER PRIMARY KEY, a TEXT, v",
        "id INTEGER, a TEXT, v, w TEXT NOT NULL DEFAULT 'c0', PRIMARY KEY(w, id)) WITHOUT ROWID; \
         --",
        "id, a, v, 'c' || (id % 3)",
    ),
    (
        "another collation",
        "id INTEGER, a TEXT PRIMARY KEY, v",
        "id INTEGER, a TEXT COLLATE NOCASE PRIMARY KEY, v",
        "id, a, v",
    ),
    (
        "another type",
        "id INTEGER PRIMARY KEY, a TEXT, v",
        "id TEXT PRIMARY KEY, a TEXT, v",
        "id, a, v",
    ),
    (
        "another column",
        "id INTEGER PRIMARY KEY, a TEXT, v",
        "id INTEGER, a TEXT PRIMARY KEY, v",
        "id, a, v",
    ),
];

/// Tools, by how they rebuild `t`. All but the first do it in transactions of their own.
const TOOLS: [&str; 8] = [
    "a transaction",
    "Prisma",
    "Alembic",
    "Drizzle",
    "Drizzle's push",
    "Sequelize",
    "a TEMP copy",
    "a TEMP copy in a transaction",
];

/// `from` may end with the rows that the tool copies.
fn steps(tool: &str, after: &str, from: &str) -> Vec<String> {
    let end = if after.ends_with("--") { "\n" } else { ")" };
    let create = |name: &str| format!("CREATE TABLE {name}({after}{end}");
    let (from, rows) = from.split_at(from.find(" WHERE").unwrap_or(from.len()));
    let copy = |to: &str, of: &str| format!("INSERT INTO {to} SELECT {from} FROM {of}{rows}");
    let drop = |name: &str| format!("DROP TABLE {name}");
    let rename = |old: &str, new: &str| format!("ALTER TABLE {old} RENAME TO {new}");
    let new_first = |new: &str| vec![create(new), copy(new, "t"), drop("t"), rename(new, "t")];
    match tool {
        "Alembic" => new_first("_alembic_tmp_t"),
        "Drizzle" => new_first("__new_t"),
        "Drizzle's push" => vec![
            rename("t", "__old_push_t"),
            create("t"),
            copy("t", "__old_push_t"),
            drop("__old_push_t"),
        ],
        "Sequelize" => vec![
            create("t_backup"),
            copy("t_backup", "t"),
            drop("t"),
            create("t"),
            "INSERT INTO t SELECT * FROM t_backup".to_owned(),
            drop("t_backup"),
        ],
        "a TEMP copy" | "a TEMP copy in a transaction" => vec![
            format!("CREATE TEMP TABLE saved AS SELECT * FROM t{rows}"),
            drop("t"),
            create("t"),
            format!("INSERT INTO t SELECT {from} FROM saved"),
            drop("saved"),
        ],
        _ => new_first("new_t"),
    }
}

fn rebuild(node: &mut Node, after: &str, from: &str, tool: &str) {
    let steps = steps(tool, after, from);
    match !tool.ends_with("transaction") {
        true => {
            for step in &steps {
                node.run(step);
                node.capture();
                node.clock.advance(Duration::from_millis(10));
            }
        }
        false => node.run(&format!("BEGIN; {}; COMMIT", steps.join(";"))),
    }
    node.capture();
}

/// Every tool, and the node that it migrates first, which depends on the kind of change.
fn tools(kind: usize) -> impl Iterator<Item = (usize, &'static str)> {
    let each = TOOLS.iter().enumerate();
    each.flat_map(move |(i, tool)| match i {
        0 => vec![(0, *tool), (1, *tool)],
        _ => vec![((kind + i) % 2, *tool)],
    })
}

/// Each node writes and deletes before the other one has migrated; the last one also does so just
/// before its own migration.
#[test]
fn a_key_is_another_one_on_one_node_after_the_other() {
    for (kind, (what, before, after, from)) in KEYS.into_iter().enumerate() {
        for (first, tool) in tools(kind) {
            let last = 1 - first;
            let mut n = cluster(2, &format!("CREATE TABLE t({before})"));
            n.iter_mut().for_each(Node::be_quiet);
            for i in 0..7 {
                let text = format!("INSERT INTO t(id, a, v) VALUES ({i}, 'a{i}', 'old')");
                n[i % 2].run(&text);
            }
            converge(&mut n);
            rebuild(&mut n[first], after, from, tool);
            calm(&mut n);
            n[last].run("UPDATE t SET v = 'last' WHERE id = 1; DELETE FROM t WHERE id = 2");
            n[last].run("INSERT INTO t(id, a, v) VALUES (7, 'a7', 'last')");
            n[first].run("UPDATE t SET v = 'first' WHERE id = '3'; DELETE FROM t WHERE id = '4'");
            n[first].run("INSERT INTO t(id, a, v) VALUES (8, 'a8', 'first')");
            super::support::exchange(&mut n);
            n[last].clock.advance(Duration::from_secs(3600));
            let adds = !what.starts_with("a column more");
            let early = n[first].rows("SELECT CAST(id AS INTEGER), v FROM t ORDER BY 1");
            let seven = if adds { "\ni7 t'last'" } else { "" };
            let expected = format!(
                "i0 t'old'\ni1 t'last'\ni3 t'first'\ni5 t'old'\ni6 t'old'{seven}\ni8 t'first'"
            );
            assert_eq!(early, expected, "{what}: not held until then");
            n[last].run("UPDATE t SET v = 'just before' WHERE id = 5; DELETE FROM t WHERE id = 6");
            rebuild(&mut n[last], after, from, tool);
            calm(&mut n);
            calm(&mut n);
            converge(&mut n);
            let rows = n[0].rows("SELECT CAST(id AS INTEGER), v FROM t ORDER BY 1");
            let expected = "i0 t'old'\ni1 t'last'\ni3 t'first'\ni5 t'just before'\n\
                            i7 t'last'\ni8 t'first'";
            assert_eq!(rows, expected, "{what}, first {first}, {tool}");
            for node in &n {
                assert_eq!(node.db.held().unwrap(), 0, "{what}: held for ever");
            }
        }
    }
}

/// While a table was away its marks waited. When they came back, the row counted as captured just
/// now, and changes that no trigger of ours had seen were skipped.
#[test]
fn a_marked_row_that_is_deleted_in_a_rebuild_is_deleted() {
    let schema = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)";
    let mut n = cluster(2, schema);
    n[0].run("INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c')");
    converge(&mut n);
    n[0].run("UPDATE t SET v = v || v");
    n[0].capture(); // marked, and not sent yet
    n[0].run(
        "BEGIN; CREATE TABLE r(id INTEGER PRIMARY KEY, v); INSERT INTO r SELECT * FROM t;
         DROP TABLE t; COMMIT",
    );
    n[0].capture();
    n[0].run(
        "ALTER TABLE r RENAME TO t; DELETE FROM t WHERE id = 1; UPDATE t SET v = 'x' WHERE id = 2",
    );
    n[0].capture();
    converge(&mut n);
    assert_eq!(
        n[1].rows("SELECT id, v FROM t ORDER BY id"),
        "i2 t'x'\ni3 t'cc'"
    );
}

/// The same where the old key cannot be computed from the new row. Column `a` identifies the rows,
/// and one node inserts them all, since two nodes would give them the same rowid.
const CONTENTS: [(&str, &str, &str, &str); 5] = [
    (
        "the old key is gone",
        "id INTEGER PRIMARY KEY, a TEXT, v",
        "a TEXT PRIMARY KEY, v, w DEFAULT 7",
        "a, v, 7",
    ),
    (
        "half of the old key is gone",
        "id INTEGER, a TEXT, v, PRIMARY KEY(id, a)",
        "a TEXT PRIMARY KEY, v",
        "a, v",
    ),
    (
        "a key, where none was",
        "id INTEGER, a TEXT, v",
        "id INTEGER, a TEXT PRIMARY KEY, v",
        "id, a, v",
    ),
    (
        "a key of columns that were not there",
        "id INTEGER, a TEXT, v",
        "id INTEGER, a TEXT, v, u TEXT DEFAULT 'x', PRIMARY KEY(u, a)) WITHOUT ROWID; --",
        "id, a, v, 'x'",
    ),
    (
        "a key that is generated",
        "g TEXT PRIMARY KEY, id INTEGER, a TEXT, v",
        "k INTEGER PRIMARY KEY, a TEXT, v, id INTEGER",
        "1 + substr(a, 2), a, v, id",
    ),
];

/// Inserts a row, whatever columns its table has.
fn insert(node: &Node, i: usize, v: &str) {
    let columns = node.rows("SELECT name FROM pragma_table_info('t')");
    let has = |column: &str| columns.lines().any(|c| c == format!("t'{column}'"));
    let values = [
        ("a", format!("'a{i}'")),
        ("v", format!("'{v}'")),
        ("id", i.to_string()),
        ("k", (i + 1).to_string()),
        ("g", format!("'g{i}'")),
    ];
    let here = values.into_iter().filter(|(column, _)| has(column));
    let (names, values): (Vec<&str>, Vec<String>) = here.unzip();
    let (names, values) = (names.join(", "), values.join(", "));
    node.run(&format!("INSERT INTO t({names}) VALUES ({values})"));
}

#[test]
fn rows_are_known_by_their_content_where_the_old_key_is_gone() {
    for (kind, (what, before, after, from)) in CONTENTS.into_iter().enumerate() {
        for (first, tool) in tools(kind) {
            let last = 1 - first;
            let mut n = cluster(2, &format!("CREATE TABLE t({before})"));
            n.iter_mut().for_each(Node::be_quiet);
            (0..7).for_each(|i| insert(&n[0], i, "old"));
            insert(&n[0], 9, "old");
            converge(&mut n);
            rebuild(&mut n[first], after, from, tool);
            calm(&mut n);
            n[last].run("UPDATE t SET v = 'last' WHERE a = 'a1'; DELETE FROM t WHERE a = 'a2'");
            insert(&n[last], 7, "last");
            n[last].clock.advance(Duration::from_secs(5));
            n[first].run("UPDATE t SET v = 'first' WHERE a = 'a3'; DELETE FROM t WHERE a = 'a4'");
            insert(&n[first], 8, "first");
            super::support::exchange(&mut n);
            n[last].clock.advance(Duration::from_secs(3600));
            let early = n[first].rows("SELECT a, v FROM t WHERE a IN ('a1', 'a2')");
            assert_eq!(early, "t'a1' t'last'", "{what}: not held until then");
            // The newest version of the table is the last node's, and of a different row.
            n[last].run("UPDATE t SET v = 'newest' WHERE a = 'a0'");
            super::support::exchange(&mut n);
            n[last]
                .run("UPDATE t SET v = 'just before' WHERE a = 'a5'; DELETE FROM t WHERE a = 'a6'");
            rebuild(&mut n[last], after, from, tool);
            calm(&mut n);
            calm(&mut n);
            converge(&mut n);
            let rows = n[0].rows(&format!(
                "SELECT a, v FROM t WHERE a <> 'a6' OR {} ORDER BY 1",
                tool == TOOLS[0]
            ));
            let expected = "t'a0' t'newest'\nt'a1' t'last'\nt'a3' t'first'\n\
                            t'a5' t'just before'\nt'a7' t'last'\nt'a8' t'first'\nt'a9' t'old'";
            assert_eq!(rows, expected, "{what}, first {first}, {tool}");
        }
    }
}

/// There are more rows than one step matches, and some of them are equal: none of them is new.
#[test]
fn all_rows_of_a_large_table_keep_their_versions() {
    let mut n = cluster(1, "CREATE TABLE t(a TEXT, v)");
    let many = "WITH c(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM c WHERE i < 150)";
    for v in ["x", "y", "z"] {
        n[0].run(&format!(
            "{many} INSERT INTO t SELECT 'a' || (i / 2), '{v}' FROM c"
        ));
        n[0].publish();
        n[0].clock.advance(Duration::from_secs(1));
    }
    let versions = "SELECT hlc, count(*) FROM __harmonylite__t_versions GROUP BY 1 ORDER BY 1";
    let before = n[0].rows(versions);
    let after = "k INTEGER PRIMARY KEY, a TEXT, v";
    rebuild(&mut n[0], after, "rowid + 1000, a, v", TOOLS[0]);
    assert_eq!(n[0].rows(versions), before);
    n[0].restart();
    assert_eq!(n[0].capture(), 0);
    let left = "SELECT count(*) FROM __harmonylite___former_2_contents";
    assert_eq!(n[0].rows(left), "i0");
    n[0].publish();
    n[0].check();
}

/// The other rows are deleted everywhere. Their number is announced before anything is sent.
#[test]
fn a_reset_with_seed_data_is_announced() {
    let mut n = nodes();
    n[0].run(
        "WITH RECURSIVE i(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM i WHERE n < 1000)
         INSERT INTO \"User\" SELECT 'u' || n, n || '@b' FROM i",
    );
    converge(&mut n);
    assert_eq!(n[0].db.gone_lately().count(), 0);
    n[0].run(&format!(
        "DROP TABLE \"User\"; {SCHEMA}; INSERT INTO \"User\" VALUES ('u1', 'admin@b'), ('u2', \
         '2@b')"
    ));
    calm(&mut n);
    let said: Vec<_> = n[0].db.gone_lately().collect();
    assert_eq!(said.len(), 1);
    assert_eq!(said[0].0, "User");
    assert!(said[0].1.starts_with("998 of the 1000 rows"), "{said:?}");
    let health = crate::health::report(&Default::default(), Some(&n[0].db)).unwrap();
    let problem = health["problems"]["table User"].as_str().unwrap();
    assert!(problem.starts_with("998 of the 1000 rows"), "{problem}");
    assert_eq!(health["rows_gone"], 998);
    converge(&mut n);
    assert_eq!(n[1].rows(&all("")), "t'u1' t'admin@b'\nt'u2' t'2@b'");
    n[0].clock.advance(Duration::from_secs(601));
    assert_eq!(n[0].db.gone_lately().count(), 0);
}

/// The rebuild did not see what the other node wrote since: that stays.
#[test]
fn a_row_that_a_rebuild_leaves_out_is_deleted_as_of_what_it_was() {
    for columns in ["", ", w DEFAULT 7"] {
        for tool in TOOLS {
            let mut n = cluster(2, "CREATE TABLE t(id INTEGER PRIMARY KEY, v)");
            n.iter_mut().for_each(Node::be_quiet);
            n[0].run("INSERT INTO t VALUES (1, 'old'), (2, 'old'), (3, 'old')");
            converge(&mut n);
            n[1].clock.advance(Duration::from_secs(1));
            n[1].run("UPDATE t SET v = 'since' WHERE id = 2");
            n[1].capture();
            n[0].clock.advance(Duration::from_secs(3600));
            let after = format!("id INTEGER PRIMARY KEY, v{columns}");
            let from = format!("id, v{} WHERE id = 1", columns.replace("w DEFAULT", ""));
            rebuild(&mut n[0], &after, &from, tool);
            if !columns.is_empty() {
                n[1].run("ALTER TABLE t ADD COLUMN w DEFAULT 7");
            }
            calm(&mut n);
            calm(&mut n);
            converge(&mut n);
            assert_eq!(
                n[0].rows("SELECT id, v FROM t ORDER BY id"),
                "i1 t'old'\ni2 t'since'",
                "{tool}{columns}"
            );
        }
    }
}

/// Rows that are still in the table, and displaced rows, are not gone.
#[test]
fn a_rebuild_that_keeps_its_rows_is_not_announced() {
    for way in &WAYS {
        let mut n = nodes();
        n[0].run("INSERT INTO \"User\" VALUES ('a', 'same'), ('b', 'other')");
        n[1].run("INSERT INTO \"User\" VALUES ('c', 'same')");
        converge(&mut n);
        for node in 0..2 {
            migrate(&mut n, node, way);
        }
        calm(&mut n);
        converge(&mut n);
        assert!(
            n.iter().all(|node| node.db.rows_gone() == 0),
            "{}",
            way.tool
        );
    }
}

/// Many tools drop and create the index in separate transactions: the colliding row must not return
/// in between.
#[test]
fn a_unique_index_that_is_made_anew_meets_no_row_that_was_displaced() {
    let mut n = nodes();
    n[0].run("INSERT INTO \"User\" VALUES ('a', 'same'), ('b', 'other')");
    n[1].run("INSERT INTO \"User\" VALUES ('c', 'same')");
    converge(&mut n);
    let displaced = |n: &[Node]| [0, 1].map(|i| n[i].db.displaced().unwrap());
    assert_eq!(displaced(&n), [1, 1]);
    n[0].run("DROP INDEX uek");
    n[0].capture();
    n[1].run("INSERT INTO \"User\" VALUES ('d', 'another')");
    let frames = n[1].publish();
    n[0].apply(&frames);
    n[0].run("CREATE UNIQUE INDEX uek2 ON \"User\"(email)");
    calm(&mut n);
    converge(&mut n);
    assert_eq!(displaced(&n), [1, 1]);
    assert_eq!(n[0].rows("SELECT count(*) FROM \"User\""), "i3");
    // An index that stays away lets the displaced rows in.
    for node in &mut n {
        node.run("DROP INDEX IF EXISTS uek2; DROP INDEX IF EXISTS uek");
        node.capture();
    }
    calm(&mut n);
    converge(&mut n);
    assert_eq!(displaced(&n), [0, 0]);
    assert_eq!(n[0].rows("SELECT count(*) FROM \"User\""), "i4");
}

/// By way of a TEMP copy, which nobody but the tool sees.
fn by_temp_copy(columns: &str) -> [String; 6] {
    let create = format!("CREATE TABLE \"User\"({columns})");
    [
        "CREATE TEMP TABLE saved AS SELECT * FROM \"User\"",
        "DROP TABLE \"User\"",
        &create,
        "INSERT INTO \"User\"(id, email) SELECT id, email FROM saved",
        "DROP TABLE saved",
        "CREATE UNIQUE INDEX uek ON \"User\"(email)",
    ]
    .map(str::to_owned)
}

/// The other node writes between each two statements from the DROP on, and deletes rows that are in
/// the copy.
#[test]
fn what_arrives_after_the_drop_of_a_rebuild_by_a_temp_copy_stays() {
    for columns in [
        "id TEXT NOT NULL PRIMARY KEY, email TEXT NOT NULL, role TEXT NOT NULL DEFAULT 'user'",
        "id TEXT NOT NULL, email TEXT NOT NULL, role TEXT NOT NULL DEFAULT 'user',
         PRIMARY KEY(id, role)",
        "id TEXT COLLATE NOCASE NOT NULL PRIMARY KEY, email TEXT NOT NULL,
         role TEXT NOT NULL DEFAULT 'user'",
    ] {
        let mut n = nodes();
        for i in 0..8 {
            let row = |of: &str| format!("('{of}0{i}', '{of}0{i}'), ('{of}1{i}', '{of}1{i}')");
            n[0].run(&format!(
                "INSERT INTO \"User\" VALUES {}, {}",
                row("d"),
                row("u")
            ));
        }
        converge(&mut n);
        let mut expected = Vec::new();
        for (node, other) in [(0, 1), (1, 0)] {
            let steps = by_temp_copy(columns);
            n[node].run(&steps[0]);
            n[node].capture();
            for (i, step) in steps.iter().enumerate().skip(1) {
                n[node].run(step);
                n[node].clock.advance(Duration::from_millis(10));
                let sent = n[node].publish();
                n[other].apply(&sent);
                n[other].run(&format!(
                    "UPDATE \"User\" SET email = 'new {node}{i}' WHERE id = 'u{node}{i}';
                     DELETE FROM \"User\" WHERE id = 'd{node}{i}'"
                ));
                expected.push((format!("t'u{node}{i}' t'new {node}{i}'"), true));
                expected.push((format!("t'd{node}{i}'"), false));
                if !columns.contains("role)") {
                    let row = format!("'i{node}{i}', 'i{node}{i}'");
                    n[other].run(&format!("INSERT INTO \"User\"(id, email) VALUES ({row})"));
                    expected.push((format!("t'i{node}{i}'"), true));
                }
                let sent = n[other].publish();
                n[node].apply(&sent);
            }
            calm(&mut n);
        }
        converge(&mut n);
        let rows = n[0].rows(&all(""));
        for (row, is_there) in expected {
            assert_eq!(rows.contains(&row), is_there, "{columns}: {row}: {rows}");
        }
        assert!(n.iter().all(|node| node.db.held().unwrap() == 0));
    }
}

/// The DROP comes before they are captured. They are as old as they are when they come back, and
/// they are no reason to take the table in while it is empty.
#[test]
fn rows_that_were_inserted_just_before_a_drop_keep_their_time() {
    for key in ["id TEXT NOT NULL", "id TEXT COLLATE NOCASE NOT NULL"] {
        let mut n = nodes();
        n[0].run("INSERT INTO \"User\" VALUES ('c', 'c@b'), ('d', 'd@b')");
        converge(&mut n);
        n[0].run("INSERT INTO \"User\" VALUES ('a', 'a@b'), ('b', 'b@b')");
        let steps = by_temp_copy(&format!("{key} PRIMARY KEY, email TEXT NOT NULL"));
        steps[..2].iter().for_each(|step| n[0].run(step));
        n[0].capture();
        n[0].run(&steps[2]);
        calm(&mut n);
        n[1].clock.advance(Duration::from_secs(60));
        n[1].run("INSERT INTO \"User\" VALUES ('a', 'newer')");
        n[0].clock.advance(Duration::from_secs(500));
        steps[3..].iter().for_each(|step| n[0].run(step));
        calm(&mut n);
        n[1].run(&format!("BEGIN; {}; COMMIT", steps.join(";")));
        calm(&mut n);
        converge(&mut n);
        let rows = n[0].rows(&all(""));
        let expected = "t'a' t'newer'\nt'b' t'b@b'\nt'c' t'c@b'\nt'd' t'd@b'";
        assert_eq!(rows, expected, "{key}");
    }
}

/// All rows of the table were deleted, and that was not captured yet: it is not waited for rows.
#[test]
fn an_emptied_table_that_is_made_anew_stays_empty() {
    let mut n = nodes();
    n[0].run("INSERT INTO \"User\" VALUES ('a', 'a@b'), ('b', 'b@b')");
    converge(&mut n);
    n[0].run("UPDATE \"User\" SET email = 'x' || email; DELETE FROM \"User\"");
    n[0].run(&format!("DROP TABLE \"User\"; {SCHEMA}"));
    calm(&mut n);
    assert!(n[0].db.held_up().is_empty());
    converge(&mut n);
    assert_eq!(n[1].rows(&all("")), "");
}
