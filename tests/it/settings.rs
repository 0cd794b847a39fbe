//! Effects of the keys of the configuration.

use harmonylite::stream::key_value::KeyValue;

use crate::cluster::Cluster;
use crate::health::{serve, until_health};
use crate::node::{Node, pause, until};

#[test]
fn nodes_that_are_set_up_differently_are_told_so() {
    for (key, here, there) in [
        ("replication_log.shards", "2", "1"),
        ("replication_log.compress", "false", "true"),
    ] {
        let mut cluster = Cluster::stopped(2, |_| {});
        cluster.nodes[0].start();
        cluster.nodes[0].until_log("connected to NATS");
        let node = &mut cluster.nodes[1];
        node.set(key, here).start();
        assert_eq!(node.wait().code(), Some(1));
        let says = format!("{key} is {here} here and {there} on the other nodes");
        assert!(node.log().contains(&says), "{}", node.log());
        node.set("replication_log.update_existing", "true").start();
        if key == "replication_log.compress" {
            assert_eq!(node.wait().code(), Some(1));
            assert!(node.log().contains("cannot be changed"), "{}", node.log());
            continue;
        }
        // The operator decides which of the two values is right.
        node.until_log("the shared settings are changed");
        node.until_log("connected to NATS");
    }
}

/// One write to the bucket, which anybody with a login to the broker can make, ends nobody.
#[test]
fn settings_that_make_no_sense_end_nobody() {
    let mut cluster = Cluster::stopped(2, |_| {});
    let port = serve(&mut cluster.nodes[0]);
    Node::start_all(&mut cluster.nodes);
    cluster.nodes[0].execute("INSERT INTO item VALUES (0, 'a', 0)");
    cluster.converge();
    let bucket = "harmonylite-changes-meta";
    let again_with = |cluster: &mut Cluster, settings: &str, id: u64| {
        let client = cluster.broker.client();
        let settings = settings.as_bytes();
        KeyValue::open(&client, bucket)
            .put("settings", settings)
            .unwrap();
        cluster.broker.kill();
        cluster.broker.start_again();
        for (n, node) in cluster.nodes.iter().enumerate() {
            node.execute(&format!("INSERT INTO item VALUES ({id}{n}, 'b', {n})"));
        }
        cluster.converge();
    };
    for (id, garbage) in [(1, "garbage"), (2, "{}"), (3, "\u{1b}[2J\n")] {
        again_with(&mut cluster, garbage, id);
    }
    until("a node writes the settings anew", || {
        let says = "\"garbage\" are no settings; they are written anew";
        let mut nodes = cluster.nodes.iter();
        nodes.any(|node| node.log().contains(says)).then_some(())
    });
    // They make sense and are not ours: this node goes on, and one that starts asks what is right.
    let others = r#"{"format":1,"replication_log.shards":7,"replication_log.compress":true,
                     "nats.subject_prefix":"harmonylite-change-log"}"#;
    again_with(&mut cluster, others, 4);
    until_health(
        port,
        503,
        &["replication_log.shards is 1 here and 7 on the other nodes"],
    );
    assert_eq!(cluster.nodes[0].rows().len(), 9);
    cluster.nodes[1].stop();
    cluster.nodes[1].start();
    assert_eq!(cluster.nodes[1].wait().code(), Some(1));
}

/// A node that is away has not read all of the streams that a change would leave behind.
#[test]
fn shards_are_not_lowered() {
    let mut cluster = Cluster::stopped(2, |_| {});
    cluster.nodes[0].set("replication_log.shards", "2").start();
    cluster.nodes[0].until_log("connected to NATS");
    let node = &mut cluster.nodes[1];
    node.set("replication_log.update_existing", "true").start();
    assert_eq!(node.wait().code(), Some(1));
    assert!(node.log().contains("not lowered"), "{}", node.log());
}

#[test]
fn one_that_only_listens() {
    let mut cluster = Cluster::stopped(2, |_| {});
    cluster.nodes[1].set("publish", "false");
    Node::start_all(&mut cluster.nodes);
    cluster.nodes[1].execute("INSERT INTO item VALUES (2, 'mine', 1)");
    cluster.nodes[0].execute("INSERT INTO item VALUES (1, 'yours', 0)");
    until("the row arrives", || {
        (cluster.nodes[1].rows().len() == 2).then_some(())
    });
    assert_eq!(cluster.nodes[0].rows().len(), 1);
    cluster.nodes.iter().for_each(|node| node.check());
}

#[test]
fn one_that_only_sends() {
    let mut cluster = Cluster::stopped(2, |_| {});
    cluster.nodes[1].set("replicate", "false");
    Node::start_all(&mut cluster.nodes);
    cluster.nodes[0].execute("INSERT INTO item VALUES (1, 'a', 0)");
    cluster.nodes[1].execute("INSERT INTO item VALUES (2, 'b', 1)");
    until("the row arrives", || {
        (cluster.nodes[0].rows().len() == 2).then_some(())
    });
    until("all is acknowledged", || {
        cluster.nodes[1].is_quiet().then_some(())
    });
    assert_eq!(cluster.nodes[1].rows().len(), 1);
}

#[test]
fn polling() {
    let cluster = Cluster::start(2, |node| {
        node.set("polling_interval", "50");
    });
    cluster.nodes[0].execute("INSERT INTO item VALUES (1, 'a', 0)");
    cluster.nodes[1].execute("INSERT INTO item VALUES (2, 'b', 1)");
    assert_eq!(cluster.converge().len(), 2);
}

#[test]
fn excluded_tables_stay_at_home() {
    let cluster = Cluster::stopped(2, |node| {
        node.set("tables.exclude", "['cache_*']");
        node.execute("CREATE TABLE cache_a (id INTEGER PRIMARY KEY, v)");
    });
    let mut cluster = cluster;
    Node::start_all(&mut cluster.nodes);
    cluster.nodes[0].execute("INSERT INTO cache_a VALUES (1, 'a')");
    cluster.nodes[0].execute("INSERT INTO item VALUES (1, 'a', 0)");
    until("the row arrives", || {
        (cluster.nodes[1].rows().len() == 1).then_some(())
    });
    assert_eq!(cluster.nodes[1].number("SELECT count(*) FROM cache_a"), 0);
}

#[test]
fn a_gap_is_said() {
    let mut cluster = Cluster::start(2, |node| {
        node.set("replication_log.max_entries", "20")
            .set("snapshot.enabled", "false");
    });
    cluster.nodes[0].execute("INSERT INTO item VALUES (0, 'a', 0)");
    cluster.converge();
    cluster.nodes[1].stop();
    for id in 1..60 {
        cluster.nodes[0].execute(&format!("INSERT INTO item VALUES ({id}, 'b', 0)"));
        pause(5);
    }
    until("all is sent", || cluster.nodes[0].is_quiet().then_some(()));
    cluster.nodes[1].start();
    let gone = "were dropped by the broker before this node read them";
    cluster.nodes[1].until_log(gone);
    // The node goes on with the messages that are there, and remembers the gap.
    until("the rest", || {
        (cluster.nodes[1].rows().len() > 10).then_some(())
    });
    until("the note", || {
        let noted = "SELECT count(*) FROM __harmonylite___seq_map WHERE gap IS NOT NULL";
        (cluster.nodes[1].number(noted) == 1).then_some(())
    });
    assert_eq!(cluster.nodes[1].log().matches(gone).count(), 1);
}

#[test]
fn a_node_without_a_number_keeps_the_one_it_has() {
    let mut cluster = Cluster::stopped(1, |node| {
        node.unset("node_id_of_nobody");
    });
    let node = &mut cluster.nodes[0];
    node.unset("node_id");
    node.set("cleanup_interval", "150").start();
    node.until_log(".0 node ");
    let number = |log: &str| {
        log.split(".0 node ")
            .nth(1)
            .unwrap()
            .split(' ')
            .next()
            .unwrap()
            .to_owned()
    };
    let first = number(&node.log());
    node.stop();
    node.start();
    until("it starts again", || {
        (node.log().matches(".0 node ").count() == 2).then_some(())
    });
    assert_eq!(number(node.log().rsplit_once("stopping").unwrap().1), first);
    node.set("node_id", "1");
}
