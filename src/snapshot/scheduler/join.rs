//! A node that lacks what the others have: it is new, or it missed messages.

use std::time::Duration;

use super::take::is_of_the_file;
use super::{NextRound, ROUND_PAUSE, Round, RoundError, Scheduler};
use crate::database::Database;
use crate::model::manifest::SnapshotEntry;
use crate::mutation::{self, Mutation};
use crate::shared::Shared;

/// How long a database that began without tables leaves founding to others, after it has asked the
/// broker for the first time.
const FOUNDER_WITHIN: Duration = Duration::from_secs(5);

impl Scheduler {
    /// Joins a new node: merges the newest snapshot, or founds the cluster if there is none.
    ///
    /// A node without tables founds nothing: it has nothing for the others to begin with, and would
    /// never get the tables of the node that has the data. It waits for that node's snapshot, or
    /// for tables of its own application.
    pub(super) fn join(&mut self, round: &mut Round<'_>) -> Result<NextRound, RoundError> {
        if self.newest.is_some() {
            if mutation::is(Mutation::JoinedBeforeMerging) {
                round.shared.set_joined();
            }
            return match self.merge_any(round, |_, _| true) {
                Ok(true) => Ok(NextRound::Rest),
                Ok(false) => {
                    self.join_without(round, "the store is empty")?;
                    Ok(NextRound::After(ROUND_PAUSE))
                }
                Err(e) => {
                    self.join_without(round, &e.to_string())?;
                    Err(e)
                }
            };
        }
        let (node, is_empty) = {
            let locked = round.shared.lock();
            (locked.database.node(), locked.database.is_without_tables()?)
        };
        if is_empty && self.asked.take().is_some() {
            let text = "the database has no tables, so there is nothing to save";
            return Err(RoundError::Refused(text.to_owned()));
        }
        let may_found = !is_empty && !self.waits_for_founder(round.shared);
        if may_found && self.hindrance(round)?.is_none() && round.registry.claim_founder(node)? {
            round.shared.lock().database.become_founder()?;
            round.shared.set_joined();
            log::info!("this node founds the cluster: the other nodes begin with its rows");
        } else if round.registry.lease_is_held()? {
            self.waiting = None; // the first snapshot is being made
        } else if !may_found && round.registry.founder()?.is_none_or(|f| f == node) {
            if !self.waits_for_founder(round.shared) {
                begin_empty(round.shared);
                return Ok(NextRound::Rest); // until there are tables here, or a snapshot
            }
        } else {
            self.join_without(round, "the founder has not made a snapshot")?;
        }
        Ok(NextRound::After(ROUND_PAUSE))
    }

    /// Whether this node leaves founding to a node that has data and starts at the same time:
    /// its own database had no tables when it was opened.
    fn waits_for_founder(&mut self, shared: &Shared) -> bool {
        let locked = shared.lock();
        let now = locked.database.clock.uptime();
        let since = *self.met_broker.get_or_insert(now);
        locked.database.began_empty && now - since < FOUNDER_WITHIN
    }

    /// Joins without a snapshot, if none can be had for `leader_ttl` and the streams are read to
    /// their end: changes of this node that others need must not wait for ever. A node without
    /// tables has none; it goes on waiting, and its application can work.
    pub(super) fn join_without(
        &mut self,
        round: &mut Round<'_>,
        why: &str,
    ) -> Result<(), RoundError> {
        let mut locked = round.shared.lock();
        let now = locked.database.clock.uptime();
        let since = *self.waiting.get_or_insert(now);
        if now - since < self.options.leader_ttl || !round.shared.all_at_end() {
            return Ok(());
        }
        if locked.database.is_without_tables()? {
            drop(locked);
            begin_empty(round.shared);
            return Ok(());
        }
        locked.database.become_founder()?;
        drop(locked);
        round.shared.set_joined();
        log::warn!("this node joins without a snapshot: {why}");
        Ok(())
    }

    /// Merges the newest snapshot after streams were lost, if it may hold rows of them that are not
    /// here.
    pub(super) fn merge_for_lost_streams(
        &mut self,
        round: &mut Round<'_>,
    ) -> Result<(), RoundError> {
        let mut locked = round.shared.lock();
        if !locked.database.seeks_snapshot()? {
            return Ok(());
        }
        // No newest snapshot may mean that the manifest is torn, and the store has one all the
        // same.
        let Some(newest) = &self.newest else {
            return Ok(());
        };
        if locked.database.had_read(newest)? {
            return Ok(locked.database.write(|db| db.forget_lost())?);
        }
        drop(locked);
        match self.merge_any(round, |_, _| true) {
            Ok(true) => Ok(()),
            Ok(false) => {
                let mut locked = round.shared.lock();
                Ok(locked.database.write(|db| db.forget_lost())?)
            }
            // The error is logged, and no node can merge that snapshot: a new one may be made.
            Err(RoundError::Database(e)) if is_of_the_file(&e) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Closes gaps: merges a snapshot that has the missed messages, or asks for one.
    pub(super) fn make_up(&mut self, round: &mut Round<'_>) -> Result<NextRound, RoundError> {
        let helps = |db: &Database, entry: &SnapshotEntry| db.is_helped_by(entry);
        let newest = self.newest.as_ref();
        let is_there = newest.is_some_and(|e| helps(&round.shared.lock().database, e));
        if is_there && self.merge_any(round, helps)? {
            let publishers = round.registry.publishers()?.into_keys().collect();
            let mut locked = round.shared.lock();
            locked.database.close_gaps(&publishers)?;
            if !locked.database.has_gap() {
                self.lacking = None;
                round.shared.wake_publisher(); // which waited for that
            }
            return Ok(NextRound::After(Duration::ZERO));
        }
        let missed = round.shared.lock().database.missed();
        round.registry.request(&missed)?;
        let locked = round.shared.lock();
        let now = locked.database.clock.uptime();
        let since = *self.lacking.get_or_insert(now);
        let newest = self.newest.as_ref();
        let is_unheard = newest.is_none_or(|e| locked.database.is_unheard_in(e));
        drop(locked);
        // Perhaps every node lacks something: then each makes a snapshot of what it has, in turn.
        if now - since >= self.options.leader_ttl && is_unheard {
            self.take_in_newest(round)?;
            return self.make_if(round, |_, _| {
                Some("this node lacks changes, and so may the others")
            });
        }
        Ok(NextRound::After(self.options.leader_ttl)) // or when a node leaves word
    }

    /// Merges the newest snapshot although it closes no gap. It may have some of the changes that
    /// all other nodes lack, and the next snapshot, which takes its place, must have those, too.
    fn take_in_newest(&mut self, round: &mut Round<'_>) -> Result<(), RoundError> {
        let Some(newest) = self.newest.as_ref().map(|e| e.name.clone()) else {
            return Ok(());
        };
        let is_here = round.shared.lock().database.made()?.contains(&newest);
        if !is_here && self.merged.as_ref() != Some(&newest) {
            self.merge_any(round, |_, entry| entry.name == newest)?;
        }
        Ok(())
    }
}

fn begin_empty(shared: &Shared) {
    if !shared.has_begun() {
        log::info!(
            "there are no tables here: waiting for the snapshot of a node that has some, or until \
             an application makes them here"
        );
        shared.set_begins_empty();
    }
}
