//! How far long work has come: a snapshot, a restore, a large table that becomes replicated.
//!
//! Each long work reports to one board ([`Work`]). On a terminal the board draws one line on
//! standard error, again and again. Health, `/status` and metrics show the work too ([`running`]).
//! Work that ends within two seconds is shown nowhere.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Shorter work is not shown.
const SHOWN_AFTER: Duration = Duration::from_secs(2);

/// Shortest time between two drawings of the line on a terminal.
const DRAWN_EVERY: Duration = Duration::from_millis(100);

/// Characters of the bar.
const WIDTH: u64 = 24;

/// The work of this process; global, because the process has one terminal.
static BOARD: Mutex<ProgressBoard> = Mutex::new(ProgressBoard::new());

/// The unit of `done` and `total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes, shown as KB or MB.
    Bytes,
    /// Parts of a whole that has no other size.
    Parts,
}

/// Work that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningWork {
    /// The subject: "snapshot", "restore", "table item".
    pub what: String,
    /// The present step: "copying", "merging".
    pub step: String,
    /// Units done in this step.
    pub done: u64,
    /// Units of this step; 0: not known.
    pub total: u64,
    /// The unit of both.
    pub unit: Unit,
    /// Time since its first report.
    pub lasts: Duration,
}

struct ProgressBoard {
    works: Vec<ProgressEntry>,
    /// Number of the last work.
    next: u64,
    /// Whether standard error is a terminal; determined once.
    draws: Option<bool>,
    drawn: Option<Instant>,
}

struct ProgressEntry {
    id: u64,
    what: String,
    step: String,
    done: u64,
    total: u64,
    unit: Unit,
    began: Instant,
}

/// A long work's entry on the board; dropping it ends the entry.
pub struct Work(u64);

impl Work {
    /// Begins an entry for `what`. Nothing is shown before the first [`Work::at`].
    pub fn begin(what: &str, unit: Unit) -> Work {
        Work(board().begin(what, unit, Instant::now()))
    }

    /// Reports `done` of `total` units in this step; a `total` of 0 means that it is not known.
    pub fn at(&self, step: &str, done: u64, total: u64) {
        let mut board = board();
        board.note(self.0, step, (done, total), Instant::now());
        if board.draws() {
            board.draw(Instant::now(), &mut io::stderr());
        }
    }

    /// Whether progress is drawn on a terminal.
    pub fn is_drawn(&self) -> bool {
        board().draws()
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let mut board = board();
        board.works.retain(|work| work.id != self.0);
        board.wipe(&mut io::stderr());
    }
}

/// Work that has lasted two seconds or longer.
pub fn running() -> Vec<RunningWork> {
    board().running(Instant::now())
}

/// [`running`] as JSON, for health and `/status`.
pub fn as_json() -> Value {
    let each = running().into_iter().map(|work| {
        json!({
            "what": work.what,
            "step": work.step,
            "percent": work.percent(),
            "seconds": work.lasts.as_secs(),
        })
    });
    each.collect()
}

/// Erases the line on the terminal, so that other text can be written there.
pub fn wipe() {
    board().wipe(&mut io::stderr());
}

fn board() -> MutexGuard<'static, ProgressBoard> {
    BOARD.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ProgressBoard {
    const fn new() -> ProgressBoard {
        ProgressBoard {
            works: Vec::new(),
            next: 0,
            draws: None,
            drawn: None,
        }
    }

    fn draws(&mut self) -> bool {
        let is_dumb = || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        *self
            .draws
            .get_or_insert_with(|| io::stderr().is_terminal() && !is_dumb())
    }

    fn begin(&mut self, what: &str, unit: Unit, now: Instant) -> u64 {
        self.next += 1;
        self.works.push(ProgressEntry {
            id: self.next,
            what: what.to_owned(),
            step: String::new(),
            done: 0,
            total: 0,
            unit,
            began: now,
        });
        self.next
    }

    fn note(&mut self, id: u64, step: &str, (done, total): (u64, u64), now: Instant) {
        if let Some(work) = self.works.iter_mut().find(|work| work.id == id) {
            if work.step.is_empty() {
                work.began = now; // until now it waited for the network, perhaps
            }
            if work.step != step {
                step.clone_into(&mut work.step);
            }
            (work.done, work.total) = (done, total);
        }
    }

    fn running(&self, now: Instant) -> Vec<RunningWork> {
        let begun = self.works.iter().filter(|work| !work.step.is_empty());
        let works = begun.map(|work| RunningWork {
            what: work.what.clone(),
            step: work.step.clone(),
            done: work.done,
            total: work.total,
            unit: work.unit,
            lasts: now.saturating_duration_since(work.began),
        });
        works.filter(|work| work.lasts >= SHOWN_AFTER).collect()
    }

    /// Draws the line of the work that began last over the former line.
    fn draw(&mut self, now: Instant, out: &mut dyn Write) {
        let is_due = |at: Instant| now.saturating_duration_since(at) >= DRAWN_EVERY;
        if !self.drawn.is_none_or(is_due) {
            return;
        }
        if let Some(work) = self.running(now).last() {
            self.drawn = Some(now);
            let _ = write!(out, "\r{}\x1b[K", work.line());
            let _ = out.flush();
        }
    }

    fn wipe(&mut self, out: &mut dyn Write) {
        if self.drawn.take().is_some() {
            let _ = write!(out, "\r\x1b[K");
            let _ = out.flush();
        }
    }
}

impl RunningWork {
    /// Percent done, 0 to 100; none if it is not known.
    pub fn percent(&self) -> Option<u64> {
        let is_known = self.total > 0 && self.done > 0;
        let percent = || u128::from(self.done) * 100 / u128::from(self.total);
        is_known.then(|| percent().min(100) as u64)
    }

    /// The line for a terminal, at most 79 characters.
    fn line(&self) -> String {
        let lasts = self.lasts.as_secs();
        let text = match self.percent() {
            None => format!("{}: {}, {lasts} s", self.what, self.step),
            Some(percent) => {
                let filled = (percent * WIDTH / 100) as usize;
                let bar = format!("{:-<1$}", "#".repeat(filled), WIDTH as usize);
                let amount = match self.unit {
                    Unit::Bytes => format!(" of {}", megabytes(self.total)),
                    Unit::Parts => String::new(),
                };
                let (what, step) = (&self.what, &self.step);
                format!("[{bar}] {percent:>3} %{amount}, {lasts} s: {what}, {step}")
            }
        };
        text.chars().filter(|c| !c.is_control()).take(79).collect()
    }
}

fn megabytes(bytes: u64) -> String {
    match bytes >> 20 {
        0 => format!("{} KB", bytes >> 10),
        megabytes => format!("{megabytes} MB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_work_is_drawn_over_and_wiped() {
        let mut board = ProgressBoard::new();
        let began = Instant::now();
        let at = |millis| began + Duration::from_millis(millis);
        let drawn = |board: &mut ProgressBoard, millis| {
            let mut out = Vec::new();
            board.draw(at(millis), &mut out);
            String::from_utf8(out).unwrap()
        };
        let id = board.begin("restore", Unit::Bytes, began);
        board.note(id, "fetching", (1 << 20, 4 << 20), began);
        assert_eq!(drawn(&mut board, 1999), "");
        assert!(board.running(at(1999)).is_empty());
        let bar = "#".repeat(6) + &"-".repeat(18);
        let line = format!("\r[{bar}]  25 % of 4 MB, 2 s: restore, fetching\x1b[K");
        assert_eq!(drawn(&mut board, 2000), line);
        board.note(id, "fetching", (4 << 20, 4 << 20), at(2050));
        assert_eq!(
            drawn(&mut board, 2050),
            "",
            "not more often than one can see"
        );
        assert!(drawn(&mut board, 2100).contains("] 100 % of 4 MB, 2 s: "));
        board.note(id, "checking", (0, 4 << 20), at(2100));
        assert_eq!(drawn(&mut board, 3000), "\rrestore: checking, 3 s\x1b[K");
        let mut out = Vec::new();
        board.wipe(&mut out);
        board.wipe(&mut out);
        assert_eq!(out, b"\r\x1b[K", "once");
    }

    #[test]
    fn a_name_cannot_fill_the_line_or_steer_the_terminal() {
        let work = RunningWork {
            what: "tables".into(),
            step: format!("taking in \x1b[2J{}", "x".repeat(100)),
            done: u64::MAX,
            total: u64::MAX - 1,
            unit: Unit::Parts,
            lasts: Duration::from_secs(100_000),
        };
        let line = work.line();
        assert!(line.len() < 80 && !line.contains('\x1b'), "{line}");
        assert!(line.contains("100 %"));
    }

    #[test]
    fn work_is_on_the_board_until_it_is_dropped() {
        let work = Work::begin("of this test", Unit::Bytes);
        work.at("doing", 1, 2);
        let is_there = || board().works.iter().any(|w| w.what == "of this test");
        assert!(is_there());
        drop(work);
        assert!(!is_there());
    }
}
