//! The form of a line.

use std::borrow::Cow;
use std::fmt::Write;

use log::Level;
use serde_json::json;

use crate::config::LogFormat;
use crate::model::timestamp::rfc3339_ms;

/// The parts of a line.
pub(super) struct Line<'l> {
    pub time_ms: i64,
    pub level: Level,
    pub node: Option<u64>,
    /// The module that logs it.
    pub from: &'l str,
    pub text: &'l str,
}

impl Line<'_> {
    /// The line with time and level, and with a line feed at its end.
    pub(super) fn full(&self, format: LogFormat) -> String {
        match format {
            LogFormat::Json => self.json() + "\n",
            LogFormat::Console => format!(
                "{} {:<5} {}\n",
                rfc3339_ms(self.time_ms),
                self.level,
                one_line(self.text)
            ),
        }
    }

    /// The line for a log that adds time and level by itself.
    pub(super) fn bare(&self, format: LogFormat) -> String {
        match format {
            LogFormat::Json => self.json(),
            LogFormat::Console => one_line(self.text).into_owned(),
        }
    }

    /// The fields that zerolog writes for the Go version: level, node_id, time and message; `from`
    /// is ours.
    fn json(&self) -> String {
        let mut line = json!({
            "time": rfc3339_ms(self.time_ms),
            "level": self.level.as_str().to_ascii_lowercase(),
            "from": self.from,
            "message": self.text,
        });
        if let Some(node) = self.node {
            line["node_id"] = node.into();
        }
        line.to_string()
    }
}

/// Escapes control characters as `\n`, `\u{1b}` and the like. Names of tables and texts of other
/// programs may hold them; in the log they must not begin a line or control a terminal.
fn one_line(text: &str) -> Cow<'_, str> {
    let is_plain = |c: char| !c.is_control() || c == '\t';
    if text.chars().all(is_plain) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_plain(c) {
            shown.push(c);
        } else {
            let _ = write!(shown, "{}", c.escape_default());
        }
    }
    shown.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Line<'_> {
        Line {
            time_ms: 1_750_000_000_042,
            level: Level::Warn,
            node: Some(u64::MAX),
            from: "harmonylite::daemon",
            text,
        }
    }

    #[test]
    fn for_people() {
        let full = line("a tab\tstays").full(LogFormat::Console);
        assert_eq!(full, "2025-06-15T15:06:40.042Z WARN  a tab\tstays\n");
        let bare = line("table \"a\n\x1b[2J\u{9b}b\" is held").bare(LogFormat::Console);
        assert_eq!(bare, "table \"a\\n\\u{1b}[2J\\u{9b}b\" is held");
    }

    #[test]
    fn for_machines() {
        let text = line("two\nlines").full(LogFormat::Json);
        assert!(text.ends_with("}\n") && text.matches('\n').count() == 1);
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        let expected = json!({
            "time": "2025-06-15T15:06:40.042Z", "level": "warn", "node_id": u64::MAX,
            "from": "harmonylite::daemon", "message": "two\nlines",
        });
        assert_eq!(read, expected);
        let unknown = Line {
            node: None,
            ..line("")
        };
        assert!(!unknown.bare(LogFormat::Json).contains("node_id"));
    }
}
