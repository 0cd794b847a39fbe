//! When a snapshot is due.
//!
//! It must be there before a stream drops a message that is newer than the last snapshot: a node
//! that lacks the message has nothing else to get it from. So half of what a stream keeps, in
//! messages or in time, is always a reason. A snapshot costs an upload of the whole database, so
//! before that limit the bytes written since the last one decide, and not their number.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{A_NODE_LACKS, Asked, NEWEST_LACKS, NextRound, ROUND_PAUSE, Scheduler};
use crate::database::Database;
use crate::model::manifest::{SnapshotEntry, StreamPosition};
use crate::shared::{Keeps, Shared};

/// So many times its own size may be written before a snapshot is out of date: its upload is at
/// most a third of the traffic, and a new node reads at most three times its size.
const TIMES_ITS_SIZE: u64 = 2;

/// Fewer bytes than these are no reason, however small the database is.
const LEAST_BYTES: u64 = 1 << 20;

/// How old the newest snapshot is. The clocks of its maker and of this node may be wrong: they
/// count only for a snapshot that was there before this process, from then on time is measured.
#[derive(Debug, Default)]
pub(super) struct Age {
    name: String,
    /// When this node first saw it, by its uptime, and its age at that time.
    seen: Duration,
    then: Duration,
}

impl Age {
    /// Notes the newest snapshot.
    pub(super) fn note(&mut self, newest: &SnapshotEntry, db: &Database) {
        if self.name == newest.name {
            return;
        }
        let is_first = self.name.is_empty();
        self.name.clone_from(&newest.name);
        self.seen = db.clock.uptime();
        let now_ms = db.broker_time_ms().unwrap_or_else(|| db.clock.now_ms());
        let age_ms = now_ms.saturating_sub(newest.time_ms).max(0);
        self.then = match is_first {
            true => Duration::from_millis(age_ms as u64),
            false => Duration::ZERO,
        };
    }

    fn now(&self, db: &Database) -> Duration {
        self.then + db.clock.uptime().saturating_sub(self.seen)
    }
}

impl Scheduler {
    /// Returns why a snapshot is due, or `None`. `keeps` is what a stream keeps.
    pub(super) fn due(
        &self,
        db: &Database,
        wanted: &BTreeMap<String, StreamPosition>,
        keeps: &Keeps,
    ) -> Option<&'static str> {
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
            return Some(NEWEST_LACKS);
        }
        let mut written = 0_u64;
        for (stream, place) in places.iter().filter(|(_, p)| !p.created.is_empty()) {
            let reached = reached(stream, &place.created);
            let asked = wanted.get(stream).filter(|w| w.created == place.created);
            if asked.is_some_and(|w| w.seq <= place.seq && reached.is_none_or(|r| r < w.seq)) {
                return Some(A_NODE_LACKS);
            }
            let Some(reached) = reached else {
                return Some("the streams are new");
            };
            let since = place.seq.saturating_sub(reached);
            if since > keeps.messages / 2 {
                return Some("half of what a stream keeps was written");
            }
            written = written.saturating_add(since);
        }
        if written.saturating_mul(keeps.message_bytes.unwrap_or(0)) > enough(newest) {
            return Some("much was written since the last");
        }
        let is_over = |every: Duration| {
            db.clock.now_ms() - newest.time_ms >= every.as_millis() as i64
                && !db.is_covered(&newest.streams)
        };
        if self.options.interval.is_some_and(is_over) {
            return Some("the interval is over");
        }
        let is_old = |age: Duration| self.age.now(db) >= age / 2 && !db.is_covered(&newest.streams);
        keeps
            .age
            .is_some_and(is_old)
            .then_some("half of the time that a stream keeps messages is over")
    }

    /// When to look again, if nothing happens before: when the interval or half of the time that a
    /// stream keeps messages is over, unless nothing was written since the newest snapshot.
    pub fn rest(&self, shared: &Shared) -> NextRound {
        let keeps = shared.stream_keeps(self.options.max_entries);
        let Some(newest) = &self.newest else {
            return NextRound::Rest;
        };
        let locked = shared.lock();
        let db = &locked.database;
        if db.is_covered(&newest.streams) {
            return NextRound::Rest;
        }
        let age_ms = (db.clock.now_ms() - newest.time_ms).max(0);
        let by_interval = self
            .options
            .interval
            .map(|every| every.saturating_sub(Duration::from_millis(age_ms as u64)));
        let by_age = keeps
            .age
            .map(|age| (age / 2).saturating_sub(self.age.now(db)));
        let first = [by_interval, by_age].into_iter().flatten().min();
        first.map_or(NextRound::Rest, |wait| {
            NextRound::After(wait.max(ROUND_PAUSE))
        })
    }
}

/// Bytes of messages after which a snapshot is out of date.
fn enough(newest: &SnapshotEntry) -> u64 {
    LEAST_BYTES.max(newest.size.saturating_mul(TIMES_ITS_SIZE))
}
