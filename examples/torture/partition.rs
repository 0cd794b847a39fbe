//! A bad network between node 3 and the others with the broker, in scripts/netlab.sh.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::check::{self, Content};
use crate::cluster::Cluster;
use crate::random::Random;
use crate::{Options, Result};

const PATIENCE: Duration = Duration::from_secs(90);

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
        &[":cut"],
    ];
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
        // Longer than most: a reset is over at once, a dead connection takes its time to notice.
        let longest = options.time.as_millis() as u64 / 6;
        std::thread::sleep(Duration::from_millis(1500 + random.below(longest)));
        let apart =
            check::content(&cluster.nodes[0].db())? != check::content(&cluster.nodes[2].db())?;
        netlab(&[":heal"])?;
        std::thread::sleep(Duration::from_millis(500));
        let healed = check::healed(&mut cluster, &mut base, PATIENCE)?;
        round += 1;
        println!(
            "round {round}: {}, sides {}, {healed}",
            trouble.join(" "),
            if apart { "differed" } else { "were equal" }
        );
    }
    if ids(&cluster) != began_with {
        return Err("a daemon was started again".into());
    }
    println!("all equal, nothing lost, no daemon restarted: {round} rounds");
    Ok(())
}

fn netlab(words: &[&str]) -> Result<()> {
    let status = Command::new("scripts/netlab.sh").args(words).status()?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("scripts/netlab.sh {}: {status}", words.join(" ")).into()),
    }
}
