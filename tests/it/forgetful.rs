//! A broker that is wiped, or put back so that it gives numbers out again.

use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use serde_json::json;

use crate::cluster::Cluster;
use crate::node::Node;

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp")
        .arg("-a")
        .arg(from)
        .arg(to)
        .status()
        .unwrap();
    assert!(done.success());
}

fn wipe(cluster: &mut Cluster) {
    cluster.broker.kill();
    fs::remove_dir_all(&cluster.broker.options.store_dir).unwrap();
    cluster.broker.start_again();
}

fn fill(cluster: &Cluster, node: usize, ids: std::ops::Range<i64>) {
    for id in ids {
        cluster.nodes[node].execute(&format!("INSERT INTO item VALUES ({id}, 'x', {node})"));
    }
}

#[test]
fn wiped_while_the_daemons_run() {
    let mut cluster = Cluster::start(2, |_| {});
    fill(&cluster, 0, 0..20);
    fill(&cluster, 1, 20..40);
    cluster.converge();
    wipe(&mut cluster);
    fill(&cluster, 0, 40..50);
    fill(&cluster, 1, 50..60);
    assert_eq!(cluster.converge().len(), 60);
}

/// The two nodes had never met before the store was gone.
#[test]
fn wiped_while_the_daemons_are_down() {
    let mut cluster = Cluster::stopped(2, |_| {});
    cluster.nodes[0].start();
    fill(&cluster, 0, 0..20);
    crate::node::until("all is sent", || cluster.nodes[0].is_quiet().then_some(()));
    cluster.nodes[0].stop();
    wipe(&mut cluster);
    fill(&cluster, 0, 20..25);
    fill(&cluster, 1, 30..35);
    Node::start_all(&mut cluster.nodes);
    assert_eq!(cluster.converge().len(), 30);
}

/// Different streams take the place of those that are gone while a node is away. The node treats
/// them like streams that were created anew.
#[test]
fn wiped_to_change_the_compression() {
    let mut cluster = Cluster::start(2, |_| {});
    fill(&cluster, 0, 0..20);
    cluster.converge();
    cluster.nodes[1].stop();
    fill(&cluster, 0, 20..25);
    crate::node::until("all is sent", || cluster.nodes[0].is_quiet().then_some(()));
    cluster.nodes[0].stop();
    wipe(&mut cluster);
    for node in &mut cluster.nodes {
        node.set("replication_log.compress", "false");
    }
    Node::start_all(&mut cluster.nodes);
    assert_eq!(cluster.converge().len(), 25);
    assert!(cluster.nodes[1].log().contains("is not read any more"));
}

#[test]
fn set_back_and_filled_by_another() {
    // A node may have to wait for a gap to close, twice.
    let mut cluster = Cluster::start(3, |node| {
        node.set("snapshot.leader_ttl", "2000");
    });
    fill(&cluster, 0, 0..10);
    cluster.converge();
    cluster.nodes[2].stop();
    cluster.broker.kill();
    let store = cluster.broker.options.store_dir.clone();
    let backup = store.with_file_name("backup");
    copy(&store, &backup);
    cluster.broker.start_again();
    // The first two nodes know these rows, and the broker until it forgets them.
    fill(&cluster, 0, 100..110);
    fill(&cluster, 1, 110..120);
    crate::cluster::converge(&cluster.nodes[..2]);
    cluster.nodes[0].stop();
    cluster.nodes[1].stop();
    cluster.broker.kill();
    fs::remove_dir_all(&store).unwrap();
    fs::rename(&backup, &store).unwrap();
    cluster.broker.start_again();
    // The third node's messages get the numbers of the lost ones, and more.
    cluster.nodes[2].start();
    fill(&cluster, 2, 200..230);
    crate::node::until("all is sent", || cluster.nodes[2].is_quiet().then_some(()));
    cluster.nodes[0].start();
    cluster.nodes[1].start();
    assert_eq!(cluster.converge().len(), 60);
}

/// All nodes stay connected: only the server's answers tell them of the loss.
#[test]
fn set_back_while_the_daemons_run() {
    let mut cluster = Cluster::start(2, |_| {});
    fill(&cluster, 0, 0..10);
    cluster.converge();
    cluster.broker.kill();
    let store = cluster.broker.options.store_dir.clone();
    let backup = store.with_file_name("backup");
    copy(&store, &backup);
    cluster.broker.start_again();
    fill(&cluster, 0, 100..110);
    cluster.converge();
    cluster.broker.kill();
    fill(&cluster, 0, 200..205);
    fill(&cluster, 1, 300..340);
    fs::remove_dir_all(&store).unwrap();
    fs::rename(&backup, &store).unwrap();
    cluster.broker.start_again();
    assert_eq!(cluster.converge().len(), 65);
}

/// The stream is deleted and created anew, or put back from a copy, by a server to which the
/// daemons are not connected: their connections live on, and the numbers begin anew.
#[test]
fn made_anew_behind_living_connections() {
    let cluster = Cluster::start(2, |_| {});
    fill(&cluster, 0, 0..20);
    fill(&cluster, 1, 20..40);
    cluster.converge();
    let client = cluster.broker.client();
    let call =
        |subject: &str, body: &serde_json::Value| client.api(subject, body).unwrap().unwrap();
    let names = call("STREAM.NAMES", &json!({}));
    let names = names["streams"].as_array().unwrap().iter();
    let names: Vec<_> = names.map(|name| name.as_str().unwrap()).collect();
    let signal = |which| cluster.nodes.iter().for_each(|node| node.signal(which));
    signal(Signal::STOP);
    for name in names.iter().filter(|name| !name.contains('_')) {
        let info = call(&format!("STREAM.INFO.{name}"), &json!({}));
        call(&format!("STREAM.DELETE.{name}"), &json!({}));
        call(&format!("STREAM.CREATE.{name}"), &info["config"]);
    }
    signal(Signal::CONT);
    fill(&cluster, 0, 40..45);
    fill(&cluster, 1, 45..50);
    assert_eq!(cluster.converge().len(), 50);
    for node in &cluster.nodes {
        node.until_log("the stream was created again");
    }
}
