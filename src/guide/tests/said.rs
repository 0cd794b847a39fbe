//! Everything that HarmonyLite says to people is explained: commands, health, messages of the log.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::root;
use crate::cli;

const OPERATIONS: &str = include_str!("../operations.md");
const TROUBLESHOOTING: &str = include_str!("../troubleshooting.md");

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
        let locked = OPERATIONS.contains(&format!("[{word}"));
        assert!(at_start || locked, "operations.md lacks {word}");
    }
}

#[test]
fn every_field_of_health_is_explained() {
    let code = include_str!("../../health.rs");
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

/// Parts of messages that SQLite and applications write: cells with one of them are not looked at.
const OF_OTHERS: [&str; 6] = [
    "database is locked",
    "database disk image",
    "no such table",
    "error in trigger",
    "IntegrityError",
    "Foreign key violations",
];

/// The texts in the sources, each in one line.
fn texts(folder: &Path, found: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            texts(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let parts = text.split("\\\n").map(str::trim_start);
            found.extend(parts.map(|part| part.replace("\\\"", "\"")));
        }
    }
}

/// A search for a message of the log finds it in the chapter, but for names, numbers and the like.
#[test]
fn messages_in_troubleshooting_are_those_of_the_code() {
    let mut code = String::new();
    texts(&root().join("src"), &mut code);
    let rows = TROUBLESHOOTING
        .lines()
        .filter(|line| line.starts_with("| "));
    let seen = rows.filter_map(|row| row.split('|').nth(1));
    let is_ours = |cell: &&str| !OF_OTHERS.iter().any(|other| cell.contains(other));
    let seen = seen.filter(is_ours);
    let messages = seen.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    for message in messages {
        let plain = ["data.db-wal", " t ", "(s)"]
            .iter()
            .fold(message.to_owned(), |text, name| text.replace(name, "…"));
        let is_other = |c: char| c.is_ascii_digit() || "…:\"".contains(c);
        let parts = plain.split(is_other).map(str::trim);
        for part in parts.filter(|part| part.len() >= 12) {
            assert!(code.contains(part), "nothing says {part:?} of {message:?}");
        }
    }
}
