//! `harmonylite -cleanup`: removes everything of ours from a database and its folder.

use std::io::Write;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::config::Config;
use crate::snapshot::scratch;
use crate::{database, lock, mirror, output};

/// Removes everything of ours from the database, and our files beside it. Fails if there is no
/// database, or if a daemon works on it.
pub fn clean_up(config: &Config, out: &mut dyn Write) -> Result<(), String> {
    if !config.db_path.exists() {
        return Err(format!(
            "db_path: there is no database at {}",
            config.db_path.display()
        ));
    }
    let lock = lock::take_database(&config.db_path, Duration::ZERO, || false)?;
    scratch::remove_stale(&config.db_path, config.snapshot.scratch.as_deref());
    let removed = database::clean_up(&config.db_path, &AtomicBool::new(false))
        .map_err(|e| format!("cleaning up {}: {e}", config.db_path.display()))?;
    let mirror = mirror::place(&config.seq_map_path, &config.db_path)?;
    let socket = lock::socket_of_database(&config.db_path);
    for file in [&mirror, &lock::of_database(&config.db_path), &socket] {
        match std::fs::remove_file(file) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(format!("removing {}: {e}", file.display()));
            }
            _ => {}
        }
    }
    drop(lock);
    let path = config.db_path.display();
    if removed.unpublished_by_go > 0 {
        writeln!(
            out,
            "{} change(s) that the Go version had not published stay in the tables of {path}, but \
             other nodes do not get them",
            removed.unpublished_by_go
        )
        .map_err(output::failed)?;
    }
    writeln!(
        out,
        "removed {} tables and triggers from {path}",
        removed.count
    )
    .map_err(output::failed)
}
