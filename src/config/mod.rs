//! Configuration: the operator's TOML, turned into checked values.
//!
//! Two steps. `raw` and `section` hand out the TOML text key by key and note every problem with its
//! line; the structs of [`checked`], [`edge`], [`nats`], [`snapshot`] and [`tables`] read their
//! keys there, with bounds, units and defaults. `config.toml` at the top of the repository explains
//! every key to operators, and a test keeps it and this code in step.
//!
//! Promise: every value in a [`Config`] is within its bounds, and the files it names were readable.
//! All problems of a file are reported at once, each with its key and line, the value found and the
//! values allowed. Values of secrets appear neither there nor in `Debug`.

use std::io;
use std::path::{Path, PathBuf};

use crate::db_file::access;

pub mod bookkeeping;
pub mod checked;
pub mod edge;
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

pub(crate) use checked::{CACHE_SIZE, MAX_HELD_BYTES};
pub use checked::{Common, Config, HealthCheck, LogFormat, Logging, Prometheus, ReplicationLog};
pub use edge::EdgeSettings;
pub use nats::NatsSettings;
pub use raw::Problem;
pub use snapshot::Snapshot;
pub use tables::{Choice, Tables};

/// The file that is read from the current directory when the command line names none.
pub const DEFAULT_FILE: &str = "config.toml";

/// Why there is no configuration to run with.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The command line names no file, and the current directory has no [`DEFAULT_FILE`].
    #[error(
        "no configuration: there is no {DEFAULT_FILE} in the current directory; name a file with \
         -config FILE, or copy the {DEFAULT_FILE} that comes with harmonylite, or write one \
         that holds a single line: db_path = \"/path/to/app.db\""
    )]
    Missing,
    /// The file cannot be read.
    #[error(
        "cannot read {}, the configuration: {cause}; name it with -config FILE",
        file.display()
    )]
    Unreadable {
        /// The file as it was named.
        file: PathBuf,
        /// The system's reason.
        cause: io::Error,
    },
    /// The text is not TOML.
    #[error("{} line {line}: not valid TOML: {message}", file.display())]
    Syntax {
        /// The file as it was named.
        file: PathBuf,
        /// Line of the mistake, from 1.
        line: usize,
        /// The parser's message, which quotes no line of the file.
        message: String,
    },
    /// Keys are unknown, or values do not fit.
    #[error("{}", listed(file, problems))]
    Invalid {
        /// The file as it was named.
        file: PathBuf,
        /// All problems, in the order of the file; at least one.
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

/// What others than this user and root can change, and so make of this node what they like.
fn exposed(file: &Path, config: &Config) -> Vec<String> {
    let db_path = &config.db_path;
    let file = std::fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    let changeable = [Some(&*file), file.parent()].into_iter().flatten();
    let mut found: Vec<String> = changeable
        .filter_map(|path| {
            let why = access::exposure(path)?;
            let path = path.display();
            Some(format!("{path} {why}, and with it the configuration"))
        })
        .collect();
    if access::is_in_open_folder(db_path) {
        let path = db_path.display();
        found.push(format!(
            "db_path: every user can make files beside {path}: move it to a folder of its own"
        ));
    }
    if let Some(path) = &config.cluster_key_file
        && let Some(why) = access::legibility(path).or_else(|| access::exposure(path))
    {
        let path = path.display();
        found.push(format!("cluster_key_file: {path} {why}: chmod 600"));
    }
    found
}

impl Config {
    /// The file to load: the `given` one, else [`DEFAULT_FILE`]. Fails only if that does not exist.
    pub fn find(given: Option<PathBuf>) -> Result<PathBuf, ConfigError> {
        match given {
            Some(file) => Ok(file),
            None if Path::new(DEFAULT_FILE).exists() => Ok(DEFAULT_FILE.into()),
            None => Err(ConfigError::Missing),
        }
    }

    /// Reads and checks `file`. Relative paths in it start at the current directory.
    pub fn load(file: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|cause| ConfigError::Unreadable {
            file: file.into(),
            cause,
        })?;
        let mut config = Config::parse(file, &text)?;
        config.exposed = exposed(file, &config);
        Ok(config)
    }

    /// Checks `text` as the content of `file`, whose name appears in errors only.
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
