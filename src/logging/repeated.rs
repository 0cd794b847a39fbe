//! What happens again and again is said seldom: a log that repeats itself fills a disk and hides
//! the rest.

use std::time::Duration;

use log::Level;

/// One line for all that comes within this time.
pub(super) const EVERY: Duration = Duration::from_secs(60);

/// Events of one kind, each of which may be said: at most one a minute, with the number of those
/// that were passed over.
#[derive(Debug, Default)]
pub struct Repeated {
    said: Option<Duration>,
    hushed: u64,
}

impl Repeated {
    /// Whether to speak of an event at `now`, and of how many that were passed over.
    pub fn rings(&mut self, now: Duration) -> Option<u64> {
        if self.said.is_some_and(|said| now - said < EVERY) {
            self.hushed += 1;
            return None;
        }
        self.said = Some(now);
        Some(std::mem::take(&mut self.hushed))
    }
}

/// A state that lasts, each change of which is said.
#[derive(Debug, Default)]
pub struct Lasting {
    said: String,
}

impl Lasting {
    /// Whether this was not what was said last.
    pub fn is_news(&mut self, text: &str) -> bool {
        let is_news = self.said != text;
        if is_news {
            text.clone_into(&mut self.said);
        }
        is_news
    }

    /// It is over. True if something was said of it.
    pub fn ends(&mut self) -> bool {
        !std::mem::take(&mut self.said).is_empty()
    }
}

/// A try that fails and is made again.
///
/// At first that is no more than what a start looks like: our own server or the others' is not up
/// yet, or its servers elect a leader. It is news; only what lasts is worth a warning.
#[derive(Debug, Default)]
pub struct Trouble {
    since: Option<Duration>,
    news: Lasting,
    warned: Lasting,
}

/// A cluster whose leader went away has another by then, on slow machines too. Health says at once
/// that something fails.
const NORMAL: Duration = Duration::from_secs(30);

impl Trouble {
    /// It failed at `now` with this text. The level at which to say so, unless it is said already.
    pub fn fails(&mut self, text: &str, now: Duration) -> Option<Level> {
        let since = *self.since.get_or_insert(now);
        let is_news = self.news.is_news(text);
        if now.saturating_sub(since) >= NORMAL {
            return self.warned.is_news(text).then_some(Level::Warn);
        }
        is_news.then_some(Level::Info)
    }

    /// It works.
    pub fn ends(&mut self) {
        *self = Trouble::default();
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
    fn what_lasts_is_a_warning() {
        let mut trouble = Trouble::default();
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
