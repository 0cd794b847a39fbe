//! Which tables take part, with real daemons: books of migrations, Litestream's tables, and a table
//! with a name that only looks like an index's storage.

use crate::cluster::{Cluster, client_of};
use crate::health::{serve, until_health};
use crate::node::{Node, until};

const SCHEMA: &str = "
    CREATE TABLE docs_content(id INTEGER PRIMARY KEY, body TEXT);
    CREATE VIRTUAL TABLE docs USING fts5(body, content='docs_content', content_rowid='id');
    CREATE TABLE django_migrations(id INTEGER PRIMARY KEY AUTOINCREMENT, app, name, applied);
    CREATE TABLE _litestream_seq(id INTEGER PRIMARY KEY, seq INTEGER);
    CREATE TABLE _litestream_lock(id INTEGER);
    INSERT INTO django_migrations VALUES (1, 'a', '0001', 'then')";

fn snapshots(node: &mut Node) {
    node.set("snapshot.leader_ttl", "2000");
}

fn until_row(node: &Node, sql: &str) {
    until(sql, || (node.number(sql) == 1).then_some(()));
}

#[test]
fn books_stay_and_content_travels_also_to_nodes_that_come_later() {
    let mut cluster = Cluster::stopped(2, |node| {
        snapshots(node);
        node.execute(SCHEMA);
    });
    let port = serve(&mut cluster.nodes[1]);
    Node::start_all(&mut cluster.nodes);
    cluster.nodes[0].execute(
        "INSERT INTO docs_content VALUES (1, 'hello'); INSERT INTO item VALUES (1, 'x', 1);
         INSERT INTO django_migrations VALUES (2, 'a', '0002', 'now');
         INSERT INTO _litestream_seq VALUES (1, 7)",
    );
    for (id, node) in cluster.nodes.iter().enumerate() {
        until_row(node, "SELECT count(*) > 0 FROM docs_content, item");
        let books = "SELECT count(*) FROM django_migrations";
        assert_eq!(node.number(books), 2 - id as i64);
        for named in [
            "table _litestream_lock is local, not replicated: Litestream",
            "table django_migrations is local, not replicated: Django",
            "table docs is virtual, not replicated: ",
            "table docs_data is storage, not replicated: the virtual table docs ",
        ] {
            node.until_log(named);
        }
        assert!(!node.log().contains("docs_content is"), "{}", node.log());
    }
    let listed = r#"its own","table":"_litestream_seq"}"#;
    until_health(port, 200, &["\"tables\":[{\"part\":\"local\"", listed]);

    // Node 1 makes the snapshot, so that its local tables come along.
    cluster.nodes[0].signal(rustix::process::Signal::USR1);
    cluster.nodes[0].until_log("because it was asked for");
    for (id, has_file) in [(3, false), (4, true)] {
        let mut node = Node::new(id);
        snapshots(client_of(&cluster.broker, &mut node));
        if !has_file {
            for end in ["", "-wal", "-shm"] {
                let _ = std::fs::remove_file(node.file(&format!("app.db{end}")));
            }
        }
        node.start();
        until("the row is there", || {
            let app = rusqlite::Connection::open_with_flags(
                node.database(),
                rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE,
            );
            let count = "SELECT count(*) > 0 FROM docs_content, item";
            let count = app.and_then(|app| app.query_row(count, [], |r| r.get(0)));
            (count == Ok(1)).then_some(())
        });
        assert_eq!(node.number("SELECT count(*) FROM django_migrations"), 2);
        assert_eq!(node.number("SELECT seq FROM _litestream_seq"), 7);
        let body = format!("later {id}");
        cluster.nodes[0].execute(&format!("INSERT INTO docs_content VALUES ({id}, '{body}')"));
        let sql = format!("SELECT count(*) FROM docs_content WHERE body = '{body}'");
        until_row(&node, &sql);
        // The full-text index works, though no trigger fed it.
        let matches = "SELECT count(*) FROM docs WHERE docs MATCH 'nothing'";
        assert_eq!(node.number(matches), 0);
    }
}
