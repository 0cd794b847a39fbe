//! The nats-server process: one thread spawns it, reads its log and reaps it.
//!
//! The same thread must do this for the whole life of the child. The signal that ends the child
//! when the daemon dies (PR_SET_PDEATHSIG) is sent when the *thread* that spawned it ends. In
//! between, the thread passes on the server's log lines.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, select};
use rustix::process::{Pid, Signal};

use super::ServerError;
use crate::thread::spawn_detached;

/// Number of log lines that the report of an exit quotes.
const LAST_WORDS: usize = 5;
/// Part of the line that reports a failed write to a stream, for example on a full disk. After it,
/// nats-server refuses every message to the stream until it is restarted, even if the disk works
/// again.
const WRITE_FAILED: &str = "Critical write error";
/// Longer lines are split; the server's own lines are short.
const LINE_BYTES: u64 = 64 * 1024;

/// The process id, valid while the process has not been reaped.
#[derive(Clone)]
pub(super) struct Process {
    pid: u32,
    /// Nothing is ever sent. The thread drops the sender when it has reaped the child.
    end: Receiver<()>,
}

impl Process {
    pub(super) fn has_ended(&self) -> bool {
        self.end
            .try_recv()
            .is_err_and(|error| error.is_disconnected())
    }

    /// Sends a signal, unless the process has ended: its number may belong to a different process
    /// then.
    pub(super) fn signal(&self, which: Signal) {
        if let (false, Ok(pid)) = (self.has_ended(), i32::try_from(self.pid)) {
            // The process may have ended and not be reaped yet.
            let _ = Pid::from_raw(pid).map(|pid| rustix::process::kill_process(pid, which));
        }
    }
}

/// /dev/null, opened here: a failure inside [`Command`] would be reported as one of the program.
pub(super) fn null() -> Result<Stdio, ServerError> {
    device(Path::new("/dev/null"))
}

fn device(path: &Path) -> Result<Stdio, ServerError> {
    let opened = File::options().read(true).write(true).open(path);
    Ok(opened.map_err(ServerError::io("open", path))?.into())
}

pub(super) struct Child {
    process: Process,
    words: Arc<Mutex<VecDeque<String>>>,
    refuses: Receiver<()>,
}

impl Child {
    /// Starts the process. `stdin` carries the lock of the store.
    pub(super) fn spawn(
        binary: &Path,
        arguments: &[String],
        stdin: File,
    ) -> Result<Child, ServerError> {
        let mut command = Command::new(binary);
        command
            .arg0("nats-server") // its file of ports is named after that
            .args(arguments)
            .stdin(stdin)
            .stdout(null()?)
            .stderr(Stdio::piped());
        // Ctrl-C in the terminal is for the daemon, which then stops the child.
        command.process_group(0);
        let parent = rustix::process::getpid();
        // SAFETY: between fork and exec the closure only makes system calls and allocates no
        // memory.
        unsafe {
            command.pre_exec(move || {
                rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
                // The daemon may have died before that call.
                if rustix::process::getppid() != Some(parent) {
                    return Err(rustix::io::Errno::SRCH.into());
                }
                Ok(())
            });
        }
        let words = Arc::<Mutex<VecDeque<String>>>::default();
        let (started, result) = bounded(1);
        let (ended, end) = bounded(0);
        let (refused, refuses) = bounded(1);
        let lines = Arc::clone(&words);
        let run = move || attend(command, &started, &lines, &refused, ended);
        spawn_detached("nats-server", run)
            .map_err(ServerError::io("start a thread for", binary))?;
        let pid = result
            .recv()
            .unwrap_or_else(|_| Err(std::io::Error::other("its thread ended")))
            .map_err(ServerError::io("run", binary))?;
        Ok(Child {
            process: Process { pid, end },
            words,
            refuses,
        })
    }

    pub(super) fn process(&self) -> &Process {
        &self.process
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.pid
    }

    pub(super) fn end(&self) -> &Receiver<()> {
        &self.process.end
    }

    pub(super) fn refuses(&self) -> &Receiver<()> {
        &self.refuses
    }

    pub(super) fn last_words(&self) -> String {
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        words
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join("; ")
    }

    pub(super) fn exited(&self) -> Option<String> {
        self.process.has_ended().then(|| self.last_words())
    }

    /// Sends SIGTERM. Sends SIGKILL if the process does not end within `timeout`, or when `hurry`
    /// fires; returns true in the latter case.
    pub(super) fn stop(self, hurry: &Receiver<()>, timeout: Duration) -> bool {
        self.process.signal(Signal::TERM);
        let hurried = select! {
            recv(self.end()) -> _ => return false,
            recv(hurry) -> _ => true,
            default(timeout) => false,
        };
        log::warn!("nats-server (pid {}) does not stop: killing it", self.pid());
        self.process.signal(Signal::KILL);
        let _ = self.end().recv();
        hurried
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.process.signal(Signal::TERM);
    }
}

/// Body of the thread. It drops `ended` last, which reports the end to the other threads.
fn attend(
    mut command: Command,
    started: &Sender<std::io::Result<u32>>,
    words: &Mutex<VecDeque<String>>,
    refused: &Sender<()>,
    ended: Sender<()>,
) {
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return drop(started.send(Err(error))),
    };
    // This also closes the parent's copy of the lock that is the child's stdin.
    drop(command);
    let stderr = child.stderr.take();
    let _ = started.send(Ok(child.id()));
    if let Some(stderr) = stderr {
        pass_on(stderr, words, refused);
    }
    let how = match child.wait() {
        Ok(status) => status.to_string(),
        Err(error) => format!("lost: {error}"),
    };
    keep(
        words,
        format!("nats-server (pid {}) ended: {how}", child.id()),
    );
    drop(ended);
}

/// Logs the server's lines until it closes stderr, and keeps the last ones.
fn pass_on(stderr: impl Read, words: &Mutex<VecDeque<String>>, refused: &Sender<()>) {
    let mut reader = BufReader::new(stderr);
    let mut line = Vec::new();
    while matches!(
        (&mut reader).take(LINE_BYTES).read_until(b'\n', &mut line),
        Ok(1..)
    ) {
        let text = String::from_utf8_lossy(&line);
        let (level, text) = sort(text.trim_end());
        if !text.is_empty() {
            log::log!(as_ours(level, text), "nats-server: {text}");
        }
        if level <= log::Level::Warn {
            keep(words, text.to_string());
        }
        if text.contains(WRITE_FAILED) {
            let _ = refused.try_send(()); // once is enough
        }
        line.clear();
    }
}

fn keep(words: &Mutex<VecDeque<String>>, text: String) {
    let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
    if words.len() == LAST_WORDS {
        words.pop_front();
    }
    words.push_back(text);
}

/// The level at which to log a line of the server. The server reports each connection and prints a
/// banner, and it warns while servers find each other and elect leaders. All of that is normal
/// here. The threads that need the server report what does not work.
fn as_ours(level: log::Level, text: &str) -> log::Level {
    use log::Level::{Debug, Error, Info, Warn};
    match level {
        Error if text.starts_with("Error trying to connect") => Info, // to a peer that is not up
        Error if text.contains(" - Error flushing: ") => Info, // to a peer or client that ended
        Error => Error,
        Warn => Info,
        _ => Debug,
    }
}

/// Splits `[pid] [INF] text` into level and text. Lines without such a head are complaints at the
/// start.
fn sort(line: &str) -> (log::Level, &str) {
    // Addresses people who write the file by hand; this one is generated.
    if line.contains("Plaintext passwords detected") {
        return (log::Level::Debug, line);
    }
    let levels = [
        ("[FTL]", log::Level::Error),
        ("[ERR]", log::Level::Error),
        ("[WRN]", log::Level::Warn),
        ("[INF]", log::Level::Info),
        ("[DBG]", log::Level::Debug),
        ("[TRC]", log::Level::Trace),
    ];
    for (mark, level) in levels {
        if let Some((_, text)) = line.split_once(mark) {
            return (level, text.trim_start());
        }
    }
    (log::Level::Warn, line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_without_dev_null_is_told_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("null");
        let missing = device(&path).unwrap_err().to_string();
        let named = format!("open {}: No such file or directory", path.display());
        assert!(missing.contains(&named), "{missing}");
        assert!(null().is_ok());
    }

    #[test]
    fn a_failed_write_is_told() {
        let (refused, refuses) = bounded(1);
        let hear = |line: &str| pass_on(line.as_bytes(), &Mutex::default(), &refused);
        hear("[1] [ERR] JetStream failed to store a msg on stream 'a': something\n");
        assert!(refuses.try_recv().is_err());
        let full = "Critical write error: write 1.blk: no space left on device";
        hear(&format!(
            "[1] [ERR] Filestore [a] {full}\n[1] [ERR] {full}\n"
        ));
        assert!(refuses.try_recv().is_ok());
    }

    #[test]
    fn a_line_that_is_normal_in_a_cluster_is_no_complaint() {
        use log::Level::{Debug, Error, Info};
        for (line, level) in [
            ("[1] [INF] Server is ready", Debug),
            ("[1] [WRN] Waiting for routing to be established...", Info),
            (
                "[1] [ERR] Error trying to connect to route (attempt 1): refused",
                Info,
            ),
            (
                "[1] [ERR] 127.0.0.1:1 - rid:23 - Error flushing: writev: connection reset by peer",
                Info,
            ),
            (
                "[1] [ERR] Critical write error: no space left on device",
                Error,
            ),
            ("[1] [FTL] port is in use", Error),
        ] {
            let (theirs, text) = sort(line);
            assert_eq!(as_ours(theirs, text), level, "{line}");
        }
    }

    #[test]
    fn lines_by_level() {
        assert_eq!(
            sort("[12] [ERR] bad thing"),
            (log::Level::Error, "bad thing")
        );
        assert_eq!(
            sort("[12] [INF] Server is ready"),
            (log::Level::Info, "Server is ready")
        );
        assert_eq!(sort("[12] [INF]"), (log::Level::Info, ""));
        assert_eq!(
            sort("nats-server: no such file"),
            (log::Level::Warn, "nats-server: no such file")
        );
    }
}
