//! Runs by seed: a fixed set for every build, and as many fresh ones as there is time for.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::world::World;

/// What one run came to.
pub struct Outcome {
    pub trace: u64,
    pub simulated_ms: i64,
    pub failure: Option<String>,
    pub steps: Vec<String>,
    pub writes: usize,
}

/// One run. The same seed gives the same.
pub fn run(seed: u64) -> Outcome {
    let mut world = match World::new(seed) {
        Ok(world) => world,
        Err(e) => {
            return Outcome {
                trace: 0,
                simulated_ms: 0,
                failure: Some(e),
                steps: vec![],
                writes: 0,
            };
        }
    };
    let begin = world.now_ms;
    let steps = 40 + (seed % 5) as usize * 60;
    let done = catch_unwind(AssertUnwindSafe(|| {
        world.run(steps)?;
        world.heal()?;
        world.check()
    }));
    let failure = match done {
        Ok(Ok(())) => None,
        Ok(Err(e)) => Some(e),
        Err(panic) => Some(match panic.downcast_ref::<String>() {
            Some(text) => format!("panic: {text}"),
            None => format!("panic: {}", panic.downcast_ref::<&str>().unwrap_or(&"?")),
        }),
    };
    Outcome {
        trace: world.trace,
        simulated_ms: world.now_ms - begin,
        failure,
        writes: world.model.total(),
        steps: world.steps,
    }
}

fn report(seed: u64, outcome: &Outcome) -> String {
    let last: Vec<String> = outcome
        .steps
        .iter()
        .map(|s| s.chars().take(600).collect())
        .collect();
    format!(
        "{}\nseed {seed}: {}\nagain: scripts/sim.sh --seed {seed}",
        last.join("\n"),
        outcome.failure.as_deref().unwrap_or("passed")
    )
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn fixed_seeds() {
    let (mut failed, count) = (0, number("SIM_FIXED").unwrap_or(300));
    for seed in 1..=count {
        let outcome = run(seed);
        if outcome.failure.is_some() {
            failed += 1;
            println!("{}", report(seed, &outcome));
        }
    }
    assert_eq!(failed, 0, "of {count} seeds");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [1, 2, 3, 4, 5, 1 << 40] {
        let (first, second) = (run(seed), run(seed));
        assert_eq!(first.steps, second.steps, "seed {seed}");
        assert_eq!(first.trace, second.trace, "seed {seed}");
    }
}

/// `scripts/sim.sh`: SIM_SEED (one), or SIM_FIRST and SIM_SEEDS, or SIM_MINUTES.
#[test]
#[ignore = "runs for as long as it is told"]
fn seeds() {
    if let Some(seed) = number("SIM_SEED") {
        let outcome = run(seed);
        println!("{}", report(seed, &outcome));
        println!("trace {:016x}, {} writes", outcome.trace, outcome.writes);
        assert!(outcome.failure.is_none());
        return;
    }
    let began = Instant::now();
    let limit = number("SIM_MINUTES").map(|m| Duration::from_secs(60 * m));
    let most = number("SIM_SEEDS").unwrap_or(if limit.is_some() { u64::MAX } else { 1000 });
    let first = number("SIM_FIRST").unwrap_or(1);
    let (mut done, mut failed, mut simulated_ms, mut writes) = (0, Vec::new(), 0, 0);
    while done < most && limit.is_none_or(|l| began.elapsed() < l) && failed.len() < 20 {
        let seed = first.wrapping_add(done);
        let outcome = run(seed);
        if let Some(failure) = &outcome.failure {
            println!("seed {seed}: {failure}");
            failed.push(seed);
        }
        (done, simulated_ms, writes) = (
            done + 1,
            simulated_ms + outcome.simulated_ms,
            writes + outcome.writes,
        );
    }
    println!(
        "{done} seeds from {first}, {:.0} simulated hours, {writes} writes, {:.1} seeds/s; failed: {failed:?}",
        simulated_ms as f64 / 3.6e6,
        done as f64 / began.elapsed().as_secs_f64()
    );
    assert!(failed.is_empty());
}
