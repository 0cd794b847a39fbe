//! Log lines, for people or for machines.

use std::fs::OpenOptions;
use std::io::Write;

use env_logger::{Builder, Target};

use crate::config::{LogFormat, Logging};

/// Starts logging as configured. Fails if the log file cannot be opened.
pub fn start(logging: &Logging, node: &str) -> Result<(), String> {
    let mut builder = Builder::new();
    builder.filter_level(log::LevelFilter::Warn);
    builder.filter_module("harmonylite", logging.level);
    match &logging.file {
        None => builder.target(Target::Stdout),
        Some(path) => {
            let file = OpenOptions::new().create(true).append(true).open(path);
            let file = file.map_err(|e| format!("logging.file {}: {e}", path.display()))?;
            builder.target(Target::Pipe(Box::new(file)))
        }
    };
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
    builder.try_init().map_err(|e| e.to_string())
}
