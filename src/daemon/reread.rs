//! SIGHUP: the part of the configuration that can change while the daemon runs.
//!
//! The log can: more of it helps to see why a running daemon is in trouble, which a restart would
//! end. All else belongs to threads and connections that a restart makes anew within a second.

use crate::cli::Flags;
use crate::config::Config;
use crate::logging::{self, LogFile};

/// The configuration that runs, and the file that it came from.
pub(super) struct Reread {
    options: Flags,
    running: Config,
    log_file: Option<LogFile>,
}

impl Reread {
    /// `running` as it was loaded by `options`; the log is written to `log_file`.
    pub(super) fn new(options: &Flags, running: &Config, log_file: Option<LogFile>) -> Reread {
        Reread {
            options: options.clone(),
            running: running.clone(),
            log_file,
        }
    }

    /// Opens the log file anew, reads the configuration again and takes over what can be. A file
    /// with mistakes changes nothing.
    pub(super) fn again(&mut self) {
        match self.log_file.as_ref().map(LogFile::follow) {
            Some(Ok(true)) => log::info!("SIGHUP: logging.file is reopened"),
            Some(Err(e)) => log::warn!("SIGHUP: logging.file cannot be reopened: {e}"),
            Some(Ok(false)) | None => {}
        }
        let read = Config::find(self.options.config.clone()).and_then(|file| Config::load(&file));
        let read = match read {
            Ok(read) => read,
            Err(e) => {
                return log::warn!("SIGHUP: the configuration stays as it was: {e}");
            }
        };
        let (level, max_bytes) = (read.logging.level, read.logging.max_bytes);
        logging::level_is(level);
        if let Some(file) = &self.log_file {
            file.limit(max_bytes);
        }
        (self.running.logging.level, self.running.logging.max_bytes) = (level, max_bytes);
        match &changed(&self.running, &read)[..] {
            [] => log::info!("SIGHUP: the configuration is read again"),
            places => log::warn!(
                "SIGHUP: the log's level and size are read again; the changes of {} count once \
                 harmonylite is started again",
                places.join(", ")
            ),
        }
    }
}

/// The sections that differ.
fn changed(running: &Config, read: &Config) -> Vec<&'static str> {
    let sections = [
        ("[tables]", running.tables != read.tables),
        (
            "[replication_log]",
            running.replication_log != read.replication_log,
        ),
        ("[nats]", running.nats != read.nats),
        ("[snapshot]", running.snapshot != read.snapshot),
        ("[edge]", running.edge != read.edge),
        ("[logging]", running.logging != read.logging),
        ("[prometheus]", running.prometheus != read.prometheus),
        ("[health_check]", running.health_check != read.health_check),
    ];
    let mut places: Vec<_> = sections.iter().filter(|(_, differs)| *differs).collect();
    let like_running = Config {
        tables: running.tables.clone(),
        replication_log: running.replication_log.clone(),
        nats: running.nats.clone(),
        snapshot: running.snapshot.clone(),
        edge: running.edge.clone(),
        logging: running.logging.clone(),
        prometheus: running.prometheus.clone(),
        health_check: running.health_check.clone(),
        ..read.clone()
    };
    let keys = ("keys outside of the sections", like_running != *running);
    if keys.1 {
        places.push(&keys);
    }
    places.iter().map(|(name, _)| *name).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_key_that_needs_a_restart_is_named_by_its_place() {
        let config = |rest: &str| {
            let text = format!("db_path = \"/tmp/a.db\"\n{rest}");
            Config::parse(Path::new("box.toml"), &text).unwrap()
        };
        let from_default = |rest: &str| changed(&config(""), &config(rest));
        assert_eq!(from_default(""), [""; 0]);
        assert_eq!(from_default("[nats]\nurls = ['nats://h']"), ["[nats]"]);
        let shards = from_default("courtesy = 1\n[replication_log]\nmax_bytes = 9000000");
        assert_eq!(
            shards,
            ["[replication_log]", "keys outside of the sections"]
        );
        let log = from_default("[logging]\nformat = 'json'");
        assert_eq!(log, ["[logging]"]);
    }
}
