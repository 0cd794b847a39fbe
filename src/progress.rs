//! How far long work is: a snapshot, a restore, a large table that is taken in.
//!
//! Whoever works long says so on one board ([`Work`]). On a terminal the board draws a line on
//! standard error and draws over it; without one the work stands in health, `/status` and metrics
//! ([`running`]). What is done within two seconds is shown nowhere.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Shorter work is not worth a word.
const SHOWN_AFTER: Duration = Duration::from_secs(2);

/// The line on a terminal is drawn again no sooner than this.
const DRAWN_EVERY: Duration = Duration::from_millis(100);

/// Characters of the bar.
const WIDTH: u64 = 24;

/// Work of this process, as it is the process that has a terminal.
static BOARD: Mutex<ProgressBoard> = Mutex::new(ProgressBoard::new());

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Bytes,
    /// Parts of a whole whose size is not known otherwise.
    Parts,
}

/// Work under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// "snapshot", "restore", "table item".
    pub what: String,
    /// "copying", "merging".
    pub step: String,
    pub done: u64,
    /// 0: not known.
    pub total: u64,
    pub unit: Unit,
    /// Since it began.
    pub lasts: Duration,
}

struct ProgressBoard {
    works: Vec<ProgressEntry>,
    /// The next work's number.
    next: u64,
    /// Whether standard error is a terminal; asked once.
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

/// Work that may take long; it is over when this is dropped.
pub struct Work(u64);

impl Work {
    pub fn begin(what: &str, unit: Unit) -> Work {
        Work(board().begin(what, unit, Instant::now()))
    }

    /// `done` of `total` of the work's unit; 0 of them where that is not known.
    pub fn at(&self, step: &str, done: u64, total: u64) {
        let mut board = board();
        board.note(self.0, step, (done, total), Instant::now());
        if board.draws() {
            board.draw(Instant::now(), &mut io::stderr());
        }
    }

    /// Whether a person sees it at a terminal.
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

/// Work that has taken longer than two seconds.
pub fn running() -> Vec<Running> {
    board().running(Instant::now())
}

/// The same for health and `/status`.
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

/// Takes the line off the terminal, so that another can be written there.
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

    fn running(&self, now: Instant) -> Vec<Running> {
        let begun = self.works.iter().filter(|work| !work.step.is_empty());
        let works = begun.map(|work| Running {
            what: work.what.clone(),
            step: work.step.clone(),
            done: work.done,
            total: work.total,
            unit: work.unit,
            lasts: now.saturating_duration_since(work.began),
        });
        works.filter(|work| work.lasts >= SHOWN_AFTER).collect()
    }

    /// One line over the one before, of the work that began last.
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

impl Running {
    /// None where that is not known.
    pub fn percent(&self) -> Option<u64> {
        let is_known = self.total > 0 && self.done > 0;
        let percent = || u128::from(self.done) * 100 / u128::from(self.total);
        is_known.then(|| percent().min(100) as u64)
    }

    /// For a terminal, less than 80 characters wide.
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
    fn what_takes_long_is_drawn_over_and_wiped() {
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
        let work = Running {
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
