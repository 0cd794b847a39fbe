//! Tables rebuilt as tools do it: step by step, each a transaction of its own, with the daemon and the
//! other node at work between the steps.

use std::time::Duration;

use super::support::{Node, cluster, converge};

const SCHEMA: &str = "CREATE TABLE \"User\"(id TEXT NOT NULL PRIMARY KEY, email TEXT NOT NULL);
    CREATE UNIQUE INDEX uek ON \"User\"(email)";

/// What a tool does to `User`: statements, a transaction each.
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
             ALTER TABLE neu RENAME TO \"User\"; CREATE UNIQUE INDEX uek ON \"User\"(email); COMMIT",
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

/// Time enough for all that waits.
fn calm(n: &mut [Node]) {
    (0..3).for_each(|_| pass(n, QUIET));
}

fn all(sql: &str) -> String {
    format!("SELECT id, email{sql} FROM \"User\" ORDER BY id")
}

/// Before each step the other node sends something, and the daemon looks after each.
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
