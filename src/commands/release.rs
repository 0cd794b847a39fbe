//! `harmonylite release`: lowers the versions of rows that lie in the future, so that later writes
//! win again.

use std::io::Write;
use std::time::Duration;

use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::database::release::pinned;
use crate::model::timestamp::shown;
use crate::{daemon, lock, output};

/// A clock that shows an earlier time was never set: 2026, in unix milliseconds.
const FIRST_MS: i64 = 1_767_225_600_000;

/// Names the rows, and releases them unless `dry_run`. Fails if there is no database, or if a
/// daemon works on it.
pub fn release(config: &Config, dry_run: bool, out: &mut dyn Write) -> Result<(), String> {
    let path = &config.db_path;
    let failed = |e: &dyn std::fmt::Display| format!("release: {}: {e}", path.display());
    if !path.exists() {
        return Err(failed(&"there is no database"));
    }
    if SystemClock.now_ms() < FIRST_MS {
        let now = shown(SystemClock.now_ms());
        return Err(failed(&format!(
            "this machine's clock shows {now}: set it first"
        )));
    }
    let bound_ms = SystemClock.now_ms() + config.max_clock_drift.as_millis() as i64;
    let found = pinned(path, bound_ms).map_err(|e| failed(&e))?;
    for (table, rows) in &found {
        writeln!(
            out,
            "table {table}: {rows} row(s) with a version after {}",
            shown(bound_ms)
        )
        .map_err(output::failed)?;
    }
    let rows: u64 = found.values().sum();
    if rows == 0 || dry_run {
        let text = match rows {
            0 => "no row has a version in the future",
            _ => "nothing is changed; run the same on every node, each with its daemon stopped",
        };
        return writeln!(out, "{text}").map_err(output::failed);
    }
    let _lock = lock::take_database(path, Duration::ZERO, || false)?;
    let mut database = daemon::open_alone(config).map_err(|e| failed(&e))?;
    let released = database.release(bound_ms).map_err(|e| failed(&e))?;
    database.close().map_err(|e| failed(&e))?;
    writeln!(
        out,
        "released {released} row(s): do the same on every node. Until all have, the nodes may \
         differ in these rows"
    )
    .map_err(output::failed)
}
