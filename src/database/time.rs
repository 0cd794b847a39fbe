//! The time with which local changes are stamped: the machine's, bounded by the broker's and by the
//! reservation on disk.

use std::time::{Duration, Instant};

use super::{Database, DatabaseError, Result};
use crate::model::timestamp::shown;
use crate::model::version::milliseconds;

/// Clocks may differ by this much whatever `max_clock_drift` is: messages take time.
const TRANSIT: Duration = Duration::from_secs(1);

/// How long health names a version in the future after it was seen last.
const AHEAD_FOR: Duration = Duration::from_secs(3600);

impl Database {
    /// Makes sure that `time_ms` may be stamped; that takes an fsync about once a minute.
    pub(super) fn reserve(&mut self, time_ms: i64) -> Result<()> {
        let time_ms = self.bounded_time(self.reservation.believe(time_ms, self.clock.now_ms()));
        if self.reservation.covers(time_ms) {
            return Ok(());
        }
        self.sync_commits(!self.fence.syncs())?;
        self.begin(Instant::now())?;
        let before = self.reservation.bounds();
        let stored = self.check_not_restored().and_then(|()| {
            self.reservation
                .extend(&self.conn, &*self.clock, time_ms)
                .and_then(|()| self.conn.execute_batch("COMMIT"))
                .map_err(DatabaseError::from)
        });
        let ended = self.end();
        let stored = stored.and(ended);
        match stored.and_then(|()| self.fence.settle(&self.conn, true)) {
            Ok(()) => self.reservation.is_stored(),
            Err(e) => {
                self.reservation.set_bounds(before); // it may not be on the disk
                return Err(e);
            }
        }
        Ok(())
    }

    /// The stamp of a change that is found just now, in unix milliseconds.
    pub(crate) fn stamp_now(&self) -> Result<i64> {
        let now_ms = self.clock.now_ms();
        self.reserved_time(self.reservation.believe(now_ms, now_ms))
    }

    /// The stamp of entry `id` of the change log, which the machine's clock dated `time_ms`.
    pub(crate) fn stamp_entry(&self, id: i64, time_ms: i64) -> Result<i64> {
        self.reserved_time(self.entry_time(id, time_ms))
    }

    /// As [`Self::stamp_entry`], for an entry that is kept for now: [`Self::stamp_kept`] checks the
    /// reservation later.
    pub(crate) fn entry_time(&self, id: i64, time_ms: i64) -> i64 {
        let now_ms = self.clock.now_ms();
        let time_ms = self.reservation.believe_entry(id, time_ms, now_ms);
        self.bounded_time(time_ms)
    }

    /// The stamp of an entry that [`Self::entry_time`] dated and that was kept since.
    pub(crate) fn stamp_kept(&self, time_ms: i64) -> Result<i64> {
        self.reserved_time(time_ms)
    }

    fn reserved_time(&self, time_ms: i64) -> Result<i64> {
        let time_ms = self.bounded_time(time_ms);
        if self.reservation.covers(time_ms) {
            Ok(time_ms)
        } else {
            Err(DatabaseError::NotReserved(time_ms))
        }
    }

    pub(super) fn bounded_time(&self, time_ms: i64) -> i64 {
        let drift = self.settings.max_clock_drift.as_millis() as i64;
        let bound = self
            .broker_time_ms()
            .map_or(i64::MAX, |now| now.saturating_add(drift));
        time_ms.min(bound).min(crate::model::version::MAX_MS)
    }

    /// The broker's clock now, in unix milliseconds; none if this node has not heard of it.
    pub fn broker_time_ms(&self) -> Option<i64> {
        self.broker_offset_ms
            .map(|offset| offset + self.clock.uptime().as_millis() as i64)
    }

    /// Notes that the broker's clock showed `time_ms` now or a moment ago: it cannot be earlier
    /// now.
    pub fn heard_broker_time(&mut self, time_ms: i64) {
        let offset = time_ms - self.clock.uptime().as_millis() as i64;
        if self.broker_offset_ms.is_none_or(|known| offset > known) {
            self.broker_offset_ms = Some(offset);
            let bound = self.bounded_time(i64::MAX);
            self.reservation.lower(bound);
        }
        self.note_clock();
    }

    /// By how many milliseconds the machine's clock is ahead of the broker's, below zero if it is
    /// behind; none if this node has not heard of the broker's.
    pub fn clock_ahead_ms(&self) -> Option<i64> {
        let broker_ms = self.broker_time_ms()?;
        Some(self.clock.now_ms().saturating_sub(broker_ms))
    }

    /// In words, that the machine's clock differs from the broker's by more than
    /// `max_clock_drift`; none if it does not, or if the broker's is not known yet.
    pub fn clock_problem(&self) -> Option<String> {
        let (ahead_ms, broker_ms) = (self.clock_ahead_ms()?, self.broker_time_ms()?);
        let allowed = self.settings.max_clock_drift.max(TRANSIT);
        if u128::from(ahead_ms.unsigned_abs()) <= allowed.as_millis() {
            return None;
        }
        let effect = match ahead_ms {
            1.. => "writes here count as of the broker's time and max_clock_drift, at most",
            _ => "writes here may lose against earlier ones of other nodes",
        };
        Some(format!(
            "this machine's clock shows {}, the broker's {} (UTC): set the clock, as by NTP. Until \
             then {effect}",
            shown(self.clock.now_ms()),
            shown(broker_ms)
        ))
    }

    /// Notes a version above the broker's time, which was `time_ms`, and `max_clock_drift`: later
    /// writes lose against it.
    pub(crate) fn note_ahead(&mut self, hlc: i64, time_ms: i64) {
        let drift_ms = self.settings.max_clock_drift.as_millis() as i64;
        let allowed_ms = time_ms.saturating_add(drift_ms + TRANSIT.as_millis() as i64);
        let ahead_ms = milliseconds(hlc);
        if ahead_ms <= allowed_ms {
            return;
        }
        let known = self.ahead_problem();
        let most_ms = known
            .as_ref()
            .map_or(ahead_ms, |_| ahead_ms.max(self.ahead.0));
        self.ahead = (most_ms, Some(self.clock.uptime()));
        if known.is_none() {
            log::warn!("{}", ahead(ahead_ms));
        }
    }

    /// In words, that a row has a version in the future, if one was seen in the last hour.
    pub fn ahead_problem(&self) -> Option<String> {
        let (most_ms, seen) = self.ahead;
        let is_lately = seen.is_some_and(|seen| self.clock.uptime() - seen < AHEAD_FOR);
        is_lately.then(|| ahead(most_ms))
    }

    /// Logs the begin and the end of a difference between the clocks.
    fn note_clock(&mut self) {
        let problem = self.clock_problem();
        let was_wrong = std::mem::replace(&mut self.clock_is_wrong, problem.is_some());
        match problem {
            Some(text) if !was_wrong => log::warn!("{text}"),
            None if was_wrong => log::info!("this machine's clock agrees with the broker's again"),
            _ => {}
        }
    }
}

fn ahead(ms: i64) -> String {
    format!(
        "rows have versions of {} (UTC), which is more than max_clock_drift ahead of the broker's \
         clock: later writes lose against them until `harmonylite release` has run on every node",
        shown(ms)
    )
}

#[cfg(test)]
mod tests {
    use crate::apply::tests::support::{Node, cluster, exchange};

    const NOW: i64 = 1_780_000_000_000;

    /// A box whose clock lost its battery shows the epoch, or any time.
    #[test]
    fn a_wrong_clock_is_named_until_it_is_set() {
        let mut node = Node::new(1, "CREATE TABLE t (id INTEGER PRIMARY KEY)");
        for (shows, part) in [
            (0, "1970-01-01 00:00:00"),
            (2_208_988_800_000, "2040-01-01 00:00:00"),
            (NOW - 61_000, "may lose"),
            (NOW + 61_000, "at most"),
        ] {
            node.clock.set(shows);
            node.db.heard_broker_time(NOW);
            assert_eq!(node.db.clock_ahead_ms(), Some(shows - NOW));
            let text = node.db.clock_problem().unwrap();
            assert!(text.contains(part), "{text}");
        }
        for shows in [NOW - 60_000, NOW, NOW + 60_000] {
            node.clock.set(shows);
            assert_eq!(node.db.clock_problem(), None);
        }
    }

    /// A row of a node with a wrong clock wins against all later writes, and health says so where
    /// it arrives, and where a later write gets a version above it.
    #[test]
    fn a_version_in_the_future_is_named() {
        let mut n = cluster(2, "CREATE TABLE t (id INTEGER PRIMARY KEY, v)");
        n[0].clock.set(NOW + 86_400_000);
        n[1].clock.set(NOW);
        n[1].db.heard_broker_time(NOW);
        n[0].run("INSERT INTO t VALUES (1, 'pinned')");
        assert_eq!(n[1].db.ahead_problem(), None);
        exchange(&mut n);
        let text = n[1].db.ahead_problem().unwrap();
        assert!(text.contains("harmonylite release"), "{text}");
        n[1].restart();
        n[1].db.heard_broker_time(NOW);
        assert_eq!(n[1].db.ahead_problem(), None);
        n[1].run("UPDATE t SET v = 'later' WHERE id = 1");
        n[1].capture();
        assert!(n[1].db.ahead_problem().is_some());
    }
}
