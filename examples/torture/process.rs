//! Processes that end with this one, and the kernel's numbers about them.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::Result;

pub struct Process {
    pub name: String,
    child: Child,
}

impl Process {
    /// Runs `words`; its output is appended to `log`.
    pub fn spawn(name: &str, words: &[String], log: &Path) -> Result<Process> {
        let file = File::options().create(true).append(true).open(log)?;
        let (program, arguments) = words.split_first().ok_or("no command")?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        command.stdout(file.try_clone()?).stderr(file);
        let parent = rustix::process::getpid();
        // SAFETY: between fork and exec only system calls are made, no memory is allocated.
        unsafe {
            command.pre_exec(move || {
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
                if rustix::process::getppid() != Some(parent) {
                    return Err(rustix::io::Errno::SRCH.into());
                }
                Ok(())
            });
        }
        let child = command.spawn().map_err(|e| format!("{program}: {e}"))?;
        Ok(Process {
            name: name.to_owned(),
            child,
        })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Fails if the process ended by itself: that is a bug in any case.
    pub fn must_run(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(format!("{} ended by itself: {status}", self.name).into()),
        }
    }

    /// Kills the process, which must run until then, and waits until it is gone.
    pub fn kill(mut self) -> Result<()> {
        self.must_run()
    }

    /// Sends SIGTERM, and fails if the process ends with an error.
    pub fn stop(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let status = self.child.wait()?;
        if !status.success() {
            return Err(format!("{} ended with {status}", self.name).into());
        }
        Ok(())
    }

    /// Children of the process, such as a daemon's own nats-server.
    pub fn children(&self) -> Vec<i32> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.id()));
        let texts = tasks.into_iter().flatten().flatten();
        let texts = texts.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
        let numbers = |text: String| -> Vec<i32> {
            text.split_whitespace()
                .filter_map(|n| n.parse().ok())
                .collect()
        };
        texts.flat_map(numbers).collect()
    }

    pub fn kill_child(&self, pid: i32) {
        if let (true, Some(pid)) = (self.children().contains(&pid), Pid::from_raw(pid)) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    /// A line of /proc/PID/status in kB: VmRSS is the present memory, VmHWM its peak.
    pub fn memory_kb(&self, key: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix(key));
        line.and_then(|l| {
            l.trim_start_matches(':')
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .unwrap_or(0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
