//! The conditions that must hold in the end.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::History;
use crate::life::{Insert, Life, LifeId};
use crate::mistake::Mistake;
use crate::node::File;

/// Runs a history to its end and checks it.
pub fn run(seed: u64, mistake: Option<Mistake>) -> Result<History, String> {
    let mut history = History::new(seed, mistake);
    history.run();
    history.heal()?;
    check(&history)?;
    Ok(history)
}

type Live<'a> = BTreeMap<&'a LifeId, &'a Life>;

fn live(file: &File) -> Live<'_> {
    let lives = file.lives.0.iter();
    lives.filter(|(_, life)| life.row.is_some()).collect()
}

fn check(history: &History) -> Result<(), String> {
    check_equal(history)?;
    let file = &history.nodes[0].file;
    let mut places: BTreeMap<Insert, Vec<(LifeId, u32)>> = BTreeMap::new();
    for (id, life) in live(file) {
        let row = life.row.expect("live");
        places
            .entry(row.insert)
            .or_default()
            .push((*id, life.number));
    }
    check_inserts(history, &places)?;
    let is_common = |insert: &Insert| matches!(insert, Insert::Before(_, None));
    if places
        .iter()
        .any(|(insert, all)| is_common(insert) && all.len() > 1)
    {
        return Err("equal rows from before are two".into());
    }
    if history.net.undone > 0 {
        return Err("a write is taken back by its own capture".into());
    }
    match history.renumbers {
        true => check_numbers(history, &places),
        false => Ok(()),
    }
}

fn check_equal(history: &History) -> Result<(), String> {
    let first = &history.nodes[0].file;
    for node in &history.nodes[1..] {
        let file = &node.file;
        let differ = [
            ("rows", file.rows != first.rows),
            ("children", file.children != first.children),
            ("junction rows", file.junction != first.junction),
            ("lives", live(file) != live(first)),
            ("waiting", file.waiting != first.waiting),
            ("displaced", file.displaced != first.displaced),
            (
                "dead lives",
                !history.has_dropped && file.lives != first.lives,
            ),
            (
                "dead links",
                !history.has_dropped && file.links != first.links,
            ),
        ];
        if let Some((what, _)) = differ.iter().find(|(_, differs)| *differs) {
            return Err(format!("{what} differ"));
        }
    }
    Ok(())
}

/// Every insert is in the table, waits or is displaced, unless somebody who saw it ended it.
fn check_inserts(
    history: &History,
    places: &BTreeMap<Insert, Vec<(LifeId, u32)>>,
) -> Result<(), String> {
    let (record, file) = (&history.record, &history.nodes[0].file);
    let ids: BTreeSet<u32> = history.nodes.iter().map(|node| node.id).collect();
    for (insert, is_promised) in &record.inserts {
        if !is_promised || record.ended.contains(insert) || record.gone.contains(insert) {
            continue;
        }
        let Some(all) = places.get(insert) else {
            return Err("an insert is lost".into());
        };
        for (id, number) in all {
            let waits = file.waiting.contains(id);
            let is_shown = file
                .rows
                .get(number)
                .is_some_and(|row| row.insert == *insert);
            if !waits && !file.displaced.contains(id) && !is_shown {
                return Err("an insert is neither in the table nor aside".into());
            }
            let mover = id.birth.mover();
            if history.renumbers && waits && mover.is_some_and(|node| ids.contains(&node)) {
                return Err("a waiting life got no number".into());
            }
        }
    }
    Ok(())
}

/// With renumbering: a row is under one number, and its children at it.
fn check_numbers(
    history: &History,
    places: &BTreeMap<Insert, Vec<(LifeId, u32)>>,
) -> Result<(), String> {
    let (record, file) = (&history.record, &history.nodes[0].file);
    let mut seen = BTreeSet::new();
    for row in file.rows.values() {
        if matches!(row.insert, Insert::Own(_)) && !seen.insert(row.insert) {
            return Err("a row is there twice".into());
        }
    }
    let is_at_parent = |number: u32, word: u32| {
        let parent = record.meant[&word];
        let parent = parent.filter(|p| !record.ended.contains(p) && !record.gone.contains(p));
        let all = parent.and_then(|parent| places.get(&parent));
        all.is_none_or(|all| {
            let (id, at) = all[0];
            file.waiting.contains(&id) || file.displaced.contains(&id) || at == number
        })
    };
    if !file
        .children
        .values()
        .all(|(number, word)| is_at_parent(*number, *word))
    {
        return Err("a child is at another parent".into());
    }
    if !file
        .junction
        .iter()
        .all(|((number, _), word)| is_at_parent(*number, *word))
    {
        return Err("a junction row is at another parent".into());
    }
    for (insert, number) in &record.given {
        let at = places.get(insert).map(|all| all[0].1);
        if at.is_some_and(|at| at != *number) && !record.by_hand.contains(insert) {
            return Err("a given number is changed".into());
        }
    }
    Ok(())
}
