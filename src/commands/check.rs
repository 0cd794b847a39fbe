//! `harmonylite -check`: shows that the configuration is valid, whether a start would succeed on
//! this machine, and how the database takes part.

use std::io::Write;

use crate::commands::inspect;
use crate::config::Config;
use crate::{database, output};

mod start;

/// Writes to `out` notable facts about the database that a valid configuration names, and the
/// problems of a start. Fails if the database cannot be read, or if a start would fail.
pub fn show(config: &Config, out: &mut dyn Write) -> Result<(), String> {
    if config.db_path.exists() {
        let found = database::examine(&config.db_path);
        if let Some(text) = found.map_err(|e| format!("db_path: {e}"))? {
            writeln!(out, "{text}").map_err(output::failed)?;
        }
    }
    for text in start::warnings(config) {
        writeln!(out, "warning: {text}").map_err(output::failed)?;
    }
    let obstacles = start::obstacles(config);
    if !obstacles.is_empty() {
        return Err(format!(
            "the configuration is valid, and a start would fail:\n{}",
            obstacles.join("\n")
        ));
    }
    writeln!(out, "the configuration is valid").map_err(output::failed)?;
    inspect::show_beside_check(config, out)
}
