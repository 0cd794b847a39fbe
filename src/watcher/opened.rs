//! Notices who opens the database to have it for himself.
//!
//! `PRAGMA locking_mode = EXCLUSIVE` (Prisma's migrations) needs that nobody else has the file open,
//! and fails after its timeout where we do. SQLite's locks do not show that somebody tries: they are
//! held for microseconds. But every ordinary connection opens the WAL right after the database, and
//! that one the database alone.

use std::time::{Duration, Instant};

/// An ordinary connection opens the WAL within this time, if it reads at all.
const OPENS_BOTH: Duration = Duration::from_millis(50);

/// Connections that opened the database and not yet its WAL.
#[derive(Debug, Default)]
pub(super) struct Opened {
    alone: usize,
    /// When the first of them did.
    since: Option<Instant>,
}

impl Opened {
    pub(super) fn database(&mut self, now: Instant) {
        self.alone += 1;
        self.since.get_or_insert(now);
    }

    pub(super) fn wal(&mut self) {
        self.alone = self.alone.saturating_sub(1);
        if self.alone == 0 {
            self.since = None;
        }
    }

    /// How long until one of them is noticed, if there is any.
    pub(super) fn noticed_in(&self, now: Instant) -> Option<Duration> {
        Some((self.since? + OPENS_BOTH).saturating_duration_since(now))
    }

    /// Whether somebody is to be noticed, once.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let is_due = self.noticed_in(now) == Some(Duration::ZERO);
        if is_due {
            *self = Opened::default();
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_opens_the_database_alone_is_noticed_among_others() {
        let (mut opened, begin) = (Opened::default(), Instant::now());
        let after = |ms| begin + Duration::from_millis(ms);
        opened.database(after(0));
        opened.wal();
        assert_eq!(opened.noticed_in(after(100)), None);
        opened.database(after(100));
        for ms in [110, 130] {
            opened.database(after(ms));
            opened.wal();
        }
        assert!(!opened.take(after(149)));
        assert!(opened.take(after(150)));
        assert!(!opened.take(after(300)), "once");
    }
}
