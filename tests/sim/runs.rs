//! Runs by seed: a fixed set for every build, and as many fresh ones as time allows.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use crate::world::World;

/// Bits of worlds with snapshots; in some of those, nodes forget deletes.
pub const SNAPSHOTS: u64 = 16;
pub const FORGETTING: u64 = SNAPSHOTS | 4;
/// Bits of worlds in which a node that is away for long lacks something.
pub const AWAY: u64 = FORGETTING | 8;
/// Bits of worlds in which the broker loses everything and databases are put back.
pub const DISASTERS: u64 = SNAPSHOTS | 1 << 14;

/// Bit of worlds in which a table is rebuilt with a different key, and nothing else is there.
pub const REKEYED: u64 = 1 << 13;

/// In the end rows are changed behind the triggers' back, and mended.
pub const DAMAGED: u64 = 1 << 15;

/// Bit of worlds in which all nodes give births to rows that SQLite numbers; with `UPGRADED`, some
/// nodes begin only at a start.
pub const BIRTHS: u64 = 1 << 18;
pub const UPGRADED: u64 = BIRTHS | 1 << 19;

/// Bits of worlds in which every other node has room for a few held rows only.
pub const SCARCE: u64 = SNAPSHOTS | 1 << 16;

/// The outcome of one run.
pub struct Outcome {
    pub trace: u64,
    pub simulated_ms: i64,
    pub failure: Option<String>,
    pub steps: Vec<String>,
    pub writes: usize,
}

/// Runs one seed. The same seed gives the same outcome.
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
        if seed & DAMAGED != 0 && seed & BIRTHS == 0 {
            world.damage_and_repair()?;
        }
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

/// An environment variable; none if it is not set.
fn number<T: FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    let number = text.parse().ok();
    Some(number.unwrap_or_else(|| panic!("{name} is {text:?}, but must be a number")))
}

/// The recorded outcome of every seed of the fixed set: `SEED TRACE WRITES MILLISECONDS`.
const TRACES: &str = "tests/golden/traces.txt";

/// The fixed set also proves that a change of the code changes no behaviour: a hash over all events
/// of a run must equal the recorded one.
#[test]
fn fixed_seeds() {
    let traces = Mutex::new(BTreeMap::new());
    let note = |seed, outcome: &Outcome| {
        let Outcome {
            trace,
            writes,
            simulated_ms,
            ..
        } = outcome;
        let text = format!("{trace:016x} {writes} {simulated_ms}");
        traces.lock().expect("no panic").insert(seed, text);
    };
    for (count, bits) in [
        (300, 0),
        (40, DISASTERS),
        (60, REKEYED),
        (20, DAMAGED),
        (30, BIRTHS),
        (20, UPGRADED),
        (40, SCARCE),
    ] {
        let total = run_many(1, count, bits, || true, &note);
        assert!(
            total.failed.is_empty(),
            "scripts/sim.sh --seed {:?}",
            total.failed
        );
    }
    compare_with_recorded(&traces.into_inner().expect("no panic"));
}

fn compare_with_recorded(traces: &BTreeMap<u64, String>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(TRACES);
    let line = |(seed, trace): (&u64, &String)| format!("{seed} {trace}\n");
    let text: String = traces.iter().map(line).collect();
    if std::env::var_os("SIM_TRACES").is_some() {
        std::fs::write(&path, text).expect("the file is written");
        return;
    }
    let recorded = std::fs::read_to_string(&path).expect("traces are recorded");
    let recorded: BTreeSet<&str> = recorded.lines().collect();
    let others: Vec<&str> = text.lines().filter(|l| !recorded.contains(l)).collect();
    let seeds: Vec<&str> = others.iter().filter_map(|l| l.split(' ').next()).collect();
    assert!(
        seeds.is_empty(),
        "{} of {} worlds went another way than recorded, and all of them passed. A change that is \
         to change no behaviour must leave every trace as it is: `scripts/sim.sh --seed N` before \
         and after shows the first step that differs. Was the behaviour, or a world, changed on \
         purpose, then record the traces anew with `scripts/sim.sh --traces` and say why in the \
         commit. Seeds: {}",
        seeds.len(),
        traces.len(),
        seeds.join(" ")
    );
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let seeds = [1, 2, 3, 4, 5, 1 << 40, REKEYED, DAMAGED, BIRTHS];
    for seed in seeds
        .map(|seed| [seed, seed | AWAY, seed | AWAY | DISASTERS])
        .concat()
    {
        let (first, second) = (run(seed), run(seed));
        assert_eq!(first.steps, second.steps, "seed {seed}");
        assert_eq!(first.trace, second.trace, "seed {seed}");
    }
}

/// The test that `scripts/sim.sh` runs: SIM_SEED (one seed), or SIM_FIRST and SIM_SEEDS, or
/// SIM_MINUTES; SIM_BITS: only seeds with these bits. Without any of these it does nothing: the
/// fixed seeds are a test of their own.
#[test]
fn seeds() {
    let (seed, most, minutes) = (
        number("SIM_SEED"),
        number("SIM_SEEDS"),
        number::<f64>("SIM_MINUTES"),
    );
    if let Some(seed) = seed {
        let outcome = run(seed);
        println!("{}", report(seed, &outcome));
        println!("trace {:016x}, {} writes", outcome.trace, outcome.writes);
        assert!(outcome.failure.is_none());
        return;
    }
    if most.is_none() && minutes.is_none() {
        return;
    }
    let began = Instant::now();
    let limit = minutes.map(|m| Duration::from_secs_f64(60.0 * m));
    let first = number("SIM_FIRST").unwrap_or(1);
    let in_time = || limit.is_none_or(|l| began.elapsed() < l);
    let bits = number("SIM_BITS").unwrap_or(0);
    let total = run_many(first, most.unwrap_or(u64::MAX), bits, in_time, &|_, _| ());
    println!(
        "{} seeds from {first}, {:.0} simulated hours, {} writes, {:.1} seeds/s; failed: {:?}",
        total.done,
        total.simulated_ms as f64 / 3.6e6,
        total.writes,
        total.done as f64 / began.elapsed().as_secs_f64(),
        total.failed
    );
    assert!(total.failed.is_empty() && total.done > 0);
}

#[derive(Default)]
struct Total {
    done: u64,
    simulated_ms: i64,
    writes: usize,
    failed: Vec<u64>,
}

/// Number of failed seeds after which a run over many seeds ends.
const ENOUGH: usize = 20;

/// Runs `most` seeds with these bits, or as many as time allows, on all processors (SIM_JOBS), and
/// hands each outcome to `each`.
fn run_many(
    first: u64,
    most: u64,
    bits: u64,
    in_time: impl Fn() -> bool + Sync,
    each: &(impl Fn(u64, &Outcome) + Sync),
) -> Total {
    let (next, left) = (AtomicU64::new(first), AtomicU64::new(most));
    let total = Mutex::new(Total::default());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed & bits != bits {
                continue;
            }
            let enough = total.lock().expect("no panic").failed.len() >= ENOUGH;
            if enough || !take_one(&left) || !in_time() {
                return;
            }
            let outcome = run(seed);
            let mut total = total.lock().expect("no panic");
            if let Some(failure) = &outcome.failure {
                println!("seed {seed}: {failure}");
                total.failed.push(seed);
            }
            each(seed, &outcome);
            total.done += 1;
            total.simulated_ms += outcome.simulated_ms;
            total.writes += outcome.writes;
        }
    };
    on_all_processors(&work);
    total.into_inner().expect("no panic")
}

/// The first of `most` seeds with these bits that fails, and how.
#[cfg(feature = "mutations")]
pub fn first_failure(most: u64, bits: u64) -> Option<(u64, String)> {
    let bits = bits | number("SIM_BITS").unwrap_or(0);
    let (next, left) = (AtomicU64::new(1), AtomicU64::new(most));
    let first: Mutex<Option<(u64, String)>> = Mutex::new(None);
    let known = || first.lock().expect("no panic").as_ref().map(|f| f.0);
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed & bits != bits {
                continue;
            }
            if !take_one(&left) || known().is_some_and(|known| known < seed) {
                return;
            }
            let failure = run(seed).failure;
            let mut first = first.lock().expect("no panic");
            if let Some(failure) = failure
                && first.as_ref().is_none_or(|f| seed < f.0)
            {
                *first = Some((seed, failure));
            }
        }
    };
    on_all_processors(&work);
    first.into_inner().expect("no panic")
}

/// Takes one off the count; false if none is left.
fn take_one(left: &AtomicU64) -> bool {
    let less = |n: u64| n.checked_sub(1);
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
        .is_ok()
}

/// Runs the work on all processors, or on SIM_JOBS of them.
fn on_all_processors(work: &(impl Fn() + Sync)) {
    let all = || available_parallelism().map_or(1, |n| n.get() as u64);
    let jobs = number("SIM_JOBS").unwrap_or_else(all);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(work);
        }
    });
}
