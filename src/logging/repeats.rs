//! A repeated warning is one line a minute, with the number of those left out.

use std::collections::VecDeque;
use std::time::Duration;

use log::Level;

use super::repeated::EVERY;

/// Most different lines that are tracked; a new one replaces the one logged longest ago.
const MOST_LINES: usize = 64;

/// Most warnings and errors that are kept for `/status`.
const MOST_RECENT: usize = 20;

/// A warning or an error that was logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recent {
    /// Time of the last occurrence, Unix milliseconds by this machine's clock.
    pub time_ms: i64,
    /// Warning or error.
    pub level: Level,
    /// The message, without time and level.
    pub text: String,
    /// Number of occurrences since the start, or since the entry was dropped from this list.
    pub count: u64,
}

/// When each warning was logged.
#[derive(Default)]
pub(super) struct Repeats {
    said: VecDeque<Said>,
    recent: VecDeque<Recent>,
}

struct Said {
    level: Level,
    text: String,
    at: Duration,
    hushed: u64,
}

impl Repeats {
    /// Notes a line at `now`. Returns the lines to write; none if it was logged within the last
    /// minute.
    pub(super) fn heard(
        &mut self,
        level: Level,
        text: &str,
        now: Duration,
        now_ms: i64,
    ) -> Vec<(Level, String)> {
        self.remember(level, text, now_ms);
        if let Some(said) = self.said.iter_mut().find(|said| said.text == text) {
            said.hushed += 1;
            return Vec::new();
        }
        let mut say = Vec::new();
        if self.said.len() >= MOST_LINES {
            say.extend(self.said.pop_front().and_then(|said| said.left()));
        }
        say.push((level, text.to_owned()));
        self.said.push_back(Said {
            level,
            text: text.to_owned(),
            at: now,
            hushed: 0,
        });
        say
    }

    /// Lines to write at `now` for repeated warnings whose minute is over.
    pub(super) fn overdue(&mut self, now: Duration) -> Vec<(Level, String)> {
        let mut say = Vec::new();
        let is_over = |said: &Said| now.saturating_sub(said.at) >= EVERY;
        while self.said.front().is_some_and(is_over) {
            let Some(mut said) = self.said.pop_front() else {
                break;
            };
            if let Some(left) = said.left() {
                say.push(left);
                // The next minute begins, so that a lasting repetition is one line a minute.
                (said.at, said.hushed) = (now, 0);
                self.said.push_back(said);
            }
        }
        say
    }

    /// Lines to write for all repeated warnings, at the end.
    pub(super) fn left(&mut self) -> Vec<(Level, String)> {
        self.said.drain(..).filter_map(|said| said.left()).collect()
    }

    /// The last warnings and errors, oldest first.
    pub(super) fn recent(&self) -> Vec<Recent> {
        self.recent.iter().cloned().collect()
    }

    fn remember(&mut self, level: Level, text: &str, time_ms: i64) {
        let known = self.recent.iter().position(|recent| recent.text == text);
        let count = known
            .and_then(|at| self.recent.remove(at))
            .map_or(0, |r| r.count);
        if self.recent.len() >= MOST_RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(Recent {
            time_ms,
            level,
            text: text.to_owned(),
            count: count + 1,
        });
    }
}

impl Said {
    /// The line with the number of its repetitions since it was written; none if there are none.
    fn left(&self) -> Option<(Level, String)> {
        let times = match self.hushed {
            0 => return None,
            1 => "once more".to_owned(),
            n => format!("{n} times more"),
        };
        Some((self.level, format!("{} ({times})", self.text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn texts(lines: Vec<(Level, String)>) -> Vec<String> {
        lines.into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn a_repeated_line_is_counted() {
        let mut repeats = Repeats::default();
        let mut hear = |text: &str, second| {
            let mut say = repeats.overdue(at(second));
            say.extend(repeats.heard(Level::Warn, text, at(second), second as i64 * 1000));
            texts(say)
        };
        assert_eq!(hear("a", 0), ["a"]);
        assert_eq!(hear("a", 1), [""; 0]);
        assert_eq!(hear("b", 2), ["b"]);
        assert_eq!(hear("a", 59), [""; 0]);
        assert_eq!(
            hear("a", 60),
            ["a (2 times more)"],
            "and this one is counted next"
        );
        assert_eq!(hear("c", 120), ["a (once more)", "c"]);
        assert_eq!(hear("b", 600), ["b"], "as new after a minute of silence");
        assert_eq!(texts(repeats.left()), [""; 0]);
        let recent = repeats.recent();
        let recent: Vec<_> = recent
            .iter()
            .map(|r| (&*r.text, r.count, r.time_ms))
            .collect();
        assert_eq!(
            recent,
            [("a", 4, 60_000), ("c", 1, 120_000), ("b", 2, 600_000)]
        );
    }

    #[test]
    fn memory_is_bounded_and_no_count_is_lost() {
        let mut repeats = Repeats::default();
        repeats.heard(Level::Error, "first", at(0), 0);
        repeats.heard(Level::Error, "first", at(0), 0);
        let mut said = Vec::new();
        for n in 0..10 * MOST_LINES {
            said.extend(repeats.heard(Level::Warn, &n.to_string(), at(1), 0));
        }
        assert!(said.contains(&(Level::Error, "first (once more)".to_owned())));
        assert_eq!(
            (repeats.said.len(), repeats.recent.len()),
            (MOST_LINES, MOST_RECENT)
        );
    }
}
