//! `harmonylite -check`: shows that the configuration is valid, and how the database takes part.

use std::io::Write;

use crate::commands::inspect;
use crate::config::Config;
use crate::{database, output};

/// Writes to `out` notable facts about the database that a valid configuration names. Fails if the
/// database cannot be read.
pub fn show(config: &Config, out: &mut dyn Write) -> Result<(), String> {
    if config.db_path.exists() {
        let found = database::examine(&config.db_path);
        if let Some(text) = found.map_err(|e| format!("db_path: {e}"))? {
            writeln!(out, "{text}").map_err(output::failed)?;
        }
    }
    writeln!(out, "the configuration is valid").map_err(output::failed)?;
    inspect::show_beside_check(config, out)
}
