//! Two nodes with one id.

use crate::cluster::Cluster;
use crate::node::until;

/// One id in two configurations. Each node sees rows of the other under its own id, and an entry in
/// the broker's bucket that it did not write.
#[test]
fn of_two_nodes_with_one_id_one_takes_another() {
    let cluster = Cluster::start(2, |node| {
        node.set("node_id", "7").set("status_interval", "1000");
    });
    let [first, second] = &cluster.nodes[..] else {
        panic!("two nodes");
    };
    let mut rows = 0;
    until("one of them takes another id", || {
        for (node, half) in [(first, 0), (second, 1)] {
            let id = 2 * rows + half;
            node.execute(&format!("INSERT INTO item VALUES ({id}, 'a', {half})"));
        }
        rows += 1;
        let logs = [first.log(), second.log()];
        logs.iter()
            .any(|log| log.contains("this node takes the id"))
            .then_some(())
    });
    let claims = [first.log(), second.log()];
    assert!(
        claims
            .iter()
            .any(|log| log.contains("is not from this node"))
    );
    cluster.converge();
}
