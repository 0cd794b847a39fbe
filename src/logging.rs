//! Log lines, for people or for machines.

use std::io::Write;
use std::path::PathBuf;

use env_logger::{Builder, Target};

use crate::config::{LogFormat, Logging};

mod file;
mod repeated;

pub use file::LogFile;
pub use repeated::{Lasting, Repeated};

/// Starts logging as configured. Returns the log file, if one is configured; fails if that cannot be
/// opened.
pub fn start(logging: &Logging, node: &str) -> Result<Option<LogFile>, String> {
    let mut builder = Builder::new();
    builder.filter_level(log::LevelFilter::Warn);
    builder.filter_module("harmonylite", logging.level);
    let open = |path: &PathBuf| {
        LogFile::open(path).map_err(|e| format!("logging.file {}: {e}", path.display()))
    };
    let file = logging.file.as_ref().map(open).transpose()?;
    builder.target(match &file {
        None => Target::Stdout,
        Some(file) => Target::Pipe(Box::new(file.clone())),
    });
    if logging.format == LogFormat::Json {
        let node = node.to_owned();
        builder.format(move |out, record| {
            let line = serde_json::json!({
                "time": out.timestamp_millis().to_string(),
                "level": record.level().as_str().to_ascii_lowercase(),
                "node_id": node,
                "from": record.target(),
                "message": record.args().to_string(),
            });
            writeln!(out, "{line}")
        });
    } else {
        builder.format(|out, record| {
            let time = out.timestamp_millis();
            writeln!(out, "{time} {:<5} {}", record.level(), record.args())
        });
    }
    builder.try_init().map_err(|e| e.to_string())?;
    Ok(file)
}
