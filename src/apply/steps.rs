//! Applies a message whose rows take long in several transactions.
//!
//! A frame has the rows of one transaction of its sender, and arrives whole. But a few hundred KiB
//! of a frame may hold so many rows that an application would wait for seconds. So a transaction
//! that has worked on a frame for [`LONGEST`], and has [`WHOLE`] of its rows, ends between two of
//! its rows, and the next goes on with the rest. The position moves with the last row only: after a
//! crash the message is read again, and its first rows change nothing. Rows are joined by their
//! versions, so whatever happens between two of these transactions does no harm.

use std::time::Duration;

use crate::apply::Arrived;

/// Within this time all rows of a message are applied in one transaction.
pub(super) const LONGEST: Duration = Duration::from_millis(100);

/// So many rows are applied in one transaction on any machine, however slow.
const WHOLE: usize = 512;

/// Rows between two looks at the clock.
const STEP: usize = 32;

/// So many values of a row count like one more row.
const VALUES: usize = 16;

/// How far the message that is applied in part has come.
#[derive(Debug)]
pub(crate) struct Steps {
    /// Stream, sequence and id of the message that was begun last.
    message: Option<(String, u64, String)>,
    /// Number of its rows that earlier transactions applied.
    done: usize,
    /// Number of its rows that are applied or passed over by now.
    seen: usize,
    /// Rows of it that the transaction under way applied, wide ones as several.
    work: usize,
    /// `work` at the last look at the clock.
    looked: usize,
    /// When the transaction under way began, by the machine's uptime.
    began: Duration,
    /// The transaction ends before the message does.
    is_cut: bool,
    longest: Duration,
    whole: usize,
    step: usize,
}

impl Default for Steps {
    fn default() -> Self {
        Steps {
            message: None,
            done: 0,
            seen: 0,
            work: 0,
            looked: 0,
            began: Duration::ZERO,
            is_cut: false,
            longest: LONGEST,
            whole: WHOLE,
            step: STEP,
        }
    }
}

impl Steps {
    /// Begins a message, or goes on with it, in a transaction that began at `began`.
    pub(super) fn begin(&mut self, stream: &str, message: &Arrived<'_>, began: Duration) {
        let same = |(s, seq, id): &(String, u64, String)| {
            s == stream && *seq == message.seq && id == message.id
        };
        if !self.message.as_ref().is_some_and(same) {
            self.message = Some((stream.to_owned(), message.seq, message.id.to_owned()));
            self.done = 0;
        }
        (self.seen, self.began, self.is_cut) = (0, began, false);
        (self.work, self.looked) = (0, 0);
    }

    /// The rows that follow are those after the first `rows` rows of the message.
    pub(super) fn enter(&mut self, rows: usize) {
        self.seen = rows;
    }

    /// Passes over a row that an earlier transaction applied. False for a row that is to be
    /// applied.
    pub(super) fn passes(&mut self) -> bool {
        let passes = self.seen < self.done;
        self.seen += usize::from(passes);
        passes
    }

    /// Counts a row of `values` values that was applied, at this uptime. True if the transaction
    /// must end.
    pub(super) fn applied(&mut self, values: usize, now: impl Fn() -> Duration) -> bool {
        self.seen += 1;
        self.work += 1 + values / VALUES;
        if self.work - self.looked >= self.step {
            self.looked = self.work;
            self.is_cut =
                self.work >= self.whole && now().saturating_sub(self.began) >= self.longest;
        }
        self.is_cut
    }

    /// Whether the transaction must end before the message does.
    pub(super) fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// Notes that the transaction is committed.
    pub(super) fn committed(&mut self) {
        match self.is_cut {
            true => self.done = self.seen,
            false => self.forget(),
        }
    }

    /// Forgets what was applied in part: the message is applied from its first row.
    pub(super) fn forget(&mut self) {
        (self.message, self.done, self.is_cut) = (None, 0, false);
    }

    /// Whether a message is applied in part.
    pub(super) fn is_part_way(&self) -> bool {
        self.done > 0
    }

    /// For tests: ends a transaction after every `step` rows that took `longest` or more.
    pub(super) fn set(&mut self, step: usize, longest: Duration) {
        (self.step, self.whole, self.longest) = (step.max(1), step, longest);
    }
}
