//! Migrations as tools run them: a table is rebuilt in steps that are transactions of their own, on
//! one node and then on the other, beside the daemons.

use crate::cluster::Cluster;
use crate::node::{Node, pause, until};
use crate::rebuild_kinds;

const BEFORE: &str = "CREATE TABLE \"User\"(id TEXT NOT NULL PRIMARY KEY, email TEXT NOT NULL);
    CREATE UNIQUE INDEX uek ON \"User\"(email)";

const COLUMNS: &str = "id TEXT NOT NULL PRIMARY KEY, email TEXT NOT NULL";

/// Statements, a transaction each, by which a tool gives `User` a new column.
fn steps(tool: &str, column: &str) -> Vec<String> {
    let after = format!("({COLUMNS}, {column} TEXT NOT NULL DEFAULT 'x')");
    let mut steps = rebuild_kinds::steps(tool, "User", &after, ("id, email", "id, email"));
    if tool == "Drizzle's push" {
        steps.insert(0, "DROP INDEX uek".to_owned());
    }
    steps.push("CREATE UNIQUE INDEX uek ON \"User\"(email)".to_owned());
    steps
}

fn migrate(node: &Node, tool: &str, column: &str) {
    for step in steps(tool, column) {
        node.execute(&step);
        pause(10);
    }
}

fn rows_with(node: &Node, what: &str) -> Option<()> {
    let app = node.open();
    let text = format!("SELECT count(*) FROM \"User\" WHERE {what}");
    let count: rusqlite::Result<i64> = app.query_row(&text, [], |r| r.get(0));
    (count.ok()? > 0).then_some(())
}

/// Runs two migrations: at the second one nothing may be left of the first. Between them the
/// migrated node and the other one write.
fn migrates_twice(tool: &str) {
    let cluster = Cluster::start(2, |node| node.execute(BEFORE));
    let nodes = &cluster.nodes;
    nodes[0].execute("INSERT INTO \"User\" VALUES ('a', 'a@b'), ('b', 'b@b')");
    cluster.converge();
    for (round, column) in ["role", "rank"].into_iter().enumerate() {
        // The second rebuild leaves the first one's column out, because the tool does not know it.
        migrate(&nodes[0], tool, column);
        nodes[1].execute(&format!(
            "INSERT INTO \"User\"(id, email) VALUES ('1{round}', '1{round}')"
        ));
        let arrived = format!("id = '1{round}'");
        until("the row arrives at the migrated node", || {
            rows_with(&nodes[0], &arrived)
        });
        nodes[0].execute(&format!(
            "UPDATE \"User\" SET email = 'of {column}' WHERE id = 'a'"
        ));
        migrate(&nodes[1], tool, column);
        let written = format!("id = 'a' AND email = 'of {column}' AND {column} = 'x'");
        until("the row arrives at the other", || {
            rows_with(&nodes[1], &written)
        });
        assert_eq!(cluster.converge().len(), 3 + round);
    }
    for node in nodes {
        let tables = "SELECT count(*) FROM sqlite_schema WHERE type = 'table'
            AND name LIKE '%user%' AND name NOT IN ('User', '__harmonylite__User_versions')";
        assert_eq!(node.number(tables), 0, "{tool}");
        let held = "SELECT count(*) FROM __harmonylite___held WHERE column <> 'role'";
        assert_eq!(node.number(held), 0, "{tool}");
    }
}

#[test]
fn prisma_migrates_one_node_after_the_other() {
    migrates_twice("Prisma");
}

#[test]
fn alembic_migrates_one_node_after_the_other() {
    migrates_twice("Alembic");
}

#[test]
fn drizzle_migrates_one_node_after_the_other() {
    migrates_twice("Drizzle");
    migrates_twice("Drizzle's push");
}

#[test]
fn sequelize_migrates_one_node_after_the_other() {
    migrates_twice("Sequelize");
}
