//! Proves that the simulation can fail: it finds every mistake of [`harmonylite::mutation`] within
//! a bounded number of seeds.
#![cfg(feature = "mutations")]

use harmonylite::mutation::{self, Mutation};

use crate::runs;

/// Seeds that a mistake may survive.
const PATIENCE: u64 = 10_000;

/// The bits of the worlds in which a mistake can show.
fn worlds(mistake: Mutation) -> u64 {
    use Mutation::*;
    match mistake {
        MarkedTombstonesDropped
        | TombstonesDroppedEarly
        | ForgottenStampedAgain
        | BuriedInSilence => runs::FORGETTING,
        SnapshotOfUncaptured | PositionsBeforeMerge | GapForgottenOnMerge | LackingRowsDeleted
        | MarksNotCarried | JoinedBeforeMerging => runs::SNAPSHOTS,
        OthersGapsIgnored => runs::AWAY,
        LostStreamsForgotten => runs::DISASTERS,
        RekeyedCountsAsNow | MigratedCountsAsNow | RekeyedNotSent | TableAtWorkTaken
        | TableAtWorkFilled | FormerKeyHeld | LeftOutCountsAsNow | LeftOutComesBack
        | OldKeyNotSent => runs::REKEYED,
        RepairKeepsVersion
        | RepairCountsAsNow
        | RepairPublishesOldest
        | RepairSpreadsDamage
        | RepairOfLaterWrite
        | LastRowNotSummed
        | ColumnNotSummed
        | RecordedIsTrusted => runs::DAMAGED,
        DeleteNamesNoBirth | DeleteAndInsertIsUpdate | WaitingDeletedWithShown => runs::BIRTHS,
        DamageForgottenOnMerge => runs::DAMAGED | runs::SNAPSHOTS,
        _ => 0,
    }
}

#[test]
fn every_mistake_is_found() {
    let mut survived = Vec::new();
    println!("{:<24} {:>6}  by", "mistake", "seed");
    // SIM_MISTAKES names the wanted mistakes, with commas between them.
    let wanted = std::env::var("SIM_MISTAKES").ok();
    let find = |name: &str| {
        let mut all = Mutation::ALL.iter().copied();
        all.find(|m| name == format!("{m:?}"))
            .unwrap_or_else(|| panic!("SIM_MISTAKES: there is no {name:?}"))
    };
    let mistakes = match &wanted {
        Some(names) => names.split(',').map(find).collect(),
        None => Mutation::ALL.to_vec(),
    };
    std::panic::set_hook(Box::new(|_| {})); // a panic is one way to be found
    for mistake in mistakes {
        mutation::set(Some(mistake));
        let found = runs::first_failure(PATIENCE, worlds(mistake));
        mutation::set(None);
        match found {
            Some((seed, _)) if runs::run(seed).failure.is_some() => {
                println!("{mistake:?}: seed {seed} fails without it as well");
                survived.push(mistake);
            }
            Some((seed, failure)) => {
                let line: String = failure
                    .lines()
                    .next()
                    .unwrap_or_default()
                    .chars()
                    .take(110)
                    .collect();
                println!("{:<24} {seed:>6}  {line}", format!("{mistake:?}"));
            }
            None => {
                println!(
                    "{:<24} {:>6}  survives {PATIENCE} seeds",
                    format!("{mistake:?}"),
                    "-"
                );
                survived.push(mistake);
            }
        }
    }
    let _ = std::panic::take_hook();
    assert!(survived.is_empty(), "not found: {survived:?}");
}
