//! Limits repeated messages: a log that repeats itself fills a disk and hides other lines.

use std::time::Duration;

use log::Level;

/// Repeated events get one line in this time.
pub(super) const EVERY: Duration = Duration::from_secs(60);

/// Events of one kind: at most one a minute is logged, with the number of those left out.
#[derive(Debug, Default)]
pub struct Repeated {
    said: Option<Duration>,
    hushed: u64,
}

impl Repeated {
    /// Whether to log an event at `now`: the number of events left out since the last one, or none
    /// to leave this one out, too.
    pub fn rings(&mut self, now: Duration) -> Option<u64> {
        if self.said.is_some_and(|said| now - said < EVERY) {
            self.hushed += 1;
            return None;
        }
        self.said = Some(now);
        Some(std::mem::take(&mut self.hushed))
    }
}

/// A state that lasts. Each change of its text is logged.
#[derive(Debug, Default)]
pub struct Lasting {
    said: String,
}

impl Lasting {
    /// Whether `text` differs from the last one; remembers it.
    pub fn is_news(&mut self, text: &str) -> bool {
        let is_news = self.said != text;
        if is_news {
            text.clone_into(&mut self.said);
        }
        is_news
    }

    /// Ends the state. True if it had begun.
    pub fn ends(&mut self) -> bool {
        !std::mem::take(&mut self.said).is_empty()
    }
}

/// An attempt that fails and is repeated.
///
/// A short failure is normal at a start: our own server or the others' is not up yet, or servers
/// elect a leader. It is logged as information; only a lasting failure is worth a warning.
#[derive(Debug, Default)]
pub struct RepeatedFailure {
    since: Option<Duration>,
    news: Lasting,
    warned: Lasting,
}

/// After this time, a failure is worth a warning: a cluster that lost its leader has a new one by
/// then, on slow machines too. Health reports a failure at once.
const NORMAL: Duration = Duration::from_secs(30);

impl RepeatedFailure {
    /// Reports a failure at `now`. The level at which to log it; none if that text was logged
    /// already.
    pub fn fails(&mut self, text: &str, now: Duration) -> Option<Level> {
        let since = *self.since.get_or_insert(now);
        let is_news = self.news.is_news(text);
        if now.saturating_sub(since) >= NORMAL {
            return self.warned.is_news(text).then_some(Level::Warn);
        }
        is_news.then_some(Level::Info)
    }

    /// Reports a success.
    pub fn ends(&mut self) {
        *self = RepeatedFailure::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_counted_while_nothing_is_said() {
        let mut repeated = Repeated::default();
        let at = Duration::from_secs;
        assert_eq!(repeated.rings(at(1)), Some(0));
        assert_eq!(
            (repeated.rings(at(2)), repeated.rings(at(60))),
            (None, None)
        );
        assert_eq!(repeated.rings(at(61)), Some(2));
        assert_eq!(repeated.rings(at(500)), Some(0));
    }

    #[test]
    fn a_lasting_failure_is_a_warning() {
        let mut trouble = RepeatedFailure::default();
        let mut fails = |text, second| trouble.fails(text, Duration::from_secs(second));
        assert_eq!(fails("refused", 100), Some(Level::Info));
        assert_eq!(fails("refused", 101), None);
        assert_eq!(fails("no leader", 129), Some(Level::Info));
        assert_eq!(fails("no leader", 130), Some(Level::Warn));
        assert_eq!(fails("no leader", 500), None);
        assert_eq!(fails("refused", 501), Some(Level::Warn));
        trouble.ends();
        assert_eq!(
            trouble.fails("refused", Duration::from_secs(502)),
            Some(Level::Info)
        );
    }

    #[test]
    fn a_state_is_said_when_it_changes() {
        let mut lasting = Lasting::default();
        assert!(!lasting.ends());
        assert!(lasting.is_news("denied") && !lasting.is_news("denied"));
        assert!(lasting.is_news("away") && lasting.ends());
        assert!(lasting.is_news("away"));
    }
}
