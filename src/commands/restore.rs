//! `harmonylite restore`: the newest snapshot as a plain database.

use std::io::{self, Write};
use std::path::Path;

use crossbeam_channel::{Receiver, TryRecvError, unbounded};
use rusqlite::{ErrorCode, OpenFlags};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::store_access::{open, read};
use crate::cli::Flags;
use crate::config::Config;
use crate::database::own_tables;
use crate::db_file::access::FileAccess;
use crate::model::manifest::{Manifest, SnapshotEntry};
use crate::model::timestamp::rfc3339;
use crate::output;
use crate::snapshot::error::{TransferError, disk};
use crate::snapshot::scratch;
use crate::snapshot::thread::Progress;
use crate::snapshot::transfer;
use crate::store::Store;
use crate::thread::spawn;
use compare::compare;

mod compare;

/// Writes the newest sound snapshot to a new file, as a plain database. With `dry_run` says only
/// what the newest snapshot lacks of the rows of the database. Fails if the file exists, or if no
/// snapshot can be had.
pub fn restore(
    config: &Config,
    options: &Flags,
    (to, dry_run): (Option<&Path>, bool),
    out: &mut dyn Write,
) -> Result<(), String> {
    let to = to.unwrap_or(Path::new("restored.db"));
    if !dry_run {
        require_free(to)?;
    }
    let mut access = open(config, options)?;
    let manifest = read(config, &mut *access.store)?;
    if manifest.snapshots.is_empty() {
        return Err(format!("{}: no snapshots yet", access.store.address()));
    }
    let stop = stop_signals()?;
    let of_database = FileAccess::of_database(&config.db_path);
    if dry_run {
        let text = say(config, &manifest.snapshots[0], &mut *access.store, &stop)?;
        return out.write_all(text.as_bytes()).map_err(output::failed);
    }
    restore_first(
        &manifest,
        (to, &of_database),
        &mut *access.store,
        &stop,
        out,
    )
}

/// Says what a snapshot lacks of the rows here.
fn say(
    config: &Config,
    entry: &SnapshotEntry,
    store: &mut dyn Store,
    stop: &Receiver<()>,
) -> Result<String, String> {
    let database = &config.db_path;
    if !database.exists() {
        return Err(format!(
            "{} does not exist: nothing to compare",
            database.display()
        ));
    }
    let access = FileAccess::of_database(database);
    let mut progress = Progress::new(stop, "restore");
    let file = transfer::fetch(entry, (database, &access), store, &mut progress);
    let file = file.map_err(|e| e.to_string())?;
    let tables = compare(file.path(), database, stop);
    let tables = tables.map_err(|e| format!("comparing {}: {e}", database.display()))?;
    let mut text = format!(
        "snapshot {} of node {}, of {}: nothing is written\n",
        entry.name,
        entry.node,
        rfc3339(entry.time_ms)
    );
    for of in tables {
        let lacks = match of.lacking {
            None => "its key is a different one there".to_owned(),
            Some(rows) if of.is_many() => format!("{rows} of these it lacks: MORE THAN A TENTH"),
            Some(rows) => format!("{rows} of these it lacks"),
        };
        let (table, there, here) = (&of.table, of.there, of.here);
        text += &format!("table {table}: {there} row(s) there, {here} here; {lacks}\n");
    }
    text += "A node that merges it keeps rows that are newer than it, and deletes those whose \
             delete it knows\n";
    Ok(text)
}

/// Receives SIGTERM and SIGINT from now on. (Before there is a file to remove, they may end us at
/// once.)
fn stop_signals() -> Result<Receiver<()>, String> {
    let signals = Signals::new([SIGTERM, SIGINT]);
    let mut signals = signals.map_err(|e| format!("signals: {e}"))?;
    let (sender, receiver) = unbounded();
    spawn("signals", &unbounded().0, move || {
        signals.forever().for_each(|_| {
            let _ = sender.send(());
        });
        Ok(())
    });
    Ok(receiver)
}

/// Writes the newest sound snapshot, unless `stop` receives a signal.
pub(super) fn restore_first(
    manifest: &Manifest,
    (to, access): (&Path, &FileAccess),
    store: &mut dyn Store,
    stop: &Receiver<()>,
    out: &mut dyn Write,
) -> Result<(), String> {
    let mut failure = String::new();
    for entry in &manifest.snapshots {
        if !failure.is_empty() {
            let _ = writeln!(
                io::stderr(),
                "harmonylite: {failure}; trying the one before"
            );
        }
        match restore_one(entry, (to, access), store, stop) {
            Ok(displaced) => {
                let mut text = format!("{} is snapshot {}\n", to.display(), entry.name);
                if displaced > 0 {
                    text += &format!(
                        "{displaced} row(s) were displaced and are not in it: see the README, \
                         Conflicts\n"
                    );
                }
                return out.write_all(text.as_bytes()).map_err(output::failed);
            }
            Err(e) => {
                // A signal to all processes of a terminal ends our server, too.
                if matches!(e, TransferError::Stopped) || is_told(stop) {
                    return Err(format!("stopped: {} was not written", to.display()));
                }
                failure = e.to_string();
                if matches!(e, TransferError::Disk { .. }) {
                    break; // another would not fare better
                }
            }
        }
    }
    Err(failure)
}

/// Returns the number of rows that were displaced or held.
fn restore_one(
    entry: &SnapshotEntry,
    (to, access): (&Path, &FileAccess),
    store: &mut dyn Store,
    stop: &Receiver<()>,
) -> Result<i64, TransferError> {
    let mut progress = Progress::new(stop, "restore");
    let file = transfer::fetch(entry, (to, access), store, &mut progress)?;
    let displaced = clean(file.path(), stop).map_err(|e| match e.sqlite_error_code() {
        Some(ErrorCode::OperationInterrupted) => TransferError::Stopped,
        _ => disk(to, format!("{}: {e}", entry.name)),
    })?;
    if is_told(stop) {
        return Err(TransferError::Stopped);
    }
    require_free(to).map_err(|text| disk(to, text))?; // fetching took a while
    scratch::place(file.path(), to).map_err(|e| disk(to, e))?;
    Ok(displaced)
}

fn is_told(stop: &Receiver<()>) -> bool {
    stop.try_recv() != Err(TryRecvError::Empty)
}

/// Makes sure that neither the file exists, nor a file that SQLite would take for its unfinished
/// work and write over the restored database.
fn require_free(to: &Path) -> Result<(), String> {
    if to.symlink_metadata().is_ok() {
        return Err(format!("{} exists: nothing is overwritten", to.display()));
    }
    let Some(leftover) = scratch::leftover(to) else {
        return Ok(());
    };
    Err(format!(
        "{} is left over from a different database, and SQLite would write its content over {}: \
         move it away, or name a different file with -o; nothing was changed",
        leftover.display(),
        to.display()
    ))
}

/// Removes everything of ours. Returns the number of displaced and held rows that went with it. The
/// file comes from a store, and a view in the place of a table may have no end: `stop` ends it.
fn clean(file: &Path, stop: &Receiver<()>) -> rusqlite::Result<i64> {
    let mut conn = scratch::connect(file, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let stop = stop.clone();
    conn.progress_handler(10_000, Some(move || is_told(&stop)))?;
    let displaced = conn.query_row(
        "SELECT (SELECT count(*) FROM __harmonylite___displaced)
              + (SELECT count(*) FROM (SELECT DISTINCT table_name, shape, key
                                 FROM __harmonylite___held))",
        [],
        |r| r.get(0),
    )?;
    own_tables::drop_all(&conn)?;
    conn.close().map_err(|(_, e)| e)?;
    Ok(displaced)
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;

    #[test]
    fn a_snapshot_without_end_is_left_at_a_signal() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("fetched.db");
        let conn = Connection::open(&file).unwrap();
        conn.execute_batch(
            "CREATE TABLE __harmonylite___held(table_name, shape, key);
             CREATE VIEW __harmonylite___displaced AS
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n",
        )
        .unwrap();
        let (signals, stop) = unbounded();
        signals.send(()).unwrap();
        let ended = clean(&file, &stop).unwrap_err();
        assert_eq!(
            ended.sqlite_error_code(),
            Some(ErrorCode::OperationInterrupted)
        );
    }
}
