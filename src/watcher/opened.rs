//! Notices who opens the database to have it for himself.
//!
//! `PRAGMA locking_mode = EXCLUSIVE` (Prisma's migrations) needs that nobody else has the file
//! open, and fails after its timeout where we do. SQLite's locks do not show that somebody tries:
//! they are held for microseconds. But every ordinary connection opens the WAL right after the
//! database, and that one the database alone.
//!
//! An ordinary connection that is the first of its process opens the shared memory, too. Where that
//! is missing, the WAL may have been opened by somebody else (Litestream reads it), and hides one
//! that is alone: that is a doubt, and [`super::waiting`] looks.

use std::time::{Duration, Instant};

/// An ordinary connection opens the WAL within this time, if it reads at all.
const OPENS_BOTH: Duration = Duration::from_millis(50);

/// Connections that opened the database and not yet its WAL.
#[derive(Debug, Default)]
pub(super) struct Opened {
    alone: usize,
    /// When the first of them did.
    since: Option<Instant>,
    /// Opened both, and not yet the shared memory.
    doubted: usize,
    /// When the first of these did.
    doubt: Option<Instant>,
}

/// What is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notice {
    /// Somebody has the database open alone.
    Alone,
    /// Somebody may.
    Doubt,
}

impl Opened {
    pub(super) fn database(&mut self, now: Instant) {
        self.alone += 1;
        self.since.get_or_insert(now);
    }

    /// The database was closed by somebody who cannot write to it.
    pub(super) fn closed(&mut self) {
        self.alone = self.alone.saturating_sub(1);
        if self.alone == 0 {
            self.since = None;
        }
    }

    pub(super) fn wal(&mut self, now: Instant) {
        if self.alone > 0 {
            self.doubted += 1;
            self.doubt.get_or_insert(now);
        }
        self.closed();
    }

    pub(super) fn shm(&mut self) {
        self.doubted = self.doubted.saturating_sub(1);
        if self.doubted == 0 {
            self.doubt = None;
        }
    }

    /// How long until something is noticed, if there is anything.
    pub(super) fn noticed_in(&self, now: Instant) -> Option<Duration> {
        let first = self.since.into_iter().chain(self.doubt).min()?;
        Some((first + OPENS_BOTH).saturating_duration_since(now))
    }

    /// What is to be noticed, once.
    pub(super) fn take(&mut self, now: Instant) -> Option<Notice> {
        let is_due = |since: Option<Instant>| since.is_some_and(|at| at + OPENS_BOTH <= now);
        if is_due(self.since) {
            *self = Opened::default();
            return Some(Notice::Alone);
        }
        is_due(self.doubt).then(|| {
            (self.doubted, self.doubt) = (0, None);
            Notice::Doubt
        })
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
        opened.wal(after(0));
        opened.shm();
        assert_eq!(opened.noticed_in(after(100)), None);
        opened.database(after(100));
        for ms in [110, 130] {
            opened.database(after(ms));
            opened.wal(after(ms));
            opened.shm();
        }
        assert_eq!(opened.take(after(149)), None);
        assert_eq!(opened.take(after(150)), Some(Notice::Alone));
        assert_eq!(opened.take(after(300)), None, "once");
    }

    #[test]
    fn a_wal_that_another_opens_leaves_a_doubt() {
        let (mut opened, begin) = (Opened::default(), Instant::now());
        let after = |ms| begin + Duration::from_millis(ms);
        opened.wal(after(0));
        assert_eq!(opened.noticed_in(after(0)), None, "nobody is hidden");
        opened.database(after(1));
        opened.wal(after(2));
        assert_eq!(opened.take(after(51)), None);
        assert_eq!(opened.take(after(52)), Some(Notice::Doubt));
        assert_eq!(opened.take(after(200)), None, "once");
    }
}
