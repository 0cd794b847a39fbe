//! Rounds of a node's scheduler of snapshots, and the events in the midst of one.

use std::io;
use std::panic::resume_unwind;
use std::time::Duration;

use harmonylite::snapshot::error::TransferError;
use harmonylite::snapshot::scheduler::{NextRound, Round, RoundError, Scheduler, SchedulerOptions};
use harmonylite::snapshot::watch::{self, Watch};
use harmonylite::store::StoreError;

use crate::clock::Killed;
use crate::node::Node;
use crate::objects::Objects;
use crate::observe;
use crate::registry::{Bulletin, LEASE_MS};
use crate::rekeyed::MOST_MS;
use crate::world::{KEEP, LONG_TIME, SWEEP, Step, World};

/// The streams' prefix.
pub const CLUSTER: &str = "sim";

/// Most rounds, of different nodes, that run inside of each other.
const DEEPEST: usize = 2;

/// The registry, the store and the settings that all nodes share for their snapshots.
#[derive(Clone)]
pub struct Snapshots {
    pub bulletin: Bulletin,
    pub objects: Objects,
    pub max_entries: u64,
    pub interval: Option<Duration>,
    /// True: no event strikes in the midst of a round any more.
    pub calm: bool,
    depth: usize,
}

impl Snapshots {
    pub fn new(
        bulletin: Bulletin,
        objects: Objects,
        max_entries: u64,
        interval: Option<Duration>,
    ) -> Self {
        Snapshots {
            bulletin,
            objects,
            max_entries,
            interval,
            calm: false,
            depth: 0,
        }
    }

    /// Whether a round is under way. A node cannot be put back meanwhile.
    pub fn is_in_midst(&self) -> bool {
        self.depth > 0
    }

    pub fn scheduler(&self) -> Scheduler {
        Scheduler::new(SchedulerOptions {
            cluster: CLUSTER.into(),
            max_entries: self.max_entries,
            interval: self.interval,
            leader_ttl: Duration::from_millis(LEASE_MS as u64),
            may_make: true,
            scratch: None,
            selection: String::new(),
        })
    }
}

/// Lets events happen in the midst of a round.
struct Midst<'w> {
    world: &'w mut World,
    place: usize,
    /// The streams in which the node lacks something, until a merge is done.
    lacks: Option<Vec<String>>,
    /// The step and whether it ended. Events strike at the begin and the end of a step: how often a
    /// step reports in between depends on sizes.
    last: (&'static str, bool),
    failure: Option<String>,
}

impl Midst<'_> {
    fn visit(&mut self, step: &'static str) -> io::Result<()> {
        self.world.visit(self.place, step).map_err(|e| {
            self.failure = Some(e);
            watch::stop()
        })
    }
}

impl Watch for Midst<'_> {
    fn progress(&mut self, step: &'static str, done: u64, total: u64) -> io::Result<()> {
        let now = (step, done >= total);
        if now == self.last {
            return Ok(());
        }
        self.last = now;
        self.visit(step)
    }

    fn pause(&mut self, _: Duration) -> io::Result<()> {
        let place = self.place;
        if self.world.rekeyed.is_some() {
            // The round may wait for a migration. How long it pauses depends on the machine.
            let wait = self.world.nodes[place].db().next_check();
            let ms = wait.map_or(0, |wait| MOST_MS.min(wait.as_millis() as i64 + 1));
            let passed = self.world.pass_captured(ms);
            passed.map_err(|e| {
                self.failure = Some(e);
                watch::stop()
            })?;
        }
        let lacks = self.lacks.as_ref();
        if lacks.is_some_and(|streams| *streams == self.world.created(place))
            && !self.world.nodes[place].db().has_gap()
        {
            self.failure = Some(format!(
                "node {place}: a gap is gone before the merge is done"
            ));
            return Err(watch::stop());
        }
        self.visit("pause")
    }
}

impl World {
    /// Runs a round of a node's scheduler.
    pub fn keep(&mut self, place: usize) -> Step {
        let Some(snapshots) = &self.snapshots else {
            return Ok(());
        };
        let (bulletin, objects) = (snapshots.bulletin.clone(), snapshots.objects.clone());
        let calm = snapshots.calm;
        bulletin.see(&self.broker);
        let Some(mut scheduler) = self.nodes[place].scheduler.take() else {
            return Ok(()); // in the midst of one
        };
        let shared = self.nodes[place].shared.clone().expect("the node is up");
        self.sweep(place, true)?;
        self.note_unsent(place, true);
        let was_joined = shared.is_joined();
        self.model.lacked |= was_joined && self.nodes[place].db().has_gap();
        if !was_joined || self.nodes[place].db().has_gap() {
            self.capture_all(place)?;
        }
        if self.random.percent(5) {
            scheduler.ask(self.random.percent(50));
        }
        if self.random.percent(5) && !calm {
            self.capture_all(place)?;
            // The daemon does this when it starts: the snapshot may be older than deletes that are
            // forgotten here.
            let node = &mut self.nodes[place];
            node.drop_link();
            node.db().forget_positions().map_err(|e| e.to_string())?;
            node.shared().forget_own();
            (0..node.readers.len()).for_each(|s| node.drop_reader(s));
        }
        let lacked = self.nodes[place].db().has_gap();
        let seeks = self.nodes[place].db().seeks_snapshot();
        let joins = !was_joined || seeks.map_err(|e| e.to_string())?;
        let mut midst = Midst {
            lacks: (lacked && !joins).then(|| self.created(place)),
            world: self,
            place,
            last: ("", true),
            failure: None,
        };
        let done = scheduler.round(&mut Round {
            shared: &shared,
            registry: &mut bulletin.of(place),
            open_store: &|| match bulletin.is_cut_off(place) {
                true => Err(cut_off()),
                false => objects.open(),
            },
            watch: &mut midst,
        });
        if let Some(failure) = midst.failure {
            return Err(failure);
        }
        self.nodes[place].scheduler = Some(scheduler);
        self.look_after_round(place)?;
        if lacked || joins {
            self.lacks_nothing(place)?;
        }
        let rests = matches!(done, Ok(NextRound::Rest));
        let (text, words) = match done {
            Ok(NextRound::Rest) => ("rests".to_owned(), String::new()),
            Ok(NextRound::After(wait)) => (format!("goes on after {wait:?}"), String::new()),
            Err(e) if is_broken(&e) => return Err(format!("node {place}: keeper: {e}")),
            Err(e) => ("fails".to_owned(), format!(": {e}")),
        };
        let node = &self.nodes[place];
        let gap = node.db().has_gap();
        let joined = (was_joined, node.shared().is_joined());
        self.nodes[place].rests = rests;
        let text = format!("node {place}: keeper: {text}; joined {joined:?}, gap {gap}");
        self.say_also(text, &words);
        Ok(())
    }

    /// When each stream was created, as this node knows it.
    fn created(&self, place: usize) -> Vec<String> {
        let position = |s: &crate::broker::Stream| self.nodes[place].db().position(&s.name).created;
        self.broker.streams.iter().map(position).collect()
    }

    /// Records the captures of a round, and checks the rows after it.
    pub fn look_after_round(&mut self, place: usize) -> Step {
        let node = &mut self.nodes[place];
        if node.app.is_none() {
            return Ok(());
        }
        node.learn_schema(&self.plan);
        // The merge of a duplicate node's snapshot gives this node a fresh id, and captures go by
        // that.
        node.learn_id(&self.model)?;
        observe::captured(node, &self.plan, &mut self.model, false)?;
        observe::given_way(node, &self.plan, &mut self.model);
        self.note_unsent(place, false);
        self.audit()
    }

    /// Records the rows of a node whose round, perhaps a merge, was cut short.
    pub fn note_half_merged(&mut self, place: usize) {
        let node = &self.nodes[place];
        if self.ages.is_none() || node.app.is_none() {
            return;
        }
        for table in 0..self.plan.tables.len() {
            let rows = node.by_life(&self.plan, table).into_keys();
            self.model.half_merged.extend(rows.map(|key| (table, key)));
        }
    }

    /// Lets events happen while a round works, outside of its transactions.
    fn visit(&mut self, place: usize, step: &'static str) -> Step {
        let Some(snapshots) = &self.snapshots else {
            return Ok(());
        };
        if snapshots.calm {
            return Ok(());
        }
        let depth = snapshots.depth;
        self.look_after_round(place)?;
        // A kill strikes most often between the transactions of a merge, where most is at stake.
        let killed = if step == "pause" { 15 } else { 4 };
        if self.random.percent(killed) {
            self.say(format!("node {place}: killed in the midst of {step}"));
            resume_unwind(Box::new(Killed));
        }
        let count = [0, 0, 0, 1, 2, 5][self.random.below(6)];
        for _ in 0..count {
            let (kind, other) = self.next_step();
            let ends = matches!(kind, 11 | 12 | 15);
            let is_at_work = |n: &Node| n.shared.is_some() && n.scheduler.is_none();
            let another = other != place && is_at_work(&self.nodes[other]);
            let sweeps = kind == SWEEP && other == place; // both are the same thread's
            let nested = kind == KEEP && depth + 1 >= DEEPEST || kind == LONG_TIME;
            if another || ends && other == place || sweeps || nested {
                continue;
            }
            self.say(format!("in the midst of {step} of node {place}:"));
            self.set_depth(depth + 1);
            let done = match kind {
                KEEP => self.step_killed(kind, other, None),
                kind => self.step(kind, other),
            };
            self.set_depth(depth);
            done?;
            self.after(other)?;
        }
        if let Some(snapshots) = &self.snapshots {
            snapshots.bulletin.see(&self.broker);
        }
        let now_and_then = self.random.percent(3);
        match self.rekeyed {
            Some(_) => self.pass_captured(if now_and_then { MOST_MS } else { 0 })?,
            None => self.pass(if now_and_then { LEASE_MS + 1 } else { 0 }),
        }
        if matches!(step, "fetching" | "checking" | "merging" | "pause") {
            self.capture_all(place)?;
        }
        Ok(())
    }

    fn set_depth(&mut self, depth: usize) {
        if let Some(snapshots) = &mut self.snapshots {
            snapshots.depth = depth;
        }
    }

    /// Captures until nothing is left, and records the captured rows.
    pub fn capture_all(&mut self, place: usize) -> Step {
        for _ in 0..10_000 {
            if self.nodes[place].is_captured() {
                return Ok(());
            }
            self.capture(place)?;
        }
        Err(format!("node {place}: capture never comes to an end"))
    }
}

fn cut_off() -> StoreError {
    StoreError::Failed {
        store: "sim".into(),
        doing: "open".into(),
        cause: "cut off".into(),
    }
}

/// Whether the error is of this node, and not of the broker or the store.
fn is_broken(e: &RoundError) -> bool {
    matches!(
        e,
        RoundError::Database(_)
            | RoundError::Transfer(TransferError::Database(_) | TransferError::Disk { .. })
    )
}

impl Node {
    /// Makes the scheduler, which is a part of the process.
    pub fn start_scheduler(&mut self, snapshots: Option<&Snapshots>) {
        self.rests = false;
        self.scheduler = snapshots.map(Snapshots::scheduler);
    }
}
