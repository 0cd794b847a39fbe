//! `harmonylite conflicts`, while the daemon runs and without it.

use std::process::Output;

use rusqlite::Connection;

use crate::cluster::Cluster;
use crate::node::Node;

fn words(output: &Output) -> (Option<i32>, String) {
    let all = [&output.stdout[..], &output.stderr].concat();
    let text = String::from_utf8(all).unwrap();
    (output.status.code(), text)
}

#[test]
fn both_nodes_show_the_same_row_that_gives_way() {
    let mut cluster = Cluster::start(2, |node| {
        node.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, email TEXT UNIQUE, name)");
    });
    cluster.converge();
    let nothing = (Some(0), "no row is displaced\n".to_owned());
    assert_eq!(words(&cluster.nodes[0].run(&["conflicts"])), nothing);
    for node in &mut cluster.nodes {
        node.stop();
    }
    cluster.nodes[0].execute("INSERT INTO users VALUES (1, 'ann@x.org', 'Ann')");
    // The versions differ by their time: at equal times the higher node id would win.
    let later = "strftime('%s', 'now') * 1000 + 30000";
    cluster.nodes[1].execute(&format!(
        "INSERT INTO users VALUES (2, 'ann@x.org', 'Anna');
         UPDATE __harmonylite___change_log_global SET created_at = {later}"
    ));
    Node::start_all(&mut cluster.nodes);
    cluster.converge();
    for node in &mut cluster.nodes {
        let (code, text) = words(&node.run(&["conflicts"]));
        assert_eq!(code, Some(0), "{text}");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "table users");
        assert!(lines[1].starts_with("  id = 1, written 20") && lines[1].ends_with(" on node 1"));
        assert_eq!(lines[2], "    has email = 'ann@x.org', name = 'Ann'");
        assert!(lines[3].starts_with("    gives way to id = 2, written 20"));
        assert!(lines[3].ends_with(" on node 2"));
        assert_eq!(lines[4], "      which has email = 'ann@x.org' too");
        assert_eq!(lines[5..], ["1 row is displaced"]);
        let (code, while_running) = words(&node.run(&["--json", "conflicts"]));
        assert_eq!(code, Some(0), "{while_running}");
        let read: serde_json::Value = serde_json::from_str(&while_running).unwrap();
        assert_eq!(read[0]["displaced_by"][0]["version"]["node"], "2");
        node.stop();
        assert_eq!(words(&node.run(&["conflicts", "-json"])).1, while_running);
    }
}

#[test]
fn a_database_that_we_never_saw_is_an_error() {
    let node = Node::new(1);
    let (code, text) = words(&node.run(&["conflicts"]));
    assert_eq!(code, Some(1));
    assert!(
        text.contains("app.db") && text.contains("never started on it"),
        "{text}"
    );
    let tables = "SELECT count(*) FROM sqlite_schema";
    let app = Connection::open(node.database()).unwrap();
    assert_eq!(app.query_row(tables, [], |r| r.get::<_, i64>(0)), Ok(0));
    std::fs::remove_file(node.database()).unwrap();
    let (code, text) = words(&node.run(&["conflicts"]));
    assert_eq!(code, Some(1));
    assert!(text.contains("app.db"), "{text}");
    assert!(!node.database().exists());
    assert_eq!(words(&node.run(&["conflicts", "-check"])).0, Some(2));
}
