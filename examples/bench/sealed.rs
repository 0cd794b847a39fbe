//! What the cluster key costs: the throughput with it and without, in turn.

use std::fs;

use harmonylite::seal::key;

use crate::Result;
use crate::cluster::{Cluster, directory};
use crate::measure;
use crate::report::Report;

/// Measures both `runs` times, and prints the medians.
pub fn measure(runs: usize) -> Result<()> {
    let dir = directory()?;
    let file = dir.path().join("cluster.key");
    fs::write(&file, key::make(1)?)?;
    let sealed = format!("cluster_key_file = \"{}\"\n", file.display());
    let mut reports = [Report::default(), Report::default()];
    for _ in 0..runs {
        for (report, first) in reports.iter_mut().zip(["", &sealed]) {
            let cluster = Cluster::start_with(first)?;
            cluster.settle()?;
            measure::throughput(&cluster, report)?;
            cluster.stop()?;
        }
    }
    let [open, sealed] = reports.map(|report| report.median("rows/s"));
    println!("| rows/s one way | median of {runs} | goal |");
    println!("|---|---|---|");
    println!("| without a cluster key | {open:.0} | |");
    println!(
        "| with the cluster key | {sealed:.0} ({:.2} ×) | 0.9 × |",
        sealed / open
    );
    Ok(())
}
