//! The read fence: our write transactions never meet a transaction of the application that reads.
//!
//! SQLite refuses a transaction that reads first and writes then, at once and whatever its timeout,
//! if somebody else committed in between. So we wait until nobody reads, and keep the readers out
//! while we write: one that begins then waits inside its first SELECT, for as long as our
//! transaction takes, and sees what we wrote.
//!
//! ```text
//!  wait ──▶ BEGIN IMMEDIATE ──▶ take the bytes ──▶ write, COMMIT ──▶ let go ──▶ fsync, checkpoint
//!   ▲                                 │ somebody came in
//!   └──────────── ROLLBACK ◀──────────┘
//! ```
//! The wait has an end ([`Settings::courtesy`](super::Settings)): beside readers that leave no gap
//! we write all the same, once in that time. Waiting is done outside of the gate where that can be
//! ([`crate::gate::Gate::enter_to_write`]).
//!
//! The bytes are those that SQLite's own readers lock (`index.rs`), and locks belong to the
//! process. So they are let go of inside the gate alone, where no statement of ours reads, and not
//! taken at all while a second connection reads ([`Fence::begin_view`]): we look then whether
//! somebody reads, and again once the transaction has begun. With a rollback journal we only look,
//! too.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::error::is_busy;
use super::{DatabaseError, Result, TIME_BOX};

mod index;
mod locks;
mod way;

use index::{Index, READERS};
use locks::{Alarm, POLL};
use way::Way;
pub(super) use way::is_written;

/// A write transaction is ended after about this long while an application is at work.
const SMALL_BOX: Duration = Duration::from_millis(2);

/// An application that was met or wrote within this time is at work.
const AT_WORK: Duration = Duration::from_secs(1);

/// The fence is given up after this long, whatever we do: readers that are kept out for ten seconds
/// fail ("locking protocol").
const KEEPS_OUT: Duration = Duration::from_millis(100);

/// A wait is looked after this often: who has passed by meanwhile, whether it is to end.
const SLICE: Duration = Duration::from_millis(50);

/// As SQLite's own default: the WAL is taken in when it has this many pages.
const CHECKPOINT_PAGES: u32 = 1000;

/// What the next write transaction goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gap {
    /// Nobody reads, and the bytes are ours, to be taken again once it has begun.
    Fence,
    /// Nobody read: look again once it has begun.
    Look,
    /// Nobody was asked, or no gap came.
    None,
}

/// See the module's head.
pub struct Fence {
    courtesy: Duration,
    stop: Arc<AtomicBool>,
    way: Mutex<Way>,
    /// Held by who waits.
    waiting: Mutex<()>,
    /// Connections of ours that read beside the one that writes.
    views: AtomicUsize,
    /// The last write without a gap.
    forced: Mutex<Option<Instant>>,
    /// When an application was seen at work.
    seen: Mutex<Option<Instant>>,
    /// See [`Fence::put_off_by`].
    puts_off: Mutex<Option<PutOff>>,
    /// See [`Fence::strays`].
    strays: Arc<AtomicUsize>,
}

/// For simulations.
struct PutOff {
    /// Whether a transaction that has begun is put off.
    decides: Box<dyn FnMut() -> bool + Send>,
    /// What happens between that and the next try.
    meanwhile: Box<dyn FnMut() + Send>,
}

/// While it lives, the bytes are not taken: a connection of ours reads.
pub(crate) struct Viewing {
    fence: Arc<Fence>,
    /// Not closed before the connection is.
    _way: Way,
}

impl Drop for Viewing {
    fn drop(&mut self) {
        self.fence.views.fetch_sub(1, Ordering::SeqCst);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fence {
    /// `courtesy` is how long a write waits for a gap, 0 = not at all.
    pub(super) fn new(courtesy: Duration, stop: Arc<AtomicBool>) -> Fence {
        Fence {
            courtesy,
            stop,
            way: Mutex::new(Way::Off),
            waiting: Mutex::new(()),
            views: AtomicUsize::new(0),
            forced: Mutex::new(None),
            seen: Mutex::new(None),
            puts_off: Mutex::new(None),
            strays: Arc::default(),
        }
    }

    /// How often the WAL was opened here beside a connection, which [`crate::watcher`] would take
    /// for a connection of somebody else's. It counts them down.
    pub fn strays(&self) -> Arc<AtomicUsize> {
        self.strays.clone()
    }

    /// Finds out how readers of a connection's database are noticed. The connection is closed
    /// before the fence goes.
    pub(super) fn attach(&self, conn: &Connection) -> Result<()> {
        if self.courtesy.is_zero() {
            return Ok(());
        }
        let way = Way::of(conn, &self.strays)?;
        if matches!(way, Way::Wal(_)) {
            conn.execute_batch("PRAGMA wal_autocheckpoint = 0")?; // see `settle`
        }
        *locked(&self.way) = way;
        Ok(())
    }

    /// The connection is closed, and no other is there.
    pub(super) fn detach(&self) {
        let _nobody_waits = locked(&self.waiting);
        *locked(&self.way) = Way::Off;
    }

    /// Whether a second connection of ours reads.
    pub(super) fn is_viewing(&self) -> bool {
        self.views.load(Ordering::SeqCst) > 0
    }

    fn way(&self) -> Way {
        locked(&self.way).clone()
    }

    /// Waits for a gap between readers, from `since` on for as long as a write may be put off.
    pub(crate) fn wait(&self, since: Instant) -> Gap {
        let way = self.way();
        if matches!(way, Way::Off) {
            return Gap::None;
        }
        let _alone = locked(&self.waiting);
        loop {
            let looks = self.is_viewing();
            let (is_free, gap) = match &way {
                Way::Wal(wal) if !looks => (locks::take(&wal.shm, &READERS), Gap::Fence),
                _ => (!way.is_read(), Gap::Look),
            };
            if is_free {
                return gap;
            }
            self.note_application();
            let left = self.left(since);
            if left.is_zero() || self.stop.load(Ordering::Relaxed) {
                log::debug!("courtesy: no gap between readers in time");
                *locked(&self.forced) = Some(Instant::now());
                return Gap::None;
            }
            match &way {
                Way::Wal(wal) if !looks => {
                    if index::wait(&wal.shm, left.min(SLICE)) {
                        return gap;
                    }
                }
                _ => std::thread::sleep(left.min(POLL)),
            }
        }
    }

    /// Whether nobody reads just now: then nobody can until [`Self::let_go`]. Inside the gate.
    pub(super) fn try_gap(&self) -> bool {
        match self.way() {
            Way::Wal(wal) if !self.is_viewing() => index::take(&wal.shm),
            way => !way.is_read(),
        }
    }

    /// Until a write is due without a gap; one in each such time.
    fn left(&self, since: Instant) -> Duration {
        let from = locked(&self.forced).map_or(since, |forced| since.max(forced));
        (from + self.courtesy).saturating_duration_since(Instant::now())
    }

    /// Begins a write transaction, in a gap if one comes in time. `waited` is one that was waited
    /// for.
    pub(super) fn begin(
        &self,
        conn: &Connection,
        mut waited: Option<Gap>,
        since: Instant,
    ) -> Result<Gap> {
        let mut wait = Duration::from_micros(100);
        loop {
            let gap = waited.take().unwrap_or_else(|| self.wait(since));
            if gap == Gap::None {
                self.attach_again(conn)?;
                super::write::retry_while_busy(&self.stop, || begin(conn))?;
                if !self.is_put_off(gap) {
                    return Ok(gap);
                }
                self.put_off(conn)?;
                continue;
            }
            let begun = match gap {
                Gap::Fence => self.begin_fenced(conn),
                _ => begin(conn).map(|()| true),
            };
            match begun {
                Ok(true) if self.is_put_off(gap) => self.put_off(conn)?,
                Ok(true) => return Ok(gap),
                Ok(false) => {}
                Err(e) if is_busy(&e) => {
                    if self.stop.load(Ordering::Relaxed) {
                        return Err(DatabaseError::Stopped);
                    }
                    std::thread::sleep(wait);
                    wait = (wait * 2).min(Duration::from_millis(5));
                }
                // Our tables may have been dropped: the transaction is to find that out.
                Err(_) if gap == Gap::Fence => waited = Some(Gap::None),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// A rollback journal that nobody lets go of may have become a WAL, whose users always look
    /// like readers of a journal.
    fn attach_again(&self, conn: &Connection) -> Result<()> {
        let Way::Journal(db) = self.way() else {
            return Ok(());
        };
        let mode: String = conn.query_row("PRAGMA journal_mode", [], |r| r.get(0))?;
        if mode == "wal" {
            std::mem::forget(db); // closed, it would take the connection's locks with it
            self.attach(conn)?;
        }
        Ok(())
    }

    /// The same before our tables are there: nobody reads when it begins.
    pub(super) fn begin_without_tables(&self, conn: &Connection) -> Result<()> {
        let gap = match self.wait(Instant::now()) {
            Gap::Fence => Gap::Look,
            gap => gap,
        };
        self.begin(conn, Some(gap), Instant::now()).map(drop)
    }

    /// Reads first, which makes a hole in the fence where SQLite locks a byte of its own, and mends
    /// that. The write lock is taken only then: while we had it, whoever came in through the hole
    /// would be refused. False if somebody did.
    fn begin_fenced(&self, conn: &Connection) -> rusqlite::Result<bool> {
        let run = |text| conn.prepare_cached(text)?.execute([]);
        run("BEGIN")?;
        let begun = conn
            .prepare_cached("SELECT 1 FROM sqlite_schema LIMIT 1")?
            .exists([])
            .and_then(|_| match self.try_gap() {
                // Changes nothing, but is a write.
                true => run("UPDATE __harmonylite___meta SET value = 0 WHERE 0").map(|_| true),
                false => Ok(false),
            })
            .and_then(|is_free| Ok(is_free && self.begin_wal_anew(conn)?));
        if !matches!(begun, Ok(true)) {
            conn.execute_batch("ROLLBACK")?;
            self.let_go();
        }
        begun
    }

    /// Gives the fence up in time, should the transaction take long.
    pub(super) fn guard(&self, gap: Gap) -> Option<impl Sized + use<>> {
        match self.way() {
            Way::Wal(wal) if gap == Gap::Fence => {
                let alarm = Alarm::start(KEEPS_OUT, Some(&wal.shm))?;
                Some((alarm, wal))
            }
            _ => None,
        }
    }

    /// From now on `decides` says of each transaction that has begun whether it is begun anew, as
    /// if somebody had come to read, and `meanwhile` runs in between: for simulations, which have
    /// one process.
    pub fn put_off_by(
        &self,
        decides: impl FnMut() -> bool + Send + 'static,
        meanwhile: impl FnMut() + Send + 'static,
    ) {
        *locked(&self.puts_off) = Some(PutOff {
            decides: Box::new(decides),
            meanwhile: Box::new(meanwhile),
        });
    }

    /// Undoes a transaction that did nothing yet, and lets readers in.
    fn put_off(&self, conn: &Connection) -> Result<()> {
        conn.execute_batch("ROLLBACK")?;
        self.let_go();
        if let Some(put_off) = locked(&self.puts_off).as_mut() {
            (put_off.meanwhile)();
        }
        Ok(())
    }

    /// Whether a transaction that has begun in a gap, and done nothing yet, is to wait for another.
    fn is_put_off(&self, gap: Gap) -> bool {
        let decides = locked(&self.puts_off)
            .as_mut()
            .is_some_and(|put_off| (put_off.decides)());
        decides || (gap == Gap::Look && self.way().is_read())
    }

    /// Where all of the WAL is in the database, SQLite begins the WAL anew with the first page that
    /// it writes there, and lets go of all bytes for that: readers that wait come in. So a page is
    /// written before anything else is, which is as it was. False if somebody came in.
    fn begin_wal_anew(&self, conn: &Connection) -> rusqlite::Result<bool> {
        let Way::Wal(wal) = self.way() else {
            return Ok(true);
        };
        if Index::read(&wal.shm).is_some_and(|i| i.frames != i.backfilled) {
            return Ok(true);
        }
        conn.prepare_cached("UPDATE __harmonylite___meta SET value = value WHERE key = 'format'")?
            .execute([])?;
        conn.cache_flush()?;
        Ok(self.try_gap())
    }

    /// Lets readers in. Inside the gate, while no statement of ours reads.
    pub(crate) fn let_go(&self) {
        if let Way::Wal(wal) = self.way()
            && !self.is_viewing()
        {
            locks::release(&wal.shm, &READERS);
        }
    }

    /// What a commit is not to wait for while readers are kept out: brings the WAL to the disk, if
    /// `sync`, and takes it in, if it is long.
    pub(super) fn settle(&self, conn: &Connection, sync: bool) -> Result<()> {
        let Way::Wal(wal) = self.way() else {
            return Ok(());
        };
        if sync {
            wal.sync()?;
        }
        let due = |i: &Index| i.frames >= CHECKPOINT_PAGES && i.backfilled < i.frames;
        if Index::read(&wal.shm).is_some_and(|index| due(&index)) {
            // As SQLite's own, of use to all: if it fails, it fails for a while.
            let _ = conn.execute_batch("PRAGMA wal_checkpoint(PASSIVE)");
        }
        Ok(())
    }

    /// Whether [`Self::settle`] brings commits to the disk; else the COMMIT has to.
    pub(super) fn syncs(&self) -> bool {
        matches!(self.way(), Way::Wal(_))
    }

    /// A second connection of ours is about to read. Inside the gate, outside of any transaction.
    pub(crate) fn begin_view(self: &Arc<Self>) -> Viewing {
        self.views.fetch_add(1, Ordering::SeqCst);
        let _nobody_waits = locked(&self.waiting);
        let way = self.way();
        if let Way::Wal(wal) = &way
            && self.views.load(Ordering::SeqCst) == 1
        {
            locks::release(&wal.shm, &READERS);
        }
        Viewing {
            fence: self.clone(),
            _way: way,
        }
    }

    /// An application was seen at work.
    pub(crate) fn note_application(&self) {
        *locked(&self.seen) = Some(Instant::now());
    }

    /// How long a write transaction may take.
    pub(crate) fn time_box(&self) -> Duration {
        let is_at_work = locked(&self.seen).is_some_and(|seen| seen.elapsed() < AT_WORK);
        match is_at_work && !matches!(self.way(), Way::Off) {
            true => SMALL_BOX,
            false => TIME_BOX,
        }
    }
}

fn begin(conn: &Connection) -> rusqlite::Result<()> {
    conn.execute_batch("BEGIN IMMEDIATE")
}

#[cfg(test)]
mod tests;
