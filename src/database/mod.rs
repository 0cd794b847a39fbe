//! The user's database, with our tables in it: opening, the gate, what both capture and apply use.
//!
//! One connection does all that this process writes, and whoever holds the [`Database`] holds the
//! gate: SQLite has one writer at a time anyway. Triggers and foreign keys are off on it: what is
//! applied is not captured again, and the application's triggers have already fired where the
//! change was made. The application is never starved: transactions are short and spaced.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode};

use crate::clock::Clock;
use crate::database::reservation::Reservation;
use crate::database::sites::Sites;
use crate::database::table::Table;
use crate::model::cbor::CborError;
use crate::model::frame::{MAX_FRAME_BYTES, MAX_ROW_BYTES};

mod apply_triggers;
mod catalog;
mod comparison;
mod damage;
mod noted;
pub mod own_tables;
mod reservation;
pub mod rows;
pub mod schema;
pub mod sites;
pub(crate) mod sql_text;
pub mod table;
pub mod triggers;
pub mod values;

pub(crate) use catalog::Catalog;
pub(crate) use comparison::{Cause, Compare, Phase};

/// A write transaction of ours is ended after about this long, so that an application with
/// busy_timeout 0 can write too.
pub const TIME_BOX: Duration = Duration::from_millis(10);

/// What is chosen for this node.
pub struct Settings {
    pub path: PathBuf,
    /// From the configuration or the machine; if none, one is drawn and kept in the database.
    pub node_id: Option<u64>,
    /// Whether local changes are published.
    pub publish: bool,
    pub shards: u32,
    /// Entries of the raw log that are captured in one transaction, however long that takes.
    pub scan_max_changes: usize,
    /// Frames are cut when they reach this, in bytes before compression.
    pub max_transaction_bytes: usize,
    /// How far ahead of the broker's time a local write may be stamped.
    pub max_clock_drift: Duration,
    /// How long a deleted row is remembered.
    pub tombstone_retention: Duration,
    pub allow_rowid_tables: bool,
    /// Snapshots are kept: until this node has met the others by one, it does not publish, and rows
    /// from before HarmonyLite give way to theirs. Without, it counts as joined.
    pub joins_by_snapshot: bool,
    /// Whether a table is to be replicated.
    pub selects: Box<dyn Fn(&str) -> bool + Send>,
    /// Triggers of the application that run for changes that arrive, too.
    pub apply_triggers: Vec<String>,
}

/// How much is taken of what others may send without end.
#[derive(Debug)]
pub(crate) struct Limits {
    /// Bytes of a row that is sent.
    pub row_bytes: usize,
    /// Bytes of parts that wait for others.
    pub parts_bytes: u64,
    /// Messages in quarantine, and bytes of them.
    pub quarantined: u64,
    pub quarantined_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            row_bytes: MAX_ROW_BYTES,
            parts_bytes: 4 * MAX_FRAME_BYTES as u64,
            quarantined: 1000,
            quarantined_bytes: 16 << 20,
        }
    }
}

/// Why the database could not be used.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
    #[error("opening {path}: {source}")]
    Open {
        path: PathBuf,
        source: rusqlite::Error,
    },
    #[error("our tables in the database are damaged: {0}")]
    Damaged(String),
    #[error("{0} was written by a later release of HarmonyLite (format {1}): use that one")]
    LaterFormat(PathBuf, i64),
    #[error("apply_triggers names {0}, but the database has no such trigger")]
    NoSuchTrigger(String),
    #[error("{0}")]
    Unusable(String),
    #[error("the row takes {0} bytes, but no more than {1} can be sent")]
    RowTooLarge(usize, usize),
    #[error("stopped")]
    Stopped,
    /// Inside only: the transaction is begun anew once this time is reserved.
    #[error("time {0} is not reserved")]
    NotReserved(i64),
}

impl From<CborError> for DatabaseError {
    fn from(e: CborError) -> Self {
        DatabaseError::Damaged(e.to_string())
    }
}

impl DatabaseError {
    /// Whether waiting may help: a full disk, an error of the device, somebody else's lock.
    pub fn is_temporary(&self) -> bool {
        let code = match self {
            DatabaseError::Sqlite(e) | DatabaseError::Open { source: e, .. } => {
                e.sqlite_error_code()
            }
            _ => None,
        };
        use ErrorCode::*;
        matches!(
            code,
            Some(
                DiskFull
                    | SystemIoFailure
                    | DatabaseBusy
                    | DatabaseLocked
                    | CannotOpen
                    | OutOfMemory
            )
        )
    }
}

pub type Result<T> = std::result::Result<T, DatabaseError>;

/// The user's database, open. See the module's head.
pub struct Database {
    pub(crate) conn: Connection,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) settings: Settings,
    pub(crate) catalog: Catalog,
    pub(crate) sites: Sites,
    pub(crate) reservation: Reservation,
    pub(crate) marks: crate::capture::Marks,
    pub(crate) positions: crate::apply::Positions,
    pub(crate) node: u64,
    /// This node has met the others, see [`Database::is_joined`].
    pub(crate) joined: bool,
    /// The machine's clock when this was opened, unix milliseconds.
    pub(crate) opened_ms: i64,
    pub(crate) damage: damage::Damage,
    pub(crate) ages: crate::snapshot::Ages,
    stop: Arc<AtomicBool>,
    /// `PRAGMA data_version` up to which all changes are captured.
    seen_data_version: i64,
    /// The last capture did not come to the end of the raw log.
    pub(crate) log_is_left: bool,
    /// Bounds for what peers and applications may send, see [`Limits`].
    pub(crate) limits: Limits,
    /// Tables that are held and not known here, as far as they were named.
    pub(crate) named_unknown: std::collections::BTreeSet<String>,
    /// Bytes of parts that wait, if counted.
    pub(crate) parts_bytes: Option<u64>,
    pub(crate) alarm: crate::apply::Alarm,
    /// Largest (broker time - our uptime) seen, in milliseconds.
    broker_offset_ms: Option<i64>,
}

impl Database {
    /// Opens the database and puts triggers and tables of ours in place. Blocks while others hold
    /// the write lock, until `stop`.
    pub fn open(settings: Settings, clock: Arc<dyn Clock>, stop: Arc<AtomicBool>) -> Result<Self> {
        let conn = connect(&settings.path)?;
        retry_while_busy(&stop, || conn.execute_batch("BEGIN IMMEDIATE"))?;
        let first_time = install(&conn, &settings)?;
        let mut joined = own_tables::get_meta::<i64>(&conn, "joined")?.is_some();
        if !joined && !settings.joins_by_snapshot {
            own_tables::set_meta(&conn, "joined", 1)?;
            joined = true;
        }
        let node = node_id(&conn, settings.node_id)?;
        retry_while_busy(&stop, || conn.execute_batch("COMMIT"))?;
        let sites = Sites::load(&conn)?;
        let reservation = Reservation::load(&conn, &*clock)?;
        let positions = crate::apply::Positions::load(&conn)?;
        let opened_ms = clock.now_ms();
        let ages = crate::snapshot::Ages::load(&conn)?;
        let mut database = Database {
            conn,
            clock,
            settings,
            catalog: Catalog::default(),
            sites,
            reservation,
            marks: crate::capture::Marks::default(),
            positions,
            node,
            joined,
            opened_ms,
            damage: damage::Damage::default(),
            ages,
            stop,
            seen_data_version: -1,
            log_is_left: true,
            limits: Limits::default(),
            named_unknown: Default::default(),
            parts_bytes: None,
            alarm: Default::default(),
            broker_offset_ms: None,
        };
        database.require_apply_triggers()?;
        database.catalog.first_time = first_time;
        // Until the tables are taken in, a start after a crash is still the first one: rows that
        // were there before must not count as written now.
        database.write(|db| {
            db.refresh_catalog()?;
            Ok(own_tables::set_meta(&db.conn, "installed", 1)?)
        })?;
        database.catalog.first_time = false;
        database.load_again()?;
        Ok(database)
    }

    pub fn node(&self) -> u64 {
        self.node
    }

    pub fn path(&self) -> &Path {
        &self.settings.path
    }

    /// Whether somebody else wrote since the last capture. A few microseconds.
    pub fn is_changed(&self) -> Result<bool> {
        Ok(self.data_version()? != self.seen_data_version)
    }

    fn data_version(&self) -> Result<i64> {
        Ok(self
            .conn
            .prepare_cached("PRAGMA data_version")?
            .query_row([], |r| r.get(0))?)
    }

    /// Everything committed up to here is about to be captured. Under the write lock.
    pub(crate) fn note_data_version(&mut self) -> Result<()> {
        self.seen_data_version = self.data_version()?;
        Ok(())
    }

    /// Runs `f` in a write transaction; undone if it fails. Takes as long as others hold the lock.
    pub(crate) fn write<T>(&mut self, mut f: impl FnMut(&mut Self) -> Result<T>) -> Result<T> {
        loop {
            self.reserve(self.clock.now_ms())?;
            retry_while_busy(&self.stop, || self.conn.execute_batch("BEGIN IMMEDIATE"))?;
            let result = f(self).and_then(|value| {
                retry_while_busy(&self.stop, || self.conn.execute_batch("COMMIT"))?;
                Ok(value)
            });
            match result {
                Err(DatabaseError::NotReserved(time_ms)) => {
                    self.roll_back()?;
                    self.reserve(time_ms)?;
                }
                Err(e) => {
                    self.roll_back()?;
                    return Err(e);
                }
                Ok(value) => {
                    self.reservation.noted.ended(true);
                    return Ok(value);
                }
            }
        }
    }

    /// Runs `f` inside a transaction; where one row or one table is at fault, undoes it and gives the
    /// reason, so that the rest can go on.
    pub(crate) fn guarded<T>(
        &mut self,
        f: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<std::result::Result<T, String>> {
        let run = |db: &Self, text: &str| db.conn.prepare_cached(text)?.execute([]);
        run(self, "SAVEPOINT guarded")?;
        match f(self) {
            Ok(value) => {
                run(self, "RELEASE guarded")?;
                Ok(Ok(value))
            }
            Err(DatabaseError::Sqlite(e)) if is_unfit(&e) => {
                run(self, "ROLLBACK TO guarded")?;
                run(self, "RELEASE guarded")?;
                self.sites = Sites::load(&self.conn)?;
                self.find_set_aside()?;
                Ok(Err(e.to_string()))
            }
            Err(e) => Err(e),
        }
    }

    /// What was learnt inside the transaction is forgotten with it.
    fn roll_back(&mut self) -> Result<()> {
        if !self.conn.is_autocommit() {
            self.conn.execute_batch("ROLLBACK")?;
        }
        self.reservation.noted.ended(false);
        self.catalog.forget();
        self.sites = Sites::load(&self.conn)?;
        if let Some(node) = own_tables::get_meta::<i64>(&self.conn, "node_id")? {
            self.node = node as u64;
        }
        self.positions = crate::apply::Positions::load(&self.conn)?;
        self.marks.forget_acknowledged();
        self.parts_bytes = None;
        self.load_again()?;
        self.seen_data_version = -1;
        Ok(())
    }

    /// Makes sure that `time_ms` may be stamped, with an fsync about once a minute.
    fn reserve(&mut self, time_ms: i64) -> Result<()> {
        let time_ms = self.bounded_time(self.reservation.believe(time_ms, self.clock.now_ms()));
        if self.reservation.covers(time_ms) {
            return Ok(());
        }
        self.conn.execute_batch("PRAGMA synchronous = FULL")?;
        retry_while_busy(&self.stop, || self.conn.execute_batch("BEGIN IMMEDIATE"))?;
        let stored = self
            .reservation
            .extend(&self.conn, &*self.clock, time_ms)
            .and_then(|()| self.conn.execute_batch("COMMIT"));
        if stored.is_err() && !self.conn.is_autocommit() {
            self.conn.execute_batch("ROLLBACK")?;
        }
        self.conn.execute_batch("PRAGMA synchronous = NORMAL")?;
        Ok(stored?)
    }

    /// The time that a change found just now is stamped with.
    pub(crate) fn stamp_now(&self) -> Result<i64> {
        let now_ms = self.clock.now_ms();
        self.reserved_time(self.reservation.believe(now_ms, now_ms))
    }

    /// The time that entry `id` of the raw log is stamped with, noted at `time_ms` by the machine's
    /// clock.
    pub(crate) fn stamp_entry(&self, id: i64, time_ms: i64) -> Result<i64> {
        let now_ms = self.clock.now_ms();
        self.reserved_time(self.reservation.believe_entry(id, time_ms, now_ms))
    }

    fn reserved_time(&self, time_ms: i64) -> Result<i64> {
        let time_ms = self.bounded_time(time_ms);
        if self.reservation.covers(time_ms) {
            Ok(time_ms)
        } else {
            Err(DatabaseError::NotReserved(time_ms))
        }
    }

    fn bounded_time(&self, time_ms: i64) -> i64 {
        let drift = self.settings.max_clock_drift.as_millis() as i64;
        let bound = self
            .broker_time_ms()
            .map_or(i64::MAX, |now| now.saturating_add(drift));
        time_ms.min(bound).min(crate::model::version::MAX_MS)
    }

    /// The broker's clock now, if it has been heard of.
    pub fn broker_time_ms(&self) -> Option<i64> {
        self.broker_offset_ms
            .map(|offset| offset + self.clock.uptime().as_millis() as i64)
    }

    /// By the broker's clock it is `time_ms`, or was a moment ago: it cannot be earlier now.
    pub fn heard_broker_time(&mut self, time_ms: i64) {
        let offset = time_ms - self.clock.uptime().as_millis() as i64;
        if self.broker_offset_ms.is_none_or(|known| offset > known) {
            self.broker_offset_ms = Some(offset);
            let bound = self.bounded_time(i64::MAX);
            self.reservation.lower(bound);
        }
    }

    /// Whether the last capture left something to do.
    pub fn has_more(&self) -> bool {
        let catalog = &self.catalog;
        self.log_is_left
            || !catalog.comparing.is_empty()
            || !catalog.resettle.is_empty()
            || catalog.retry_held.is_some()
    }

    /// Stores marks and positions that wait for a write, if there are any.
    pub fn flush(&mut self) -> Result<()> {
        if self.has_acknowledged() || self.has_unsaved_positions() {
            self.write(|db| {
                db.clear_marks()?;
                db.store_positions()
            })?;
        }
        Ok(())
    }

    /// The orderly end: the next start goes on where this one ends.
    pub fn close(&mut self) -> Result<()> {
        let now_ms = self.bounded_time(self.clock.now_ms());
        self.write(|db| {
            db.clear_marks()?;
            db.store_positions()?;
            Ok(db.reservation.give_back(&db.conn, now_ms)?)
        })
    }

    /// The tables that are replicated, by lower-case name.
    pub fn tables(&self) -> &HashMap<String, Arc<Table>> {
        &self.catalog.by_name
    }
}

fn connect(path: &Path) -> Result<Connection> {
    let open = || {
        let conn = Connection::open(path)?;
        conn.busy_timeout(Duration::from_secs(5))?;
        conn.set_prepared_statement_cache_capacity(256);
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, false)?;
        let mode: String = conn.query_row("PRAGMA journal_mode", [], |r| r.get(0))?;
        if mode != "wal" {
            // Fails while the application is inside a transaction: works without, only slower.
            let set: rusqlite::Result<String> =
                conn.query_row("PRAGMA journal_mode = WAL", [], |r| r.get(0));
            if set.as_deref() != Ok("wal") {
                log::warn!(
                    "{} stays in journal mode {mode}; WAL is better",
                    path.display()
                );
            }
        }
        conn.execute_batch("PRAGMA synchronous = NORMAL; PRAGMA temp_store = MEMORY")?;
        conn.busy_timeout(Duration::ZERO)?; // from here on `retry_while_busy` waits
        Ok(conn)
    };
    open().map_err(|source| DatabaseError::Open {
        path: path.to_owned(),
        source,
    })
}

/// Creates our tables. True if HarmonyLite was never here before.
fn install(conn: &Connection, settings: &Settings) -> Result<bool> {
    conn.execute_batch(own_tables::CREATE)?;
    let format: Option<i64> = own_tables::get_meta(conn, "format")?;
    match format {
        Some(format) if format > own_tables::FORMAT => {
            Err(DatabaseError::LaterFormat(settings.path.clone(), format))
        }
        Some(_) => Ok(own_tables::get_meta::<i64>(conn, "installed")?.is_none()),
        None => {
            own_tables::set_meta(conn, "format", own_tables::FORMAT)?;
            Ok(true)
        }
    }
}

/// The configured id unless another node has it, else the one kept in the database, else a random one from now on.
fn node_id(conn: &Connection, configured: Option<u64>) -> Result<u64> {
    let kept: Option<i64> = own_tables::get_meta(conn, "node_id")?;
    let taken: Option<i64> = own_tables::get_meta(conn, "node_id_taken")?;
    let configured = configured.filter(|id| taken != Some(*id as i64));
    let node = match (configured, kept) {
        (Some(id), _) => id,
        (None, Some(id)) => id as u64,
        (None, None) => {
            conn.query_row("SELECT abs(random()) | 1", [], |r| r.get::<_, i64>(0))? as u64
        }
    };
    if kept != Some(node as i64) {
        own_tables::set_meta(conn, "node_id", node as i64)?;
    }
    Ok(node)
}

/// Tries again for as long as somebody else holds the lock. SQLite's own busy handler sleeps up to
/// 100 ms between tries, which would be most of the latency.
fn retry_while_busy(
    stop: &AtomicBool,
    mut attempt: impl FnMut() -> rusqlite::Result<()>,
) -> Result<()> {
    let mut wait = Duration::from_micros(100);
    loop {
        match attempt() {
            Err(e) if is_busy(&e) => {
                if stop.load(Ordering::Relaxed) {
                    return Err(DatabaseError::Stopped);
                }
                std::thread::sleep(wait);
                wait = (wait * 2).min(Duration::from_millis(5));
            }
            other => return Ok(other?),
        }
    }
}

/// Whether one row or one table is at fault, not the database: a constraint, the class of a STRICT
/// column, a function that fails or is not known here.
pub(crate) fn is_unfit(e: &rusqlite::Error) -> bool {
    use ErrorCode::*;
    let code = match e {
        rusqlite::Error::SqlInputError { error, .. } => Some(error.code),
        e => e.sqlite_error_code(),
    };
    matches!(
        code,
        Some(ConstraintViolation | TypeMismatch | TooBig | Unknown)
    )
}

fn is_busy(e: &rusqlite::Error) -> bool {
    matches!(
        e.sqlite_error_code(),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
    )
}

/// Removes all that is ours from a database, also while an application has it open. Returns how
/// many tables and triggers there were.
pub fn clean_up(path: &Path, stop: &AtomicBool) -> Result<usize> {
    let conn = connect(path)?;
    retry_while_busy(stop, || conn.execute_batch("BEGIN IMMEDIATE"))?;
    let removed = own_tables::drop_all(&conn)?;
    retry_while_busy(stop, || conn.execute_batch("COMMIT"))?;
    Ok(removed)
}
