//! Ages of tombstones, as far as they can be proved.
//!
//! Now and then transaction numbers are noted with the time, by the broker's clock. A note in
//! `___ages` says that everything up to a number was published by then: this decides when a
//! tombstone may be dropped here. A note in memory says that everything from a number on was learnt
//! after a time: this decides whether other nodes still have the tombstone.

use std::collections::VecDeque;
use std::time::Duration;

use rusqlite::Connection;

use crate::database::meta::{Meta, get_meta, set_meta};
use crate::database::rows::Stored;
use crate::database::{Database, Result};
use crate::model::version::{Version, milliseconds, stamp};
use crate::mutation::{self, Mutation};

/// Interval of the notes; a thousandth of the retention if that is longer, a quarter of it at the
/// most.
const NOTE_EVERY: Duration = Duration::from_secs(60);

/// Bounds of the ages of tombstones.
#[derive(Debug, Default)]
pub(crate) struct TombstoneAge {
    /// Broker's time of the last note, unix milliseconds.
    noted_ms: Option<i64>,
    /// Notes (unix milliseconds, number) of the last third of the retention: from that number on
    /// everything was learnt after that time.
    since: VecDeque<(i64, i64)>,
    /// A tombstone that was learnt before this number may be of any age.
    doubted: i64,
    /// The highest hlc that this node may have given to a row whose version is forgotten by now.
    /// While its clock stands still, the node could otherwise give that hlc to the row again, with
    /// different content.
    forgotten: i64,
    /// Upper bound, in unix milliseconds, of the times of all versions that this node gave.
    given_ms: i64,
}

const GIVEN_AHEAD_MS: i64 = 60_000;

impl TombstoneAge {
    pub(crate) fn load(conn: &Connection) -> rusqlite::Result<TombstoneAge> {
        Ok(TombstoneAge {
            forgotten: get_meta(conn, Meta::Forgotten)?.unwrap_or_default(),
            given_ms: get_meta(conn, Meta::GivenMs)?.unwrap_or_default(),
            ..TombstoneAge::default()
        })
    }

    /// Restores the values that are in the database, after a rollback.
    pub(crate) fn roll_back(&mut self, conn: &Connection) -> rusqlite::Result<()> {
        let stored = TombstoneAge::load(conn)?;
        (self.forgotten, self.given_ms) = (stored.forgotten, stored.given_ms);
        Ok(())
    }

    pub(crate) fn forgotten(&self) -> i64 {
        self.forgotten
    }
}

impl Database {
    /// Notes the next transaction number with the broker's time. The daemon calls this now and
    /// then. Does nothing while the broker's time is unknown.
    pub fn note_age(&mut self) -> Result<()> {
        let Some(now_ms) = self.broker_time_ms() else {
            return Ok(());
        };
        let retention = self.settings.tombstone_retention;
        let every = NOTE_EVERY.max(retention / 1000).min(retention / 4);
        let noted = self.tombstone_age.noted_ms;
        if noted.is_some_and(|n| now_ms - n < every.as_millis() as i64) {
            return Ok(());
        }
        self.tombstone_age.noted_ms = Some(now_ms);
        let next = self.reservation.peek_number();
        while let Some((ms, _)) = self.tombstone_age.since.front()
            && *ms <= now_ms - self.third_ms()
        {
            self.tombstone_age.since.pop_front();
        }
        self.tombstone_age.since.push_back((now_ms, next));
        if self.is_republishing() {
            return Ok(());
        }
        let unsent: Option<i64> =
            self.conn
                .query_row("SELECT min(at) FROM __harmonylite___unsent", [], |r| {
                    r.get(0)
                })?;
        // Marked rows were published to nobody, however long they wait here.
        let local_tx = match mutation::is(Mutation::MarkedTombstonesDropped) {
            true => next - 1,
            false => unsent.unwrap_or(next) - 1,
        };
        let last: Option<i64> =
            self.conn
                .query_row("SELECT max(at) FROM __harmonylite___ages", [], |r| r.get(0))?;
        if last.is_none_or(|last| last < local_tx) {
            let retention_ms = retention.as_millis() as i64;
            self.write(|db| {
                // One note older than the retention stays: it is the bound of the next sweep.
                db.conn.execute(
                    "DELETE FROM __harmonylite___ages WHERE at < (
                         SELECT max(at) FROM __harmonylite___ages WHERE ms <= ?1)",
                    [now_ms - retention_ms],
                )?;
                db.conn.execute(
                    "REPLACE INTO __harmonylite___ages(at, ms) VALUES (?1, ?2)",
                    [local_tx, now_ms],
                )?;
                Ok(())
            })?;
        }
        Ok(())
    }

    fn third_ms(&self) -> i64 {
        self.settings.tombstone_retention.as_millis() as i64 / 3
    }

    /// Whether other nodes may have dropped a tombstone that is still here.
    ///
    /// They have not if the tombstone was learnt within a third of the retention, from a message
    /// that was not older than that. A node that read that message keeps the tombstone for two
    /// thirds at least: a tombstone that may be dropped elsewhere counts as learnt anew when it is
    /// published again.
    pub(crate) fn may_be_dropped_elsewhere(&self, tombstone: &Stored) -> bool {
        tombstone.local_tx < self.young_from()
    }

    /// The first transaction number from which on everything was learnt within a third of the
    /// retention.
    pub(crate) fn young_from(&self) -> i64 {
        let Some(now_ms) = self.broker_time_ms() else {
            return i64::MAX;
        };
        let mut since = self.tombstone_age.since.iter();
        let young = since.find(|(ms, _)| *ms > now_ms - self.third_ms());
        young.map_or(i64::MAX, |(_, from)| self.tombstone_age.doubted.max(*from))
    }

    /// From now on, everything learnt so far counts as being of any age.
    pub(crate) fn doubt_tombstone_age(&mut self) {
        self.tombstone_age.doubted = self.reservation.peek_number();
    }

    /// Does the same if the message about to be applied, which the broker stored at `time_ms`, is
    /// old.
    pub(crate) fn doubt_old(&mut self, time_ms: i64) {
        if self.is_old(time_ms) {
            self.doubt_tombstone_age();
        }
    }

    /// Whether a third of the retention has passed since `time_ms`, or may have passed.
    pub(crate) fn is_old(&self, time_ms: i64) -> bool {
        let now_ms = self.broker_time_ms();
        now_ms.is_none_or(|now| now - time_ms > self.third_ms())
    }

    /// Forgets when rows were published: the count of their ages starts again. Inside a
    /// transaction.
    pub(crate) fn forget_tombstone_age(&mut self) -> Result<()> {
        self.tombstone_age.noted_ms = None;
        self.doubt_tombstone_age();
        self.conn.execute("DELETE FROM __harmonylite___ages", [])?;
        Ok(())
    }

    /// The last transaction number up to which everything was published by `time_ms` (unix
    /// milliseconds), as far as noted; 0 if there is no such note.
    pub(crate) fn local_tx_before(&self, time_ms: i64) -> Result<i64> {
        let local_tx: Option<i64> = self
            .conn
            .prepare_cached("SELECT max(at) FROM __harmonylite___ages WHERE ms <= ?1")?
            .query_row([time_ms], |r| r.get(0))?;
        Ok(local_tx.unwrap_or(0))
    }

    /// Raises the bound of given times: a local change got this hlc. Inside its transaction.
    pub(crate) fn note_given(&mut self, hlc: i64) -> Result<()> {
        if milliseconds(hlc) > self.tombstone_age.given_ms {
            self.tombstone_age.given_ms = milliseconds(hlc) + GIVEN_AHEAD_MS;
            set_meta(&self.conn, Meta::GivenMs, self.tombstone_age.given_ms)?;
        }
        Ok(())
    }

    /// Records that no version of this node is known any more, and that none is of a later time
    /// than `now_ms`. Inside a transaction.
    pub(crate) fn all_given_is_forgotten(&mut self, now_ms: i64) -> Result<()> {
        self.tombstone_age.forgotten = stamp(now_ms, self.tombstone_age.forgotten);
        set_meta(&self.conn, Meta::Forgotten, self.tombstone_age.forgotten)?;
        set_meta(&self.conn, Meta::GivenMs, self.tombstone_age.given_ms)?;
        self.forget_tombstone_age()
    }

    /// Records that a row's version is forgotten; an earlier version of the row may have been this
    /// node's. Inside a transaction.
    pub(crate) fn note_forgotten(&mut self, version: Version) -> Result<()> {
        let given = stamp(
            self.tombstone_age.given_ms + 1,
            self.tombstone_age.forgotten,
        );
        let hlc = match version.node == self.node {
            true => version.hlc,
            false => version.hlc.min(given),
        };
        if hlc > self.tombstone_age.forgotten {
            self.tombstone_age.forgotten = hlc;
            set_meta(&self.conn, Meta::Forgotten, hlc)?;
        }
        Ok(())
    }
}
