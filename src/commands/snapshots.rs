//! `harmonylite snapshots`: lists the snapshots in the store.

use std::io::Write;

use super::store_access::{open, read};
use crate::cli::Flags;
use crate::config::Config;
use crate::model::manifest::{Manifest, SnapshotEntry};
use crate::output;

/// Writes to `out` which snapshots the store holds. Fails if the store cannot be read.
pub fn list(
    config: &Config,
    options: &Flags,
    json: bool,
    out: &mut dyn Write,
) -> Result<(), String> {
    let mut access = open(config, options)?;
    let manifest = read(config, &mut *access.store)?;
    let text = match json {
        true => serde_json::to_string_pretty(&manifest.snapshots).map_err(|e| e.to_string())?,
        false => listed(access.store.address(), &manifest),
    };
    writeln!(out, "{text}").map_err(output::failed)
}

fn listed(address: &str, manifest: &Manifest) -> String {
    let mut lines = vec![address.to_owned()];
    if manifest.snapshots.is_empty() {
        lines.push("no snapshots yet".into());
    }
    lines.extend(manifest.snapshots.iter().map(described));
    lines.join("\n")
}

fn described(entry: &SnapshotEntry) -> String {
    let time = crate::model::timestamp::rfc3339(entry.time_ms);
    let streams = entry.streams.iter();
    let streams: Vec<String> = streams
        .map(|(s, p)| format!("{s} up to {}", p.seq))
        .collect();
    format!(
        "{time}  {:>9} KB, unpacked {:>9} KB  node {}  {}\n  {}",
        entry.size.div_ceil(1024),
        entry.database_size.div_ceil(1024),
        entry.node,
        entry.name,
        streams.join(", ")
    )
}
