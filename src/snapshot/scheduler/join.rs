//! A node that does not have what the others have: it is new, or missed messages.

use std::time::Duration;

use super::take::is_of_the_file;
use super::{LOOK_AGAIN, Next, Round, RoundError, Scheduler};
use crate::database::Database;
use crate::model::manifest::Entry;
use crate::mutation::{self, Mutation};

impl Scheduler {
    /// A new node: merges the snapshot there is, or founds the cluster.
    pub(super) fn join(&mut self, round: &mut Round<'_>) -> Result<Next, RoundError> {
        if self.newest.is_some() {
            if mutation::is(Mutation::JoinedBeforeMerging) {
                round.gate.set_joined();
            }
            return match self.merge_any(round, |_, _| true) {
                Ok(true) => Ok(Next::Rest),
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
        if self.hindrance(round)?.is_none() && round.registry.claim_founder(node)? {
            round.gate.enter().database.found()?;
            round.gate.set_joined();
            log::info!("founding the cluster: the others begin with what is here");
        } else if round.registry.lease_is_held()? {
            self.waiting = None; // the first snapshot is being made
        } else {
            self.join_without(round, "the founder has not made a snapshot")?;
        }
        Ok(Next::After(LOOK_AGAIN))
    }

    /// A snapshot is not to be had for a while: the streams are read to their end, and what others
    /// need to know of this node must not wait for ever.
    pub(super) fn join_without(
        &mut self,
        round: &mut Round<'_>,
        why: &str,
    ) -> Result<(), RoundError> {
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

    /// Streams are gone: merges the newest snapshot, if it may hold something of them that is not
    /// here.
    pub(super) fn look_for_lost(&mut self, round: &mut Round<'_>) -> Result<(), RoundError> {
        let mut inside = round.gate.enter();
        if !inside.database.seeks_snapshot()? {
            return Ok(());
        }
        // None may mean that the manifest is torn, and there is one all the same.
        let Some(newest) = &self.newest else {
            return Ok(());
        };
        if inside.database.had_read(newest)? {
            return Ok(inside.database.write(|db| db.forget_lost())?);
        }
        drop(inside);
        match self.merge_any(round, |_, _| true) {
            Ok(true) => Ok(()),
            Ok(false) => {
                let mut inside = round.gate.enter();
                Ok(inside.database.write(|db| db.forget_lost())?)
            }
            // It is said, and nobody can take it in: let there be another.
            Err(RoundError::Database(e)) if is_of_the_file(&e) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Messages were missed: merges a snapshot that has them, or asks for one.
    pub(super) fn make_up(&mut self, round: &mut Round<'_>) -> Result<Next, RoundError> {
        let helps = |db: &Database, entry: &Entry| db.is_helped_by(entry);
        let newest = self.newest.as_ref();
        let is_there = newest.is_some_and(|e| helps(&round.gate.enter().database, e));
        if is_there && self.merge_any(round, helps)? {
            let publishers = round.registry.publishers()?.into_keys().collect();
            let mut inside = round.gate.enter();
            inside.database.close_gaps(&publishers)?;
            if !inside.database.has_gap() {
                self.lacking = None;
                round.gate.wake_publisher(); // which waited for that
            }
            return Ok(Next::After(Duration::ZERO));
        }
        let missed = round.gate.enter().database.missed();
        round.registry.request(&missed)?;
        let inside = round.gate.enter();
        let now = inside.database.clock.uptime();
        let since = *self.lacking.get_or_insert(now);
        let newest = self.newest.as_ref();
        let is_unheard = newest.is_none_or(|e| inside.database.is_unheard_in(e));
        drop(inside);
        // Perhaps everybody lacks something: then each says what it has, in turn.
        if now - since >= self.options.leader_ttl && is_unheard {
            self.take_in_newest(round)?;
            return self.make_if(round, |_, _| {
                Some("this node lacks changes, and so may the others")
            });
        }
        Ok(Next::After(self.options.leader_ttl)) // or when a node leaves word
    }

    /// The newest snapshot closes no gap, but may have some of what all lack: the one made next
    /// takes its place, and is to have that, too.
    fn take_in_newest(&mut self, round: &mut Round<'_>) -> Result<(), RoundError> {
        let Some(newest) = self.newest.as_ref().map(|e| e.name.clone()) else {
            return Ok(());
        };
        let is_here = round.gate.enter().database.made()?.contains(&newest);
        if !is_here && self.merged.as_ref() != Some(&newest) {
            self.merge_any(round, |_, entry| entry.name == newest)?;
        }
        Ok(())
    }
}
