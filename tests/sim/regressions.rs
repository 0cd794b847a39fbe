//! Seeds that once failed. What a seed does changes with the workload: what was wrong has a test of
//! its own beside the code, too.

use crate::runs::run;

/// Seed, and what it found.
const SEEDS: [(u64, &str); 5] = [
    (874, "a row that nobody else ever heard of"),
    (1701, "later values under an earlier version"),
    (
        507,
        "a held tombstone dropped for what a snapshot had before",
    ),
    (538, "a stream known under its predecessor's name for ever"),
    (859, "a held row dropped for what a snapshot had before"),
];

#[test]
fn seeds_that_failed_once_pass() {
    for (seed, what) in SEEDS {
        assert_eq!(run(seed).failure, None, "seed {seed}: {what}");
    }
}
