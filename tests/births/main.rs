//! An executable model of rows that number themselves.
//!
//! Two nodes that insert between two exchanges give two rows one number. HarmonyLite keeps one
//! of them today: the one with the higher version. This model says how none is lost, and it is
//! what an implementation is to be compared with. It shares no code with the core.
//!
//! **Lives.** A row is a *life*: table, home number, birth ([`life`]). The birth of a number
//! that SQLite chose is time and node; that of a number which a statement gave is the hash of
//! the values, so that seed rows of two nodes are one row. A tombstone is of one life. A life
//! whose number a newer life has *waits*, with its values, on every node; one whose UNIQUE
//! value a newer life has is displaced ([`settle`]). A number belongs to its newest life,
//! displaced or not.
//!
//! **Capture** ([`capture`]) tells by the kinds of the change log's entries, in their order,
//! whether the row under a number is the same life as before. [`kinds`] shows that triggers can
//! tell these kinds. The version of a birth is above all that is known under its number: a row
//! that the application just wrote is never hidden at once.
//!
//! **Numbers** may be moved: the number of a life is a register of its own beside its values.
//! Children name the life that they mean, so which number they show is a function of what a
//! node knows, and nobody rewrites them. [`ranges`] shows how SQLite's numbering can be led so
//! that nothing needs to move while the broker is reachable.
//!
//! **Upgrade.** What a node that assigns no births writes is the life without a birth of its
//! number. Rows from before of a node that joins later are that life, too, if there is one.
//!
//! Each seed is a history ([`history`]) of two to four nodes, and [`verdict`] says what must
//! hold in the end. `BIRTHS_SEEDS=FROM-TO cargo test --test births fresh_seeds` runs others;
//! with `BIRTHS_MISTAKE=NAME` that mistake is made.
#![allow(unreachable_pub)] // no other crate uses any of it

mod application;
mod capture;
mod history;
mod kinds;
mod life;
mod mistake;
mod node;
#[path = "../sim/random.rs"]
#[allow(dead_code)] // the simulation uses all of it
mod random;
mod ranges;
mod settle;
mod verdict;

use mistake::Mistake;

/// Seeds that every test run tries.
const SEEDS: std::ops::Range<u64> = 0..1000;

fn failures(seeds: std::ops::Range<u64>, mistake: Option<Mistake>) -> Vec<String> {
    let failed = |seed| {
        let failure = verdict::run(seed, mistake).err()?;
        Some(format!("seed {seed}: {failure}"))
    };
    seeds.filter_map(failed).collect()
}

#[test]
fn no_insert_is_lost_and_all_nodes_agree() {
    assert_eq!(failures(SEEDS, None), [""; 0]);
}

/// Either way all nodes agree. The model goes the way on which less is moved about.
#[test]
fn a_displaced_life_may_give_its_number_to_the_next_one() {
    assert_eq!(failures(SEEDS, Some(Mistake::DisplacedGivesWay)), [""; 0]);
}

/// The seeds are those of the first histories that fail.
#[test]
fn every_mistake_is_found() {
    use Mistake::*;
    let mut survived = Vec::new();
    for (mistake, seed) in [
        (TombstoneOfNumber, 1),
        (BeforeByNode, 23),
        (GivenByNode, 14),
        (ReplacedIsUpdated, 21),
        (EvictionIgnored, 7974),
        (CutDeleteIgnored, 617),
        (BornBelow, 1021),
        (BirthWithoutContent, 6759),
        (WaitingDeletedToo, 2),
        (MovedByInsertAndDelete, 2),
        (ChildrenByMover, 12),
        (JunctionByNumber, 2),
        (ReferenceGuessed, 13735),
        (MovedTombstoneDropped, 11532),
        (CopyBesideOriginal, 23),
    ] {
        assert_eq!(failures(seed..seed + 1, None), [""; 0]);
        if failures(seed..seed + 1, Some(mistake)).is_empty() {
            survived.push(mistake);
        }
    }
    assert_eq!(survived, []);
}

#[test]
fn fresh_seeds() {
    let range = std::env::var("BIRTHS_SEEDS").unwrap_or_else(|_| "1000-1100".into());
    let (from, to) = range.split_once('-').expect("BIRTHS_SEEDS=FROM-TO");
    let number = |text: &str| text.parse().expect("BIRTHS_SEEDS=FROM-TO");
    let wanted = std::env::var("BIRTHS_MISTAKE").ok();
    let mistake = wanted.map(|name| {
        let mut all = Mistake::ALL.iter().copied();
        all.find(|mistake| format!("{mistake:?}") == name)
            .unwrap_or_else(|| panic!("BIRTHS_MISTAKE: there is no {name}"))
    });
    let failed = failures(number(from)..number(to), mistake);
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
