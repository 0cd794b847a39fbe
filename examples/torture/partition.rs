//! A bad network between node 3 and the others with the broker, in scripts/netlab.sh.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::check::{self, Content};
use crate::cluster::Cluster;
use crate::random::Random;
use crate::{Options, Result};

const PATIENCE: Duration = Duration::from_secs(90);
/// A trouble lasts between a twelfth and a sixth of the time, within these bounds. The upper one is
/// longer than the patience of a publisher (ACK_WAIT) and of a consumer (FETCH_WAIT).
const SHORTEST: Duration = Duration::from_secs(3);
const LONGEST: Duration = Duration::from_secs(120);

pub fn run(options: Options) -> Result<()> {
    options.nothing_left()?;
    let mut random = Random::new(options.seed, 0);
    let mut cluster = Cluster::new(&options.folder, options.seed, 3)?;
    cluster.address.0 = "10.77.0.1".into();
    let port = cluster.address.1.to_string();
    let far = ["scripts/netlab.sh", ":on_b"].map(String::from).to_vec();
    cluster.nodes[2].daemon_prefix.clone_from(&far);
    cluster.nodes[2].app_prefix = far;
    cluster.start()?;
    let ids = |cluster: &Cluster| -> Vec<_> {
        let daemons = cluster.nodes.iter().filter_map(|n| n.daemon.as_ref());
        daemons.map(|d| d.id()).collect()
    };
    let began_with = ids(&cluster);
    let troubles: [&[&str]; 5] = [
        &[":cut"],
        &[":loss", "30"],
        &[":reset", &port],
        &[":slow", "256"],
        &[":deaf"],
    ];
    let longest = (options.time / 6).clamp(SHORTEST, LONGEST).as_millis() as u64;
    let began = Instant::now();
    let mut base = Content::new();
    let mut round = 0;
    while round < troubles.len() || began.elapsed() < options.time {
        let trouble = troubles[round % troubles.len()];
        // A link of 256 kbit carries some hundred rows a second.
        cluster.pause = if trouble[0] == ":slow" { 60 } else { 15 };
        cluster.forget_records();
        cluster.start_apps()?;
        std::thread::sleep(Duration::from_millis(500));
        netlab(trouble)?;
        let cut_off = [newest(&cluster, 0, 0)?, newest(&cluster, 2, 2)?];
        std::thread::sleep(Duration::from_millis(
            longest / 2 + random.below(longest / 2),
        ));
        if trouble[0] == ":cut" {
            apart(&cluster, 0, 2, cut_off[0])?;
            apart(&cluster, 2, 0, cut_off[1])?;
        }
        let differ =
            check::content(&cluster.nodes[0].db())? != check::content(&cluster.nodes[2].db())?;
        netlab(&[":heal"])?;
        std::thread::sleep(Duration::from_millis(500));
        let healed = check::healed(&mut cluster, &mut base, PATIENCE)?;
        round += 1;
        println!(
            "round {round}: {}, sides {}, {healed}",
            trouble.join(" "),
            if differ { "differed" } else { "were equal" }
        );
    }
    if ids(&cluster) != began_with {
        return Err("a daemon was started again".into());
    }
    println!("all equal, nothing lost, no daemon restarted: {round} rounds");
    Ok(())
}

/// The newest number of the application of `writer` that node `here` has.
fn newest(cluster: &Cluster, here: usize, writer: usize) -> Result<u64> {
    let writer = cluster.nodes[writer].id;
    let content = check::content(&cluster.nodes[here].db())?;
    let stamps = content.values().map(|(stamp, _)| stamp);
    let own = stamps.filter(|stamp| stamp.0 == writer);
    Ok(own.map(|stamp| stamp.1).max().unwrap_or_default())
}

/// Checks that writes of `one` since the number `cut_off` are not on `other`, and that there are
/// some.
fn apart(cluster: &Cluster, one: usize, other: usize, cut_off: u64) -> Result<()> {
    let (here, there) = (newest(cluster, one, one)?, newest(cluster, other, one)?);
    match there <= cut_off && cut_off < here {
        true => Ok(()),
        false => Err(format!(
            "cut off at {cut_off}, one side is at {here}, the other has {there}"
        ))?,
    }
}

fn netlab(words: &[&str]) -> Result<()> {
    let status = Command::new("scripts/netlab.sh").args(words).status()?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("scripts/netlab.sh {}: {status}", words.join(" ")).into()),
    }
}
