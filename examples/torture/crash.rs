//! kill -9 of daemons, applications and the broker under load.

use std::time::{Duration, Instant};

use crate::check::{self, Content};
use crate::cluster::Cluster;
use crate::random::Random;
use crate::{Options, Result};

const PATIENCE: Duration = Duration::from_secs(60);

pub fn run(mut options: Options) -> Result<()> {
    let embedded = options.rest.contains("--embedded");
    let nodes = options.option("--nodes", 3)?;
    options.nothing_left()?;
    let mut random = Random::new(options.seed, 0);
    let mut cluster = Cluster::new(&options.folder, options.seed, nodes)?;
    cluster.nodes[0].embedded = embedded;
    cluster.start()?;
    let began = Instant::now();
    let mut base = Content::new();
    let (mut round, mut totals) = (0, Totals::default());
    while began.elapsed() < options.time {
        round += 1;
        cluster.forget_records();
        cluster.start_apps()?;
        let until = Instant::now() + Duration::from_millis(3000 + random.below(5000));
        while Instant::now() < until {
            std::thread::sleep(Duration::from_millis(30 + random.below(400)));
            strike(&mut cluster, &mut random, &mut totals)?;
        }
        let healed = check::healed(&mut cluster, &mut base, PATIENCE)?;
        println!("round {round}: {healed}");
        totals.transactions += healed.transactions;
    }
    println!(
        "all equal, nothing lost, all databases sound: {round} rounds, {} transactions, kill -9 of \
         {} daemons, {} applications, {} brokers",
        totals.transactions, totals.daemons, totals.apps, totals.brokers
    );
    Ok(())
}

#[derive(Default)]
struct Totals {
    transactions: usize,
    daemons: u32,
    apps: u32,
    brokers: u32,
}

/// Kills a process, and starts it again at once or a little later.
fn strike(cluster: &mut Cluster, random: &mut Random, totals: &mut Totals) -> Result<()> {
    let away = Duration::from_millis([0, 0, 50, 300, 900][random.below(5) as usize]);
    let index = random.below(cluster.nodes.len() as u64) as usize;
    match random.below(10) {
        0..4 => {
            kill_daemon(cluster, index, totals)?;
            std::thread::sleep(away);
            cluster.start_daemon(index)
        }
        4..7 => {
            kill_app(cluster, index, totals)?;
            cluster.start_app(index)
        }
        7..9 => {
            kill_broker(cluster, totals)?;
            std::thread::sleep(away);
            start_broker(cluster)
        }
        _ => {
            for index in 0..cluster.nodes.len() {
                kill_app(cluster, index, totals)?;
                kill_daemon(cluster, index, totals)?;
            }
            kill_broker(cluster, totals)?;
            std::thread::sleep(away);
            start_broker(cluster)?;
            for index in 0..cluster.nodes.len() {
                cluster.start_app(index)?;
                cluster.start_daemon(index)?;
            }
            Ok(())
        }
    }
}

fn kill_daemon(cluster: &mut Cluster, index: usize, totals: &mut Totals) -> Result<()> {
    if let Some(daemon) = cluster.nodes[index].daemon.take() {
        daemon.kill()?;
        totals.daemons += 1;
    }
    Ok(())
}

fn kill_app(cluster: &mut Cluster, index: usize, totals: &mut Totals) -> Result<()> {
    if let Some(app) = cluster.nodes[index].app.take() {
        app.kill()?;
        totals.apps += 1;
    }
    Ok(())
}

/// A daemon starts its own nats-server again by itself.
fn kill_broker(cluster: &mut Cluster, totals: &mut Totals) -> Result<()> {
    totals.brokers += 1;
    if let Some(broker) = cluster.broker.take() {
        broker.kill()?;
    } else if let Some(daemon) = &cluster.nodes[0].daemon {
        for child in daemon.children() {
            daemon.kill_child(child);
        }
    }
    Ok(())
}

fn start_broker(cluster: &mut Cluster) -> Result<()> {
    if cluster.nodes.iter().any(|n| n.embedded) {
        return Ok(());
    }
    cluster.start_broker()
}
