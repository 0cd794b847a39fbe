//! Words in, exit code out: 0 done, 1 failed, 2 called wrongly.

use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

use harmonylite::cli::{self, Command, Options};
use harmonylite::config::Config;
use harmonylite::daemon::{self, Until};
use harmonylite::snapshot::commands;
use harmonylite::{database, lock};

fn main() -> ExitCode {
    let command = match cli::parse(std::env::args_os().skip(1)) {
        Ok(command) => command,
        Err(e) => {
            eprintln!("harmonylite: {e}");
            return ExitCode::from(2);
        }
    };
    let done = match command {
        Command::Help => {
            print!("{}", cli::HELP);
            Ok(())
        }
        Command::Version => {
            println!("harmonylite {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        Command::Check(options) => {
            load(options.config).map(|_| println!("the configuration is valid"))
        }
        Command::Cleanup(options) => load(options.config).and_then(|config| clean_up(&config)),
        Command::Conflicts { config, json } => {
            load(config).and_then(|_| Err(format!("conflicts (json: {json}) is not built yet")))
        }
        Command::Restore { mut options, to } => load(options.config.take())
            .and_then(|config| commands::restore(&config, &options, to.as_deref())),
        Command::Snapshots { mut options, json } => {
            load(options.config.take()).and_then(|config| commands::list(&config, &options, json))
        }
        Command::Run(options) => run(options, Until::Told),
        Command::SaveSnapshot(options) => run(options, Until::SnapshotSaved),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("harmonylite: {text}");
            ExitCode::FAILURE
        }
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
fn clean_up(config: &Config) -> Result<(), String> {
    if !config.db_path.exists() {
        return Err(format!(
            "db_path: there is no database at {}",
            config.db_path.display()
        ));
    }
    let lock = lock::take_database(&config.db_path)?;
    let removed = database::clean_up(&config.db_path, &AtomicBool::new(false))
        .map_err(|e| format!("cleaning up {}: {e}", config.db_path.display()))?;
    for file in [&config.seq_map_path, &lock::of_database(&config.db_path)] {
        match std::fs::remove_file(file) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(format!("removing {}: {e}", file.display()));
            }
            _ => {}
        }
    }
    drop(lock);
    println!(
        "removed {removed} tables and triggers from {}",
        config.db_path.display()
    );
    Ok(())
}
