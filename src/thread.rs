//! The only caller of `std::thread`: every thread has a name, and every end is reported.

use std::fmt;
use std::io::{Write, stderr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;

use crossbeam_channel::Sender;

mod on_demand;

pub use on_demand::OnDemand;

/// How a thread ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It ended without an error.
    Stopped,
    /// It could not go on; the cause.
    Failed(String),
    /// It has a bug; the panic's message.
    Panicked(String),
}

/// A thread's last message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exited {
    /// The thread's name.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
}

impl fmt::Display for Exited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match &self.outcome {
            Outcome::Failed(cause) => write!(f, "{name}: {cause}"),
            Outcome::Panicked(text) => write!(f, "{name} panicked: {text}; please report this"),
            Outcome::Stopped => write!(f, "{name} ended by itself"),
        }
    }
}

/// Runs `body` in a thread of this name (15 bytes at most, as Linux shows it). The thread reports
/// its end to `exits`, even a panic. That channel is unbounded, so the report never blocks. Ends
/// the process if the system gives no thread: nothing is lost by that, and less would be half of
/// the program.
pub fn spawn(
    name: &str,
    exits: &Sender<Exited>,
    body: impl FnOnce() -> Result<(), String> + Send + 'static,
) -> JoinHandle<()> {
    let exits = exits.clone();
    let end = move |name, outcome| drop(exits.send(Exited { name, outcome }));
    begin(name, body, end).unwrap_or_else(|text| {
        log::error!("{text}");
        let _ = writeln!(stderr(), "harmonylite: {text}");
        std::process::exit(1)
    })
}

/// Runs `body` in a short-lived thread; it reports only a failure or a panic to `exits`. Fails if
/// the system gives no thread.
pub fn spawn_brief(
    name: &str,
    exits: &Sender<Exited>,
    body: impl FnOnce() -> Result<(), String> + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    let exits = exits.clone();
    begin(name, body, move |name, outcome| {
        if outcome != Outcome::Stopped {
            let _ = exits.send(Exited { name, outcome });
        }
    })
}

/// Runs `body` in a thread that reports to its owner by itself, and is never joined. Fails if the
/// system gives no thread.
pub fn spawn_detached(name: &str, body: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    builder(name)
        .spawn(body)
        .map(drop)
        .map_err(|e| refused(name, &e))
}

/// Names the cause, which the system's own text does not.
fn refused(name: &str, e: &std::io::Error) -> std::io::Error {
    std::io::Error::other(format!(
        "the system gives no thread for {name}: {e}: perhaps a limit of memory or of threads is \
         too low (ulimit -v and -u, TasksMax and MemoryMax of systemd)"
    ))
}

/// Memory is little where this runs, and a system without overcommitment counts stacks in full.
fn builder(name: &str) -> std::thread::Builder {
    const STACK: usize = 512 << 10;
    std::thread::Builder::new()
        .name(name.to_owned())
        .stack_size(STACK)
}

/// Starts a thread. A failed `end` is ignored: the process may be ending, without a listener.
fn begin(
    name: &str,
    body: impl FnOnce() -> Result<(), String> + Send + 'static,
    end: impl FnOnce(String, Outcome) + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    let own = name.to_owned();
    builder(name)
        .spawn(move || {
            let outcome = match catch_unwind(AssertUnwindSafe(body)) {
                Ok(Ok(())) => Outcome::Stopped,
                Ok(Err(cause)) => Outcome::Failed(cause),
                Err(panic) => Outcome::Panicked(panic_text(&*panic)),
            };
            end(own, outcome);
        })
        .map_err(|e| refused(name, &e))
}

/// Reports panics in builds where a panic ends the process at once (profile `small`): with the same
/// words as elsewhere, where [`spawn`] reports them, and with the exit code of a failure.
pub fn report_panics() {
    if cfg!(panic = "abort") {
        std::panic::set_hook(Box::new(|info| {
            let name = std::thread::current()
                .name()
                .unwrap_or("a thread")
                .to_owned();
            let outcome = Outcome::Panicked(panic_text(info.payload()));
            log::error!("{}", Exited { name, outcome });
            std::process::exit(1);
        }));
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_in_words() {
        let said = |outcome| {
            let name = "nats-server".to_owned();
            Exited { name, outcome }.to_string()
        };
        let none = "no nats-server found".to_owned();
        assert_eq!(
            said(Outcome::Failed(none)),
            "nats-server: no nats-server found"
        );
        assert_eq!(said(Outcome::Stopped), "nats-server ended by itself");
    }

    #[test]
    fn of_a_brief_thread_a_panic_alone_is_reported() {
        let (sender, exits) = crossbeam_channel::unbounded();
        spawn_brief("brief", &sender, || Ok(())).unwrap();
        spawn_brief("brief", &sender, || panic!("bug")).unwrap();
        drop(sender);
        let outcomes: Vec<_> = exits.iter().map(|exited| exited.outcome).collect();
        assert_eq!(outcomes, [Outcome::Panicked("bug".into())]);
    }

    #[test]
    fn every_end_is_reported() {
        let (sender, exits) = crossbeam_channel::unbounded();
        type Body = fn() -> Result<(), String>;
        let ends: [(_, Body); 3] = [
            (Outcome::Stopped, || Ok(())),
            (Outcome::Failed("no disk".into()), || Err("no disk".into())),
            (Outcome::Panicked("bug 7".into()), || panic!("bug {}", 7)),
        ];
        for (outcome, body) in ends {
            spawn("test", &sender, body).join().unwrap();
            assert_eq!(
                exits.recv().unwrap(),
                Exited {
                    name: "test".into(),
                    outcome
                }
            );
        }
    }
}
