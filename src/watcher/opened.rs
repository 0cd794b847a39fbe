//! Notices programs that open the database to have it for themselves.
//!
//! `PRAGMA locking_mode = EXCLUSIVE` (Prisma's migrations) needs that nobody else has the file
//! open, and fails after its timeout while we have it open. SQLite's locks do not show that a
//! program tries: it holds them for microseconds. But an ordinary connection opens the WAL right
//! after the database, and such a program opens the database alone.
//!
//! An ordinary connection that is the first of its process opens the shared memory, too. If that
//! event is missing, a different program may have opened the WAL (Litestream reads it), and its
//! event hides a program that opened the database alone. That is a doubt, and [`super::waiting`]
//! resolves it.

use std::time::{Duration, Instant};

/// An ordinary connection opens the WAL within this time, if it reads at all.
const OPENS_BOTH: Duration = Duration::from_millis(50);

/// Counts connections that opened the database and not yet its WAL.
#[derive(Debug, Default)]
pub(super) struct OpenCounts {
    alone: usize,
    /// When the first of them opened the database.
    since: Option<Instant>,
    /// Number of connections that opened both, and not yet the shared memory.
    doubted: usize,
    /// When the first of these opened the WAL.
    doubt: Option<Instant>,
}

/// Kinds of notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notice {
    /// A program has the database open alone.
    Alone,
    /// A program may have it open alone.
    Doubt,
}

impl OpenCounts {
    pub(super) fn database(&mut self, now: Instant) {
        self.alone += 1;
        self.since.get_or_insert(now);
    }

    /// Notes that a program which cannot write to the database closed it.
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

    /// How long until a notice is due; `None` if none is expected.
    pub(super) fn noticed_in(&self, now: Instant) -> Option<Duration> {
        let first = self.since.into_iter().chain(self.doubt).min()?;
        Some((first + OPENS_BOTH).saturating_duration_since(now))
    }

    /// Returns a notice that is due, once.
    pub(super) fn take(&mut self, now: Instant) -> Option<Notice> {
        let is_due = |since: Option<Instant>| since.is_some_and(|at| at + OPENS_BOTH <= now);
        if is_due(self.since) {
            *self = OpenCounts::default();
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
    fn a_program_that_opens_the_database_alone_is_noticed_among_others() {
        let (mut opened, begin) = (OpenCounts::default(), Instant::now());
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
        let (mut opened, begin) = (OpenCounts::default(), Instant::now());
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
