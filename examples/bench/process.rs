//! Processes that end when dropped, and the kernel's numbers about them.

use std::collections::BTreeMap;
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
        let mut sum = Activity::default();
        for task in std::fs::read_dir(self.proc().join("task"))? {
            let task = task?.path();
            // A thread that ended meanwhile does not count.
            let Ok(times) = std::fs::read_to_string(task.join("schedstat")) else {
                continue;
            };
            let mut switches = 0;
            for key in ["voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"] {
                switches += self.status(task.join("status"), key).unwrap_or(0);
            }
            let name = std::fs::read_to_string(task.join("comm")).unwrap_or_default();
            sum.threads += 1;
            sum.switches += switches;
            *sum.by_name.entry(name.trim().to_owned()).or_default() += switches;
            let cpu = times.split(' ').next().unwrap_or_default();
            sum.cpu_ns += cpu.parse::<u64>()?;
        }
        Ok(sum)
    }
}

#[derive(Default)]
pub struct Activity {
    pub threads: u64,
    pub switches: u64,
    pub cpu_ns: u64,
    /// Switches by the thread's name.
    by_name: BTreeMap<String, u64>,
}

impl Activity {
    /// The switches of each thread that was awake since `before`, for people.
    pub fn since(&self, before: &Activity) -> String {
        let known = |name: &String| before.by_name.get(name).copied().unwrap_or(0);
        let all = self
            .by_name
            .iter()
            .map(|(name, n)| (name, n.saturating_sub(known(name))));
        let awake = all.filter(|(_, n)| *n > 0);
        let awake: Vec<String> = awake.map(|(name, n)| format!("{name} {n}")).collect();
        awake.join(", ")
    }
}

impl std::iter::Sum for Activity {
    fn sum<I: Iterator<Item = Activity>>(all: I) -> Activity {
        all.fold(Activity::default(), |a, b| Activity {
            threads: a.threads + b.threads,
            switches: a.switches + b.switches,
            cpu_ns: a.cpu_ns + b.cpu_ns,
            by_name: BTreeMap::new(),
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
