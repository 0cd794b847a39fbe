//! The program. Exit codes: 0 done and all is well, 1 failed or not all is well, 2 wrong call, 3 no
//! daemon runs to answer.

use std::io::{Write, stderr, stdout};
use std::process::ExitCode;

use harmonylite::cli::{self, Command, Flags};
use harmonylite::clock::SystemClock;
use harmonylite::commands::query::{self, CommandOutcome};
use harmonylite::commands::{
    check, cleanup, conflicts, held, inspect, key, nats_permissions, release, restore, snapshots,
};
use harmonylite::config::Config;
use harmonylite::daemon::{self, Until};
use harmonylite::{memory, output, thread};

fn main() -> ExitCode {
    memory::keep_small();
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
    match done.and_then(|end| out.flush().map(|()| end).map_err(output::failed)) {
        Ok(CommandOutcome::Fine) => ExitCode::SUCCESS,
        Ok(CommandOutcome::NotFine) => ExitCode::FAILURE,
        Ok(CommandOutcome::NoDaemon) => ExitCode::from(3),
        Err(text) => {
            complain(&text);
            ExitCode::FAILURE
        }
    }
}

/// Writes to standard error. If that fails, only the exit code tells of the failure.
fn complain(text: &str) {
    let _ = writeln!(stderr(), "harmonylite: {text}");
}

fn carry_out(command: Command, out: &mut dyn Write) -> Result<CommandOutcome, String> {
    if let Command::Query { config, json, what } = command {
        return query::run(&load(config)?, &what, json, out);
    }
    carry_out_alone(command, out).map(|()| CommandOutcome::Fine)
}

/// Carries out the commands that need no running daemon, or are the daemon.
fn carry_out_alone(command: Command, out: &mut dyn Write) -> Result<(), String> {
    match command {
        Command::Query { .. } => Ok(()), // done already
        Command::Help => write!(out, "{}", cli::HELP).map_err(output::failed),
        Command::Version => {
            writeln!(out, "harmonylite {}", env!("CARGO_PKG_VERSION")).map_err(output::failed)
        }
        Command::Check(options) => check::show(&load(options.config)?, out),
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
        Command::Cleanup(options) => cleanup::clean_up(&load(options.config)?, out),
        Command::Release { config, dry_run } => release::release(&load(config)?, dry_run, out),
        Command::Conflicts { config, json } => conflicts::show(&load(config)?.db_path, json, out),
        Command::Held { config, json, drop } => {
            let path = load(config)?.db_path;
            match drop {
                Some(table) => held::drop(&path, &table, json, out),
                None => held::show(&path, json, out),
            }
        }
        Command::NewKey { to } => key::make(&SystemClock, &to, out),
        Command::NatsPermissions { config, node } => {
            nats_permissions::show(&load(config)?, node, out)
        }
        Command::Restore {
            mut options,
            to,
            dry_run,
        } => {
            let config = load(options.config.take())?;
            restore::restore(&config, &options, (to.as_deref(), dry_run), out)
        }
        Command::Snapshots { mut options, json } => {
            let config = load(options.config.take())?;
            snapshots::list(&config, &options, json, out)
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

fn run(options: Flags, until: Until) -> Result<(), String> {
    let config = load(options.config.clone())?;
    daemon::run(&config, &options, until).map_err(|daemon::Failure(cause)| cause)
}
