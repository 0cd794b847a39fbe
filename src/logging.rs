//! Log lines, for people or for machines.
//!
//! One logger serves the process: standard output, or the file of `logging.file`, the system's log,
//! or both. The last warnings are kept in memory for `/status` ([`recent`]).

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::clock::{Clock, SystemClock};
use crate::config::{LogFormat, Logging};
use crate::progress;

mod file;
mod line;
mod repeated;
mod repeats;
mod syslog;

pub use file::LogFile;
use line::Line;
pub use repeated::{Lasting, Repeated, RepeatedFailure};
pub use repeats::Recent;
use repeats::Repeats;
use syslog::Syslog;

/// Level from which lines of libraries are logged, whatever is configured.
const OF_LIBRARIES: LevelFilter = LevelFilter::Warn;

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Where lines go, and which were logged lately.
struct Logger {
    /// A [`LevelFilter`].
    level: AtomicUsize,
    format: LogFormat,
    /// The node's id; 0: not known yet.
    node: AtomicU64,
    file: Option<LogFile>,
    syslog: Option<Syslog>,
    began: Instant,
    repeats: Mutex<Repeats>,
}

/// Starts logging as configured. Returns the log file, if one is configured; fails if that cannot
/// be opened.
pub fn start(logging: &Logging, node: Option<u64>) -> Result<Option<LogFile>, String> {
    let open = |path: &PathBuf| {
        LogFile::open(path, logging.max_bytes)
            .map_err(|e| format!("logging.file {}: {e}", path.display()))
    };
    let file = logging.file.as_ref().map(open).transpose()?;
    let syslog = logging.syslog.then(|| Syslog::open(syslog::PATH.into()));
    let logger = Logger {
        level: AtomicUsize::new(logging.level as usize),
        format: logging.format,
        node: AtomicU64::new(node.unwrap_or(0)),
        file: file.clone(),
        syslog: syslog
            .transpose()
            .map_err(|e| format!("logging.syslog: {e}"))?,
        began: Instant::now(),
        repeats: Mutex::default(),
    };
    let logger = LOGGER.get_or_init(|| logger);
    log::set_logger(logger).map_err(|e| e.to_string())?;
    log::set_max_level(logging.level.max(OF_LIBRARIES));
    Ok(file)
}

/// Logs this much from now on.
pub fn level_is(level: LevelFilter) {
    if let Some(logger) = LOGGER.get() {
        logger.level.store(level as usize, Ordering::Relaxed);
        log::set_max_level(level.max(OF_LIBRARIES));
    }
}

/// Sets the node's id, if it was not known when logging started.
pub fn node_is(node: u64) {
    if let Some(logger) = LOGGER.get() {
        logger.node.store(node, Ordering::Relaxed);
    }
}

/// The last warnings and errors, at most 20, oldest first.
pub fn recent() -> Vec<Recent> {
    let logger = LOGGER.get();
    logger.map_or(Vec::new(), |logger| logger.repeats().recent())
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        let target = metadata.target();
        let is_ours = target == "harmonylite" || target.starts_with("harmonylite::");
        let most = match is_ours {
            true => self.level.load(Ordering::Relaxed),
            false => OF_LIBRARIES as usize,
        };
        metadata.level() as usize <= most
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let (now_ms, now) = (SystemClock.now_ms(), self.began.elapsed());
        let text = record.args().to_string();
        let say = match record.level() {
            level @ (Level::Warn | Level::Error) => {
                let mut repeats = self.repeats();
                let mut say = repeats.overdue(now);
                say.extend(repeats.heard(level, &text, now, now_ms));
                say
            }
            level => {
                let mut say = self.repeats().overdue(now);
                say.push((level, text));
                say
            }
        };
        for (level, text) in say {
            self.write(level, record.target(), now_ms, &text);
        }
    }

    /// Logs how often each repeated warning came since its last line.
    fn flush(&self) {
        let left = self.repeats().left();
        for (level, text) in left {
            self.write(level, module_path!(), SystemClock.now_ms(), &text);
        }
    }
}

impl Logger {
    fn repeats(&self) -> MutexGuard<'_, Repeats> {
        self.repeats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, level: Level, from: &str, now_ms: i64, text: &str) {
        let line = Line {
            time_ms: now_ms,
            level,
            node: Some(self.node.load(Ordering::Relaxed)).filter(|node| *node != 0),
            from,
            text,
        };
        let full = line.full(self.format);
        // A failure of the log itself cannot be reported anywhere.
        if let Some(mut file) = self.file.as_ref().cloned() {
            let _ = file.write_all(full.as_bytes());
        }
        let is_taken = match &self.syslog {
            Some(syslog) => syslog.send(level, &line.bare(self.format)),
            None => self.file.is_some(),
        };
        if !is_taken {
            progress::wipe();
            let mut out = io::stdout().lock();
            let _ = out.write_all(full.as_bytes()).and_then(|()| out.flush());
        }
    }
}
