//! Rows arrive: both ways, in any number, whole.

use rusqlite::params;

use crate::cluster::Cluster;
use crate::node::{Node, pause, until};

#[test]
fn two_nodes_one_shard() {
    rows_arrive_both_ways(2, 1);
}

#[test]
fn two_nodes_four_shards() {
    rows_arrive_both_ways(2, 4);
}

#[test]
fn three_nodes_one_shard() {
    rows_arrive_both_ways(3, 1);
}

#[test]
fn three_nodes_four_shards() {
    rows_arrive_both_ways(3, 4);
}

/// Inserts, updates and deletes; then all nodes write the same rows at once.
fn rows_arrive_both_ways(nodes: u64, shards: u32) {
    let cluster = Cluster::start(nodes, |node| {
        node.set("replication_log.shards", &shards.to_string());
    });
    for (n, node) in cluster.nodes.iter().enumerate() {
        for row in 0..50 {
            let id = row * 10 + n;
            node.execute(&format!("INSERT INTO item VALUES ({id}, 'one', {n})"));
        }
    }
    assert_eq!(cluster.converge().len(), 50 * nodes as usize);
    cluster.nodes[0].execute("UPDATE item SET value = 'two' WHERE id >= 100");
    cluster.nodes[1].execute("DELETE FROM item WHERE id < 100");
    let rows = cluster.converge();
    assert_eq!(rows.len(), 40 * nodes as usize);
    assert!(rows.iter().all(|row| row.contains("'two'")), "{rows:?}");
    for round in 0..20 {
        for (n, node) in cluster.nodes.iter().enumerate() {
            node.execute(&format!(
                "UPDATE item SET value = {round}, writer = {n} WHERE id % 3 > 0"
            ));
        }
        pause(7);
    }
    assert_eq!(cluster.converge().len(), 40 * nodes as usize);
    let streams = cluster.nodes[0].number("SELECT count(*) FROM __harmonylite___seq_map");
    assert_eq!(streams, i64::from(shards));
}

#[test]
fn the_same_rows_at_the_same_time() {
    let cluster = Cluster::start(3, |_| {});
    cluster.nodes[0].execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200)
         INSERT INTO item SELECT i, 0, 0 FROM n",
    );
    cluster.converge();
    let write = |n: usize, node: &Node| {
        let app = node.open();
        for round in 0..100 {
            let first = (round * 7 + n) % 20;
            match round % 10 {
                9 => app.execute("DELETE FROM item WHERE id % 20 = ?1", [first]),
                8 => app.execute("REPLACE INTO item VALUES (?1, 'back', ?2)", [first, n]),
                _ => app.execute(
                    "UPDATE item SET value = ?1, writer = ?2 WHERE id % 20 <> ?3",
                    [round, n, first],
                ),
            }
            .unwrap();
        }
    };
    std::thread::scope(|scope| {
        for (n, node) in cluster.nodes.iter().enumerate() {
            scope.spawn(move || write(n, node));
        }
    });
    cluster.converge();
}

#[test]
fn a_large_blob_arrives() {
    let cluster = Cluster::start(2, |_| {});
    let blob: Vec<u8> = (0..20_000_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let app = cluster.nodes[0].open();
    app.execute("INSERT INTO item VALUES (1, ?1, 0)", params![blob])
        .unwrap();
    let arrived: Vec<u8> = until("the blob arrives", || {
        let app = cluster.nodes[1].open();
        app.query_row("SELECT value FROM item", [], |r| r.get(0))
            .ok()
    });
    assert!(arrived == blob);
    cluster.nodes[1].execute("INSERT INTO item VALUES (2, 'small', 1)");
    cluster.converge();
}

#[test]
fn a_transaction_arrives_whole() {
    let cluster = Cluster::start(2, |node| {
        node.set("scan_max_changes", "1000");
    });
    let (writer, reader) = (cluster.nodes[0].open(), cluster.nodes[1].open());
    let count = |sql| reader.query_row(sql, [], |r| r.get::<_, i64>(0)).unwrap();
    for round in 1..=5 {
        writer.execute_batch("BEGIN").unwrap();
        for id in 0..1000 {
            let change = "REPLACE INTO item VALUES (?1, ?2, 0)";
            writer.execute(change, params![id, round]).unwrap();
        }
        writer.execute_batch("COMMIT").unwrap();
        until("the transaction arrives", || {
            let seen = count("SELECT count(*) FROM item");
            assert!(seen == 0 || seen == 1000, "a part is seen: {seen} rows");
            let values = count("SELECT count(DISTINCT value) FROM item");
            assert!(values <= 1, "a part is seen: {values} values");
            (count("SELECT coalesce(max(value), 0) FROM item") == round).then_some(())
        });
    }
    cluster.converge();
}

#[test]
fn rows_from_before() {
    let mut cluster = Cluster::stopped(2, |_| {});
    cluster.nodes[0].execute("INSERT INTO item VALUES (1, 'a', 1), (2, 'b', 1)");
    cluster.nodes[1].execute("INSERT INTO item VALUES (2, 'c', 2), (3, 'd', 2)");
    Node::start_all(&mut cluster.nodes);
    assert_eq!(cluster.converge().len(), 3);
}

#[test]
fn a_node_that_joins_later_gets_everything() {
    let mut cluster = Cluster::stopped(3, |_| {});
    cluster.nodes[0].start();
    for id in 0..300 {
        cluster.nodes[0].execute(&format!("INSERT INTO item VALUES ({id}, 'x', 0)"));
    }
    cluster.nodes[0].execute("DELETE FROM item WHERE id % 3 = 0");
    cluster.nodes[1].start();
    cluster.nodes[2].start();
    assert_eq!(cluster.converge().len(), 200);
}
