//! A server's process: it ends with the test, however that ends.

use std::fs::{self, File};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group, set_parent_process_death_signal};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

pub struct Process {
    child: Child,
    /// Removed after the process.
    pub folder: TempDir,
}

impl Process {
    /// Starts `command` and waits until it listens on `port`.
    pub fn start(mut command: Command, folder: TempDir, port: u16) -> Process {
        let log = folder.path().join("log");
        let output = File::create(&log).unwrap();
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .process_group(0);
        // SAFETY: between fork and exec only a system call is made, no memory is allocated.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        let child = command.spawn();
        let child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut process = Process { child, folder };
        until("it listens", || {
            let ended = process.child.try_wait().unwrap();
            let said = fs::read_to_string(&log).unwrap_or_default();
            assert!(ended.is_none(), "{command:?} ended: {said}");
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
        process
    }

    /// As a machine would lose it.
    pub fn kill(&mut self) {
        let group = Pid::from_child(&self.child);
        let _ = kill_process_group(group, Signal::KILL);
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Tries until there is a result.
pub fn until<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(result) = attempt() {
            return result;
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    panic!("in vain: {what}");
}
