//! Processes that end when dropped, and the kernel's numbers about them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::process::{Child, Command};

use rustix::process::{Pid, Signal, kill_process};

use crate::Result;

pub struct Process {
    child: Child,
}

impl Process {
    pub fn spawn(command: &mut Command) -> Result<Process> {
        let child = command
            .spawn()
            .map_err(|e| format!("{}: {e}", command.get_program().display()))?;
        Ok(Process { child })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends SIGTERM and waits for the end.
    pub fn stop(mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        self.child.wait()?;
        Ok(())
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    fn status(&self, file: PathBuf, key: &str) -> Result<u64> {
        let text = std::fs::read_to_string(file)?;
        let line = text.lines().find_map(|l| l.strip_prefix(key));
        let number = line.and_then(|l| l.split_whitespace().next()?.parse().ok());
        number.ok_or_else(|| format!("no {key} of process {}", self.id()).into())
    }

    fn proc(&self) -> PathBuf {
        format!("/proc/{}", self.id()).into()
    }

    /// Resident memory.
    pub fn rss_mb(&self) -> Result<f64> {
        Ok(self.status(self.proc().join("status"), "VmRSS:")? as f64 / 1024.0)
    }

    /// Peak of the resident memory.
    pub fn peak_rss_mb(&self) -> Result<f64> {
        Ok(self.status(self.proc().join("status"), "VmHWM:")? as f64 / 1024.0)
    }

    /// Threads, their context switches and their nanoseconds of CPU. The clock behind the usual
    /// CPU times ticks a hundred times a second and would see nothing of an idle process.
    pub fn activity(&self) -> Result<Activity> {
        let mut threads = BTreeMap::new();
        for task in std::fs::read_dir(self.proc().join("task"))? {
            let task = task?;
            let (id, path) = (task.file_name(), task.path());
            // A thread that ended meanwhile does not count.
            let Ok(times) = std::fs::read_to_string(path.join("schedstat")) else {
                continue;
            };
            let mut switches = 0;
            for key in ["voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"] {
                switches += self.status(path.join("status"), key).unwrap_or(0);
            }
            let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
            let cpu_ns = times.split(' ').next().unwrap_or_default().parse()?;
            let name = name.trim().to_owned();
            threads.insert(
                id,
                Thread {
                    name,
                    switches,
                    cpu_ns,
                },
            );
        }
        Ok(Activity { threads })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Thread {
    name: String,
    switches: u64,
    cpu_ns: u64,
}

/// What the threads of a process did, by their kernel ids.
pub struct Activity {
    threads: BTreeMap<OsString, Thread>,
}

impl Activity {
    /// What each thread did since `before`. Threads that ended in between are left out.
    pub fn since(mut self, before: &Activity) -> Activity {
        for (id, thread) in &mut self.threads {
            if let Some(before) = before.threads.get(id) {
                thread.switches -= before.switches;
                thread.cpu_ns -= before.cpu_ns;
            }
        }
        self
    }

    pub fn threads(&self) -> usize {
        self.threads.len()
    }

    pub fn switches(&self) -> u64 {
        self.threads.values().map(|t| t.switches).sum()
    }

    pub fn cpu_ns(&self) -> u64 {
        self.threads.values().map(|t| t.cpu_ns).sum()
    }
}

/// The threads that were awake, and their switches.
impl fmt::Display for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let awake = self.threads.values().filter(|t| t.switches > 0);
        let awake: Vec<String> = awake
            .map(|t| format!("{} {}", t.name, t.switches))
            .collect();
        f.write_str(&awake.join(", "))
    }
}
