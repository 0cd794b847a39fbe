//! Makes a snapshot on the node that holds the lease.

use std::time::{Duration, Instant};

use super::{A_NODE_LACKS, NEWEST_LACKS, NextRound, ROUND_PAUSE, Round, RoundError, Scheduler};
use crate::cluster::registry::Registry;
use crate::config::Tables;
use crate::database::Database;
use crate::shared::Shared;
use crate::snapshot::scratch;
use crate::snapshot::transfer::{self, Maker};
use crate::snapshot::watch::{self, Watch};

/// Health's subject while no node makes a snapshot that is due.
const NO_MAKER: &str = "nobody makes snapshots";

/// How many times `leader_ttl` a node that may not make snapshots waits for another to make one.
const PATIENCE: u32 = 10;

/// Pause between two checks whether a migration is done.
const MIGRATION_PAUSE: Duration = Duration::from_secs(1);

impl Scheduler {
    /// Makes a snapshot, if `why` still gives a reason once this node holds the lease.
    pub(super) fn make_if(
        &mut self,
        round: &mut Round<'_>,
        why: impl Fn(&Scheduler, &Database) -> Option<&'static str>,
    ) -> Result<NextRound, RoundError> {
        let ask = |scheduler: &Scheduler, shared: &Shared| why(scheduler, &shared.lock().database);
        let Some(due) = ask(self, round.shared) else {
            (self.asked, self.defers) = (None, None); // only if there was something new
            self.is_made(round.shared);
            return Ok(self.rest(round.shared));
        };
        if self.defers(round.shared, due) {
            return Ok(NextRound::After(self.options.leader_ttl));
        }
        if let Some(why) = self.hindrance(round)? {
            return match self.asked.take() {
                Some(_) => Err(RoundError::Refused(why.to_owned())),
                None => Ok(self.await_maker(round.shared, due)),
            };
        }
        if !round.shared.all_at_end() {
            return Ok(NextRound::After(ROUND_PAUSE));
        }
        if !round.registry.lease()? {
            // Another node makes a snapshot. If it fails, this node tries again.
            return Ok(NextRound::After(
                self.options.leader_ttl.max(ROUND_PAUSE) / 4,
            ));
        }
        let known = self.newest.take();
        let newest = round.registry.newest();
        let made = newest.map_err(RoundError::from).and_then(|newest| {
            self.newest = match newest {
                Some(newest) => Some(self.verify_positions(newest, round)?),
                None => known,
            };
            if let Some(newest) = &self.newest {
                self.age.note(newest, &round.shared.lock().database);
            }
            match ask(self, round.shared) {
                Some(why) => self.make(round, why),
                None => Ok(()),
            }
        });
        round.registry.give_lease_back();
        made?;
        self.asked = None;
        Ok(self.rest(round.shared))
    }

    /// Whether to leave other nodes the time to make a snapshot first, because this node let go of
    /// rows that they may have.
    fn defers(&mut self, shared: &Shared, why: &str) -> bool {
        let locked = shared.lock();
        let db = &locked.database;
        let is_awaited = [NEWEST_LACKS, A_NODE_LACKS].contains(&why);
        let lacks = db.has_let_go(true) || db.has_gone().unwrap_or(false);
        if !is_awaited || self.asked.is_some() || !lacks {
            return false;
        }
        let now = db.clock.uptime();
        now - *self.defers.get_or_insert(now) < 2 * self.options.leader_ttl
    }

    /// Returns why this node cannot make snapshots at all.
    pub(super) fn hindrance(
        &self,
        round: &mut Round<'_>,
    ) -> Result<Option<&'static str>, RoundError> {
        if !self.options.may_make {
            return Ok(Some(
                "a node with publish = false, replicate = false or snapshot.make = false makes no \
                 snapshots",
            ));
        }
        let locked = round.shared.lock();
        let db = &locked.database;
        if !db.chooses_tables() && !db.has_let_go(false) {
            return Ok(None);
        }
        drop(locked);
        let publishers = round.registry.publishers()?;
        let locked = round.shared.lock();
        let mut differs = false;
        for other in publishers
            .values()
            .filter(|s| **s != self.options.selection)
        {
            differs |= match Tables::of_description(other) {
                Some(others) => locked.database.lacks_tables_of(&others)?,
                None => true,
            };
        }
        Ok(
            differs
                .then_some("a node that excludes tables of others ([tables]) makes no snapshots"),
        )
    }

    fn make(&mut self, round: &mut Round<'_>, why: &str) -> Result<(), RoundError> {
        let began = Instant::now();
        let mut store = (round.open_store)()?;
        let others = self.tables_of_others(round)?;
        // The lease is renewed from here on: capturing a large new database takes minutes.
        let mut watch = Leased {
            registry: round.registry,
            watch: round.watch,
            renew: self.options.leader_ttl / 3,
            renewed: Instant::now(),
            lost: false,
        };
        let mut view = loop {
            let turn = round.shared.take_turn();
            let mut locked = round.shared.lock_to_write();
            let (view, mut captured) = locked.database.view()?;
            locked.hand_over(&mut captured);
            let held = locked.began.elapsed();
            // While a migration is at work on a table, wait for it.
            let waits = locked.database.next_check().filter(|_| !captured.more);
            drop(locked);
            if captured.changes > 0 {
                round.shared.note_written();
            }
            round.shared.wake_publisher();
            if let Some(view) = view {
                break view;
            }
            let pause = round.shared.rest(turn, held);
            let pause = pause.max(waits.unwrap_or_default().min(MIGRATION_PAUSE));
            watch.pause(pause).map_err(|_| match watch.lost {
                true => RoundError::LeaseLost,
                false => RoundError::Stopped,
            })?;
        };
        view.others_have(&|table| {
            let mut others = others.iter();
            others.any(|told| told.as_ref().is_none_or(|tables| tables.contains(table)))
        });
        let locked = round.shared.lock();
        let db = &locked.database;
        self.made += 1;
        let dropped = db.dropped()?;
        let path = db.path().to_owned();
        let scratch = scratch::base(&path, self.options.scratch.as_deref());
        let maker = Maker {
            database: &path,
            scratch: &scratch,
            cluster: &self.options.cluster,
            node: db.node(),
            time_ms: db.clock.now_ms(),
            random: self.made ^ (db.clock.uptime().as_nanos() as u64) << 8,
            dropped: dropped.is_valid().then_some((dropped.hlc, dropped.node)),
        };
        drop(locked);
        let uploaded = transfer::upload(view, &maker, &mut *store, &mut watch);
        if watch.lost {
            return Err(RoundError::LeaseLost);
        }
        let entry = uploaded?;
        if !round.registry.lease()? {
            store.remove(&entry.name)?;
            return Err(RoundError::LeaseLost);
        }
        round.shared.lock().database.note_made(&entry.name)?;
        transfer::announce(
            entry.clone(),
            self.newest.as_ref(),
            &self.options.cluster,
            &mut *store,
        )?;
        round.registry.set_newest(&entry)?;
        log::info!(
            "snapshot {} made, because {why}: {} KB for a database of {} KB, in {} ms, in {}",
            entry.name,
            entry.size >> 10,
            entry.database_size >> 10,
            began.elapsed().as_millis(),
            store.address()
        );
        round.shared.measures.saved_snapshot(began.elapsed());
        self.age.note(&entry, &round.shared.lock().database);
        self.newest = Some(entry);
        self.defers = None;
        self.is_made(round.shared);
        Ok(())
    }

    /// A snapshot is due that this node may not make. Health says so if no other node makes it for
    /// a long time: the streams are about to drop what only a snapshot could bring to a node.
    fn await_maker(&mut self, shared: &Shared, due: &str) -> NextRound {
        let now = shared.lock().database.clock.uptime();
        let patience = self.options.leader_ttl * PATIENCE;
        let waited = now.saturating_sub(*self.unmade.get_or_insert(now));
        if waited < patience {
            return NextRound::After(patience - waited);
        }
        let text = format!(
            "one is due ({due}), this node may not make it, and no node that may has made it for \
             {} s: start one, or set snapshot.make = true on a node that has all tables",
            waited.as_secs()
        );
        shared.health.report_failing(NO_MAKER, &text);
        NextRound::Rest
    }

    fn is_made(&mut self, shared: &Shared) {
        if self.unmade.take().is_some() {
            shared.health.report_ok(NO_MAKER);
        }
    }
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
            // While the broker is away, no other node can take the lease either.
            if let Ok(false) = self.registry.lease() {
                self.lost = true;
                return Err(watch::stop());
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

    fn pause(&mut self, time: Duration) -> std::io::Result<()> {
        self.keep()?;
        self.watch.pause(time)
    }
}
