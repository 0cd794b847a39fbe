//! A server's process, which ends with the test even if that panics.

use std::fs::{self, File};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group, set_parent_process_death_signal};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

pub struct Process {
    command: Command,
    port: u16,
    child: Child,
    /// The folder is removed after the process has ended.
    folder: TempDir,
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
        let child = spawn(&mut command);
        let mut process = Process {
            command,
            port,
            child,
            folder,
        };
        process.await_port();
        process
    }

    fn await_port(&mut self) {
        until("it listens", || {
            let ended = self.child.try_wait().unwrap();
            let said = fs::read_to_string(self.folder().join("log")).unwrap_or_default();
            assert!(ended.is_none(), "{:?} ended: {said}", self.command);
            TcpStream::connect(("127.0.0.1", self.port)).ok()
        });
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Stops the process: it answers nothing until [`Process::go_on`].
    pub fn stop(&self) {
        kill_process_group(Pid::from_child(&self.child), Signal::STOP).unwrap();
    }

    pub fn go_on(&self) {
        kill_process_group(Pid::from_child(&self.child), Signal::CONT).unwrap();
    }

    /// Ends the process in good order, with everything written down.
    pub fn end(&mut self) {
        kill_process_group(Pid::from_child(&self.child), Signal::TERM).unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again after [`Process::kill`] or [`Process::end`].
    pub fn start_again(&mut self) {
        self.child = spawn(&mut self.command);
        self.await_port();
    }

    /// Kills the process, as a machine that fails would.
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

fn spawn(command: &mut Command) -> Child {
    let child = command.spawn();
    child.unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Repeats `attempt` until it gives a result.
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
