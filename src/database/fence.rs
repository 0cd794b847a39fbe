//! The read fence: a write transaction of HarmonyLite never meets a transaction of the application
//! that reads.
//!
//! SQLite refuses a transaction that reads first and then writes if another connection committed in
//! between. It refuses at once, whatever the timeout is. So the fence waits until nobody reads, and
//! keeps readers out during the write: a reader that begins meanwhile waits inside its first SELECT
//! for as long as the write transaction takes, and then sees its result.
//!
//! ```text
//!  wait ──▶ BEGIN IMMEDIATE ──▶ take the bytes ──▶ write, COMMIT ──▶ let go ──▶ fsync, checkpoint
//!   ▲                                 │ somebody came in
//!   └──────────── ROLLBACK ◀──────────┘
//! ```
//! The wait has an end ([`Settings::courtesy`](super::Settings)): beside readers that leave no gap,
//! HarmonyLite writes all the same, once in that time. A thread waits without the lock where it
//! can ([`crate::shared::Shared::lock_to_write`]).
//!
//! The bytes are those that SQLite's own readers lock (`index.rs`), and locks belong to the
//! process. So the fence releases them only under the lock, where no statement of this process
//! reads. It does not take them at all while a second connection of this process reads
//! ([`Fence::begin_view`]): it then checks for readers before the transaction begins, and again
//! once it has begun. With a rollback journal it only checks, too.

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
use way::FenceKind;
pub(super) use way::is_written;

/// While an application is at work, a write transaction ends after about this long.
const SMALL_BOX: Duration = Duration::from_millis(2);

/// An application counts as at work for this long after it was met or wrote.
const AT_WORK: Duration = Duration::from_secs(1);

/// The fence is given up after this long, even inside a transaction: readers that are kept out for
/// ten seconds fail ("locking protocol").
const KEEPS_OUT: Duration = Duration::from_millis(100);

/// Longest single sleep of a wait. In between, the wait checks which readers it can pass by now,
/// and whether it has to end.
const SLICE: Duration = Duration::from_millis(50);

/// A wait ends with this much of busy trying. Readers that leave gaps of some microseconds are back
/// before a sleeping thread is awake.
const BUSY: Duration = Duration::from_millis(120);

/// For this long after a reader came in while a transaction began, all readers are waited for.
const MET: Duration = Duration::from_millis(100);

/// The WAL is checkpointed when it has this many pages, as by SQLite's own default.
const CHECKPOINT_PAGES: u32 = 1000;

/// Kind of gap between readers in which the next write transaction begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReaderGap {
    /// No process reads, and this process holds the bytes. It takes them again once the transaction
    /// has begun.
    Fence,
    /// No process read. The check is repeated once the transaction has begun.
    Checked,
    /// No check was made, or no gap came in time.
    None,
}

/// The read fence, see the head of this module.
pub struct Fence {
    courtesy: Duration,
    stop: Arc<AtomicBool>,
    way: Mutex<FenceKind>,
    /// The thread that waits holds this.
    waiting: Mutex<()>,
    /// Number of connections of this process that read beside the one that writes.
    views: AtomicUsize,
    /// Time of the last write without a gap.
    forced: Mutex<Option<Instant>>,
    /// Time when a reader last came in while a transaction began.
    met: Mutex<Option<Instant>>,
    /// Time when an application was last seen at work.
    seen: Mutex<Option<Instant>>,
    /// See [`Fence::put_off_by`].
    puts_off: Mutex<Option<PutOff>>,
    /// See [`Fence::strays`].
    strays: Arc<AtomicUsize>,
}

/// Lets a simulation put transactions off.
struct PutOff {
    /// Decides whether a transaction that has begun is put off.
    decides: Box<dyn FnMut() -> bool + Send>,
    /// Runs between the put-off transaction and the next try.
    meanwhile: Box<dyn FnMut() + Send>,
}

/// While it lives, a connection of this process reads, and the fence does not take the bytes.
pub(crate) struct Viewing {
    fence: Arc<Fence>,
    /// Keeps the files open until the connection is closed.
    _way: FenceKind,
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
    /// `courtesy` is how long a write waits for a gap; 0 = it does not wait.
    pub(super) fn new(courtesy: Duration, stop: Arc<AtomicBool>) -> Fence {
        Fence {
            courtesy,
            stop,
            way: Mutex::new(FenceKind::Off),
            waiting: Mutex::new(()),
            views: AtomicUsize::new(0),
            forced: Mutex::new(None),
            met: Mutex::new(None),
            seen: Mutex::new(None),
            puts_off: Mutex::new(None),
            strays: Arc::default(),
        }
    }

    /// Number of times that this process opened the WAL beside a connection and [`crate::watcher`]
    /// has not yet counted down. The watcher would take such an opening for a connection of another
    /// process.
    pub fn strays(&self) -> Arc<AtomicUsize> {
        self.strays.clone()
    }

    /// Finds out how the fence notices readers of the connection's database. The connection must be
    /// closed before the fence is dropped.
    pub(super) fn attach(&self, conn: &Connection) -> Result<()> {
        if self.courtesy.is_zero() {
            return Ok(());
        }
        let way = FenceKind::of(conn, &self.strays)?;
        if matches!(way, FenceKind::Wal(_)) {
            conn.execute_batch("PRAGMA wal_autocheckpoint = 0")?; // see `settle`
        }
        *locked(&self.way) = way;
        Ok(())
    }

    /// Releases the files, after the connection was closed and while no other is open.
    pub(super) fn detach(&self) {
        let _nobody_waits = locked(&self.waiting);
        *locked(&self.way) = FenceKind::Off;
    }

    /// Whether a second connection of this process reads.
    pub(super) fn is_viewing(&self) -> bool {
        self.views.load(Ordering::SeqCst) > 0
    }

    /// Whether another process may be writing right now. If not, `Database::is_changed` tells
    /// afterwards of all that others wrote until now.
    pub(super) fn may_be_written(&self) -> bool {
        self.way().may_be_written()
    }

    fn way(&self) -> FenceKind {
        locked(&self.way).clone()
    }

    /// Waits for a gap between readers, for as long as a write may be put off, counted from
    /// `since`.
    pub(crate) fn wait(&self, since: Instant) -> ReaderGap {
        let way = self.way();
        if matches!(way, FenceKind::Off) {
            return ReaderGap::None;
        }
        let _alone = locked(&self.waiting);
        loop {
            let is_viewing = self.is_viewing();
            let (is_free, gap) = match &way {
                FenceKind::Wal(wal) if !is_viewing => {
                    (locks::take(&wal.shm, &READERS), ReaderGap::Fence)
                }
                _ => (!way.is_read(), ReaderGap::Checked),
            };
            if is_free {
                return gap;
            }
            self.note_application();
            let left = self.left(since);
            if left.is_zero() || self.stop.load(Ordering::Relaxed) {
                log::debug!("courtesy: no gap between readers in time");
                *locked(&self.forced) = Some(Instant::now());
                return ReaderGap::None;
            }
            match &way {
                FenceKind::Wal(wal) if !is_viewing => {
                    let is_met = match left.checked_sub(BUSY.min(self.courtesy / 2)) {
                        Some(asleep) => index::wait(&wal.shm, self.passes(), asleep.min(SLICE)),
                        None => index::wait_busily(&wal.shm, self.passes(), left),
                    };
                    if is_met {
                        return gap;
                    }
                }
                _ => std::thread::sleep(left.min(POLL)),
            }
        }
    }

    /// Whether nobody reads at this moment. In WAL mode, unless a view is open, it then holds the
    /// bytes, and nobody can read until [`Self::let_go`]. Called under the lock.
    pub(super) fn try_gap(&self) -> bool {
        match self.way() {
            FenceKind::Wal(wal) if !self.is_viewing() => index::take(&wal.shm, self.passes()),
            way => !way.is_read(),
        }
    }

    /// Whether readers of an older place than the last commit are in nobody's way. One that came in
    /// while a transaction began may have found no other place, see `index.rs`.
    fn passes(&self) -> bool {
        locked(&self.met).is_none_or(|met| met.elapsed() > MET)
    }

    /// Time left until a write is due without a gap. There is one such write in each `courtesy`.
    fn left(&self, since: Instant) -> Duration {
        let from = locked(&self.forced).map_or(since, |forced| since.max(forced));
        (from + self.courtesy).saturating_duration_since(Instant::now())
    }

    /// Begins a write transaction, in a gap if one comes in time. `waited` is a gap that the caller
    /// has already waited for.
    pub(super) fn begin(
        &self,
        conn: &Connection,
        mut waited: Option<ReaderGap>,
        since: Instant,
    ) -> Result<ReaderGap> {
        let mut wait = Duration::from_micros(100);
        loop {
            let gap = waited.take().unwrap_or_else(|| self.wait(since));
            if gap == ReaderGap::None {
                self.attach_again(conn)?;
                super::write::retry_while_busy(&self.stop, || begin(conn))?;
                if !self.is_put_off(gap) {
                    return Ok(gap);
                }
                self.put_off(conn)?;
                continue;
            }
            let begun = match gap {
                ReaderGap::Fence => self.begin_fenced(conn),
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
                // Own tables may have been dropped: the transaction itself is to find that out.
                Err(_) if gap == ReaderGap::Fence => waited = Some(ReaderGap::None),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Attaches the fence again if a rollback journal has become a WAL. Users of a WAL look like
    /// readers of a journal that never go away.
    fn attach_again(&self, conn: &Connection) -> Result<()> {
        let FenceKind::Journal(db) = self.way() else {
            return Ok(());
        };
        let mode: String = conn.query_row("PRAGMA journal_mode", [], |r| r.get(0))?;
        if mode == "wal" {
            std::mem::forget(db); // closed, it would take the connection's locks with it
            self.attach(conn)?;
        }
        Ok(())
    }

    /// Begins a write transaction before the own tables exist. Nobody reads when it begins.
    pub(super) fn begin_without_tables(&self, conn: &Connection) -> Result<()> {
        let gap = match self.wait(Instant::now()) {
            ReaderGap::Fence => ReaderGap::Checked,
            gap => gap,
        };
        self.begin(conn, Some(gap), Instant::now()).map(drop)
    }

    /// Begins a transaction inside the fence; returns false if a reader came in. It reads first:
    /// SQLite locks a byte of its own for that, which makes a hole in the fence, and `try_gap`
    /// closes the hole. The write lock is taken only after that. If it were held meanwhile, SQLite
    /// would refuse a reader that came in through the hole and then writes.
    fn begin_fenced(&self, conn: &Connection) -> rusqlite::Result<bool> {
        let run = |text| conn.prepare_cached(text)?.execute([]);
        run("BEGIN")?;
        let begun = conn
            .prepare_cached("SELECT 1 FROM sqlite_schema LIMIT 1")?
            .exists([])
            .and_then(|_| match self.try_gap() {
                // Changes nothing, but takes the write lock.
                true => run("UPDATE __harmonylite___meta SET value = 0 WHERE 0").map(|_| true),
                false => Ok(false),
            })
            .and_then(|is_free| Ok(is_free && self.begin_wal_anew(conn)?));
        if !matches!(begun, Ok(true)) {
            *locked(&self.met) = Some(Instant::now());
            conn.execute_batch("ROLLBACK")?;
            self.let_go();
        }
        begun
    }

    /// Gives the fence up in time if the transaction takes long. The guard must live as long as the
    /// transaction.
    pub(super) fn guard(&self, gap: ReaderGap) -> Option<impl Sized + use<>> {
        match self.way() {
            FenceKind::Wal(wal) if gap == ReaderGap::Fence => {
                let alarm = Alarm::start(KEEPS_OUT, Some(&wal.shm))?;
                Some((alarm, wal))
            }
            _ => None,
        }
    }

    /// From now on `decides` says of each transaction that has begun whether it is begun anew, as
    /// if somebody had come to read, and `meanwhile` runs in between. Simulations need this,
    /// because they have one process.
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

    /// Undoes a transaction that has done nothing yet, and lets readers in.
    fn put_off(&self, conn: &Connection) -> Result<()> {
        conn.execute_batch("ROLLBACK")?;
        self.let_go();
        if let Some(put_off) = locked(&self.puts_off).as_mut() {
            (put_off.meanwhile)();
        }
        Ok(())
    }

    /// Whether a transaction that has begun, and has done nothing yet, is to wait for a different
    /// gap.
    fn is_put_off(&self, gap: ReaderGap) -> bool {
        let decides = locked(&self.puts_off)
            .as_mut()
            .is_some_and(|put_off| (put_off.decides)());
        decides || (gap == ReaderGap::Checked && self.way().is_read())
    }

    /// Makes SQLite begin the WAL anew now if it would do so during the transaction; returns false
    /// if a reader came in. When all of the WAL is in the database, SQLite begins the WAL anew with
    /// the first page that it writes, and releases all bytes for that: readers that wait come in.
    /// So this writes one page, with the content that it has, before anything else is written.
    fn begin_wal_anew(&self, conn: &Connection) -> rusqlite::Result<bool> {
        let FenceKind::Wal(wal) = self.way() else {
            return Ok(true);
        };
        if Index::read(&wal.shm).is_some_and(|i| i.frames != i.backfilled) {
            return Ok(true);
        }
        // SQLite writes no page for a value that stays the same.
        for change in ["value + 1", "value - 1"] {
            let text =
                format!("UPDATE __harmonylite___meta SET value = {change} WHERE key = 'format'");
            conn.prepare_cached(&text)?.execute([])?;
        }
        conn.cache_flush()?;
        Ok(self.try_gap())
    }

    /// Lets readers in. Called under the lock, while no statement of this process reads.
    pub(crate) fn let_go(&self) {
        if let FenceKind::Wal(wal) = self.way()
            && !self.is_viewing()
        {
            index::let_go(&wal.shm);
        }
    }

    /// Does after a commit what need not keep readers out: syncs the WAL to the disk, if `sync`,
    /// and checkpoints it, if it is long.
    pub(super) fn settle(&self, conn: &Connection, sync: bool) -> Result<()> {
        let FenceKind::Wal(wal) = self.way() else {
            return Ok(());
        };
        if sync {
            wal.sync()?;
        }
        let due = |i: &Index| i.frames >= CHECKPOINT_PAGES && i.backfilled < i.frames;
        if Index::read(&wal.shm).is_some_and(|index| due(&index)) {
            // All connections profit from it, as from SQLite's own checkpoints. An error will recur
            // for a while, so nothing is done about it here.
            let _ = conn.execute_batch("PRAGMA wal_checkpoint(PASSIVE)");
        }
        Ok(())
    }

    /// Whether [`Self::settle`] syncs commits to the disk. If not, the COMMIT itself has to.
    pub(super) fn syncs(&self) -> bool {
        matches!(self.way(), FenceKind::Wal(_))
    }

    /// Notes that a second connection of this process is about to read. Called under the lock,
    /// outside of any transaction.
    pub(crate) fn begin_view(self: &Arc<Self>) -> Viewing {
        self.views.fetch_add(1, Ordering::SeqCst);
        let _nobody_waits = locked(&self.waiting);
        let way = self.way();
        if let FenceKind::Wal(wal) = &way
            && self.views.load(Ordering::SeqCst) == 1
        {
            index::let_go(&wal.shm);
        }
        Viewing {
            fence: self.clone(),
            _way: way,
        }
    }

    /// Notes that an application was seen at work.
    pub(crate) fn note_application(&self) {
        *locked(&self.seen) = Some(Instant::now());
    }

    /// How long a write transaction may take at this moment.
    pub(crate) fn time_box(&self) -> Duration {
        let is_at_work = locked(&self.seen).is_some_and(|seen| seen.elapsed() < AT_WORK);
        match is_at_work && !matches!(self.way(), FenceKind::Off) {
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
