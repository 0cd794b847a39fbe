//! Words in, exit code out: 0 done, 1 failed, 2 called wrongly.

use std::io::{Write, stderr, stdout};
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use harmonylite::cli::{self, Command, Options};
use harmonylite::config::Config;
use harmonylite::daemon::{self, Until};
use harmonylite::snapshot::{beside, commands};
use harmonylite::{conflicts, database, held, inspect, lock, mirror, output, thread};

fn main() -> ExitCode {
    keep_memory_small();
    thread::report_panics();
    let command = match cli::parse(std::env::args_os().skip(1)) {
        Ok(command) => command,
        Err(e) => {
            complain(&e.to_string());
            return ExitCode::from(2);
        }
    };
    let mut out = output::Output::new(stdout());
    let done = carry_out(command, &mut out);
    match done.and_then(|()| out.flush().map_err(output::failed)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            complain(&text);
            ExitCode::FAILURE
        }
    }
}

/// glibc gives every thread a heap of its own, each of which stays as large as it ever was. Ours take
/// turns, so that one serves them all: at full speed that is 33 MB after an hour, not 49 after minutes.
#[cfg(target_env = "gnu")]
fn keep_memory_small() {
    // SAFETY: it changes a setting of malloc, before another thread is there.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// musl has one heap.
#[cfg(not(target_env = "gnu"))]
fn keep_memory_small() {}

/// Where nobody can read it, the exit code must do.
fn complain(text: &str) {
    let _ = writeln!(stderr(), "harmonylite: {text}");
}

fn carry_out(command: Command, out: &mut dyn Write) -> Result<(), String> {
    match command {
        Command::Help => write!(out, "{}", cli::HELP).map_err(output::failed),
        Command::Version => {
            writeln!(out, "harmonylite {}", env!("CARGO_PKG_VERSION")).map_err(output::failed)
        }
        Command::Check(options) => {
            let config = load(options.config)?;
            if config.db_path.exists() {
                let found = database::examine(&config.db_path);
                if let Some(text) = found.map_err(|e| format!("db_path: {e}"))? {
                    writeln!(out, "{text}").map_err(output::failed)?;
                }
            }
            writeln!(out, "the configuration is valid").map_err(output::failed)?;
            inspect::show_beside_check(&config, out)
        }
        Command::Inspect {
            config,
            json,
            database,
        } => {
            let config = match (&config, &database) {
                (None, Some(_)) => None,
                _ => Some(load(config)?),
            };
            let configured = config.as_ref().map(|c| c.db_path.clone());
            let path = database.or(configured).unwrap_or_default();
            inspect::show(&path, config.as_ref(), json, out)
        }
        Command::Cleanup(options) => clean_up(&load(options.config)?, out),
        Command::Conflicts { config, json } => conflicts::show(&load(config)?.db_path, json, out),
        Command::Held { config, json, drop } => {
            let path = load(config)?.db_path;
            match drop {
                Some(table) => held::drop(&path, &table, json, out),
                None => held::show(&path, json, out),
            }
        }
        Command::Restore { mut options, to } => {
            let config = load(options.config.take())?;
            commands::restore(&config, &options, to.as_deref(), out)
        }
        Command::Snapshots { mut options, json } => {
            let config = load(options.config.take())?;
            commands::list(&config, &options, json, out)
        }
        Command::Run(options) => run(options, Until::Told),
        Command::SaveSnapshot(options) => run(options, Until::SnapshotSaved),
    }
}

fn load(given: Option<std::path::PathBuf>) -> Result<Config, String> {
    Config::find(given)
        .and_then(|file| Config::load(&file))
        .map_err(|e| e.to_string())
}

fn run(mut options: Options, until: Until) -> Result<(), String> {
    let config = load(options.config.take())?;
    daemon::run(&config, &options, until).map_err(|daemon::Failure(cause)| cause)
}

/// Removes all that is ours from the database, and our files beside it.
fn clean_up(config: &Config, out: &mut dyn Write) -> Result<(), String> {
    if !config.db_path.exists() {
        return Err(format!(
            "db_path: there is no database at {}",
            config.db_path.display()
        ));
    }
    let lock = lock::take_database(&config.db_path, Duration::ZERO, || false)?;
    beside::remove_stale(&config.db_path);
    let removed = database::clean_up(&config.db_path, &AtomicBool::new(false))
        .map_err(|e| format!("cleaning up {}: {e}", config.db_path.display()))?;
    let mirror = mirror::place(&config.seq_map_path, &config.db_path)?;
    for file in [&mirror, &lock::of_database(&config.db_path)] {
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
             other nodes do not hear of them",
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
