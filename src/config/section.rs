//! One section of the file: its keys, each with type, unit, bounds and default.
//!
//! No method fails: a value that does not fit is noted in the [`Document`], and the default takes
//! its place so that reading goes on. A value is quoted only where it cannot be a secret.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::raw::{Document, dotted};
use crate::address::configured::redacted;
use crate::address::secret::Secret;

/// Upper bound of every time: a hundred years, so that no sum of times overflows.
const LONGEST_MS: u64 = 100 * 365 * 24 * 3600 * 1000;

/// A section of the file. If the file lacks it, all its keys have their defaults.
pub(super) struct Section<'a> {
    document: &'a Document<'a>,
    name: String,
    table: Option<&'a DeTable<'a>>,
}

impl<'a> Section<'a> {
    pub(super) fn new(
        document: &'a Document<'a>,
        name: String,
        table: Option<&'a DeTable<'a>>,
    ) -> Self {
        Section {
            document,
            name,
            table,
        }
    }

    pub(super) fn section(&self, key: &str) -> Section<'a> {
        let table = self.take(key, DeValue::as_table, Quote::Kind, "a section");
        Section::new(self.document, dotted(&self.name, key), table)
    }

    pub(super) fn bool(&self, key: &str, default: bool) -> bool {
        self.take(key, DeValue::as_bool, Quote::Value, "true or false")
            .unwrap_or(default)
    }

    /// True or false, or none for "auto", which is the default.
    pub(super) fn bool_or_auto(&self, key: &str) -> Option<bool> {
        let convert = |value: &DeValue| match value.as_str() {
            Some("auto" | "") => Some(None),
            _ => value.as_bool().map(Some),
        };
        let allowed = "true, false or \"auto\"";
        self.take(key, convert, Quote::Value, allowed).flatten()
    }

    /// An integer. `what` names in a few words the unit, or the reason of the bounds.
    pub(super) fn int<T>(&self, key: &str, default: T, range: RangeInclusive<T>, what: &str) -> T
    where
        T: TryFrom<i64> + PartialOrd + Display,
    {
        self.opt_int(key, range, what).unwrap_or(default)
    }

    /// An integer without a default.
    pub(super) fn opt_int<T>(&self, key: &str, range: RangeInclusive<T>, what: &str) -> Option<T>
    where
        T: TryFrom<i64> + PartialOrd + Display,
    {
        let fits = |value: &DeValue| {
            let digits = value.as_integer()?;
            let number = i64::from_str_radix(digits.as_str(), digits.radix()).ok()?;
            T::try_from(number)
                .ok()
                .filter(|number| range.contains(number))
        };
        let (low, high) = (range.start(), range.end());
        self.take(
            key,
            fits,
            Quote::Value,
            &format!("an integer from {low} to {high}: {what}"),
        )
    }

    pub(super) fn millis(&self, key: &str, default: u64, least: u64, what: &str) -> Duration {
        let what = format!("milliseconds, {what}");
        Duration::from_millis(self.int(key, default, least..=LONGEST_MS, &what))
    }

    /// Milliseconds; none if 0, which is the default and means off.
    pub(super) fn millis_or_off(&self, key: &str, least: u64, what: &str) -> Option<Duration> {
        let millis = self.int(key, 0, 0..=LONGEST_MS, &format!("milliseconds, {what}"));
        if (1..least).contains(&millis) {
            self.note(
                key,
                format!("is {millis}, but must be 0 (off) or at least {least}: {what}"),
            );
        }
        (millis > 0).then(|| Duration::from_millis(millis))
    }

    /// Text that may be shown; none if absent or empty, as for all kinds of text that follow.
    pub(super) fn string(&self, key: &str) -> Option<String> {
        self.text(key, Quote::Value, "a string").map(str::to_owned)
    }

    /// Text that is never shown.
    pub(super) fn secret(&self, key: &str) -> Option<Secret> {
        self.text(key, Quote::Kind, "a string").map(Secret::new)
    }

    /// Text with a form of its own; the error of `parse` says what is allowed.
    pub(super) fn parsed<T>(
        &self,
        key: &str,
        default: &str,
        parse: fn(&str) -> Result<T, String>,
    ) -> T {
        let given = self.string(key);
        let found = given.as_deref().unwrap_or(default);
        parse(found).unwrap_or_else(|allowed| {
            self.note(
                key,
                format!("is {:?}, but must be {allowed}", redacted(found)),
            );
            parse(default).unwrap_or_else(|_| unreachable!("the default of {key} is allowed"))
        })
    }

    /// A list of strings, which no message quotes.
    pub(super) fn list(&self, key: &str) -> Option<Vec<String>> {
        const ALLOWED: &str = "a list of strings, such as [\"one\", \"two\"]";
        let items = self.take(key, DeValue::as_array, Quote::Kind, ALLOWED)?;
        let mut strings = Vec::new();
        for (index, item) in items.iter().enumerate() {
            match item.get_ref() {
                DeValue::String(text) => strings.push(text.to_string()),
                other => {
                    let (number, kind) = (index + 1, other.type_str());
                    self.note(
                        key,
                        format!(
                            "has an entry, number {number}, of type {kind}, but must be {ALLOWED}"
                        ),
                    );
                }
            }
        }
        (strings.len() == items.len()).then_some(strings)
    }

    /// A path; nothing need exist there.
    pub(super) fn path(&self, key: &str) -> Option<PathBuf> {
        self.text(key, Quote::Kind, "a path, as a string")
            .map(PathBuf::from)
    }

    /// A directory that must exist.
    pub(super) fn folder(&self, key: &str) -> Option<PathBuf> {
        let path = self.path(key)?;
        if !path.is_dir() {
            let text = format!("is {}, which is no directory: create it", shown(&path));
            self.note(key, text);
        }
        Some(path)
    }

    /// Whether the file has the key, even with an empty string.
    pub(super) fn is_given(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// A file that must exist and be readable.
    pub(super) fn file(&self, key: &str) -> Option<PathBuf> {
        let path = self.path(key)?;
        let why = match std::fs::File::open(&path).and_then(|file| file.metadata()) {
            Ok(found) if found.is_dir() => "it is a directory".into(),
            Ok(_) => return Some(path),
            Err(cause) => cause.to_string(),
        };
        self.note(
            key,
            format!(
                "is {}, but must be a file that can be read: {why}",
                shown(&path)
            ),
        );
        Some(path)
    }

    /// Notes a problem with `key`. `text` continues the sentence that begins with the key's name.
    pub(super) fn note(&self, key: &str, text: impl Display) {
        let entry = self.table.and_then(|table| table.get_key_value(key));
        let at = entry.map(|(key, _)| key.span().start);
        self.document
            .note(at, format!("{} {text}", dotted(&self.name, key)));
    }

    fn text(&self, key: &str, quote: Quote, allowed: &str) -> Option<&'a str> {
        self.take(key, DeValue::as_str, quote, allowed)
            .filter(|text| !text.is_empty())
    }

    /// The value of `key`, converted. A value that `convert` rejects is noted as a problem.
    fn take<T>(
        &self,
        key: &str,
        convert: impl FnOnce(&'a DeValue<'a>) -> Option<T>,
        quote: Quote,
        allowed: &str,
    ) -> Option<T> {
        self.document.ask(&dotted(&self.name, key));
        let value = self.table?.get(key)?.get_ref();
        let converted = convert(value);
        if converted.is_none() {
            self.note(
                key,
                format!("is {}, but must be {allowed}", described(value, quote)),
            );
        }
        converted
    }
}

/// How a problem describes the value found: of a possible secret it shows only the type.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Quote {
    Value,
    Kind,
}

fn described(value: &DeValue, quote: Quote) -> String {
    let show = quote == Quote::Value;
    match value {
        DeValue::Integer(number) if show => number.to_string(),
        DeValue::Float(number) if show => number.as_str().into(),
        DeValue::Boolean(value) if show => value.to_string(),
        DeValue::String(text) if show => format!("the string {text:?}"),
        DeValue::Table(_) => "a section".into(),
        DeValue::Array(_) => "a list".into(),
        other => format!("of type {}", other.type_str()),
    }
}

/// A path for a message. A key that was pasted in place of a path must not appear in a log.
fn shown(path: &Path) -> String {
    let text = path.to_string_lossy();
    let pasted = text.contains('\n') || (text.len() > 40 && !text.contains(['/', '.']));
    if pasted {
        "not a path (and not shown, it may be a key)".into()
    } else {
        text.into_owned()
    }
}
