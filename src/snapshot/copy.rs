//! A copy of the database in which every row is what its version says.
//!
//! That holds only while no local change waits to be captured. So the view is made in steps:
//! capture until the change log is empty, make sure under the write lock that it still is, open a
//! read transaction on a second connection, and release the lock. Then the copy reads that
//! transaction for as long as it takes. The application writes on meanwhile; only its WAL file
//! grows.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use crate::apply::let_go::LetGo;
use crate::capture::Captured;
use crate::database::meta::{Meta, get_meta, strip_meta};
use crate::database::schema::quote;
use crate::database::selection::Kind;
use crate::database::{Database, OpenedFiles, Result, Viewing, forget_table, note_local};
use crate::model::manifest::StreamPosition;
use crate::mutation::{self, Mutation};
use crate::snapshot::error::CopyError;
use crate::snapshot::scratch;

mod indexes;

/// Number of pages copied between two checks whether to go on: 1 MB.
const PAGES: i32 = 256;

/// Empties own tables whose rows belong to this node alone, or are of no use to another.
const STRIP: &str = "
DELETE FROM __harmonylite___ages;
DELETE FROM __harmonylite___held_tables;
DELETE FROM __harmonylite___quarantine;
DELETE FROM __harmonylite___waiting;
DELETE FROM __harmonylite___change_log_global;
DELETE FROM __harmonylite___gone;
DELETE FROM __harmonylite___replacing;";

/// A read transaction, and facts about the state that it sees.
pub struct View {
    conn: Connection,
    reads: Viewing,
    /// Tables whose rows are not for others, unless `apply_triggers` feed them (those are in `fed`,
    /// because their rows stem from replicated rows, and a node that begins with the copy fires no
    /// trigger). New tables, too, whose rows have no versions yet.
    excluded: Vec<String>,
    fed: Vec<String>,
    /// Virtual tables that are excluded, or whose content is that of excluded tables.
    indexes: Vec<String>,
    /// Tables that each node has for itself; a new node begins with the rows of this one.
    local: Vec<String>,
    /// Per stream, the position up to which the view holds its messages.
    pub streams: BTreeMap<String, StreamPosition>,
    /// Tables that were dropped here.
    gone: Vec<String>,
    /// Those of them (lower case) that others may have.
    missed: BTreeSet<String>,
    /// Tables of which rows were let go.
    lacks: Vec<String>,
    /// Hash of the schema, as the database records it.
    pub schema: i64,
    /// Size of the database in bytes.
    pub size: u64,
    opened: OpenedFiles,
}

impl Database {
    /// Tries once to open a view. `None` if there are changes to capture first, or a migration is
    /// at work on a table: the snapshot would lack its rows, or have a half-made table. Call it
    /// again, after a pause for the application.
    pub fn view(&mut self) -> Result<(Option<View>, Captured)> {
        let captured = self.write_past_damage(|db| {
            let mut captured = Captured::default();
            if !mutation::is(Mutation::SnapshotOfUncaptured) {
                db.capture_locked(&mut captured)?;
            }
            db.clear_marks()?;
            db.store_positions()?;
            Ok(captured)
        })?;
        let (quiet, is_gone) = (&self.catalog.quiet, self.has_gone()?);
        let is_at_work =
            quiet.has_rebuilt(is_gone) || (is_gone && quiet.may_come_back(self.clock.uptime()));
        if captured.more || self.is_comparing() || is_at_work {
            return Ok((None, captured));
        }
        // Nothing is written in here: the transaction keeps the application out for a moment.
        let _reads = self.fence.begin_view();
        let view = self.write(|db| {
            let schema_is_known = db.catalog_is_current()?;
            let log_is_empty = mutation::is(Mutation::SnapshotOfUncaptured)
                || !db
                    .conn
                    .prepare_cached("SELECT 1 FROM __harmonylite___change_log_global LIMIT 1")?
                    .exists([])?;
            match schema_is_known && log_is_empty {
                true => db.open_view().map(Some),
                false => Ok(None),
            }
        })?;
        Ok((view, captured))
    }

    /// Opens a second connection that changes nothing. While it reads, and when it is closed, a
    /// [`Viewing`] must be there.
    pub(crate) fn open_reader(&self) -> Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(self.path(), flags)?;
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        conn.execute_batch("PRAGMA query_only = ON")?;
        Ok(conn)
    }

    /// Notes that a second connection is about to read. Called outside of any transaction.
    pub(crate) fn begin_view(&self) -> Viewing {
        self.fence.begin_view()
    }

    fn open_view(&self) -> Result<View> {
        let conn = self.open_reader()?;
        conn.execute_batch("BEGIN")?;
        let size = conn.query_row(
            "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()",
            [],
            |r| r.get::<_, i64>(0),
        )?;
        let schema = get_meta(&conn, Meta::SchemaHash)?.unwrap_or_default();
        let streams = self.places();
        let is_fed = |name: &String| self.apply_triggers.feeds(name);
        let excluded = self.not_replicated_as(Kind::Excluded).into_iter();
        let (fed, excluded): (_, Vec<String>) = excluded.partition(is_fed);
        let young = self.catalog.quiet.young().cloned();
        let excluded: Vec<String> = excluded.into_iter().chain(young).collect();
        let gone = self.gone()?;
        let indexes = self.indexes_to_empty(&excluded)?;
        Ok(View {
            conn,
            reads: self.fence.begin_view(),
            indexes,
            excluded,
            fed,
            local: self.not_replicated_as(Kind::Local),
            lacks: self.let_go.lacks().cloned().collect(),
            missed: gone.iter().map(|t| t.to_ascii_lowercase()).collect(),
            gone,
            streams,
            schema,
            size: size as u64,
            opened: self.files.opened(),
        })
    }
}

impl View {
    /// The connection that sees the view. It changes nothing.
    pub fn connection(&self) -> &Connection {
        &self.conn
    }

    /// Tables (lower case) whose rows the view lacks although others may have them: they were let
    /// go, or the table was dropped.
    pub fn lacks(&self) -> Vec<String> {
        let all: BTreeSet<&String> = self.lacks.iter().chain(&self.missed).collect();
        all.into_iter().cloned().collect()
    }

    /// Says which tables (lower case) others may have.
    pub fn others_have(&mut self, has: &dyn Fn(&str) -> bool) {
        self.missed.retain(|table| has(table));
    }

    /// Copies the view to a new file and removes everything that is not for others. `watch` is told
    /// how many bytes are done, and can end the copy.
    pub fn copy(
        self,
        to: &Path,
        watch: &mut dyn FnMut(u64) -> io::Result<()>,
    ) -> std::result::Result<(), CopyError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        let mut copy = scratch::connect(to, flags)?;
        // Nobody reads the file before it is whole, so neither a journal nor a sync is of use.
        copy.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF")?;
        copy.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
        // Rows that refer to an emptied table stay.
        copy.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, false)?;
        watch(0)?;
        {
            let backup = Backup::new(&self.conn, &mut copy)?;
            let pages = |p: rusqlite::backup::Progress| (p.pagecount - p.remaining).max(0) as u64;
            while backup.step(PAGES)? != StepResult::Done {
                let progress = backup.progress();
                let page = self.size / (progress.pagecount.max(1) as u64);
                watch(pages(progress) * page)?;
            }
        }
        // From here on the WAL that grew meanwhile can be checkpointed, by us or by the next
        // program that commits. It is no harm if that is the application, or if our checkpoint
        // fails.
        let _ = self.conn.execute_batch("COMMIT");
        if self.opened.is_there() {
            let _ = self.conn.execute_batch("PRAGMA wal_checkpoint(PASSIVE)");
        }
        drop(self.conn);
        drop(self.reads);
        // The copy's header says WAL, as the original's did.
        let _: String = copy.query_row("PRAGMA journal_mode = OFF", [], |r| r.get(0))?;
        drop_triggers(&copy)?;
        strip_meta(&copy)?;
        copy.execute_batch(STRIP)?;
        self.excluded.iter().try_for_each(|t| empty(&copy, t))?;
        self.indexes
            .iter()
            .try_for_each(|t| indexes::empty(&copy, t))?;
        self.fed
            .iter()
            .try_for_each(|t| forget_table(&copy, t).map(drop))?;
        self.gone
            .iter()
            .try_for_each(|t| forget_table(&copy, t).map(drop))?;
        LetGo::note_missed(&copy, &self.missed)?;
        note_local(&copy, &self.local)?;
        copy.close().map_err(|(_, e)| e)?;
        Ok(())
    }
}

/// Deletes the rows of a table, and everything that is known of them.
fn empty(conn: &Connection, table: &str) -> rusqlite::Result<()> {
    let text = format!("PRAGMA secure_delete = ON; DELETE FROM {}", quote(table));
    conn.execute_batch(&text)?;
    forget_table(conn, table).map(drop)
}

/// Drops our triggers. Where the copy is put into place, the catalog creates them again.
fn drop_triggers(conn: &Connection) -> rusqlite::Result<()> {
    let mut list = conn.prepare(
        "SELECT name FROM sqlite_schema WHERE type = 'trigger' AND name GLOB '__harmonylite__*'",
    )?;
    let names: Vec<String> = list
        .query_map([], |r| r.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    for name in names {
        conn.execute_batch(&format!("DROP TRIGGER {}", quote(&name)))?;
    }
    Ok(())
}
