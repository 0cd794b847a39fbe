//! The TOML text. Only this file and `section.rs` know the format.
//!
//! [`Document`] is the parsed text, and a [`Section`] hands out one key at a time. Problems are
//! noted as they are found, and [`Document::finish`] returns all of them in the order of the file:
//! an operator of a distant box should not learn of the mistakes one restart at a time.
//!
//! There is no second list of keys: a key that was asked for is known, any other is not.

use std::cell::RefCell;
use std::collections::BTreeSet;

use toml::de::{DeTable, DeValue};

use super::section::Section;
use super::suggest::closest;

/// Keys in the documentation of the Go version that its code ignores.
const WITHOUT_EFFECT: [&str; 3] = [
    "snapshot.min_changes",
    "snapshot.max_age",
    "snapshot.s3.server_side_encryption",
];

/// A mistake in the file that the operator must correct.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Line in the file, from 1; none if a key is missing.
    pub line: Option<usize>,
    /// The key, the value found and the values allowed.
    pub text: String,
}

/// Why the text is not TOML.
pub(super) struct SyntaxError {
    pub line: usize,
    pub message: String,
}

pub(super) struct Document<'a> {
    text: &'a str,
    root: DeTable<'a>,
    asked: RefCell<BTreeSet<String>>,
    problems: RefCell<Vec<Problem>>,
}

impl<'a> Document<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Document<'a>, SyntaxError> {
        let root = DeTable::parse(text).map_err(|error| {
            let span = error.span().unwrap_or_default();
            let line = line_at(text, span.start);
            // The message alone: toml's `Display` quotes the line, which may hold a password.
            let mut message = error.message().replace('\n', ", ");
            if message == "duplicate key" {
                message = format!("{message} {}", text.get(span).unwrap_or_default());
            }
            SyntaxError { line, message }
        })?;
        Ok(Document {
            text,
            root: root.into_inner(),
            asked: RefCell::default(),
            problems: RefCell::default(),
        })
    }

    /// The keys outside every section.
    pub(super) fn top(&self) -> Section<'_> {
        Section::new(self, String::new(), Some(&self.root))
    }

    /// All problems, unknown keys included. Call it after every key was asked for.
    pub(super) fn finish(self) -> Vec<Problem> {
        self.note_unknown("", &self.root);
        let mut problems = self.problems.into_inner();
        problems.sort();
        problems
    }

    /// The dotted names of all keys asked for so far, without sections.
    #[cfg(test)]
    pub(super) fn asked(&self) -> BTreeSet<String> {
        let asked = self.asked.borrow();
        let is_section = |name: &str| asked.iter().any(|k| k.starts_with(&format!("{name}.")));
        asked
            .iter()
            .filter(|name| !is_section(name))
            .cloned()
            .collect()
    }

    fn note_unknown(&self, section: &str, table: &DeTable) {
        for (key, value) in table {
            let name = dotted(section, key.get_ref());
            if !self.asked.borrow().contains(&name) {
                let advice = self.advice(&name);
                self.note(
                    Some(key.span().start),
                    format!("unknown key {name}; {advice}"),
                );
            } else if let DeValue::Table(inner) = value.get_ref() {
                self.note_unknown(&name, inner);
            }
        }
    }

    fn advice(&self, name: &str) -> String {
        if WITHOUT_EFFECT.contains(&name) {
            return "the Go version ignores it too, so remove it".into();
        }
        match closest(name, self.asked.borrow().iter().map(String::as_str)) {
            Some(known) => format!("did you mean {known}?"),
            None => "correct or remove it; config.toml explains all keys".into(),
        }
    }

    /// Remembers that `name` is a known key.
    pub(super) fn ask(&self, name: &str) {
        self.asked.borrow_mut().insert(name.into());
    }

    /// Notes a problem; `at` is the byte of the text where the key stands.
    pub(super) fn note(&self, at: Option<usize>, text: String) {
        let line = at.map(|at| line_at(self.text, at));
        self.problems.borrow_mut().push(Problem { line, text });
    }
}

fn line_at(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|&byte| byte == b'\n').count()
}

pub(super) fn dotted(section: &str, key: &str) -> String {
    if section.is_empty() {
        key.into()
    } else {
        format!("{section}.{key}")
    }
}
