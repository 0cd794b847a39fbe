//! Everything that is stored or sent stands in format.md.

use std::collections::BTreeSet;

use crate::cluster::key_change;
use crate::database::meta::Meta;
use crate::database::own_tables;
use crate::model::frame::{FrameBuilder, KeyColumn, TableHeader};
use crate::model::value::Value;
use crate::model::version::Version;
use crate::seal::{Seal, SealPlace, key};
use crate::stream::newer_key;

const FORMAT: &str = include_str!("../format.md");

/// The section of format.md under a heading that begins so.
fn section(heading: &str) -> &'static str {
    let start = FORMAT.find(&format!("\n### `{heading}`"));
    let start = start.unwrap_or_else(|| panic!("format.md has no section ### `{heading}`"));
    let rest = &FORMAT[start + 4..];
    &rest[..rest.find("\n##").unwrap_or(rest.len())]
}

#[test]
fn every_own_table_and_column_stands_in_the_format() {
    let conn = rusqlite::Connection::open_in_memory().unwrap();
    conn.execute_batch(own_tables::CREATE).unwrap();
    conn.execute_batch(own_tables::CREATE_LIVES).unwrap();
    for table in own_tables::names().into_iter().chain([own_tables::LIVES]) {
        let section = section(table.strip_prefix("__harmonylite").unwrap());
        let mut columns = conn
            .prepare("SELECT name FROM pragma_table_info(?1)")
            .unwrap();
        let columns = columns.query_map([table], |r| r.get::<_, String>(0));
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let words: BTreeSet<&str> = section.split(|c| !is_name(c)).collect();
        for column in columns.unwrap().map(Result::unwrap) {
            assert!(words.contains(&*column), "{table}: {column} is not in it");
        }
    }
    let versions = section("__harmonylite__<table>_versions");
    for column in ["k1", "hlc", "site", "deleted", "at", "hash", "exc", "born"] {
        assert!(versions.contains(&format!("| `{column}`")), "{column}");
    }
}

/// With what it says of snapshots.
#[test]
fn every_meta_key_stands_in_the_format() {
    let section = section("___meta");
    for key in Meta::ALL {
        let name = format!("`{}`", key.name());
        let line = section.lines().find(|line| line.contains(&name));
        let line = line.unwrap_or_else(|| panic!("{name} is missing in format.md"));
        let says = line.ends_with("| travels |");
        assert_eq!(says, key.travels(), "{name}: whether it travels");
    }
}

#[test]
fn every_key_in_nats_stands_in_the_format() {
    let registry = include_str!("../../cluster/registry.rs");
    let named = registry.split("const ").skip(1);
    let value = |rest: &'static str| rest.split_once(": &str = \"")?.1.split('"').next();
    let keys: Vec<&str> = named.filter_map(value).collect();
    assert!(keys.contains(&"founder"), "{keys:?}");
    let section = FORMAT
        .split("\n## ")
        .find(|s| s.starts_with("Keys in NATS"));
    for key in keys
        .into_iter()
        .chain(["settings", crate::status::entry::KEY])
        .chain([key_change::OPEN, newer_key::NEWER])
    {
        assert!(section.unwrap().contains(&format!("`{key}")), "{key}");
    }
    let entry = crate::status::entry::NodeEntry::default().to_bytes();
    let entry: serde_json::Value = serde_json::from_slice(&entry).unwrap();
    for field in entry.as_object().unwrap().keys() {
        assert!(section.unwrap().contains(&format!("`{field}`")), "{field}");
    }
}

/// The sealed text of format.md opens with its key, in its place.
#[test]
fn the_sealed_example_opens() {
    let section = FORMAT.split("\n## ").find(|s| s.starts_with("Sealed"));
    let example = section.unwrap().split("An example: ").nth(1).unwrap();
    let key = example
        .split('`')
        .find(|part| part.starts_with("1764"))
        .unwrap();
    let bytes = example.split("```text\n").nth(1).unwrap();
    let bytes = bytes.split("```").next().unwrap().split_whitespace();
    let bytes = bytes.map(|byte| u8::from_str_radix(byte, 16).unwrap());
    let seal = Seal::new(key::parse(key).unwrap(), true);
    let place = SealPlace::Value {
        bucket: "harmonylite-changes-meta",
        key: "founder",
    };
    assert_eq!(seal.open(place, bytes.collect()).unwrap(), b"7");
}

/// The example of format.md, byte by byte.
#[test]
fn the_example_is_a_frame() {
    let example = FORMAT.split("```text\n84 ").nth(1).unwrap();
    let example = format!("84 {}", example.split("```").next().unwrap());
    let is_byte = |word: &&str| word.len() == 2 && u8::from_str_radix(word, 16).is_ok();
    let line = |line: &str| -> Vec<u8> {
        let words = line.split_whitespace().take_while(|word| is_byte(word));
        words.map(|w| u8::from_str_radix(w, 16).unwrap()).collect()
    };
    let written: Vec<u8> = example.lines().flat_map(line).collect();
    let key = KeyColumn {
        name: "id".into(),
        affinity: "INTEGER",
        collation: "BINARY".into(),
    };
    let header = TableHeader::new(1, "Books", &[key], &["id", "title"]);
    let version = Version {
        hlc: 1_700_000_000_000 << 16,
        node: 7,
    };
    let mut frame = FrameBuilder::default();
    let values = [Value::Integer(1), Value::Text(b"Dune")];
    frame.upsert(&header, version, &[], values.into_iter());
    assert_eq!(written, frame.finish());
}
