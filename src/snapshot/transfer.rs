//! Makes and fetches snapshots: transfers between the database's folder and a store.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, unbounded};
use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::database::meta::{Meta, set_meta};
use crate::database::{DatabaseError, is_unfit, schema, values};
use crate::db_file::access::FileAccess;
use crate::model::manifest::{self, Manifest, ManifestError, SnapshotEntry, fresh_name};
use crate::snapshot::copy::View;
use crate::snapshot::damaged::demote_damaged;
use crate::snapshot::error::{CopyError, TransferError, bad, disk};
use crate::snapshot::pack::{Unpacker, pack};
use crate::snapshot::scratch::{self, Scratch, place, remove_leftovers, require_space};
use crate::snapshot::watch::{Bounded, Watch, Watched, is_stop};
use crate::store::{Store, StoreError};
use crate::thread::{Outcome, spawn};

/// While a database is checked, the time between two checks whether to go on.
const CHECK_TICK: Duration = Duration::from_millis(100);

/// An object that another node left and the manifest does not name is removed when it is this much
/// older than the newest snapshot: by then no node is still writing it.
const LEFT_BEHIND_MS: i64 = 24 * 3600 * 1000;

/// The maker of a snapshot, and the facts about it that are not in the copy.
pub struct Maker<'a> {
    /// Path of the database that is copied.
    pub database: &'a Path,
    /// The beginning of the scratch files' paths, see [`super::scratch::base`].
    pub scratch: &'a Path,
    /// Prefix of the cluster's streams.
    pub cluster: &'a str,
    /// Id of the node that makes the snapshot.
    pub node: u64,
    /// When it is made, in unix milliseconds.
    pub time_ms: i64,
    /// A number that makes the name of the snapshot unique.
    pub random: u64,
    /// Newest tombstone dropped on this node, as (hlc, node).
    pub dropped: Option<(i64, u64)>,
}

/// Copies what the view sees, packs it and uploads it. The manifest does not list the snapshot yet.
pub fn upload(
    view: View,
    maker: &Maker<'_>,
    store: &mut dyn Store,
    watch: &mut dyn Watch,
) -> Result<SnapshotEntry, TransferError> {
    let access = FileAccess::of_database(maker.database);
    let copy = Scratch::beside(maker.scratch, "copy", &access)?;
    let packed_file = Scratch::beside(maker.scratch, "packed", &access)?;
    let database_size = view.size;
    require_space(copy.path(), database_size + database_size / 2)?;
    let (streams, schema) = (view.streams.clone(), view.schema);
    let lacks = view.lacks();
    view.copy(copy.path(), &mut |done| {
        watch.progress("copying", done, database_size)
    })
    .map_err(|e| match e {
        CopyError::Io(e) if is_stop(&e) => TransferError::Stopped,
        CopyError::Sqlite(e) if is_damage(&e) => damaged(maker, e),
        CopyError::Sqlite(e) => match DatabaseError::from(e) {
            dropped @ DatabaseError::Dropped => dropped.into(),
            e => disk(copy.path(), e),
        },
        e => disk(copy.path(), e),
    })?;
    let database_size = length(copy.path())?;
    // Otherwise two copies of a damaged file would replace the sound snapshots that are kept.
    check(copy.path(), watch).map_err(|e| match e {
        Unchecked::Stopped => TransferError::Stopped,
        Unchecked::Damaged(cause) => damaged(maker, cause),
    })?;
    let packed = pack(copy.file()?, packed_file.file()?, &mut |done| {
        watch.progress("packing", done, database_size)
    })
    .map_err(|e| stopped_or(e, packed_file.path()))?;
    drop(copy);
    let entry = SnapshotEntry {
        name: fresh_name(maker.time_ms, maker.node, maker.random),
        size: packed.size,
        sha256: packed.sha256,
        database_size,
        node: maker.node,
        time_ms: maker.time_ms,
        schema,
        streams,
        dropped: maker.dropped,
        lacks,
    };
    let mut watched = Watched {
        inner: packed_file.file()?,
        watch,
        step: "uploading",
        done: 0,
        total: packed.size,
        ended: false,
        failed: None,
    };
    let sent = store.put(&entry.name, packed.size, &mut watched);
    if watched.ended {
        return Err(TransferError::Stopped);
    }
    sent?;
    Ok(entry)
}

/// Makes an uploaded snapshot the newest one, and removes snapshots that no node needs any more.
/// `reliable` is the snapshot before, without the streams whose position the broker lost.
pub fn announce(
    entry: SnapshotEntry,
    reliable: Option<&SnapshotEntry>,
    cluster: &str,
    store: &mut dyn Store,
) -> Result<Manifest, TransferError> {
    let mut known = match read_manifest(store, cluster) {
        Ok(known) => known.unwrap_or_default(),
        // A crash tore the manifest, on a store that cannot replace an object as a whole. Begin a
        // new one.
        Err(e) if is_torn(&e) => {
            log::warn!("{e}; replacing it");
            Manifest::default()
        }
        Err(e) => return Err(e),
    };
    if let Some(reliable) = reliable {
        for entry in &mut known.snapshots {
            entry.drop_unreliable(reliable); // what was found lost is remembered with it
        }
    }
    let names = store.list()?;
    if !names.contains(&entry.name) {
        let cause = "it is gone after the upload: does another program delete files there?";
        return Err(bad(store, &entry.name, cause));
    }
    let (newest, before) = (entry.clone(), known.snapshots.clone());
    let manifest = known.with(cluster, entry);
    let bytes = manifest.to_bytes();
    store.put(manifest::NAME, bytes.len() as u64, &mut &bytes[..])?;
    for name in &names {
        if is_left_behind(name, &before, &manifest, &newest) {
            // The snapshot is made all the same, and the next one tries again.
            if let Err(e) = store.remove(name) {
                log::warn!("{e}; it is not needed any more");
            }
        }
    }
    Ok(manifest)
}

/// Whether an object is a snapshot, whole or not, that no node needs: it just fell out of the
/// manifest, or a process left it behind when it ended.
fn is_left_behind(
    name: &str,
    before: &[SnapshotEntry],
    manifest: &Manifest,
    newest: &SnapshotEntry,
) -> bool {
    let listed = |entries: &[SnapshotEntry]| entries.iter().any(|e| e.name == name);
    if !manifest::is_snapshot(name) || listed(&manifest.snapshots) {
        return false;
    }
    let made = manifest::made(name);
    let is_old = |(time_ms, node): (i64, u64)| {
        node == newest.node || time_ms < newest.time_ms - LEFT_BEHIND_MS
    };
    listed(before) || made.is_some_and(is_old)
}

/// Removes a snapshot that is of no use from the manifest, so that a new one is made.
pub fn remove_entry(name: &str, cluster: &str, store: &mut dyn Store) -> Result<(), TransferError> {
    let Some(mut manifest) = read_manifest(store, cluster)? else {
        return Ok(());
    };
    manifest.snapshots.retain(|e| e.name != name);
    let bytes = manifest.to_bytes();
    Ok(store.put(manifest::NAME, bytes.len() as u64, &mut &bytes[..])?)
}

/// Whether the manifest is of no use, and may be replaced.
pub fn is_torn(e: &TransferError) -> bool {
    matches!(e, TransferError::Bad { name, .. } if name == manifest::NAME)
}

/// Reads the manifest. `None` if the store has none yet. Fails if the manifest is torn, belongs to
/// a different cluster or a later release, or if the store cannot be read.
pub fn read_manifest(
    store: &mut dyn Store,
    cluster: &str,
) -> Result<Option<Manifest>, TransferError> {
    let mut bytes = Bounded::default();
    match store.get(manifest::NAME, &mut bytes) {
        Ok(()) => {}
        Err(StoreError::NotFound { .. }) => return Ok(None),
        Err(_) if bytes.is_over() => return Err(bad(store, manifest::NAME, "it is too large")),
        Err(StoreError::Damaged { cause, .. }) => return Err(bad(store, manifest::NAME, cause)),
        Err(e) => return Err(e.into()),
    }
    match Manifest::parse(&bytes.0, cluster) {
        Ok(manifest) => Ok(Some(manifest)),
        Err(ManifestError::Torn(cause)) => Err(bad(store, manifest::NAME, cause)),
        Err(ManifestError::NotOurs(cause)) => Err(TransferError::NotOurs {
            store: store.address().to_owned(),
            cause,
        }),
    }
}

/// Fetches a snapshot into a scratch file, whose name begins with `base`
/// ([`super::scratch::base`]), and checks it. Fails if the disk has no room for it, if the object
/// is gone or damaged, or if the watch ends the work.
pub fn fetch(
    entry: &SnapshotEntry,
    (base, access): (&Path, &FileAccess),
    store: &mut dyn Store,
    watch: &mut dyn Watch,
) -> Result<Scratch, TransferError> {
    let file = Scratch::beside(base, "fetched", access)?;
    require_space(file.path(), entry.database_size)?;
    let into = Unpacker::new(file.file()?, entry.database_size);
    let mut watched = Watched {
        inner: into.map_err(|e| disk(file.path(), e))?,
        watch,
        step: "fetching",
        done: 0,
        total: entry.size,
        ended: false,
        failed: None,
    };
    let got = store.get(&entry.name, &mut watched);
    match (got, watched.failed) {
        _ if watched.ended => return Err(TransferError::Stopped),
        (Err(_), Some(e)) if e.raw_os_error().is_some() => return Err(disk(file.path(), e)),
        (Err(_), Some(e)) => return Err(bad(store, &entry.name, e.to_string())),
        (Err(StoreError::NotFound { .. }), _) => {
            return Err(bad(store, &entry.name, "it is gone"));
        }
        (Err(StoreError::Damaged { cause, .. }), _) => return Err(bad(store, &entry.name, cause)),
        (got, _) => got?,
    }
    let packed = watched.inner.finish();
    let packed = packed.map_err(|e| bad(store, &entry.name, e.to_string()))?;
    if (packed.size, &packed.sha256) != (entry.size, &entry.sha256) {
        let cause = "its SHA-256 is not that of the manifest";
        return Err(bad(store, &entry.name, cause));
    }
    match check(file.path(), watch) {
        Ok(()) => Ok(file),
        Err(Unchecked::Stopped) => Err(TransferError::Stopped),
        Err(Unchecked::Damaged(cause)) => Err(bad(store, &entry.name, cause)),
    }
}

/// The triggers and views of a fetched snapshot, which run inside the application. Drops them
/// unless they are `taken` over.
pub fn code(file: &Path, taken: bool) -> Result<Vec<String>, TransferError> {
    let run = || -> rusqlite::Result<Vec<String>> {
        let conn = scratch::connect(file, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let mut list = conn.prepare(
            "SELECT type, name FROM sqlite_schema WHERE type IN ('trigger', 'view')
             AND name NOT GLOB '__harmonylite__*' ORDER BY type, name",
        )?;
        let all = list.query_map([], |r| Ok((values::lossy(r, 0)?, values::lossy(r, 1)?)))?;
        let all: Vec<(String, String)> = all.collect::<rusqlite::Result<_>>()?;
        for (kind, name) in all.iter().filter(|_| !taken) {
            // A trigger on a view goes with it.
            conn.execute(
                &format!("DROP {kind} IF EXISTS {}", schema::quote(name)),
                [],
            )?;
        }
        Ok(all.into_iter().map(|(_, name)| name).collect())
    };
    run().map_err(|e| disk(file, e))
}

/// Makes a fetched snapshot the database. Returns false if a database appeared meanwhile: that one
/// stays. Reads all rows before, which the watch can end.
pub fn put_in_place(
    file: Scratch,
    database: &Path,
    watch: &mut dyn Watch,
) -> Result<bool, TransferError> {
    let prepare = || -> rusqlite::Result<()> {
        let conn = scratch::connect(file.path(), OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        set_meta(&conn, Meta::Joined, 1)?; // there is nothing to merge it with
        conn.close().map_err(|(_, e)| e)
    };
    // Fails if the daemon could not open the file, now and ever after.
    let damaged = demote_damaged(file.path(), watch)?;
    if damaged > 0 {
        log::warn!(
            "{damaged} row(s) of the snapshot were changed behind the triggers' back where it was \
             made: those of the other nodes take their place, or harmonylite verify -repair"
        );
    }
    prepare().map_err(|e| disk(file.path(), e))?;
    let placed = remove_leftovers(database).and_then(|()| place(file.path(), database));
    match placed {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        placed => placed.map(|()| true).map_err(|e| disk(database, e)),
    }
}

/// The reason for which a check did not find a database sound.
#[derive(Debug)]
pub(crate) enum Unchecked {
    Damaged(String),
    Stopped,
}

/// Runs `quick_check` on a file, which takes as long as reading it; `watch` can end it.
pub(crate) fn check(path: &Path, watch: &mut dyn Watch) -> Result<(), Unchecked> {
    let damage = |e: rusqlite::Error| Unchecked::Damaged(format!("quick_check: {e}"));
    let conn = scratch::connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(damage)?;
    let interrupt = conn.get_interrupt_handle();
    let size = fs::metadata(path).map_or(0, |data| data.len());
    let (exits, ended) = unbounded();
    let thread = spawn("checking", &exits, move || check_all(&conn));
    let mut is_stopped = false;
    let exit = loop {
        is_stopped = is_stopped || watch.progress("checking", 0, size).is_err();
        if is_stopped {
            interrupt.interrupt(); // each time: one may fall between two statements
        }
        match ended.recv_timeout(CHECK_TICK) {
            Err(RecvTimeoutError::Timeout) => {}
            exit => break exit,
        }
    };
    let _ = thread.join(); // what it had open is closed, and the file may go
    match exit.map(|exit| exit.outcome) {
        _ if is_stopped => Err(Unchecked::Stopped),
        Ok(Outcome::Stopped) => Ok(()),
        Ok(Outcome::Failed(text) | Outcome::Panicked(text)) => {
            Err(Unchecked::Damaged(format!("quick_check: {text}")))
        }
        Err(e) => Err(Unchecked::Damaged(format!("quick_check: {e}"))),
    }
}

/// Runs <https://www.sqlite.org/pragma.html#pragma_quick_check>. It checks the file and not the
/// application's constraints: a constraint or a collation may need a function that only the
/// application has.
fn check_all(conn: &Connection) -> Result<(), String> {
    forget_modules(conn);
    let check = || -> rusqlite::Result<Option<String>> {
        conn.execute_batch("PRAGMA trusted_schema = OFF; PRAGMA ignore_check_constraints = ON")?;
        match quick_check(conn, "1") {
            Err(e) if is_unfit(&e) => {}
            done => return done,
        }
        let mut list = conn.prepare(
            "SELECT name FROM pragma_table_list
             WHERE schema = 'main' AND type IN ('table', 'shadow')",
        )?;
        let names = list.query_map([], |r| values::lossy(r, 0))?;
        for name in names.collect::<rusqlite::Result<Vec<String>>>()? {
            match quick_check(conn, &schema::quote(&name)) {
                Err(e) if is_unfit(&e) => log::debug!("table {name} is not checked: {e}"),
                Ok(None) => {}
                done => return done,
            }
        }
        Ok(None)
    };
    let damage = check().unwrap_or_else(|e| Some(e.to_string()));
    damage.map_or(Ok(()), Err)
}

/// Leaves the modules of virtual tables out of the check. An index over a table of the application
/// may lack rows, or need a tokenizer that only the application has, and the file is sound all the
/// same. The tables in which a module keeps its data are read like all others.
fn forget_modules(conn: &Connection) {
    // SAFETY: the connection is open, no statement of it is, and no list of modules to keep is
    // valid.
    unsafe { rusqlite::ffi::sqlite3_drop_modules(conn.handle(), std::ptr::null_mut()) };
}

fn is_damage(e: &rusqlite::Error) -> bool {
    let code = e.sqlite_error_code();
    matches!(
        code,
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
    )
}

fn damaged(maker: &Maker<'_>, cause: impl ToString) -> TransferError {
    TransferError::Damaged {
        path: maker.database.to_owned(),
        cause: cause.to_string().replace('\n', ", "),
    }
}

/// Returns the damage that `quick_check` finds; `None` if all is well.
fn quick_check(conn: &Connection, what: &str) -> rusqlite::Result<Option<String>> {
    let text = format!("PRAGMA quick_check({what})");
    let found: String = conn.query_row(&text, [], |r| r.get(0))?;
    Ok((found != "ok").then_some(found))
}

fn stopped_or(e: io::Error, path: &Path) -> TransferError {
    match is_stop(&e) {
        true => TransferError::Stopped,
        false => disk(path, e),
    }
}

fn length(path: &Path) -> Result<u64, TransferError> {
    let data = fs::metadata(path).map_err(|e| disk(path, e))?;
    Ok(data.len())
}
