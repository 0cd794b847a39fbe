//! How old tombstones are, as far as that can be proved.
//!
//! Numbers of transactions are noted now and then with the time, by the broker's clock: when all up
//! to a number was told, which decides when a tombstone may be dropped here; and from which number
//! on all was learnt later than that, which decides whether others still have it.

use std::collections::VecDeque;
use std::time::Duration;

use rusqlite::Connection;

use crate::database::meta::{Meta, get_meta, set_meta};
use crate::database::rows::Stored;
use crate::database::{Database, Result};
use crate::model::version::{Version, milliseconds, stamp};
use crate::mutation::{self, Mutation};

/// Numbers are noted this often, or a thousand times per retention if that is less often.
const NOTE_EVERY: Duration = Duration::from_secs(60);

/// What is known of the age of tombstones.
#[derive(Debug, Default)]
pub(crate) struct Ages {
    /// Broker's time of the last note.
    noted_ms: Option<i64>,
    /// Times within the last third of the retention, and the number from which on all was learnt
    /// later.
    since: VecDeque<(i64, i64)>,
    /// What was learnt before this number may be of any age.
    doubted: i64,
    /// The highest hlc that this node may have given to a row that is forgotten by now: with a
    /// clock that stands still the row would get it again, for something else.
    forgotten: i64,
    /// No version of ours is of a later time than this.
    given_ms: i64,
}

const GIVEN_AHEAD_MS: i64 = 60_000;

impl Ages {
    pub(crate) fn load(conn: &Connection) -> rusqlite::Result<Ages> {
        Ok(Ages {
            forgotten: get_meta(conn, Meta::Forgotten)?.unwrap_or_default(),
            given_ms: get_meta(conn, Meta::GivenMs)?.unwrap_or_default(),
            ..Ages::default()
        })
    }

    /// A transaction was undone, and what it stored with it.
    pub(crate) fn roll_back(&mut self, conn: &Connection) -> rusqlite::Result<()> {
        let stored = Ages::load(conn)?;
        (self.forgotten, self.given_ms) = (stored.forgotten, stored.given_ms);
        Ok(())
    }

    pub(crate) fn forgotten(&self) -> i64 {
        self.forgotten
    }
}

impl Database {
    /// Notes how old transaction numbers are. Called now and then.
    pub fn note_age(&mut self) -> Result<()> {
        let Some(now_ms) = self.broker_time_ms() else {
            return Ok(());
        };
        let retention = self.settings.tombstone_retention;
        let every = NOTE_EVERY.max(retention / 1000).min(retention / 4);
        let noted = self.ages.noted_ms;
        if noted.is_some_and(|n| now_ms - n < every.as_millis() as i64) {
            return Ok(());
        }
        self.ages.noted_ms = Some(now_ms);
        let next = self.reservation.peek_number();
        while let Some((ms, _)) = self.ages.since.front()
            && *ms <= now_ms - self.third_ms()
        {
            self.ages.since.pop_front();
        }
        self.ages.since.push_back((now_ms, next));
        if self.is_republishing() {
            return Ok(());
        }
        let unsent: Option<i64> =
            self.conn
                .query_row("SELECT min(at) FROM __harmonylite___unsent", [], |r| {
                    r.get(0)
                })?;
        // What waits here was told to nobody, however long it waits.
        let at = match mutation::is(Mutation::MarkedTombstonesDropped) {
            true => next - 1,
            false => unsent.unwrap_or(next) - 1,
        };
        let last: Option<i64> =
            self.conn
                .query_row("SELECT max(at) FROM __harmonylite___ages", [], |r| r.get(0))?;
        if last.is_none_or(|last| last < at) {
            let retention_ms = retention.as_millis() as i64;
            self.write(|db| {
                // One note is kept that is older than the retention: the bound of the next sweep.
                db.conn.execute(
                    "DELETE FROM __harmonylite___ages WHERE at < (
                         SELECT max(at) FROM __harmonylite___ages WHERE ms <= ?1)",
                    [now_ms - retention_ms],
                )?;
                db.conn.execute(
                    "REPLACE INTO __harmonylite___ages(at, ms) VALUES (?1, ?2)",
                    [at, now_ms],
                )?;
                Ok(())
            })?;
        }
        Ok(())
    }

    fn third_ms(&self) -> i64 {
        self.settings.tombstone_retention.as_millis() as i64 / 3
    }

    /// Whether others may have dropped a tombstone that is still here.
    ///
    /// Not if it was learnt within a third of the retention, from a message that was not older than
    /// that: whoever read that message keeps the tombstone for two thirds at least, since one that
    /// may be dropped elsewhere counts as learnt anew when it is told again.
    pub(crate) fn may_be_dropped_elsewhere(&self, tombstone: &Stored) -> bool {
        tombstone.at < self.young_from()
    }

    /// What was learnt from this number on is young in that sense.
    pub(crate) fn young_from(&self) -> i64 {
        let Some(now_ms) = self.broker_time_ms() else {
            return i64::MAX;
        };
        let mut since = self.ages.since.iter();
        let young = since.find(|(ms, _)| *ms > now_ms - self.third_ms());
        young.map_or(i64::MAX, |(_, from)| self.ages.doubted.max(*from))
    }

    /// Whatever was learnt up to now may have been told long ago.
    pub(crate) fn doubt_ages(&mut self) {
        self.ages.doubted = self.reservation.peek_number();
    }

    /// The same, if the message that is about to be applied, of `time_ms`, is an old one.
    pub(crate) fn doubt_old(&mut self, time_ms: i64) {
        if self.is_old(time_ms) {
            self.doubt_ages();
        }
    }

    /// Whether a third of the retention is over since then, or may be.
    pub(crate) fn is_old(&self, time_ms: i64) -> bool {
        let now_ms = self.broker_time_ms();
        now_ms.is_none_or(|now| now - time_ms > self.third_ms())
    }

    /// What the broker was told counts as told from now on. Inside a transaction.
    pub(crate) fn forget_ages(&mut self) -> Result<()> {
        self.ages.noted_ms = None;
        self.doubt_ages();
        self.conn.execute("DELETE FROM __harmonylite___ages", [])?;
        Ok(())
    }

    /// The last transaction number that was given out by `time_ms`, as far as noted; else 0.
    pub(crate) fn learnt_before(&self, time_ms: i64) -> Result<i64> {
        let at: Option<i64> = self
            .conn
            .prepare_cached("SELECT max(at) FROM __harmonylite___ages WHERE ms <= ?1")?
            .query_row([time_ms], |r| r.get(0))?;
        Ok(at.unwrap_or(0))
    }

    /// A local change got this hlc. Inside its transaction.
    pub(crate) fn note_given(&mut self, hlc: i64) -> Result<()> {
        if milliseconds(hlc) > self.ages.given_ms {
            self.ages.given_ms = milliseconds(hlc) + GIVEN_AHEAD_MS;
            set_meta(&self.conn, Meta::GivenMs, self.ages.given_ms)?;
        }
        Ok(())
    }

    /// No version of ours is known any more, and none is of a later time than `now_ms`. Inside a
    /// transaction.
    pub(crate) fn all_given_is_forgotten(&mut self, now_ms: i64) -> Result<()> {
        self.ages.forgotten = stamp(now_ms, self.ages.forgotten);
        set_meta(&self.conn, Meta::Forgotten, self.ages.forgotten)?;
        set_meta(&self.conn, Meta::GivenMs, self.ages.given_ms)?;
        self.forget_ages()
    }

    /// The version of a row is not known any more; an earlier one may have been ours. Inside a
    /// transaction.
    pub(crate) fn note_forgotten(&mut self, version: Version) -> Result<()> {
        let given = stamp(self.ages.given_ms + 1, self.ages.forgotten);
        let hlc = match version.node == self.node {
            true => version.hlc,
            false => version.hlc.min(given),
        };
        if hlc > self.ages.forgotten {
            self.ages.forgotten = hlc;
            set_meta(&self.conn, Meta::Forgotten, hlc)?;
        }
        Ok(())
    }
}
