//! Time and transaction numbers, reserved ahead.
//!
//! A power cut may take back commits of the last seconds (SQLite in WAL mode with
//! synchronous=NORMAL), but not the frames that were sent. So that no stamp is given twice, times
//! and transaction numbers are used only below a bound that was stored with an fsync first. A start
//! that cannot be sure of the last moments continues from the bound. While the machine's clock is
//! behind the bound, every stamp has the bound's time, and no more time is reserved: however often
//! the power goes, stamps are ahead by one reservation at most.

use rusqlite::Connection;

use crate::clock::Clock;
use crate::database::meta::{Meta, get_meta, set_meta};
use crate::database::offline_writes::OfflineWrites;
use crate::mutation::{self, Mutation};

/// How far ahead of the machine's clock time is reserved, in milliseconds.
const TIME_AHEAD_MS: i64 = 60_000;

/// How far ahead time is reserved while the machine's clock is behind the stamps, in milliseconds.
/// A row that is written over and over uses that up, 65536 times a millisecond.
const STANDING_AHEAD_MS: i64 = 1000;

/// How far back a clock that is set right may step, in milliseconds. A time within this distance of
/// a bound counts as the bound's time whenever it is read, after a power cut, too. After several
/// power cuts in a row the bound is ahead of such a clock by the reservation, and by
/// [`STANDING_AHEAD_MS`] for each.
const STEP_BACK_MS: i64 = 2 * TIME_AHEAD_MS;

/// How many transaction numbers are reserved at a time.
const NUMBERS_AHEAD: i64 = 1 << 16;

#[derive(Debug, Default)]
pub(crate) struct Reservation {
    /// Lower bound of local stamps, in unix milliseconds. A much earlier time is not believed: the
    /// machine's clock was ahead of it before.
    floor_ms: i64,
    until_ms: i64,
    next_number: i64,
    until_number: i64,
    /// The bound of numbers that the file holds for certain.
    stored_number: i64,
    pub offline_writes: OfflineWrites,
}

impl Reservation {
    pub(crate) fn load(conn: &Connection, clock: &dyn Clock) -> rusqlite::Result<Self> {
        let get = |key| get_meta::<i64>(conn, key).map(Option::unwrap_or_default);
        let boot = get_meta::<String>(conn, Meta::BootId)?.unwrap_or_default();
        let until_ms = get(Meta::ClockUntil)?;
        // Within one run of the operating system no commit is ever lost, not even by kill -9.
        let same_boot = !boot.is_empty()
            && (boot == clock.boot_id() || mutation::is(Mutation::RebootIsRestart));
        let base_ms = get(Meta::ClockBase)?;
        let floor_ms = if same_boot { base_ms } else { until_ms };
        let next_number = get(Meta::AtUntil)?.max(1);
        Ok(Reservation {
            floor_ms,
            until_ms,
            next_number,
            until_number: next_number,
            stored_number: next_number,
            offline_writes: OfflineWrites::load(conn, base_ms)?,
        })
    }

    /// Must be called after entries from before this start were put into the change log, see
    /// [`OfflineWrites`].
    pub(crate) fn reload_offline_writes(&mut self, conn: &Connection) -> rusqlite::Result<()> {
        let base_ms = get_meta(conn, Meta::ClockBase)?.unwrap_or_default();
        self.offline_writes = OfflineWrites::load(conn, base_ms)?;
        Ok(())
    }

    /// The time that a local change of `time_ms` counts as, before the upper bound applies.
    pub(crate) fn believe(&self, time_ms: i64, now_ms: i64) -> i64 {
        not_before(self.floor_ms, time_ms).unwrap_or(now_ms.max(self.floor_ms))
    }

    /// As [`Self::believe`], for entry `id` of the change log.
    pub(crate) fn believe_entry(&self, id: i64, time_ms: i64, now_ms: i64) -> i64 {
        let base_ms = self.offline_writes.base_ms(id);
        let base_ms = base_ms.filter(|_| !mutation::is(Mutation::OfflineWritesCountAsNow));
        let noted = base_ms.and_then(|base_ms| not_before(base_ms, time_ms));
        noted.unwrap_or_else(|| self.believe(time_ms, now_ms))
    }

    /// Upper bound of all times that the clock has stamped so far, in unix milliseconds.
    pub(crate) fn until_ms(&self) -> i64 {
        self.until_ms
    }

    /// Whether the reservation allows a stamp of `time_ms` and one more transaction number.
    pub(crate) fn covers(&self, time_ms: i64) -> bool {
        time_ms < self.until_ms && self.next_number < self.until_number
    }

    /// The next number. The caller checks [`Self::covers`] first.
    pub(crate) fn number(&mut self) -> i64 {
        self.next_number += 1;
        self.next_number - 1
    }

    /// The number that the next call of [`Self::number`] gives.
    pub(crate) fn peek_number(&self) -> i64 {
        self.next_number
    }

    /// Stores bounds above `time_ms`. The caller syncs this to disk before it relies on it.
    pub(crate) fn extend(
        &mut self,
        conn: &Connection,
        clock: &dyn Clock,
        time_ms: i64,
    ) -> rusqlite::Result<()> {
        let clock_ms = match mutation::is(Mutation::ReservationsAddUp) {
            true => time_ms,
            false => clock.now_ms().min(time_ms),
        };
        let ahead_ms = clock_ms + TIME_AHEAD_MS;
        let until_ms = self.until_ms.max(ahead_ms).max(time_ms + STANDING_AHEAD_MS);
        let until_number = self.until_number.max(self.next_number + NUMBERS_AHEAD);
        set_meta(conn, Meta::ClockBase, time_ms)?;
        set_meta(conn, Meta::ClockUntil, until_ms)?;
        set_meta(conn, Meta::AtUntil, until_number)?;
        set_meta(conn, Meta::BootId, clock.boot_id())?;
        self.offline_writes.store(conn)?;
        (self.until_ms, self.until_number) = (until_ms, until_number);
        self.floor_ms = self.floor_ms.max(time_ms);
        Ok(())
    }

    /// The bounds that [`Self::extend`] moves, so that the caller can restore them if it fails.
    pub(crate) fn bounds(&self) -> [i64; 3] {
        [self.floor_ms, self.until_ms, self.until_number]
    }

    pub(crate) fn set_bounds(&mut self, bounds: [i64; 3]) {
        [self.floor_ms, self.until_ms, self.until_number] = bounds;
    }

    /// Must be called when an extension is committed.
    pub(crate) fn is_stored(&mut self) {
        self.stored_number = self.until_number;
    }

    /// Whether the file is older than this process wrote it: a backup was restored into it.
    pub(crate) fn is_restored(&self, conn: &Connection) -> rusqlite::Result<bool> {
        let number = match get_meta::<i64>(conn, Meta::AtUntil) {
            // The backup is from before HarmonyLite.
            Err(e) if e.to_string().contains("no such table") => None,
            number => number?,
        };
        Ok(number.unwrap_or(0).max(1) < self.stored_number)
    }

    /// Gives reserved and unused time and numbers back at an orderly end. If a power cut undoes
    /// this, the bound from before holds.
    pub(crate) fn give_back(&mut self, conn: &Connection, now_ms: i64) -> rusqlite::Result<()> {
        let until_ms = self.until_ms.min(now_ms.max(self.floor_ms) + 1);
        set_meta(conn, Meta::ClockUntil, until_ms)?;
        set_meta(conn, Meta::AtUntil, self.next_number)?;
        (self.until_ms, self.until_number) = (until_ms, self.next_number);
        self.stored_number = self.stored_number.min(self.next_number);
        Ok(())
    }

    /// Must be called when the broker's clock shows that a reservation was too far ahead: times
    /// above `bound_ms` were never right, so they no longer bind.
    pub(crate) fn lower(&mut self, bound_ms: i64) {
        self.floor_ms = self.floor_ms.min(bound_ms);
        self.offline_writes.lower(bound_ms);
    }
}

/// The time, if it is believed, but not before `base_ms`, which is certain. A time well before that
/// comes from a clock that was not set.
fn not_before(base_ms: i64, time_ms: i64) -> Option<i64> {
    (time_ms >= base_ms - STEP_BACK_MS).then_some(time_ms.max(base_ms))
}
