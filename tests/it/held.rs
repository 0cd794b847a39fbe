//! `harmonylite held`, while the daemon runs and without it.

use std::process::Output;

use crate::cluster::Cluster;
use crate::node::{Node, until};

fn words(output: &Output) -> (Option<i32>, String) {
    let all = [&output.stdout[..], &output.stderr].concat();
    (output.status.code(), String::from_utf8(all).unwrap())
}

fn held(node: &Node) -> serde_json::Value {
    let (code, text) = words(&node.run(&["held", "-json"]));
    assert_eq!(code, Some(0), "{text}");
    serde_json::from_str(&text).unwrap()
}

fn rows_held(node: &Node, table: &str) -> u64 {
    let held = held(node);
    assert_eq!(held["version"], 1);
    let mut tables = held["tables"].as_array().unwrap().iter();
    let found = tables.find(|t| t["table"] == table);
    found.map_or(0, |t| t["rows"].as_u64().unwrap())
}

const MORE: &str = "CREATE TABLE jobs (id INTEGER PRIMARY KEY, payload);
                    CREATE TABLE keyed (id INTEGER PRIMARY KEY, v);
                    CREATE TABLE checked (id INTEGER PRIMARY KEY, v);
                    ALTER TABLE item ADD COLUMN added TEXT";
const OTHERS: &str = "CREATE TABLE keyed (id TEXT PRIMARY KEY, v);
                      CREATE TABLE checked (id INTEGER PRIMARY KEY, v CHECK(v < 5))";

#[test]
fn each_reason_is_named_with_what_can_be_done() {
    let mut cluster = Cluster::start(2, |_| {});
    cluster.converge();
    cluster.nodes[1].execute(OTHERS);
    let one = &cluster.nodes[0];
    one.execute(MORE);
    one.execute("INSERT INTO jobs VALUES (1, 'a'), (2, 'b'); INSERT INTO keyed VALUES (1, 1)");
    one.execute("INSERT INTO checked VALUES (1, 9); INSERT INTO item VALUES (1, 'a', 0, 'new')");
    until("all is held", || {
        let two = &cluster.nodes[1];
        let tables = ["jobs", "keyed", "checked", "item"];
        let rows = tables.map(|table| rows_held(two, table));
        (rows == [2, 1, 1, 1]).then_some(())
    });
    let (code, text) = words(&cluster.nodes[1].run(&["held"]));
    assert_eq!(code, Some(0));
    for says in [
        "table jobs: 2 row(s)",
        "2 row(s): there is no such table here",
        "[tables] exclude = [\"jobs\"]",
        "its key is (id TEXT BINARY) here and (id INTEGER BINARY) in the rows",
        "CHECK constraint failed",
        "change the constraint here",
        "ALTER TABLE item ADD COLUMN added (holds text)",
    ] {
        assert!(text.contains(says), "{says}: {text}");
    }

    // The running daemon drops the rows, and they stay dropped.
    let (code, text) = words(&cluster.nodes[1].run(&["held", "-drop", "Jobs"]));
    assert_eq!(
        (code, &*text),
        (Some(0), "dropped 2 row(s) of table jobs\n")
    );
    let (code, _) = words(&cluster.nodes[1].run(&["held", "-drop", "checked"]));
    assert_eq!(code, Some(0));
    let (code, text) = words(&cluster.nodes[1].run(&["held", "-drop", "checked"]));
    assert_eq!(code, Some(1));
    assert!(text.contains("nothing is held of that table"), "{text}");
    cluster.nodes[0]
        .execute("INSERT INTO jobs VALUES (3, 'c'); INSERT INTO item VALUES (2, 'b', 0, 'x')");
    until("the next is held", || {
        (rows_held(&cluster.nodes[1], "item") == 2).then_some(())
    });
    assert_eq!(
        held(&cluster.nodes[1])["passed_over"],
        serde_json::json!(["jobs"])
    );
    assert_eq!(rows_held(&cluster.nodes[1], "jobs"), 0);

    // The command drops the rows itself while no daemon runs.
    cluster.nodes[1].stop();
    let (code, text) = words(&cluster.nodes[1].run(&["held", "-json", "-drop", "keyed"]));
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("\"dropped\":1"), "{text}");
    assert_eq!(rows_held(&cluster.nodes[1], "keyed"), 0);
    cluster.nodes[1].start();

    // A snapshot brings the table's rows once the table is created.
    cluster.nodes[1].execute("CREATE TABLE jobs (id INTEGER PRIMARY KEY, payload)");
    until("the jobs are there", || {
        (cluster.nodes[1].number("SELECT count(*) FROM jobs") == 3).then_some(())
    });
    cluster.nodes[1].execute("ALTER TABLE item ADD COLUMN added TEXT");
    until("the column is there", || {
        let added = "SELECT count(added) FROM item";
        (cluster.nodes[1].number(added) == 2).then_some(())
    });
    // A snapshot also brings the rows that did not fit a table that is here.
    assert_eq!(rows_held(&cluster.nodes[1], "checked"), 1);
    cluster.nodes[0].execute("UPDATE checked SET v = 1");
    cluster.nodes[0].execute("DROP TABLE keyed");
    until("it fits", || {
        (cluster.nodes[1].number("SELECT count(*) FROM checked") == 1).then_some(())
    });
    assert_eq!(rows_held(&cluster.nodes[1], "checked"), 0);
    assert_eq!(words(&cluster.nodes[1].run(&["held", "-check"])).0, Some(2));
}

#[test]
fn a_database_that_we_never_saw_is_an_error() {
    let node = Node::new(1);
    for words_of in [&["held"][..], &["held", "-drop", "t"]] {
        let (code, text) = words(&node.run(words_of));
        assert_eq!(code, Some(1));
        assert!(
            text.contains("HarmonyLite was never started on it"),
            "{text}"
        );
    }
}
