//! Applications that hold the database for long: endless readers, and tools that lock all others
//! out.

use std::time::{Duration, Instant};

use rusqlite::Connection;
use rustix::process::Signal;

use crate::cluster::Cluster;
use crate::node::{Node, until};

/// Does what Prisma's migrations do: once with an exclusive lock, then closes the connection.
fn migrate(node: &Node, table: &str) -> rusqlite::Result<()> {
    let app = Connection::open(node.file("app.db"))?;
    app.busy_timeout(Duration::from_secs(5))?;
    app.execute_batch("PRAGMA main.locking_mode = EXCLUSIVE")?;
    app.execute_batch(&format!("CREATE TABLE {table}(id INTEGER PRIMARY KEY)"))?;
    app.execute_batch("INSERT INTO item VALUES ((SELECT max(id) + 1 FROM item), 'm', 0)")
}

#[test]
fn a_migration_that_wants_the_database_for_itself_gets_it() {
    let cluster = Cluster::start(2, |_| {});
    cluster.nodes[0].execute("INSERT INTO item VALUES (1, 'a', 0)");
    cluster.converge();
    for table in ["m", "n"] {
        migrate(&cluster.nodes[0], table).unwrap();
        cluster.nodes[1]
            .execute("INSERT INTO item VALUES ((SELECT max(id) + 10 FROM item), 'b', 0)");
        cluster.converge();
    }
    assert_eq!(
        cluster.nodes[0].number("SELECT count(*) FROM item WHERE value = 'm'"),
        2
    );
}

#[test]
fn the_end_comes_while_an_application_has_the_database_for_itself() {
    let mut cluster = Cluster::start(1, |_| {});
    cluster.nodes[0].execute("INSERT INTO item VALUES (1, 'a', 0)");
    cluster.converge();
    let app = Connection::open(cluster.nodes[0].file("app.db")).unwrap();
    app.busy_timeout(Duration::from_secs(5)).unwrap();
    app.execute_batch("PRAGMA locking_mode = EXCLUSIVE; INSERT INTO item VALUES (2, 'b', 0)")
        .unwrap();
    let took = cluster.nodes[0].stop();
    assert!(took < Duration::from_secs(3), "{took:?}");
    drop(app);
    cluster.nodes[0].start();
    assert_eq!(cluster.converge().len(), 2);
}

#[test]
fn beside_a_reader_that_never_ends_rows_arrive_and_the_end_comes() {
    let mut cluster = Cluster::start(2, |node| {
        node.set("courtesy", "2000");
    });
    let readers: Vec<Connection> = cluster.nodes.iter().map(Node::open).collect();
    for reader in &readers {
        reader.execute_batch("BEGIN").unwrap();
        reader
            .query_row("SELECT count(*) FROM item", [], |_| Ok(()))
            .unwrap();
    }
    cluster.nodes[0].execute("INSERT INTO item VALUES (1, 'a', 0)");
    let arrived = || (cluster.nodes[1].number("SELECT count(*) FROM item") == 1).then_some(());
    until("it arrives", arrived);
    for reader in &readers {
        reader.execute_batch("COMMIT; BEGIN").unwrap();
        reader
            .query_row("SELECT count(*) FROM item", [], |_| Ok(()))
            .unwrap();
    }
    cluster.nodes[1].execute("INSERT INTO item VALUES (2, 'b', 0)");
    for node in &mut cluster.nodes {
        let began = Instant::now();
        node.signal(Signal::TERM);
        assert_eq!(node.wait().code(), Some(0));
        let took = began.elapsed();
        assert!(took < Duration::from_secs(3), "{took:?}");
    }
}
