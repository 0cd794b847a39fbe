//! Configuration: what the operator wrote, made into values the rest can rely on.
//!
//! Two steps. `raw` and `section` hand out the TOML text key by key and note every problem with its
//! line; the structs of [`checked`], [`nats`], [`snapshot`] and [`tables`] read their keys there,
//! with bounds, units and defaults. `config.toml` at the top of the repository explains every key
//! to operators, and a test keeps it and this code in step.
//!
//! Promise: a [`Config`] that exists is within its bounds, and the files it names were readable.
//! All problems of a file are reported at once, each with key, line, what was found and what is
//! allowed; values of secrets appear neither there nor in `Debug`.

use std::io;
use std::path::{Path, PathBuf};

pub mod bookkeeping;
pub mod checked;
pub mod nats;
pub mod node_id;
mod raw;
mod secrets;
mod section;
pub mod snapshot;
pub(crate) mod suggest;
pub mod tables;
#[cfg(test)]
mod tests;

pub(crate) use checked::MAX_HELD_BYTES;
pub use checked::{Config, HealthCheck, LogFormat, Logging, Prometheus, ReplicationLog, Shared};
pub use nats::Nats;
pub use raw::Problem;
pub use snapshot::Snapshot;
pub use tables::{Choice, Tables};

/// The file that is read from the current directory when the command line names none.
pub const DEFAULT_FILE: &str = "config.toml";

/// Why there is no configuration to run with.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(
        "no configuration: there is no {DEFAULT_FILE} in the current directory; name a file with \
         -config FILE, or copy the {DEFAULT_FILE} that comes with harmonylite, or write one \
         that holds a single line: db_path = \"/path/to/app.db\""
    )]
    Missing,
    #[error(
        "cannot read {}, the configuration: {cause}; name it with -config FILE",
        file.display()
    )]
    Unreadable { file: PathBuf, cause: io::Error },
    #[error("{} line {line}: not valid TOML: {message}", file.display())]
    Syntax {
        file: PathBuf,
        line: usize,
        message: String,
    },
    #[error("{}", listed(file, problems))]
    Invalid {
        file: PathBuf,
        problems: Vec<Problem>,
    },
}

/// One line per problem, each starting with the place, so that editors can jump there.
fn listed(file: &Path, problems: &[Problem]) -> String {
    let line = |p: &Problem| match p.line {
        Some(line) => format!("{} line {line}: {}", file.display(), p.text),
        None => format!("{}: {}", file.display(), p.text),
    };
    problems.iter().map(line).collect::<Vec<_>>().join("\n")
}

impl Config {
    /// The file to load: the one `given` on the command line, else [`DEFAULT_FILE`] if it exists.
    pub fn find(given: Option<PathBuf>) -> Result<PathBuf, ConfigError> {
        match given {
            Some(file) => Ok(file),
            None if Path::new(DEFAULT_FILE).exists() => Ok(DEFAULT_FILE.into()),
            None => Err(ConfigError::Missing),
        }
    }

    /// Reads and checks `file`. Relative paths in it count from the current directory.
    pub fn load(file: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|cause| ConfigError::Unreadable {
            file: file.into(),
            cause,
        })?;
        Config::parse(file, &text)
    }

    /// Checks `text` as if it were the content of `file`, which is named in errors only.
    pub fn parse(file: &Path, text: &str) -> Result<Config, ConfigError> {
        let syntax = |error: raw::SyntaxError| ConfigError::Syntax {
            file: file.into(),
            line: error.line,
            message: error.message,
        };
        let document = raw::Document::parse(text).map_err(syntax)?;
        let config = Config::read(&document);
        match document.finish() {
            problems if problems.is_empty() => Ok(config),
            problems => Err(ConfigError::Invalid {
                file: file.into(),
                problems,
            }),
        }
    }
}
