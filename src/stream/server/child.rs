//! The process: spawned, listened to and reaped by one thread.
//!
//! It must be one thread for all of the child's life: the signal that ends the child when we die
//! (PR_SET_PDEATHSIG) comes when the *thread* that spawned it ends. The thread's work in between is
//! to pass the server's log lines on.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, select};
use rustix::process::{Pid, Signal};

use super::ServerError;

/// How many of its last lines a death notice quotes.
const LAST_WORDS: usize = 5;
/// In the line that says that a write to a stream failed, as on a full disk. From then on
/// nats-server refuses every message to the stream, however well the disk is again, until it is
/// started anew.
const WRITE_FAILED: &str = "Critical write error";
/// A longer line would be cut; the server's own are short.
const LINE_BYTES: u64 = 64 * 1024;

/// The process by number, as long as it is the same one.
#[derive(Clone)]
pub(super) struct Process {
    pid: u32,
    /// Nothing is ever sent: the thread drops the other end when the child is reaped.
    end: Receiver<()>,
}

impl Process {
    pub(super) fn has_ended(&self) -> bool {
        self.end
            .try_recv()
            .is_err_and(|error| error.is_disconnected())
    }

    /// Not after the end: the number may be another process's by then.
    pub(super) fn signal(&self, which: Signal) {
        if let (false, Ok(pid)) = (self.has_ended(), i32::try_from(self.pid)) {
            // It may just have ended and not be reaped yet.
            let _ = Pid::from_raw(pid).map(|pid| rustix::process::kill_process(pid, which));
        }
    }
}

pub(super) struct Child {
    process: Process,
    words: Arc<Mutex<VecDeque<String>>>,
    refuses: Receiver<()>,
}

impl Child {
    /// `stdin` carries the lock of the store.
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
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        // The terminal's Ctrl-C is for us: the child is stopped in its turn.
        command.process_group(0);
        let parent = rustix::process::getpid();
        // SAFETY: between fork and exec only system calls are made, no memory is allocated.
        unsafe {
            command.pre_exec(move || {
                rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
                // We may have died before that call.
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
        thread::Builder::new()
            .name("nats-server".into())
            .spawn(move || attend(command, &started, &lines, &refused, ended))
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

    /// SIGTERM, then SIGKILL if it does not heed it within `timeout`, or when it is to `hurry`.
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

/// Body of the thread. `ended` is dropped last: it is how the others learn of the end.
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
    // With it goes the copy of the lock that became the child's stdin.
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

/// Logs the server's lines until it closes its end, and keeps the last ones.
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

/// The level at which a line of the server's is logged. It reports each connection and its banner,
/// and warns while servers find each other and elect leaders: all of that is normal for us, and
/// what does not work is said by the threads that need it.
fn as_ours(level: log::Level, text: &str) -> log::Level {
    use log::Level::{Debug, Error, Info, Warn};
    match level {
        Error if text.starts_with("Error trying to connect") => Info, // to a peer that is not up
        Error => Error,
        Warn => Info,
        _ => Debug,
    }
}

/// `[pid] [INF] text`: its level and text. Lines without such a head are complaints at start.
fn sort(line: &str) -> (log::Level, &str) {
    // Meant for people who write the file: ours is generated and for nobody's eyes.
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
    fn what_is_normal_in_a_cluster_is_no_complaint() {
        use log::Level::{Debug, Error, Info};
        for (line, level) in [
            ("[1] [INF] Server is ready", Debug),
            ("[1] [WRN] Waiting for routing to be established...", Info),
            (
                "[1] [ERR] Error trying to connect to route (attempt 1): refused",
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
