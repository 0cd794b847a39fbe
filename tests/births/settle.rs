//! Settling: which lives are in the table, and which numbers their children show. All of it is a
//! function of what the node knows.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::life::{Birth, Life, LifeId, NEVER};
use crate::mistake::Mistake;
use crate::node::{LinkId, Network, Node};

impl Node {
    /// Shows what there is to show. Lives are admitted from the highest version down; one whose
    /// number is taken waits, one whose UNIQUE value is taken is displaced.
    pub fn settle(&mut self, net: &Network) {
        assert!(self.file.log.is_empty());
        let file = &mut self.file;
        let is_buried = buried(net, &file.lives.0);
        let lives = file.lives.0.iter();
        let mut order: Vec<(&LifeId, &Life)> = lives
            .filter(|(id, life)| life.row.is_some() && !is_buried(id))
            .collect();
        order.sort_by_key(|(id, life)| Reverse((life.version, id.birth, id.home)));
        file.rows.clear();
        file.shown.clear();
        file.waiting.clear();
        file.displaced.clear();
        let (mut claimed, mut uniques) = (BTreeSet::new(), BTreeSet::new());
        for (id, life) in order {
            let row = life.row.expect("live");
            if claimed.contains(&life.number) {
                file.waiting.insert(*id);
            } else if row.unique.is_some_and(|unique| uniques.contains(&unique)) {
                file.displaced.insert(*id);
                // The number belongs to its newest life, displaced or not.
                if !net.makes(Mistake::DisplacedGivesWay) {
                    claimed.insert(life.number);
                }
            } else {
                claimed.insert(life.number);
                uniques.extend(row.unique);
                file.rows.insert(life.number, row);
                file.shown.insert(life.number, *id);
            }
        }
        let last = file.rows.last_key_value().map_or(0, |(number, _)| *number);
        file.sequence = file.sequence.max(last);
        self.show_children(net);
        self.show_links(net);
    }

    fn show_children(&mut self, net: &Network) {
        let mut children = BTreeMap::new();
        for (k, child) in &self.file.children_known {
            let Some((number, word)) = child.row else {
                continue;
            };
            let moved = child.parent.and_then(|id| self.moved_to(net, id));
            children.insert(*k, (moved.unwrap_or(number), word));
        }
        self.file.children = children;
    }

    /// The number of a life that was moved.
    fn moved_to(&self, net: &Network, id: LifeId) -> Option<u32> {
        let by_mover =
            net.makes(Mistake::MovedByInsertAndDelete) || net.makes(Mistake::ChildrenByMover);
        let life = self.file.lives.get(id).filter(|_| !by_mover)?;
        (life.moved != NEVER).then_some(life.number)
    }

    fn show_links(&mut self, net: &Network) {
        type Best = (bool, bool, Option<LifeId>, u32);
        let mut best: BTreeMap<(u32, char), (Best, LinkId, u32)> = BTreeMap::new();
        for (id, (_, word)) in &self.file.links {
            let Some(word) = *word else { continue };
            let moved = id.parent.and_then(|life| self.moved_to(net, life));
            let number = moved.unwrap_or(id.number);
            let is_shown =
                id.parent.is_some() && self.file.shown.get(&number) == id.parent.as_ref();
            let order = (!is_shown, id.parent.is_none(), id.parent, id.number);
            let known = best.get(&(number, id.tag));
            if known.is_none_or(|(other, ..)| order < *other) {
                best.insert((number, id.tag), (order, *id, word));
            }
        }
        let rows = best.iter().map(|(key, (_, _, word))| (*key, *word));
        self.file.junction = rows.collect();
        self.file.links_shown = best.iter().map(|(key, (_, id, _))| (*key, *id)).collect();
    }
}

/// A mistake: a tombstone ends all lives that were born at its number before it.
fn buried(net: &Network, lives: &BTreeMap<LifeId, Life>) -> impl Fn(&LifeId) -> bool + use<> {
    let mut tombs = BTreeMap::new();
    if net.makes(Mistake::TombstoneOfNumber) {
        for (id, life) in lives.iter().filter(|(_, life)| life.row.is_none()) {
            let newest = tombs.entry(id.home).or_insert(NEVER);
            *newest = life.version.max(*newest);
        }
    }
    move |id| match id.birth {
        Birth::Chosen(hlc, node, _) => tombs.get(&id.home).is_some_and(|t| (hlc, node) <= *t),
        _ => false,
    }
}
