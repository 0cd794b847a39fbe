//! `harmonylite conflicts`: shows the rows that [`crate::apply::conflicts`] and
//! [`crate::apply::dangling`] find, as text or as JSON.

use std::io::{self, Write};
use std::path::Path;

use serde_json::{Value as Json, json};

use crate::apply::{Collision, Conflict, Dangling};
use crate::model::text::{hex, literal};
use crate::model::timestamp::shown;
use crate::model::value::{OwnedValue, Value};
use crate::model::version::Version;

/// Writes to `out` the displaced rows of the database, and the rows with dangling references. Fails
/// if the database cannot be read or `out` not be written.
pub fn show(path: &Path, as_json: bool, out: &mut dyn Write) -> Result<(), String> {
    let failed = |e: &dyn std::fmt::Display| format!("conflicts in {}: {e}", path.display());
    let mut list = List {
        out,
        as_json,
        table: String::new(),
        count: 0,
        written: Ok(()),
    };
    let mut displaced = |c: Conflict| list.add(&c.table, &|| json(&c), &|| text(&c));
    crate::apply::conflicts(path, &mut displaced).map_err(|e| failed(&e))?;
    if !as_json {
        let end = match list.count {
            0 => "no row is displaced\n".to_owned(),
            1 => "1 row is displaced\n".to_owned(),
            count => format!("{count} rows are displaced\n"),
        };
        list.write(&end);
        (list.count, list.table) = (0, String::new());
    }
    let mut refers = |d: Dangling| {
        list.add(&d.table, &|| dangling::json(&d), &|| dangling::text(&d));
    };
    crate::apply::dangling(path, &mut refers).map_err(|e| failed(&e))?;
    let end = match (as_json, list.count) {
        (true, 0) => "[]\n".to_owned(),
        (true, _) => "\n]\n".to_owned(),
        (false, 0) => String::new(),
        (false, 1) => "1 row refers to a row that is not there\n".to_owned(),
        (false, count) => format!("{count} rows refer to rows that are not there\n"),
    };
    list.write(&end);
    let written = list.written;
    written.map_err(|e| format!("writing the conflicts: {e}"))
}

/// The output, which is written row by row.
struct List<'o> {
    out: &'o mut dyn Write,
    as_json: bool,
    /// Table of the last row.
    table: String,
    count: u64,
    written: io::Result<()>,
}

impl List<'_> {
    fn add(&mut self, table: &str, json: &dyn Fn() -> Json, text: &dyn Fn() -> String) {
        let text = match self.as_json {
            true => format!("{}{}", if self.count == 0 { "[\n" } else { ",\n" }, json()),
            false if self.table != table => format!("table {table}\n{}", text()),
            false => text(),
        };
        table.clone_into(&mut self.table);
        self.count += 1;
        self.write(&text);
    }

    fn write(&mut self, text: &str) {
        if self.written.is_ok() {
            self.written = self.out.write_all(text.as_bytes());
        }
    }
}

fn text(conflict: &Conflict) -> String {
    let (key, values) = conflict.row.split_at(conflict.key_len);
    let mut text = format!("  {}, {}\n", pairs(key), written(conflict.version));
    if !values.is_empty() {
        text += &format!("    has {}\n", pairs(values));
    }
    for collision in &conflict.collisions {
        let Collision {
            tuple,
            winner_key,
            winner_version,
            ..
        } = collision;
        text += &format!(
            "    gives way to {}, {}\n      which has {} too\n",
            pairs(winner_key),
            written(*winner_version),
            pairs(tuple)
        );
    }
    if conflict.collisions.is_empty() {
        text += "    gives way to no row any more: HarmonyLite soon puts it back, unless a \
                 different constraint keeps it out\n";
    }
    text
}

fn pairs(values: &[(String, OwnedValue)]) -> String {
    let pair = |(name, value): &(String, OwnedValue)| {
        format!("{} = {}", name.escape_debug(), literal(value.borrow()))
    };
    values.iter().map(pair).collect::<Vec<_>>().join(", ")
}

fn written(version: Option<Version>) -> String {
    match version {
        None => "written just now".into(),
        Some(version) => match version.time_ms() {
            0 => format!("there before HarmonyLite, on node {}", version.node),
            ms => format!("written {} on node {}", shown(ms), version.node),
        },
    }
}

fn json(conflict: &Conflict) -> Json {
    let collision = |c: &Collision| {
        json!({
            "index": c.index,
            "values": object(&c.tuple),
            "key": object(&c.winner_key),
            "version": version_json(c.winner_version),
        })
    };
    json!({
        "table": conflict.table,
        "key": object(conflict.key()),
        "row": object(&conflict.row),
        "version": version_json(conflict.version),
        "displaced_by": conflict.collisions.iter().map(collision).collect::<Vec<_>>(),
    })
}

/// A node's id is text, because not every reader of JSON takes 64 bits for a number.
fn version_json(version: Option<Version>) -> Json {
    match version {
        None => Json::Null,
        Some(version) => json!({
            "time": shown(version.time_ms()),
            "time_ms": version.time_ms(),
            "hlc": version.hlc.to_string(),
            "node": version.node.to_string(),
        }),
    }
}

fn object(values: &[(String, OwnedValue)]) -> Json {
    let pair = |(name, value): &(String, OwnedValue)| (name.clone(), value_json(value.borrow()));
    Json::Object(values.iter().map(pair).collect())
}

/// A value that JSON does not have becomes an object that names its type.
fn value_json(value: Value<'_>) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Integer(i) => json!(i),
        Value::Real(r) if r.is_finite() => json!(r),
        Value::Real(r) => json!({ "real": r.to_string() }),
        Value::Blob(bytes) => json!({ "blob": hex(bytes) }),
        Value::Text(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => json!(text),
            Err(_) => json!({ "text": hex(bytes) }),
        },
    }
}

mod dangling;
#[cfg(test)]
mod tests;
