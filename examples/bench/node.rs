//! A node that the benchmark follows by its log.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::Result;
use crate::app::App;
use crate::cluster::start_daemon;
use crate::process::Process;

/// Longest wait: a step that takes longer is not going to end.
const PATIENCE: Duration = Duration::from_secs(900);

/// A database and its daemon.
pub struct Node {
    pub db: PathBuf,
    id: u32,
    daemon: Option<Process>,
    /// Number of lines of the log that were read.
    seen: usize,
}

/// A snapshot that the log reports.
pub struct Made {
    pub seconds: f64,
    /// MB of the database, and packed.
    pub sizes: (u64, u64),
}

impl Node {
    pub fn new(dir: &Path, id: u32) -> Result<Node> {
        let home = dir.join(format!("node-{id}"));
        fs::create_dir_all(&home)?;
        let db = home.join("app.db");
        Ok(Node {
            db,
            id,
            daemon: None,
            seen: 0,
        })
    }

    pub fn app(&self) -> Result<App> {
        App::open(&self.db)
    }

    /// Starts the daemon; `more` is the end of its configuration.
    pub fn start(&mut self, address: &str, more: &str) -> Result<()> {
        self.start_with(address, "", more)
    }

    /// The same; `first` begins its configuration, before any section.
    pub fn start_with(&mut self, address: &str, first: &str, more: &str) -> Result<()> {
        self.daemon = Some(start_daemon(&self.db, self.id, address, (first, more))?);
        self.seen = 0;
        Ok(())
    }

    fn process(&mut self) -> Result<&mut Process> {
        self.daemon.as_mut().ok_or_else(|| "no daemon runs".into())
    }

    pub fn peak(&mut self) -> Result<String> {
        Ok(format!("{:.0} MB", self.process()?.peak_rss_mb()?))
    }

    pub fn end(&mut self) -> Result<()> {
        self.daemon.take().map_or(Ok(()), Process::stop)
    }

    /// Asks for a snapshot and waits for it.
    pub fn save(&mut self) -> Result<Made> {
        self.process()?.signal(Signal::USR1)?;
        let line = self.wait_for(" made, because ")?;
        let before = |unit: &str| {
            let (number, _) = line.split_once(unit)?;
            number.rsplit(' ').next()?.parse::<u64>().ok()
        };
        let read = || Some((before(" ms, in ")?, before(" KB, in ")?, before(" KB for")?));
        let (ms, size, packed) = read().ok_or_else(|| format!("no numbers in {line:?}"))?;
        Ok(Made {
            seconds: ms as f64 / 1e3,
            sizes: (size >> 10, packed >> 10),
        })
    }

    /// Waits until the log has a new line with this text in it.
    pub fn wait_for(&mut self, text: &str) -> Result<String> {
        let began = Instant::now();
        let log = self.db.with_file_name("log");
        loop {
            let lines = fs::read_to_string(&log)?;
            let new = lines.lines().skip(self.seen);
            if let Some((n, line)) = new.enumerate().find(|(_, l)| l.contains(text)) {
                self.seen += n + 1;
                return Ok(line.to_owned());
            }
            if began.elapsed() > PATIENCE || !self.process()?.is_running() {
                return Err(format!("no{text}in the log of node {}:\n{lines}", self.id).into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
