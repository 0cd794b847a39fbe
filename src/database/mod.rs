//! The user's database with HarmonyLite's tables in it: how it is opened, and what both capture and
//! apply use.
//!
//! One connection makes all writes of this process. A thread that holds the [`Database`] holds the
//! lock of [`crate::shared::Shared`]: SQLite has one writer at a time anyway. Triggers and foreign
//! keys are off on this connection. So applied changes are not captured again, and the
//! application's triggers, which have already fired on the node that made the change, do not fire a
//! second time. Transactions are short and spaced, so that the application is never starved.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rusqlite::Connection;

use crate::clock::Clock;
use crate::database::reservation::Reservation;
use crate::database::sites::Sites;
use crate::database::table::Table;

mod apply_triggers;
mod catalog;
mod comparison;
pub(crate) mod content_key;
mod counts;
mod damage;
mod dropped;
mod error;
mod fence;
mod files;
mod go_version;
mod install;
mod journal;
mod lend;
pub mod meta;
mod missed_triggers;
mod offline_writes;
mod own_shape;
pub mod own_tables;
mod plain_condition;
pub(crate) mod read_only;
pub mod release;
mod replacing;
mod reservation;
mod restore_detector;
pub mod rows;
pub mod schema;
pub(crate) mod schema_hash;
pub mod selection;
mod settings;
pub mod sites;
pub(crate) mod sql_text;
pub(crate) mod storage;
pub mod table;
mod time;
pub mod triggers;
pub mod values;
mod wal;
mod write;

pub(crate) use catalog::{
    Catalog, Former, FormerRow, forget_table, former_table, is_one, left_out, note_local, seen,
    was_table,
};
pub(crate) use comparison::{Compare, CompareReason, MissedEvents, Phase};
pub use counts::Counts;
pub use error::{DatabaseError, Result};
pub(crate) use error::{is_unfit, is_unique_violation};
pub use fence::Fence;
pub(crate) use fence::{ReaderGap, Viewing};
pub(crate) use files::OpenedFiles;
use go_version::GoVersion;
#[cfg(test)]
pub(crate) use go_version::made_by_go;
pub use install::{clean_up, examine};
use install::{connect, install, node_id};
pub use lend::Lent;
pub(crate) use settings::Limits;
pub use settings::Settings;
use write::retry_while_busy;
pub(crate) use write::savepoint;

/// HarmonyLite ends each of its write transactions after about this long, so that an application
/// with busy_timeout 0 can write too.
pub const TIME_BOX: Duration = Duration::from_millis(10);

/// The user's database, open. See the head of this module.
pub struct Database {
    pub(crate) conn: Connection,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) settings: Settings,
    pub(crate) catalog: Catalog,
    pub(crate) sites: Sites,
    pub(crate) reservation: Reservation,
    /// Key of the content hashes.
    pub(crate) content_key: crate::model::content::ContentKey,
    pub(crate) marks: crate::capture::Marks,
    pub(crate) positions: crate::apply::Positions,
    pub(crate) node: u64,
    /// This node has met the others, see [`Database::is_joined`].
    pub(crate) joined: bool,
    /// The application had no tables in the file when it was opened.
    pub(crate) began_empty: bool,
    /// Earlier starts of this node took stamps from the clock only before this time, in unix
    /// milliseconds.
    pub(crate) opened_ms: i64,
    /// See [`fence`]. It stands after the connection, which is closed first.
    pub(crate) fence: Arc<Fence>,
    /// The gap that was waited for before the lock was taken.
    pub(crate) gap: Option<ReaderGap>,
    /// The connection is closed, see [`Database::lend`].
    is_away: bool,
    /// `PRAGMA synchronous` is FULL.
    syncs_commits: bool,
    pub(crate) damage: damage::Damage,
    pub(crate) apply_triggers: apply_triggers::ApplyTriggers,
    /// Rows of this node that were demoted while it joined, as numbers by table.
    pub(crate) demoted: crate::apply::Demoted,
    /// Number of rows since the start that refer to a deleted row.
    pub(crate) dangling_seen: u64,
    pub(crate) gone_rows: crate::capture::GoneRows,
    pub(crate) tombstone_age: crate::apply::TombstoneAge,
    stop: Arc<AtomicBool>,
    /// Closed after `conn`.
    pub(crate) files: files::Files,
    /// Tells whether the file is still the one that was written to.
    pub(crate) restore_detector: restore_detector::RestoreDetector,
    /// `PRAGMA data_version` up to which all changes are captured.
    seen_data_version: i64,
    /// The last capture did not come to the end of the change log.
    pub(crate) log_is_left: bool,
    /// Number of the first capture since the change log was empty.
    pub(crate) log_run: i64,
    /// Bounds for what peers and applications may send, see [`Limits`].
    pub(crate) limits: Limits,
    /// Whether triggers and views of a snapshot are taken over with its tables.
    pub(crate) takes_code: bool,
    /// Tables whose changes are let go.
    pub(crate) let_go: crate::apply::LetGo,
    pub(crate) held_size: crate::apply::HeldSize,
    /// See [`Database::has_news`].
    pub(crate) is_news: bool,
    /// Tables (lower case) for which a log message has said that rows are held.
    pub(crate) said_held: std::collections::BTreeSet<String>,
    /// Bytes of the parts that wait for the rest of their frame; `None` until they are counted.
    pub(crate) parts_bytes: Option<u64>,
    /// Nodes that run the Go version.
    pub(crate) go_nodes: crate::apply::GoNodes,
    /// How far the message is applied that takes several transactions.
    pub(crate) steps: crate::apply::Steps,
    /// How far each origin of changes is applied here.
    pub(crate) origins: crate::apply::Origins,
    /// Events since the start; `kept_counts` has those that are committed.
    pub(crate) counts: Counts,
    kept_counts: Counts,
    /// See [`Database::missed_triggers`].
    missed_triggers: std::collections::BTreeMap<String, String>,
    /// These two report messages put in quarantine, and tables whose rows are displaced.
    pub(crate) quarantine_alarm: crate::logging::Repeated,
    pub(crate) displaced_alarm: crate::logging::Repeated,
    /// Largest difference between broker time and this machine's uptime seen so far, in
    /// milliseconds.
    broker_offset_ms: Option<i64>,
    /// Signs that a different node has this node's id.
    pub(crate) id_claim: crate::apply::IdClaim,
    /// The latest time of a version that was seen above the broker's, in unix milliseconds, and the
    /// uptime when one was.
    ahead: (i64, Option<Duration>),
    /// The log names the machine's clock as wrong.
    clock_is_wrong: bool,
}

impl Database {
    /// Opens the database, and puts HarmonyLite's triggers and tables in place. Blocks while others
    /// hold the write lock, until `stop` is set.
    pub fn open(
        mut settings: Settings,
        clock: Arc<dyn Clock>,
        stop: Arc<AtomicBool>,
    ) -> Result<Self> {
        let conn = connect(&settings.path, settings.cache_size)?;
        let fence = Arc::new(Fence::new(settings.courtesy, stop.clone()));
        fence.attach(&conn)?;
        // One transaction leads from the state that was found to complete tables and triggers: no
        // write of the application passes unseen in between, and a failed start has changed
        // nothing.
        fence.begin_without_tables(&conn)?;
        let in_time = fence.guard(ReaderGap::Fence);
        let go = GoVersion::find(&conn)?;
        if let Some(go) = &go {
            go.make_way(&conn)?;
        }
        let first_time = install(&conn, &settings)?;
        let has_births = meta::get_meta::<bool>(&conn, meta::Meta::Births)?.is_some();
        settings.births |= settings.births_later && has_births;
        let mut joined = meta::get_meta::<i64>(&conn, meta::Meta::Joined)?.is_some();
        if !joined && !settings.joins_by_snapshot {
            meta::set_meta(&conn, meta::Meta::Joined, 1)?;
            joined = true;
        }
        let node = node_id(&conn, settings.node_id)?;
        journal::note_mode(&conn, &settings.path)?;
        let sites = Sites::load(&conn)?;
        let reservation = Reservation::load(&conn, &*clock)?;
        let since = if first_time {
            0
        } else {
            reservation.peek_number()
        };
        let content_key = content_key::load_or_draw(&conn, since)?;
        let positions = crate::apply::Positions::load(&conn)?;
        let opened_ms = clock.now_ms().max(reservation.until_ms());
        let tombstone_age = crate::apply::TombstoneAge::load(&conn)?;
        let let_go = crate::apply::LetGo::load(&conn)?;
        let files = files::Files::open(&settings.path, &conn);
        let held_size = crate::apply::HeldSize::load(&conn)?;
        let mut database = Database {
            conn,
            clock,
            settings,
            catalog: Catalog::default(),
            sites,
            reservation,
            content_key,
            marks: crate::capture::Marks::default(),
            positions,
            node,
            joined,
            began_empty: false,
            opened_ms,
            fence,
            gap: None,
            is_away: false,
            syncs_commits: false,
            damage: damage::Damage::default(),
            apply_triggers: Default::default(),
            demoted: Default::default(),
            dangling_seen: 0,
            gone_rows: Default::default(),
            tombstone_age,
            stop,
            files,
            restore_detector: restore_detector::RestoreDetector::default(),
            seen_data_version: -1,
            log_is_left: true,
            log_run: 0,
            limits: Limits::default(),
            takes_code: true,
            let_go,
            held_size,
            is_news: false,
            said_held: Default::default(),
            parts_bytes: None,
            go_nodes: Default::default(),
            steps: Default::default(),
            origins: Default::default(),
            counts: Counts::default(),
            kept_counts: Counts::default(),
            missed_triggers: Default::default(),
            quarantine_alarm: Default::default(),
            displaced_alarm: Default::default(),
            broker_offset_ms: None,
            id_claim: Default::default(),
            ahead: (0, None),
            clock_is_wrong: false,
        };
        database.require_apply_triggers()?;
        database.catalog.first_time = first_time;
        database.began_empty = database.is_without_tables()?;
        database.refresh_catalog()?;
        meta::set_meta(&database.conn, meta::Meta::Installed, 1)?;
        retry_while_busy(&database.stop, || database.conn.execute_batch("COMMIT"))?;
        drop(in_time);
        database.fence.let_go();
        if let Some(go) = &go {
            database.take_over(go)?;
        }
        database.catalog.first_time = false;
        if !database.settings.joins_by_snapshot {
            database.read_let_go_again()?;
        }
        database.load_republish()?;
        Ok(database)
    }

    /// The fence that keeps readers out during write transactions.
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// Id of this node.
    pub fn node(&self) -> u64 {
        self.node
    }

    /// Path of the database file.
    pub fn path(&self) -> &Path {
        &self.settings.path
    }

    /// Whether another process may be in the middle of a write. If not, a call of
    /// [`Self::is_changed`] that follows tells of all that was written until now.
    pub fn may_be_written(&self) -> bool {
        self.fence.may_be_written()
    }

    /// Whether another connection wrote since the last capture. Takes a few microseconds.
    pub fn is_changed(&self) -> Result<bool> {
        Ok(self.data_version()? != self.seen_data_version)
    }

    fn data_version(&self) -> Result<i64> {
        Ok(self
            .conn
            .prepare_cached("PRAGMA data_version")?
            .query_row([], |r| r.get(0))?)
    }

    /// Notes that everything committed so far is about to be captured. Runs under the write lock.
    pub(crate) fn note_data_version(&mut self) -> Result<()> {
        self.seen_data_version = self.data_version()?;
        Ok(())
    }

    /// How long a write transaction may take at this moment.
    pub(crate) fn time_box(&self) -> Duration {
        self.fence.time_box()
    }

    /// Whether tables are being compared with their versions, which may take minutes.
    pub fn is_comparing(&self) -> bool {
        !self.catalog.comparing.is_empty()
    }

    /// Number of the tables being compared.
    pub fn comparing(&self) -> usize {
        self.catalog.comparing.len()
    }

    /// Whether the last capture left something to do.
    pub fn has_more(&self) -> bool {
        let catalog = &self.catalog;
        self.log_is_left
            || self.is_check_due()
            || catalog.comparing.keys().any(|id| catalog.may_settle(*id))
            || catalog.resettle.iter().any(|id| catalog.may_settle(*id))
            || catalog.retry_held.is_some()
            || !catalog.ending.is_empty()
    }

    /// Stores the marks and positions that wait for a write, if there are any.
    pub fn flush(&mut self) -> Result<()> {
        if self.has_acknowledged() || self.has_unsaved_positions() {
            self.write(|db| {
                db.clear_marks()?;
                db.store_positions()
            })?;
        }
        self.copy_unsent()
    }

    /// Ends the work in order: the next start continues where this one ended.
    pub fn close(&mut self) -> Result<()> {
        if self.is_lost() {
            return Ok(()); // which was said
        }
        let now_ms = self.bounded_time(self.clock.now_ms());
        self.write(|db| {
            db.clear_marks()?;
            db.store_positions()?;
            Ok(db.reservation.give_back(&db.conn, now_ms)?)
        })
    }

    /// The clock that this database uses.
    pub fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    /// Whether triggers of HarmonyLite are in place, or no table needs any.
    pub fn is_captured_by_triggers(&self) -> Result<bool> {
        let text = "SELECT 1 FROM sqlite_schema
                    WHERE type = 'trigger' AND name GLOB '__harmonylite_*' LIMIT 1";
        Ok(self.tables().is_empty() || self.conn.prepare_cached(text)?.exists([])?)
    }

    /// Counts of what happened to rows since the start.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// What health says of rows that the application wrote here since the start, although this node
    /// publishes nothing.
    pub(crate) fn kept_here_problem(&self) -> Option<String> {
        let rows = self.counts.kept_here;
        (rows > 0).then(|| {
            format!(
                "the application wrote {rows} row(s) here since the start, and publish = false: \
                 they stay on this node, which differs from the others by them. Write them on a \
                 node that publishes, or leave their tables out (tables.exclude)"
            )
        })
    }

    /// The replicated tables, by lower-case name.
    pub fn tables(&self) -> &HashMap<String, Arc<Table>> {
        &self.catalog.by_name
    }
}
