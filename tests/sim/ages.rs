//! Long times: nodes drop tombstones, and a node comes back after all others have forgotten the
//! deletes that it missed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use harmonylite::model::cbor;
use harmonylite::model::version::Version;
use harmonylite::shared::Shared;

use crate::model::RowId;
use crate::node::Node;
use crate::numbered::number;
use crate::plan::Plan;
use crate::world::{DAY_MS, KEEP, Step, World};

/// Additional state of a world in which nodes forget deletes.
#[derive(Default)]
pub struct Ages {
    /// By the snapshot's name: the rows that were unsent when it was made. The snapshot hands them
    /// on.
    snapshots: BTreeMap<String, BTreeSet<RowId>>,
    /// The unsent rows of the round that is under way.
    making: BTreeSet<RowId>,
    /// The node that drops tombstones just now, and the tombstones that it had before.
    sweeping: Option<(usize, BTreeSet<Tombstone>)>,
}

type Tombstone = (RowId, Version);

/// How long a node of such a world remembers a delete.
pub const RETENTION_MS: i64 = DAY_MS;

/// A node's state during a long absence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    There,
    /// The publisher hangs.
    Mute,
    CutOff,
    Down,
}

impl World {
    /// Does what `Snapshots::drop_tombstones` does before each round: one step of it, or all.
    pub fn sweep(&mut self, place: usize, to_the_end: bool) -> Step {
        if self.ages.is_none() {
            return Ok(());
        }
        let failed = |e: harmonylite::database::DatabaseError| format!("sweep: {e}");
        self.nodes[place].db().note_age().map_err(failed)?;
        if self.nodes[place].sweep.is_none() && self.nodes[place].shared().all_at_end() {
            let sweep = self.nodes[place].db().sweep().map_err(failed)?;
            self.nodes[place].sweep = sweep;
        }
        while let Some(mut sweep) = self.nodes[place].sweep.take() {
            let before = self.nodes[place].tombstones(&self.plan);
            self.ages.as_mut().expect("asked").sweeping = Some((place, before));
            let done = self.nodes[place].db().sweep_step(&mut sweep);
            let done = done.map_err(failed)?;
            self.look_after_sweep()?;
            if done {
                self.say(format!("node {place}: swept, {} dropped", sweep.dropped));
            } else {
                self.nodes[place].sweep = Some(sweep);
                if !to_the_end {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Records the tombstones that a sweep dropped, also after a kill in the midst of it.
    pub fn look_after_sweep(&mut self) -> Step {
        let sweeping = self.ages.as_mut().and_then(|a| a.sweeping.take());
        let Some((place, before)) = sweeping else {
            return Ok(());
        };
        let after = self.nodes[place].tombstones(&self.plan);
        let dropped: Vec<Tombstone> = before.difference(&after).cloned().collect();
        if dropped.is_empty() {
            return Ok(());
        }
        let unsent = self.unsent_anywhere();
        for (at, version) in dropped {
            // The sweep itself takes some simulated time.
            let latest_ms = self.now_ms - RETENTION_MS * 9 / 10;
            if self.model.is_later(&at, version, latest_ms) {
                return Err(format!(
                    "node {place}: {} [{}] the tombstone {version} is dropped too early\n{}",
                    self.plan.tables[at.0].name,
                    at.1,
                    self.model.history(&at)
                ));
            }
            let may_return = unsent.contains(&at);
            self.model.drop_tombstone(at, version, may_return);
        }
        Ok(())
    }

    /// Rows that some node, or a copy of one, has not sent yet. No other node knew of such a write,
    /// so it counts when the tombstone is forgotten.
    fn unsent_anywhere(&self) -> BTreeSet<RowId> {
        let mut all = BTreeSet::new();
        for node in &self.nodes {
            all.extend(node.unsent_rows(&self.plan));
            for image in node.image.iter().chain(&node.backups) {
                all.extend(image.unsent.iter().cloned());
            }
        }
        let (Some(snapshots), Some(ages)) = (&self.snapshots, &self.ages) else {
            return all;
        };
        for name in snapshots.objects.names() {
            all.extend(ages.snapshots.get(&name).into_iter().flatten().cloned());
        }
        all
    }

    /// Records the unsent rows when a scheduler's round begins, on its way and when it ends.
    pub fn note_unsent(&mut self, place: usize, begins: bool) {
        let (Some(snapshots), Some(ages)) = (&self.snapshots, &mut self.ages) else {
            return;
        };
        if begins {
            ages.making.clear();
        }
        ages.making
            .extend(self.nodes[place].unsent_rows(&self.plan));
        for name in snapshots.objects.names() {
            ages.snapshots
                .entry(name)
                .or_insert_with(|| ages.making.clone());
        }
    }

    /// Days pass. Most nodes are there; `place` may be away.
    pub fn long_time(&mut self, place: usize) -> Step {
        let is_at_work = |n: &Node| n.shared.is_some() && n.scheduler.is_none();
        if self.ages.is_none() || self.nodes.iter().any(is_at_work) {
            return Ok(());
        }
        use Part::*;
        let mut parts = Vec::new();
        for other in 0..self.nodes.len() {
            let kinds: &[Part] = match other == place {
                true => &[CutOff, Down, Down, Mute, There],
                false => &[There, There, There, There, There, There, Mute, CutOff, Down],
            };
            parts.push(*self.random.pick(kinds));
        }
        self.say(format!("a long time: {parts:?}"));
        for (other, part) in parts.iter().enumerate() {
            let is_away = *part == CutOff;
            if self.nodes[other].is_cut_off != is_away {
                self.cut_off(other);
            }
            match (part, self.nodes[other].shared.is_some()) {
                (Down, true) => self.nodes[other].crash(),
                (There | Mute, false) => self.start(other)?,
                _ => {}
            }
        }
        for _ in 0..2 + self.random.below(4) {
            for other in 0..self.nodes.len() {
                if self.random.percent(40) {
                    self.write(other);
                }
            }
            self.settle(&parts)?;
            self.be_busy()?;
            let ms = self.random.between(RETENTION_MS / 8, RETENTION_MS * 3 / 4);
            self.let_pass(ms);
        }
        self.settle(&parts)
    }

    /// Writes so many messages, one by one, that streams drop messages which absent nodes did not
    /// read.
    fn be_busy(&mut self) -> Step {
        if self.options.max_entries > 20 {
            return Ok(());
        }
        for _ in 0..self.random.below(2 * self.options.max_entries + 2) {
            let place = self.random.below(self.nodes.len());
            if !self.is_there(place) {
                continue;
            }
            self.write(place);
            self.connect(place)?;
            self.capture_all(place)?;
            while self.send_one(place)? || self.carry_one(place, false) || self.take_ack(place) {}
            for reader in 0..self.nodes.len() {
                if self.is_there(reader) {
                    self.read_to_the_end(reader)?;
                }
            }
        }
        Ok(())
    }

    /// Every node that is there sends, reads and runs its scheduler until nothing is left to do.
    fn settle(&mut self, parts: &[Part]) -> Step {
        for place in 0..self.nodes.len() {
            if !self.is_there(place) {
                continue; // in the midst of a round it may go, and another may come
            }
            let mute = parts.get(place) == Some(&Part::Mute);
            self.connect(place)?;
            self.capture_all(place)?;
            if !mute {
                self.send_all(place)?;
            }
            for reader in 0..self.nodes.len() {
                if self.is_there(reader) {
                    self.read_to_the_end(reader)?;
                }
            }
            if self.random.percent(60) {
                self.step_killed(KEEP, place, None)?;
            } else {
                self.sweep(place, true)?;
            }
            self.after(place)?;
        }
        Ok(())
    }

    fn is_there(&self, place: usize) -> bool {
        self.nodes[place].shared.is_some() && !self.nodes[place].is_cut_off
    }

    /// Lets time pass. Connections with messages under way break, and every file is synced.
    fn let_pass(&mut self, ms: i64) {
        for place in 0..self.nodes.len() {
            let node = &mut self.nodes[place];
            let is_on_its_way = node.link.as_ref().is_some_and(|l| !l.wire.is_empty());
            let waits = |shared: &Arc<Shared>| !shared.lock().outbox.is_empty();
            if is_on_its_way || node.shared.as_ref().is_some_and(waits) {
                node.drop_link();
            }
            self.sync(place);
        }
        self.say(format!("{} h pass", ms / 3_600_000));
        self.pass(ms);
    }
}

/// The key as the plan spells it: the versions tables of some tables have the key columns in a
/// different order.
fn key_text(plan: &Plan, table: usize, bytes: &[u8]) -> Option<String> {
    let mut key = cbor::key_values(bytes).ok()?;
    let spec = &plan.tables[table];
    if spec.is_turned() {
        key.reverse();
    }
    Some(spec.key_text(&key))
}

impl Node {
    fn tombstones(&self, plan: &Plan) -> BTreeSet<Tombstone> {
        let mut all = BTreeSet::new();
        for table in 0..plan.tables.len() {
            let deleted = self.versions(plan, table).into_iter();
            let deleted = deleted.filter(|(_, s)| s.deleted);
            all.extend(deleted.map(|(key, s)| ((table, key), s.version)));
        }
        all
    }

    /// Whether a row is displaced.
    pub fn is_displaced(&self, plan: &Plan, table: usize, key: &str) -> bool {
        let text = "SELECT key FROM __harmonylite___displaced
                    JOIN __harmonylite___tables ON id = table_id WHERE name = ?1";
        let mut statement = self.app().prepare(text).expect("displaced");
        let mut keys = statement.query([&plan.tables[table].name]).expect("keys");
        while let Some(row) = keys.next().expect("key") {
            let bytes: Vec<u8> = row.get(0).expect("key");
            if key_text(plan, table, &bytes).as_deref() == Some(key) {
                return true;
            }
        }
        false
    }

    /// Live rows of this node that no stream has acknowledged, captured or not.
    pub fn unsent_rows(&self, plan: &Plan) -> BTreeSet<RowId> {
        let pending = self.shadow.pending.iter().filter(|(_, row)| row.is_some());
        let mut all: BTreeSet<RowId> = pending.map(|(at, _)| at.clone()).collect();
        let text = "SELECT name, key FROM __harmonylite___unsent
                    JOIN __harmonylite___tables ON id = table_id";
        let Ok(mut statement) = self.app().prepare_cached(text) else {
            return all; // no core was here yet
        };
        let mut marks = statement.query([]).expect("marks");
        let mut marked = BTreeMap::<usize, BTreeSet<String>>::new();
        while let Some(mark) = marks.next().expect("mark") {
            let name: String = mark.get(0).expect("name");
            let key: Vec<u8> = mark.get(1).expect("key");
            let same = |t: &crate::plan::Table| t.name.eq_ignore_ascii_case(&name);
            let Some(table) = plan.tables.iter().position(same) else {
                continue;
            };
            let key = key_text(plan, table, &key);
            marked.entry(table).or_default().extend(key);
        }
        for (table, keys) in marked {
            let versions = self.versions(plan, table);
            let live = versions.into_iter().filter(|(_, s)| !s.deleted);
            let marked = live.filter(|(life, _)| keys.contains(number(life)));
            all.extend(marked.map(|(life, _)| (table, life)));
        }
        all
    }
}
