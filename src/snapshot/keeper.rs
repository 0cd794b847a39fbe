//! What is to be done about snapshots next, and the doing of it.
//!
//! ```text
//! new here ──▶ is there a snapshot? ──yes──▶ merge it ─────────────▶ joined: may publish
//!                       └─no─▶ first to ask? ─yes─▶ found the cluster ─▶ joined, make the first
//! lacks messages ──▶ is there one that has them? ─yes─▶ merge it      └─no─▶ ask for one
//! half of max_entries written, interval over, asked for ──▶ lease ──▶ make one
//! ```
//! Whatever goes wrong, replication goes on and the next round tries again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::database::{Database, DatabaseError};
use crate::gate::Gate;
use crate::mutation::{self, Mutation};
use crate::snapshot::manifest::{Entry, Place};
use crate::snapshot::merge::Merge;
use crate::snapshot::registry::Registry;
use crate::snapshot::transfer::{self, Maker, TransferError, Watch};
use crate::store::{Store, StoreError};
use crate::stream::StreamError;

/// While something is awaited of others, it is looked for this often.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// What is chosen for this node.
#[derive(Debug, Clone)]
pub struct Options {
    /// The streams' prefix.
    pub cluster: String,
    pub max_entries: u64,
    /// None: only when half of `max_entries` was written.
    pub interval: Option<Duration>,
    pub leader_ttl: Duration,
    /// What is here is what all nodes have: this one sends all and takes all.
    pub may_make: bool,
    /// Which tables take part, as text that is the same on nodes that choose the same.
    pub selection: String,
}

/// Why a round came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum RoundError {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Transfer(#[from] TransferError),
    #[error("database: {0}")]
    Database(#[from] DatabaseError),
    #[error("another node took over the lease: the snapshot is given up")]
    LeaseLost,
    #[error("{0}")]
    Refused(String),
    #[error("stopped")]
    Stopped,
}

impl From<StoreError> for RoundError {
    fn from(e: StoreError) -> Self {
        RoundError::Transfer(e.into())
    }
}

/// Somebody waits for a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Asked {
    /// The newest will do if nothing was written since.
    OnlyIfNew,
    Always,
}

/// When to look again, if nothing happens before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    Rest,
    After(Duration),
}

/// Opens the store anew.
pub type OpenStore<'a> = dyn Fn() -> Result<Box<dyn Store>, StoreError> + 'a;

/// What a round works with.
pub struct Round<'a> {
    pub gate: &'a Gate,
    pub registry: &'a mut dyn Registry,
    pub open_store: &'a OpenStore<'a>,
    pub watch: &'a mut dyn Watch,
}

/// See the module's head.
pub struct Keeper {
    options: Options,
    /// The newest snapshot that was heard of.
    newest: Option<Entry>,
    /// A snapshot is to be merged because the operator wants so.
    pub merge_first: bool,
    asked: Option<Asked>,
    /// Since when this node waits to be joined.
    waiting: Option<Duration>,
    /// Since when this node lacks something that no snapshot brings.
    lacking: Option<Duration>,
    /// Under which id this node is known as one that publishes.
    registered: Option<u64>,
    /// That the newest snapshot is gone was told to the others.
    forgot: bool,
    /// A snapshot that was lost or torn when it was fetched last.
    lost: Option<String>,
    made: u64,
}

impl Keeper {
    pub fn new(options: Options) -> Keeper {
        Keeper {
            options,
            newest: None,
            merge_first: false,
            asked: None,
            waiting: None,
            lacking: None,
            registered: None,
            forgot: false,
            lost: None,
            made: 0,
        }
    }

    /// A snapshot is to be made whether it is due or not.
    pub fn ask(&mut self, only_if_new: bool) {
        let asked = match only_if_new {
            true => Asked::OnlyIfNew,
            false => Asked::Always,
        };
        self.asked = self.asked.max(Some(asked));
    }

    /// The broker may be another one: what it was told, it is told again.
    pub fn connected(&mut self) {
        self.registered = None;
    }

    /// Whether the snapshot that was asked for is still to be made.
    pub fn is_asked(&self) -> bool {
        self.asked.is_some()
    }

    /// Whether a round may have something to do, as far as can be told without the broker.
    pub fn has_work(&self, gate: &Gate) -> Result<bool, DatabaseError> {
        let mut inside = gate.enter();
        let db = &mut inside.database;
        let needs = !gate.is_joined() || db.has_gap() || self.merge_first || self.is_asked();
        Ok(needs || self.newest.is_none() || self.due(db, &BTreeMap::new()).is_some())
    }

    /// Does what is to be done. The caller lets the streams be read again after it.
    pub fn round(&mut self, round: &mut Round<'_>) -> Result<Next, RoundError> {
        if self.waiting.is_none() {
            round.gate.hold_reading()?;
        }
        let node = round.gate.enter().database.node();
        if self.registered != Some(node) {
            round.registry.register(node, &self.options.selection)?;
            self.registered = Some(node);
        }
        self.newest = self.find_newest(round)?;
        if !round.gate.is_joined() {
            let next = self.join(round)?;
            if !round.gate.is_joined() {
                return Ok(next);
            }
        }
        if self.merge_first {
            self.merge_any(round, |_, _| true)?;
            self.merge_first = false;
        }
        if round.gate.enter().database.has_gap() {
            return self.make_up(round);
        }
        let wanted = round.registry.wanted()?;
        self.make_if(round, |keeper, db| keeper.due(db, &wanted))
    }

    fn find_newest(&mut self, round: &mut Round<'_>) -> Result<Option<Entry>, RoundError> {
        if let Some(entry) = round.registry.newest()? {
            return Ok(Some(entry));
        }
        // The broker is new, or lost what it knew; the store may not be.
        let store = (round.open_store)();
        let manifest = store
            .map_err(RoundError::from)
            .and_then(|mut store| Ok(transfer::read_manifest(&mut *store, &self.options.cluster)?));
        match manifest {
            Ok(manifest) => {
                let newest = manifest.and_then(|m| m.newest().cloned());
                if let Some(newest) = &newest {
                    round.registry.set_newest(newest)?;
                }
                Ok(newest)
            }
            // There is none then, and making one replaces the manifest.
            Err(RoundError::Transfer(e)) if round.gate.is_joined() && transfer::is_torn(&e) => {
                Ok(None)
            }
            Err(e) if round.gate.is_joined() => Err(e),
            Err(e) => {
                self.join_without(round, &e.to_string())?;
                Err(e)
            }
        }
    }

    /// A new node: merges the snapshot there is, or founds the cluster.
    fn join(&mut self, round: &mut Round<'_>) -> Result<Next, RoundError> {
        if self.newest.is_some() {
            if mutation::is(Mutation::JoinedBeforeMerging) {
                round.gate.set_joined();
            }
            return match self.merge_any(round, |_, _| true) {
                Ok(true) => {
                    self.merge_first = false;
                    Ok(Next::Rest)
                }
                Ok(false) => {
                    self.join_without(round, "the store is empty")?;
                    Ok(Next::After(LOOK_AGAIN))
                }
                Err(e) => {
                    self.join_without(round, &e.to_string())?;
                    Err(e)
                }
            };
        }
        let node = round.gate.enter().database.node();
        if self.hindrance(round)?.is_none() && round.registry.found(node)? {
            round.gate.enter().database.found()?;
            round.gate.set_joined();
            log::info!("founding the cluster: the others begin with what is here");
        } else if round.registry.is_led()? {
            self.waiting = None; // the first snapshot is being made
        } else {
            self.join_without(round, "the founder has not made a snapshot")?;
        }
        Ok(Next::After(LOOK_AGAIN))
    }

    /// A snapshot is not to be had for a while: the streams are read to their end, and what others
    /// need to know of this node must not wait for ever.
    fn join_without(&mut self, round: &mut Round<'_>, why: &str) -> Result<(), RoundError> {
        let mut inside = round.gate.enter();
        let now = inside.database.clock.uptime();
        let since = *self.waiting.get_or_insert(now);
        if now - since < self.options.leader_ttl || !round.gate.all_at_end() {
            return Ok(());
        }
        inside.database.found()?;
        drop(inside);
        round.gate.set_joined();
        log::warn!("joining without a snapshot: {why}");
        Ok(())
    }

    /// Messages were missed: merges a snapshot that has them, or asks for one.
    fn make_up(&mut self, round: &mut Round<'_>) -> Result<Next, RoundError> {
        let helps = |db: &Database, entry: &Entry| db.is_helped_by(entry);
        let newest = self.newest.as_ref();
        let is_there = newest.is_some_and(|e| helps(&round.gate.enter().database, e));
        if is_there && self.merge_any(round, helps)? {
            let publishers = round.registry.publishers()?.into_keys().collect();
            let mut inside = round.gate.enter();
            inside.database.close_gaps(&publishers)?;
            if !inside.database.has_gap() {
                self.lacking = None;
            }
            return Ok(Next::After(Duration::ZERO));
        }
        let missed = round.gate.enter().database.missed();
        round.registry.want(&missed)?;
        let inside = round.gate.enter();
        let now = inside.database.clock.uptime();
        let since = *self.lacking.get_or_insert(now);
        let newest = self.newest.as_ref();
        let is_unheard = newest.is_none_or(|e| inside.database.is_unheard_in(e));
        drop(inside);
        // Perhaps everybody lacks something: then each says what it has, in turn.
        if now - since >= self.options.leader_ttl && is_unheard {
            return self.make_if(round, |_, _| {
                Some("this node lacks changes, and so may the others")
            });
        }
        Ok(Next::After(self.options.leader_ttl)) // or when a node leaves word
    }

    /// Merges the newest snapshot that will do. False if there is none.
    fn merge_any(
        &mut self,
        round: &mut Round<'_>,
        will_do: impl Fn(&Database, &Entry) -> bool,
    ) -> Result<bool, RoundError> {
        let mut store = (round.open_store)()?;
        let manifest = transfer::read_manifest(&mut *store, &self.options.cluster);
        let is_empty = match &manifest {
            Ok(manifest) => manifest.as_ref().is_none_or(|m| m.newest().is_none()),
            Err(e) => transfer::is_torn(e),
        };
        if is_empty && !self.forgot {
            // Somebody emptied the store: let there be a new one. Once, lest two nodes with
            // different stores keep each other busy.
            self.forgot = true;
            round.registry.forget_newest()?;
        }
        let manifest = manifest?;
        self.forgot &= is_empty;
        let mut failure = None;
        for entry in manifest.into_iter().flat_map(|m| m.snapshots) {
            if !will_do(&round.gate.enter().database, &entry) {
                continue;
            }
            match merge(round, &entry, &mut *store) {
                Ok(()) => return Ok(true),
                // Perhaps the one before is sound.
                Err(RoundError::Transfer(e @ TransferError::Bad { .. })) => {
                    log::error!("snapshot: {e}");
                    self.note_lost(round, entry.name, &mut *store)?;
                    failure = Some(RoundError::Transfer(e));
                }
                Err(RoundError::Database(e)) if is_of_the_file(&e) => {
                    log::error!("snapshot {}: {e}", entry.name);
                    failure = Some(RoundError::Database(e));
                }
                Err(e) => return Err(e),
            }
        }
        failure.map_or(Ok(false), Err)
    }

    /// A snapshot cannot be had. The second time it is taken out of the manifest: until then nobody
    /// would make another.
    fn note_lost(
        &mut self,
        round: &mut Round<'_>,
        name: String,
        store: &mut dyn Store,
    ) -> Result<(), RoundError> {
        if self.lost.as_ref() != Some(&name) {
            self.lost = Some(name);
            return Ok(());
        }
        if !round.registry.lease()? {
            return Ok(());
        }
        let struck = transfer::strike(&name, &self.options.cluster, store);
        let forgot = round.registry.forget_newest();
        round.registry.give_lease_back();
        struck?;
        forgot?;
        log::warn!("snapshot {name} is no use: another one is needed");
        self.lost = None;
        Ok(())
    }

    /// Makes a snapshot, if `why` still says so when this node has the lease.
    fn make_if(
        &mut self,
        round: &mut Round<'_>,
        why: impl Fn(&Keeper, &Database) -> Option<&'static str>,
    ) -> Result<Next, RoundError> {
        let ask = |keeper: &Keeper, gate: &Gate| why(keeper, &gate.enter().database);
        if ask(self, round.gate).is_none() {
            self.asked = None; // only if there was something new
            return Ok(self.rest(round.gate));
        }
        if let Some(why) = self.hindrance(round)? {
            return match self.asked.take() {
                Some(_) => Err(RoundError::Refused(why.to_owned())),
                None => Ok(Next::Rest),
            };
        }
        if !round.gate.all_at_end() {
            return Ok(Next::After(LOOK_AGAIN));
        }
        if !round.registry.lease()? {
            // Another node is at it. If that one fails, we come back.
            return Ok(Next::After(self.options.leader_ttl.max(LOOK_AGAIN) / 4));
        }
        let known = self.newest.take();
        let newest = round.registry.newest();
        let made = newest.map_err(RoundError::from).and_then(|newest| {
            self.newest = newest.or(known);
            match ask(self, round.gate) {
                Some(why) => self.make(round, why),
                None => Ok(()),
            }
        });
        round.registry.give_lease_back();
        made?;
        self.asked = None;
        Ok(self.rest(round.gate))
    }

    /// Why this node cannot make snapshots at all.
    fn hindrance(&self, round: &mut Round<'_>) -> Result<Option<&'static str>, RoundError> {
        if !self.options.may_make {
            let text = "a node with publish = false or replicate = false makes no snapshots";
            return Ok(Some(text));
        }
        if !round.gate.enter().database.excludes_tables()? {
            return Ok(None);
        }
        let publishers = round.registry.publishers()?;
        let differs = publishers.values().any(|s| *s != self.options.selection);
        Ok(differs
            .then_some("a node that leaves out tables of others ([tables]) makes no snapshots"))
    }

    /// Why a snapshot is due; none if it is not.
    fn due(&self, db: &Database, wanted: &BTreeMap<String, Place>) -> Option<&'static str> {
        let places = db.places();
        let newest = match &self.newest {
            _ if self.asked == Some(Asked::Always) => return Some("it was asked for"),
            None => return Some("there is none yet"),
            Some(newest) if self.asked.is_some() && !db.is_covered(&newest.streams) => {
                return Some("it was asked for");
            }
            Some(newest) => newest,
        };
        let reached = |stream: &str, created: &str| {
            let there = newest.streams.get(stream);
            there.filter(|p| p.created == created).map(|p| p.seq)
        };
        if !newest.is_whole() {
            return Some("the newest lacks changes that are here");
        }
        for (stream, place) in places.iter().filter(|(_, p)| !p.created.is_empty()) {
            let reached = reached(stream, &place.created);
            let asked = wanted.get(stream).filter(|w| w.created == place.created);
            if asked.is_some_and(|w| w.seq <= place.seq && reached.is_none_or(|r| r < w.seq)) {
                return Some("a node lacks changes");
            }
            match reached {
                None => return Some("the streams are new"),
                Some(reached)
                    if place.seq.saturating_sub(reached) > self.options.max_entries / 2 =>
                {
                    return Some("half of max_entries was written");
                }
                Some(_) => {}
            }
        }
        let is_over = |every: Duration| {
            db.clock.now_ms() - newest.time_ms >= every.as_millis() as i64
                && !db.is_covered(&newest.streams)
        };
        match self.options.interval.is_some_and(is_over) {
            true => Some("the interval is over"),
            false => None,
        }
    }

    /// When to look again, if nothing happens before: when the interval is over, unless nothing was
    /// written since.
    pub fn rest(&self, gate: &Gate) -> Next {
        let (Some(every), Some(newest)) = (self.options.interval, &self.newest) else {
            return Next::Rest;
        };
        let inside = gate.enter();
        if inside.database.is_covered(&newest.streams) {
            return Next::Rest;
        }
        let age = inside.database.clock.now_ms() - newest.time_ms;
        let age = Duration::from_millis(age.max(0) as u64);
        Next::After(every.saturating_sub(age).max(LOOK_AGAIN))
    }

    fn make(&mut self, round: &mut Round<'_>, why: &str) -> Result<(), RoundError> {
        let began = Instant::now();
        let mut store = (round.open_store)()?;
        // From here on: capturing all that waits takes minutes where a large database is new.
        let mut watch = Leased {
            registry: round.registry,
            watch: round.watch,
            renew: self.options.leader_ttl / 3,
            renewed: Instant::now(),
            lost: false,
        };
        let view = loop {
            let entered = Instant::now();
            let mut inside = round.gate.enter();
            let (view, mut captured) = inside.database.view()?;
            inside.hand_over(&mut captured);
            drop(inside);
            round.gate.wake_publisher();
            match view {
                Some(view) => break view,
                None => watch
                    .pause(entered.elapsed())
                    .map_err(|_| match watch.lost {
                        true => RoundError::LeaseLost,
                        false => RoundError::Stopped,
                    })?,
            }
        };
        let inside = round.gate.enter();
        let db = &inside.database;
        self.made += 1;
        let dropped = db.dropped()?;
        let path = db.path().to_owned();
        let maker = Maker {
            database: &path,
            cluster: &self.options.cluster,
            node: db.node(),
            time_ms: db.clock.now_ms(),
            random: self.made ^ (db.clock.uptime().as_nanos() as u64) << 8,
            dropped: dropped.is_valid().then_some((dropped.hlc, dropped.node)),
        };
        drop(inside);
        let uploaded = transfer::upload(view, &maker, &mut *store, &mut watch);
        if watch.lost {
            return Err(RoundError::LeaseLost);
        }
        let entry = uploaded?;
        if !round.registry.lease()? {
            store.remove(&entry.name)?;
            return Err(RoundError::LeaseLost);
        }
        transfer::announce(entry.clone(), &self.options.cluster, &mut *store)?;
        round.registry.set_newest(&entry)?;
        log::info!(
            "snapshot {} made, because {why}: {} KB for a database of {} KB, in {} ms, in {}",
            entry.name,
            entry.size >> 10,
            entry.database_size >> 10,
            began.elapsed().as_millis(),
            store.address()
        );
        self.newest = Some(entry);
        Ok(())
    }
}

/// Whether an error while merging is that of the snapshot's file.
fn is_of_the_file(e: &DatabaseError) -> bool {
    let is_ours = matches!(e, DatabaseError::Stopped | DatabaseError::NotReserved(_));
    !is_ours && !e.is_temporary()
}

/// Keeps the lease while a snapshot is being made.
struct Leased<'a> {
    registry: &'a mut dyn Registry,
    watch: &'a mut dyn Watch,
    renew: Duration,
    renewed: Instant,
    lost: bool,
}

impl Leased<'_> {
    fn keep(&mut self) -> std::io::Result<()> {
        if self.renewed.elapsed() >= self.renew {
            self.renewed = Instant::now();
            // With the broker away, nobody else can take it either.
            if let Ok(false) = self.registry.lease() {
                self.lost = true;
                return Err(transfer::stop());
            }
        }
        Ok(())
    }
}

impl Watch for Leased<'_> {
    fn progress(&mut self, step: &'static str, done: u64, total: u64) -> std::io::Result<()> {
        self.keep()?;
        self.watch.progress(step, done, total)
    }

    fn pause(&mut self, held: Duration) -> std::io::Result<()> {
        self.keep()?;
        self.watch.pause(held)
    }
}

/// Fetches a snapshot and joins it with what is here.
fn merge(round: &mut Round<'_>, entry: &Entry, store: &mut dyn Store) -> Result<(), RoundError> {
    let began = Instant::now();
    let path = round.gate.enter().database.path().to_owned();
    let file = transfer::fetch(entry, &path, store, round.watch)?;
    let mut merge = Merge::open(file.path(), entry)?;
    loop {
        let _turn = round.gate.take_turn();
        let entered = Instant::now();
        let mut inside = round.gate.enter();
        let (done, mut captured) = merge.step(&mut inside.database)?;
        inside.hand_over(&mut captured);
        drop(inside);
        round.gate.wake_publisher();
        if merge.has_tables() {
            round.gate.let_read();
        }
        if done {
            break;
        }
        let pause = round.watch.pause(round.gate.counted(entered.elapsed()));
        pause.map_err(|_| RoundError::Stopped)?;
    }
    log::info!(
        "snapshot {} merged, {} row(s) in it were new here, in {} ms",
        entry.name,
        merge.rows,
        began.elapsed().as_millis()
    );
    round.gate.set_joined();
    Ok(())
}
