//! One run: nodes, broker and model, and the random steps they take, all from one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use harmonylite::model::version::Version;
use tempfile::TempDir;

use crate::ages::{Ages, RETENTION_MS};
use crate::broker::{Broker, Message};
use crate::clock::Killed;
use crate::keeping::Snapshots;
use crate::model::{Model, Row, RowId};
use crate::node::{Node, Options, Shadow};
use crate::numbered::{Births, Deeds, life, number};
use crate::objects::Objects;
use crate::observe;
use crate::plan::{Migration, Plan};
use crate::random::Random;
use crate::registry::Bulletin;
use crate::rekeyed::{MOST_MS, Rekeyed};
use crate::runs::{AWAY, BIRTHS, DISASTERS, FORGETTING, REKEYED, SCARCE, SNAPSHOTS, UPGRADED};

/// A time in 2023: nodes' clocks stay before the machine's own time.
const BEGIN_MS: i64 = 1_700_000_000_000;
pub const DAY_MS: i64 = 24 * 3600 * 1000;

/// Steps of a node's process, which may be killed at any of them.
const IN_PROCESS: [usize; 10] = [1, 2, 3, 4, 5, 6, 7, 16, 17, SWEEP];

/// Number of steps in the report of a failure.
const LAST_STEPS: usize = 300;

pub struct World {
    pub random: Random,
    pub plan: Plan,
    pub options: Options,
    pub now_ms: i64,
    pub broker: Broker,
    pub nodes: Vec<Node>,
    pub model: Model,
    pub steps: Vec<String>,
    /// Hash over every step and its outcome: the same seed gives the same hash.
    pub trace: u64,
    pub count: usize,
    pub snapshots: Option<Snapshots>,
    /// Only in worlds where nodes forget deletes.
    pub ages: Option<Ages>,
    /// Only in worlds where a table gets a different key.
    pub rekeyed: Option<Rekeyed>,
    /// Names of the snapshots that were checked.
    pub audited: BTreeSet<String>,
    /// By the snapshot's name: the rows in it that streams had brought.
    pub in_snapshots: BTreeMap<String, BTreeMap<RowId, Version>>,
    /// Versions that every node must have in the end, or higher ones.
    pub owed: BTreeMap<RowId, Version>,
    /// Rows that were changed behind the triggers' back.
    pub damaged: BTreeSet<RowId>,
    weights: Vec<usize>,
    watched: String,
    /// The first two nodes have one id, as with a cloned SD card.
    duplicates: bool,
    births: Births,
    /// Nodes apply some messages in several transactions.
    cuts_messages: bool,
    /// Every other node has room for a few held rows only.
    is_scarce: bool,
    /// An ordinary day: nodes are mostly up to date and send at once, and a publisher notices late
    /// that an acknowledgement does not come.
    is_lively: bool,
    /// The broker loses everything or nothing, and files are put back more often.
    pub loses_all: bool,
    folder: TempDir,
}

/// Step: a round of the scheduler.
pub const KEEP: usize = 18;

/// Step: a part of the dropping of tombstones.
pub const SWEEP: usize = 22;

/// Step: days pass.
pub const LONG_TIME: usize = 23;

/// Step: a node sends and reads everything there is.
pub const CATCH_UP: usize = 24;

/// The additional state of a seed with snapshots. Its random numbers are drawn apart, so that
/// worlds without snapshots stay the same.
fn snapshots_of(seed: u64) -> Snapshots {
    let mut random = Random::new(seed.rotate_left(32));
    let objects = Objects::new(seed, *random.pick(&[0, 0, 3, 15]));
    let max_entries = *random.pick(&[4, 8, 20, 1000]);
    let interval = random.percent(30).then(|| Duration::from_secs(60));
    Snapshots::new(Bulletin::default(), objects, max_entries, interval)
}

/// The settings of the nodes of a run.
fn options_of(
    random: &mut Random,
    snapshots: Option<&Snapshots>,
    forgets: bool,
    is_rekeyed: bool,
) -> Options {
    let mut options = Options {
        shards: 1 + random.below(2) as u32,
        scan_max_changes: *random.pick(&[1, 3, 512]),
        max_transaction_bytes: *random.pick(&[1, 300, 1 << 20]),
        max_message_bytes: *random.pick(&[300, 1 << 20, 1 << 20]),
        compress: random.percent(30),
        in_flight: *random.pick(&[1, 3, 100]),
        quiet: Duration::from_millis(match is_rekeyed {
            true => *random.pick(&[0, 50, 2000, 2000]),
            false => 0, // the model knows when a change must be seen
        }),
        max_entries: snapshots.map_or(usize::MAX, |s| s.max_entries as usize),
        tombstone_retention: Duration::from_millis(match forgets {
            true => RETENTION_MS as u64,
            false => 30 * DAY_MS as u64,
        }),
    };
    if options.max_entries < 1000 {
        // A row in more parts than a stream keeps would never be whole anywhere.
        options.max_message_bytes = 1 << 20;
    }
    options
}

pub type Step = Result<(), String>;

impl World {
    pub fn new(seed: u64) -> Result<Self, String> {
        let is_rekeyed = seed & REKEYED != 0;
        let mut snapshots = (seed & SNAPSHOTS != 0).then(|| snapshots_of(seed));
        let ages = (seed & FORGETTING == FORGETTING && !is_rekeyed).then(Ages::default);
        if let Some(snapshots) = snapshots.as_mut().filter(|_| seed & AWAY == AWAY) {
            snapshots.max_entries = snapshots.max_entries.min(4);
        }
        let births = match seed {
            _ if is_rekeyed || seed & BIRTHS == 0 => Births::None,
            _ if seed & UPGRADED == UPGRADED => Births::Some,
            _ => Births::All,
        };
        let mut random = Random::new(seed);
        let plan = match is_rekeyed {
            true => Plan::default(),
            false => Plan::new(&mut random, births != Births::None),
        };
        let rekeyed = is_rekeyed.then(|| Rekeyed::new(&mut random));
        let options = options_of(&mut random, snapshots.as_ref(), ages.is_some(), is_rekeyed);
        let broker = Broker::new(options.shards, options.max_entries);
        let base = ["/dev/shm", "/tmp"]
            .into_iter()
            .find(|p| std::path::Path::new(p).is_dir());
        let folder = TempDir::new_in(base.unwrap_or(".")).map_err(|e| e.to_string())?;
        let mut world = World {
            random,
            plan,
            options,
            now_ms: BEGIN_MS,
            broker,
            nodes: Vec::new(),
            model: Model::default(),
            steps: Vec::new(),
            trace: seed,
            count: 0,
            snapshots,
            ages,
            rekeyed,
            audited: BTreeSet::new(),
            in_snapshots: BTreeMap::new(),
            owed: BTreeMap::new(),
            damaged: BTreeSet::new(),
            weights: Vec::new(),
            watched: String::new(),
            duplicates: false,
            births,
            cuts_messages: seed & 3 != 1 && !is_rekeyed,
            is_scarce: seed & SCARCE == SCARCE && !is_rekeyed,
            is_lively: seed & 32 != 0,
            loses_all: seed & DISASTERS == DISASTERS && !is_rekeyed,
            folder,
        };
        world.duplicates = world.random.percent(10) && !is_rekeyed;
        world.model.duplicates = world.duplicates;
        world.model.now_ms = BEGIN_MS;
        for place in 0..2 + world.random.below(3) {
            world.found(place, world.duplicates)?;
        }
        Ok(world)
    }

    /// Adds a node with an empty database, or with rows from before HarmonyLite.
    fn found(&mut self, place: usize, duplicates: bool) -> Step {
        let skew = match self.random.below(4) {
            0 if !duplicates && self.rekeyed.is_none() => {
                self.random.between(-2 * DAY_MS, 2 * DAY_MS)
            }
            _ => 0,
        };
        // Some ids have the highest bit set, because ids are compared unsigned.
        let id = [7, u64::MAX - 3, 1 << 63, 40, 9][if duplicates {
            place.saturating_sub(1)
        } else {
            place
        }];
        let shards = self.options.shards;
        let mut node = Node::new(place, id, self.folder.path(), self.now_ms + skew, shards);
        node.has_duplicate = duplicates && place < 2;
        node.cuts_messages = self.cuts_messages;
        node.holds_little = self.is_scarce && place % 2 == 1;
        node.shadow = Shadow {
            columns: vec![None; self.plan.tables.len()],
            ..Shadow::default()
        };
        node.open_app();
        self.nodes.push(node);
        self.create_all(place);
        if let Some(rekeyed) = &mut self.rekeyed {
            rekeyed.create(&self.nodes[place]);
        } else if self.random.percent(25) {
            self.write_before(place);
        }
        self.start(place)?;
        self.after(place)
    }

    pub fn start(&mut self, place: usize) -> Step {
        let node = &mut self.nodes[place];
        let now_ms = self.now_ms;
        let before = node.births;
        node.births = self.births.after_start(before, place, now_ms);
        if node.births != before {
            node.shadow.deeds = Deeds::default(); // triggers of before tell less
        }
        node.start(&self.options, self.snapshots.is_some())?;
        node.start_scheduler(self.snapshots.as_ref());
        Ok(())
    }

    /// Creates the tables that exist from the beginning.
    pub fn create_all(&mut self, place: usize) {
        for table in 0..self.plan.tables.len() {
            if !self.plan.tables[table].is_late {
                self.create(place, table);
            }
        }
    }

    /// Writes rows from before HarmonyLite: there is no change log yet.
    pub fn write_before(&mut self, place: usize) {
        let app = self.nodes[place].app();
        app.execute_batch(
            "CREATE TABLE __harmonylite___change_log_global(id INTEGER PRIMARY KEY, \
            table_id, kind, created_at, k1)",
        )
        .expect("log");
        for _ in 0..1 + self.random.below(3) {
            self.write(place);
        }
    }

    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// SIM_WATCH=1:i4 shows the state of row [i4] of the second table after each step.
    fn watch(&mut self) -> Option<String> {
        let wanted = std::env::var("SIM_WATCH").ok()?;
        let (table, key) = wanted.split_once(':')?;
        let table = table.parse().ok()?;
        let of = |n: &Node| {
            let versions = n.versions(&self.plan, table);
            let of = |life: &&String| number(life) == key;
            let lives = versions.keys().filter(of).map(|life| {
                let stored = &versions[life];
                let version = (stored.version.to_string(), stored.deleted, stored.is_shown);
                let unsent = n.unsent_rows(&self.plan).contains(&(table, life.clone()));
                format!("{life} {version:?} unsent {unsent} ")
            });
            let lives: String = lives.collect();
            let row = n.rows(&self.plan, table).remove(key);
            format!("        {}: {lives}{row:?}\n", n.place)
        };
        let here = self.nodes.iter().filter(|n| n.app.is_some());
        let all: String = here.map(of).collect();
        (all != self.watched).then_some(all)
    }

    /// Adds an event to the report and to the trace.
    pub fn say(&mut self, text: String) {
        self.say_also(text, "");
    }

    /// Adds an event, and `words` of the core to the report alone: the trace does not depend on
    /// them.
    pub fn say_also(&mut self, text: String, words: &str) {
        if let Some(seen) = self.watch() {
            println!(
                "{:>5} +{}s {text}{words}\n{seen}",
                self.count,
                (self.now_ms - BEGIN_MS) / 1000
            );
            self.watched = seen;
        }
        for byte in text.bytes() {
            self.trace = (self.trace ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        if self.steps.len() == 2 * LAST_STEPS {
            self.steps.drain(..LAST_STEPS);
        }
        self.steps.push(format!(
            "{:>5} +{}s {text}{words}",
            self.count,
            (self.now_ms - BEGIN_MS) / 1000
        ));
    }

    /// Whether the core synced the file since the image was made.
    pub fn has_synced(&self, place: usize) -> bool {
        let node = &self.nodes[place];
        node.app.is_some() && node.image.is_some() && node.reservation() != node.reserved
    }

    /// Renews the image after a step that synced: such writes cannot be lost any more.
    pub fn after(&mut self, place: usize) -> Step {
        let node = &mut self.nodes[place];
        if node.app.is_none() || (node.shared.is_none() && node.image.is_none()) {
            return Ok(());
        }
        let synced = node.image.is_none() || self.has_synced(place);
        if synced || self.random.percent(5) {
            self.sync(place);
            if self.random.percent(10) {
                let node = &mut self.nodes[place];
                node.backups.extend(node.image.clone());
            }
        }
        Ok(())
    }

    /// Syncs the file: everything written so far is on the disk.
    pub fn sync(&mut self, place: usize) {
        let node = &mut self.nodes[place];
        if node.app.is_none() {
            return;
        }
        let mut image = node.read_image(self.model.written(place));
        if self.ages.is_some() {
            image.unsent = node.unsent_rows(&self.plan);
        }
        (node.image, node.reserved) = (Some(image), node.reservation());
    }

    pub fn run(&mut self, steps: usize) -> Step {
        let mut weights = vec![30, 20, 30, 30, 30, 30, 20, 6, 4, 3, 3, 2, 2, 1, 1, 1, 3, 2];
        if self.snapshots.is_some() {
            weights.extend([12, 2, 1, 1]);
        }
        if self.ages.is_some() {
            weights.extend([6, 3]);
        }
        for weight in &mut weights {
            *weight = *weight * self.random.below(8) / 4;
        }
        weights[0] += 10;
        weights[3] += 5;
        if let Some(keeping) = weights.get_mut(KEEP) {
            *keeping += 3;
        }
        if self.loses_all {
            weights[13] += 1;
            weights[15] += 2;
        }
        if self.rekeyed.is_some() {
            weights[9] += 12;
            // No clock is set, and no file is put back. A broker that loses something has snapshots
            // beside it.
            [10, 12, 14, 15]
                .into_iter()
                .for_each(|kind| weights[kind] = 0);
            if self.snapshots.is_none() {
                weights[13] = 0;
            }
        }
        if self.is_lively {
            weights[..7].iter_mut().for_each(|w| *w *= 4);
            weights.resize(CATCH_UP, 0);
            weights.push(80);
        }
        self.weights = weights;
        for _ in 0..steps {
            self.count += 1;
            let (kind, place) = self.next_step();
            let ms = match self.random.below(40) {
                0 => self.random.between(0, 3_600_000),
                1..6 => self.random.between(0, 20_000),
                _ => self.random.between(0, 50),
            };
            let ms = match self.rekeyed {
                Some(_) => ms.min(MOST_MS),
                None => ms,
            };
            self.pass_captured(ms)?;
            let tick = *self.random.pick(&[0, 0, 1, 4, 11]); // the last: one thing at a time
            self.nodes[place].clock.tick(Duration::from_millis(tick));
            let killed = self.random.percent(3).then(|| self.random.below(8));
            match killed.filter(|_| IN_PROCESS.contains(&kind)) {
                Some(looks) => self.step_killed(kind, place, Some(looks))?,
                None if kind == KEEP => {
                    let killed = self.random.percent(10).then(|| self.random.below(60));
                    self.step_killed(kind, place, killed)?;
                }
                None => self.step(kind, place)?,
            }
            self.after(place)?;
        }
        Ok(())
    }

    /// Runs a step. A kill -9 ends it before, between or inside of its transactions, if it is long
    /// enough.
    pub fn step_killed(&mut self, kind: usize, place: usize, looks: Option<usize>) -> Step {
        self.nodes[place].clock.kill_after(looks);
        let done = catch_unwind(AssertUnwindSafe(|| self.step(kind, place)));
        self.nodes[place].clock.kill_after(None);
        match done {
            Ok(done) => done,
            Err(what) if what.is::<Killed>() => {
                self.say(format!(
                    "node {place}: killed in the middle, look {looks:?}"
                ));
                self.note_draft(place);
                self.nodes[place].crash();
                self.look_after_sweep()?;
                if kind == KEEP {
                    self.look_after_round(place)?;
                    self.note_half_merged(place);
                    if self.rekeyed.is_none() && self.random.percent(30) {
                        self.power_loss(place);
                    }
                }
                Ok(())
            }
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Lets time pass. No running daemon captures much later than its application writes.
    pub fn pass_captured(&mut self, ms: i64) -> Step {
        self.capture_rekeyed(ms)?;
        self.pass(ms);
        Ok(())
    }

    pub fn pass(&mut self, ms: i64) {
        self.now_ms += ms;
        self.model.now_ms = self.now_ms;
        self.nodes.iter().for_each(|n| n.clock.advance(ms));
        if let Some(snapshots) = &self.snapshots {
            snapshots.bulletin.pass(self.now_ms);
        }
        if self.ages.is_some() && self.options.shards > 1 {
            self.broker.pass(self.now_ms); // a server of these days
        }
    }

    /// Draws the next step and its node.
    pub fn next_step(&mut self) -> (usize, usize) {
        let kind = self.random.weighted(&self.weights);
        (kind, self.random.below(self.nodes.len()))
    }

    pub fn step(&mut self, kind: usize, place: usize) -> Step {
        let (up, connected) = (
            self.nodes[place].shared.is_some(),
            !self.nodes[place].is_cut_off,
        );
        match kind {
            0 if self.rekeyed.is_some() => self.write_rekeyed(place),
            0 => {
                self.write(place);
                if self.duplicates && place < 2 && self.random.percent(60) {
                    self.write(1 - place); // in the same millisecond
                }
            }
            1 if up => return self.capture(place),
            2 if up => return self.send(place),
            3 if up && connected => return self.read(place),
            4 if up && connected => self.carry(place),
            5 if up && connected => {
                self.say(format!("node {place}: ack arrives"));
                self.take_ack(place);
            }
            6 if up && connected => return self.connect(place),
            7 if up => {
                self.say(format!("node {place}: link lost"));
                self.nodes[place].drop_link();
            }
            8 => self.cut_off(place),
            9 if self.rekeyed.is_some() => return self.rebuild_step(place),
            9 => return self.migrate(place),
            10 => self.set_clock(place),
            11 if up => {
                self.say(format!("node {place}: crash"));
                self.nodes[place].crash();
            }
            12 => {
                self.power_loss(place);
                if self.nodes[place].shared.is_none() && self.random.percent(25) {
                    return self.flicker(place);
                }
            }
            13 => self.restart_broker(),
            14 => return self.copy(place),
            15 => self.roll_back(place),
            16 if !up => {
                self.say(format!("node {place}: start"));
                return self.start(place);
            }
            17 if up => {
                self.say(format!("node {place}: flush"));
                return self.nodes[place].db().flush().map_err(|e| e.to_string());
            }
            KEEP if up => return self.keep(place),
            19 => return self.arrive(),
            20 => {
                let spoilt = self.snapshots.as_ref().map(|s| s.objects.spoil());
                self.say(format!("store: {spoilt:?}"));
            }
            21 => {
                if let Some(snapshots) = &self.snapshots {
                    snapshots.bulletin.expire_lease();
                }
            }
            SWEEP if up => return self.sweep(place, false),
            LONG_TIME => return self.long_time(place),
            CATCH_UP if connected => {
                if !up {
                    self.start(place)?;
                }
                self.connect(place)?;
                self.send_all(place)?;
                self.read_to_the_end(place)?;
                self.send_all(place)?;
            }
            _ => {}
        }
        Ok(())
    }

    pub fn capture(&mut self, place: usize) -> Result<(), String> {
        self.draft(place);
        let captured = self.nodes[place].capture();
        self.note_draft(place);
        let (node, captured) = (&mut self.nodes[place], captured?);
        observe::frames(node, &self.plan, &mut self.model, &captured.frames)?;
        observe::captured(node, &self.plan, &mut self.model, !captured.more)?;
        let (changes, frames, more) = (captured.changes, captured.frames.len(), captured.more);
        self.say(format!(
            "node {place}: capture: {changes} changes, {frames} frames, more {more}"
        ));
        Ok(())
    }

    pub fn send(&mut self, place: usize) -> Step {
        let done = self.send_one(place)?;
        self.say(format!("node {place}: send: {done}"));
        Ok(())
    }

    /// Runs one turn of the publisher and records its captures.
    pub fn send_one(&mut self, place: usize) -> Result<bool, String> {
        let node = &mut self.nodes[place];
        if node.waits_in_vain() && self.random.percent(10) {
            node.drop_link();
        }
        let captures = node.sends_backlog();
        let done = node.send(&self.options, &self.broker)?;
        if done && self.snapshots.is_some() && !node.db().is_joined() {
            return Err(format!("node {place}: publishes before it met the others"));
        }
        if captures {
            // The turn may have captured a part and then found nothing to send.
            let at_end = done && !node.db().has_more();
            observe::captured(node, &self.plan, &mut self.model, at_end)?;
        }
        Ok(done)
    }

    /// Reads some messages of a shard and applies them by one transaction.
    pub fn read(&mut self, place: usize) -> Step {
        let shard = self.random.below(self.options.shards as usize);
        let limit = 1 + self.random.below(6);
        if self.nodes[place].readers[shard].is_none() {
            return self.connect(place);
        }
        // Before the node joins, a capture leaves no frames: the model would not see a capture
        // inside of apply.
        if !self.nodes[place].db().is_live() {
            self.capture_all(place)?;
        }
        let node = &mut self.nodes[place];
        // Rows that are as their version says already: deleted before, or changed and changed back
        // without triggers.
        let is_so = |((table, key), row): (&RowId, &Option<Row>)| {
            let at = (*table, key.clone());
            let stored = node.version(&self.plan, &at);
            match (row, stored) {
                // A row that came and went under the number of a displaced one.
                (None, Some(s)) if !s.deleted && self.plan.tables[*table].is_numbered => {
                    node.is_displaced(&self.plan, *table, key)
                }
                (None, stored) => stored.is_none_or(|s| s.deleted),
                (Some(_), None) => false,
                (Some(_), Some(s)) => {
                    let is_compared = node.shadow.contested.contains(table);
                    let life = life(key, s.birth);
                    is_compared && self.model.holds(*table, &life, s.version, row.as_ref())
                }
            }
        };
        let pending = node.shadow.pending.iter().filter(|pending| is_so(*pending));
        let unchanged: Vec<RowId> = pending.map(|(at, _)| at.clone()).collect();
        let Some(read) = node.read(shard, limit, &self.broker)? else {
            return Ok(());
        };
        observe::frames(node, &self.plan, &mut self.model, &read.captured.frames)?;
        observe::given_way(node, &self.plan, &mut self.model);
        node.learn_id(&self.model)?;
        // If the capture had not reached the end of the change log, there would be more.
        if read.applied && !node.db().has_more() {
            unchanged
                .iter()
                .for_each(|at| drop(node.shadow.pending.remove(at)));
            if let Some((at, row)) = node.shadow.pending.first_key_value() {
                return Err(format!(
                    "node {place}: {} [{}] = {row:?} was not captured before apply\n{}",
                    self.plan.tables[at.0].name,
                    at.1,
                    self.model.history(at)
                ));
            }
        }
        let from = self.nodes[place].readers[shard].map_or(0, |r| r.from);
        let (messages, changes) = (read.messages, read.captured.changes);
        self.say(format!(
            "node {place}: shard {shard}: {messages} messages read, next {from}; captured {changes}"
        ));
        Ok(())
    }

    /// Takes a message to the broker or loses it, and sends its acknowledgement or loses it.
    pub fn carry(&mut self, place: usize) {
        let lossy = self.random.percent(if self.is_lively { 15 } else { 5 });
        self.carry_one(place, lossy);
    }

    pub fn carry_one(&mut self, place: usize, lossy: bool) -> bool {
        let Some(link) = &mut self.nodes[place].link else {
            return false;
        };
        if link.wire.is_empty() {
            return false;
        }
        let which = self.random.early(link.wire.len());
        let packet = link.wire.remove(which).expect("below the length");
        let (stored, acked) = match lossy {
            true => (self.random.percent(50), false),
            false => (true, true),
        };
        // The first message may be older than the broker's memory of ids: then the repetition is
        // stored, too.
        let repeated = lossy && self.random.percent(50);
        let (mut at, rows) = ((0, false), observe::describe(&packet.data));
        if stored {
            let message = Message {
                id: packet.id.clone(),
                time_ms: self.now_ms,
                data: std::sync::Arc::new(packet.data),
            };
            at = self.broker.publish(packet.shard, message.clone());
            if repeated {
                self.broker.store(packet.shard, message);
            }
        }
        let (seq, is_duplicate) = at;
        if acked {
            link.acks.push_back((packet.token, seq, is_duplicate));
        } else {
            let waits = self.is_lively && self.random.percent(80);
            match &mut self.nodes[place].link {
                Some(link) if waits => link.is_in_vain = true,
                _ => self.nodes[place].drop_link(),
            }
        }
        self.say(format!(
            "node {place}: message {} to shard {} as {seq}, acked {acked}:{rows}",
            packet.id, packet.shard
        ));
        true
    }

    /// Hands an acknowledgement to the publisher. True if there was one.
    pub fn take_ack(&mut self, place: usize) -> bool {
        let waiting = self.nodes[place].link.as_ref().map_or(0, |l| l.acks.len());
        let which = self.random.early(waiting);
        self.nodes[place].take_ack(which, &self.broker)
    }

    pub fn connect(&mut self, place: usize) -> Step {
        let node = &mut self.nodes[place];
        let link_first = self.random.percent(50);
        if link_first && node.link.is_none() {
            node.connect_link(&self.broker)?;
        }
        for shard in 0..self.options.shards as usize {
            if node.readers[shard].is_none() {
                node.connect_reader(shard, &self.broker)?;
            }
        }
        if node.link.is_none() {
            node.connect_link(&self.broker)?;
        }
        if let Some(snapshots) = &self.snapshots {
            snapshots.bulletin.will_publish(node.id); // as a new writer does
        }
        self.say(format!("node {place}: connect"));
        Ok(())
    }

    pub fn create(&mut self, place: usize, table: usize) {
        let spec = &self.plan.tables[table];
        let columns: Vec<usize> = (0..spec.base).collect();
        let node = &mut self.nodes[place];
        node.app()
            .execute_batch(&spec.create(&spec.name, &columns))
            .expect("create");
        for (i, index) in spec.indexes.iter().enumerate() {
            if self.plan.has_index(&node.shadow.done, table, i) {
                node.app().execute_batch(index).expect("index");
            }
        }
        node.shadow.columns[table] = Some(columns);
        node.shadow.done.push(Migration::Create(table));
    }
}
