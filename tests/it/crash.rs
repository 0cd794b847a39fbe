//! Daemon and server killed at random moments, under load.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rusqlite::{Connection, params};

use crate::cluster::Cluster;
use crate::node::pause;

/// A small generator of random numbers; the same seed gives the same numbers.
struct Dice(u64);

impl Dice {
    /// Takes the seed from `HARMONYLITE_TEST_SEED`, else `default`.
    fn new(default: u64) -> Dice {
        let given = std::env::var("HARMONYLITE_TEST_SEED").ok();
        let seed = given.map_or(default, |text| text.parse().expect("a number"));
        println!("HARMONYLITE_TEST_SEED={seed}");
        Dice(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Writes rows that no other node changes, and rows that all nodes change. Returns the number of
/// its own rows.
fn load(app: &mut Connection, n: usize, stop: &AtomicBool) -> i64 {
    let mut own = 0;
    while !stop.load(Ordering::Relaxed) {
        let change = app.transaction().unwrap();
        for _ in 0..1 + own % 7 {
            let id = 1000 + own * 10 + n as i64;
            let insert = "INSERT INTO item VALUES (?1, ?2, ?3)";
            change.execute(insert, params![id, own, n]).unwrap();
            own += 1;
        }
        let shared = "REPLACE INTO item VALUES (?1, ?2, ?3)";
        change.execute(shared, params![own % 10, own, n]).unwrap();
        if own % 50 == 0 {
            change
                .execute("DELETE FROM item WHERE id = ?1", [own % 10])
                .unwrap();
        }
        change.commit().unwrap();
        pause(2);
    }
    own
}

fn run(shards: u32, seed: u64, hits: impl Fn(&mut Cluster, &mut Dice)) {
    let mut dice = Dice::new(seed);
    let mut cluster = Cluster::start(3, |node| {
        node.set("replication_log.shards", &shards.to_string());
    });
    let stop = AtomicBool::new(false);
    let mut apps: Vec<_> = cluster.nodes.iter().map(|node| node.open()).collect();
    let written: i64 = std::thread::scope(|scope| {
        let writers: Vec<_> = apps
            .iter_mut()
            .enumerate()
            .map(|(n, app)| {
                scope.spawn({
                    let stop = &stop;
                    move || load(app, n, stop)
                })
            })
            .collect();
        let end = Instant::now() + Duration::from_secs(6);
        while Instant::now() < end {
            pause(20 + dice.below(300));
            hits(&mut cluster, &mut dice);
        }
        stop.store(true, Ordering::Relaxed);
        writers
            .into_iter()
            .map(|writer| writer.join().unwrap())
            .sum()
    });
    cluster.converge();
    for node in &cluster.nodes {
        let found = node.number("SELECT count(*) FROM item WHERE id >= 1000");
        assert_eq!(found, written, "rows are lost");
    }
}

fn kill_a_node(cluster: &mut Cluster, dice: &mut Dice) {
    let node = &mut cluster.nodes[dice.below(3) as usize];
    node.kill();
    pause(dice.below(100));
    node.start();
}

fn kill_the_broker(cluster: &mut Cluster, dice: &mut Dice) {
    cluster.broker.kill();
    pause(dice.below(100));
    cluster.broker.start_again();
}

#[test]
fn killed_daemons() {
    run(1, 11, kill_a_node);
}

#[test]
fn a_killed_server() {
    run(4, 12, kill_the_broker);
}

#[test]
fn killed_daemons_and_servers() {
    run(1, 13, |cluster, dice| {
        if dice.below(3) == 0 {
            kill_the_broker(cluster, dice);
        } else {
            kill_a_node(cluster, dice);
        }
    });
}
