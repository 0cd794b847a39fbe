//! Whether the documents are still true, as far as a program can tell.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::cli;
use crate::database::meta::Meta;
use crate::database::own_tables;
use crate::model::frame::{FrameBuilder, KeyColumn, TableHeader};
use crate::model::value::Value;
use crate::model::version::Version;

const FORMAT: &str = include_str!("format.md");
const OPERATIONS: &str = include_str!("operations.md");

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The README and the chapters: path from the root, and text.
fn documents() -> Vec<(String, String)> {
    let chapters = fs::read_dir(root().join("src/guide")).unwrap();
    let names = chapters.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let chapters = names.filter(|name| name.ends_with(".md"));
    let mut paths: Vec<String> = chapters.map(|name| format!("src/guide/{name}")).collect();
    paths.push("README.md".into());
    paths.sort();
    let read = |path: String| {
        let text = fs::read_to_string(root().join(&path)).unwrap();
        (path, text)
    };
    paths.into_iter().map(read).collect()
}

/// The lines outside of fenced blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut is_code = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    })
}

/// The anchors of a document's headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).filter(|line| line.starts_with('#'));
    let anchor = |line: &str| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

/// Where the links of a document lead, written `[text](target)` or `[name]: target`.
fn targets(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in prose(text) {
        let code = |(i, part): (usize, &str)| (i % 2 == 0).then(|| part.to_owned());
        let plain: String = line.split('`').enumerate().filter_map(code).collect();
        let inline = plain
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next());
        found.extend(inline.map(str::to_owned));
        if line.starts_with('[')
            && let Some((_, target)) = plain.split_once("]: ")
        {
            found.push(target.trim().to_owned());
        }
    }
    found
}

#[test]
fn links_lead_somewhere() {
    let documents = documents();
    for (path, text) in &documents {
        for target in targets(text) {
            if target.starts_with("http") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let folder = Path::new(path).parent().unwrap();
            let there = match file.is_empty() {
                true => root().join(path),
                false => root().join(folder).join(file),
            };
            assert!(there.exists(), "{path}: {target} leads nowhere");
            if !anchor.is_empty() {
                let text = fs::read_to_string(&there).unwrap();
                let has = anchors(&text).contains(anchor);
                assert!(has, "{path}: {target}: no such heading");
            }
        }
        for (name, _) in text.match_indices("][").map(|(at, _)| {
            let rest = &text[at + 2..];
            rest.split_once(']').unwrap_or((rest, ""))
        }) {
            let is_defined = text.contains(&format!("\n[{name}]: "));
            let is_code = name.contains([' ', '"', ',', '\n']) || name.is_empty();
            assert!(is_defined || is_code, "{path}: [{name}] is not defined");
        }
    }
}

/// rustdoc takes a block without a language for Rust, and runs it.
#[test]
fn every_block_names_its_language() {
    for (path, text) in documents() {
        let mut is_code = false;
        for (i, line) in text.lines().enumerate() {
            if !line.trim_start().starts_with("```") {
                continue;
            }
            is_code = !is_code;
            let has_language = line.trim() != "```";
            assert_eq!(has_language, is_code, "{path}, line {}", i + 1);
        }
    }
}

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
    for table in own_tables::names() {
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
    for column in ["k1", "hlc", "site", "deleted", "at", "hash", "exc"] {
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
    let registry = include_str!("../cluster/registry.rs");
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
    {
        assert!(section.unwrap().contains(&format!("`{key}")), "{key}");
    }
    let entry = crate::status::entry::Entry::default().to_bytes();
    let entry: serde_json::Value = serde_json::from_slice(&entry).unwrap();
    for field in entry.as_object().unwrap().keys() {
        assert!(section.unwrap().contains(&format!("`{field}`")), "{field}");
    }
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

#[test]
fn every_word_of_the_command_line_is_explained() {
    let commands = cli::HELP.lines().filter_map(|line| {
        let usage = line.trim_start().strip_prefix("usage: ");
        let words = usage.unwrap_or(line.trim_start());
        let word = words.strip_prefix("harmonylite ")?.split(' ').next()?;
        word.chars().all(|c| c.is_ascii_lowercase()).then_some(word)
    });
    let flags = cli::HELP.lines().filter_map(|line| {
        let flag = line.strip_prefix("  ")?.split([' ', ',']).next()?;
        flag.starts_with('-').then_some(flag)
    });
    let words: BTreeSet<&str> = commands.chain(flags).filter(|w| *w != "keeps").collect();
    assert!(words.contains("conflicts") && words.contains("-cluster-peers"));
    for word in words {
        let at_start = OPERATIONS.contains(&format!("`{word}"));
        let inside = OPERATIONS.contains(&format!("[{word}"));
        assert!(at_start || inside, "operations.md lacks {word}");
    }
}

#[test]
fn every_field_of_health_is_explained() {
    let code = include_str!("../health.rs");
    let report = code.split("Ok(json!({\n").nth(1).unwrap();
    let report = report.split("}))").next().unwrap();
    let field = |line: &'static str| line.trim().strip_prefix('"')?.split('"').next();
    let fields: Vec<&str> = report.lines().filter_map(field).collect();
    assert!(fields.contains(&"held"), "{fields:?}");
    for field in fields {
        let (row, shown) = (format!("`{field}`"), format!("\"{field}\":"));
        let is_explained = OPERATIONS.contains(&row) || OPERATIONS.contains(&shown);
        assert!(is_explained, "operations.md lacks {field} of /health");
    }
}

/// Those that a person calls: others are sourced.
#[test]
fn every_script_is_explained() {
    let all: String = documents().into_iter().map(|(_, text)| text).collect();
    for entry in fs::read_dir(root().join("scripts")).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        let is_called = text.starts_with("#!");
        assert!(
            !is_called || all.contains(&format!("scripts/{name}")),
            "scripts/{name} stands in no document"
        );
    }
}

/// Tables have a line per row, however long.
#[test]
fn lines_of_prose_are_at_most_100_wide() {
    for (path, text) in documents() {
        for line in prose(&text).filter(|line| !line.starts_with('|')) {
            assert!(line.chars().count() <= 100, "{path}: {line}");
        }
    }
}

#[test]
fn the_readme_stays_short() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let lines = readme.lines().count();
    assert!(
        lines <= 220,
        "README.md has {lines} lines: move some to src/guide/"
    );
}

#[test]
fn the_changelog_begins_with_this_release() {
    let changelog = include_str!("changelog.md");
    let first = changelog.lines().find(|line| line.starts_with("## "));
    assert_eq!(first, Some(concat!("## ", env!("CARGO_PKG_VERSION"))));
}
