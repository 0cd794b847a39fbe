//! A table that one node leaves out and the other replicates.

use crate::cluster::Cluster;
use crate::node::{Node, until};

const LOGS: &str = "CREATE TABLE logs (id INTEGER PRIMARY KEY, m)";
const MANY: &str = "WITH RECURSIVE s(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM s WHERE i < 1000)
                    INSERT INTO logs SELECT i, 'm' FROM s";

#[test]
fn an_excluded_table_takes_no_space_and_comes_when_it_is_wanted() {
    let mut cluster = Cluster::stopped(2, |node| node.execute(LOGS));
    cluster.nodes[1].set("tables.exclude", "['logs']");
    Node::start_all(&mut cluster.nodes);
    let [one, two] = &mut cluster.nodes[..] else {
        unreachable!()
    };
    one.execute(MANY);
    one.execute("DELETE FROM logs WHERE id > 10");
    one.execute("INSERT INTO item VALUES (1, 'a', 0)");
    until("the other table arrives", || {
        (two.number("SELECT count(*) FROM item") == 1).then_some(())
    });
    assert_eq!(two.number("SELECT count(*) FROM __harmonylite___held"), 0);
    assert_eq!(two.number("SELECT count(*) FROM __harmonylite___parts"), 0);
    assert_eq!(two.number("SELECT count(*) FROM logs"), 0);
    let log = two.log();
    assert!(log.contains("the configuration excludes it"), "{log}");
    assert!(!log.contains("there is no such table here"), "{log}");

    two.stop();
    two.unset("tables.exclude");
    two.set("node_id", "2").start();
    two.until_log("a snapshot brings the changes that were let go");
    assert_eq!(cluster.converge().len(), 11);
}
