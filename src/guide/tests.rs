//! Whether the documents are still true, as far as a program can tell.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

mod said;
mod stored;

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

/// Scripts that a person calls; the others are sourced.
#[test]
fn every_script_is_explained() {
    let all: String = documents().into_iter().map(|(_, text)| text).collect();
    for entry in fs::read_dir(root().join("scripts")).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        let is_called = text.starts_with("#!") && name.ends_with(".sh");
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
    let mut sections = changelog.lines().filter(|line| line.starts_with("## "));
    let first = sections.find(|line| !line.ends_with(" (unreleased)"));
    assert_eq!(first, Some(concat!("## ", env!("CARGO_PKG_VERSION"))));
}
